"""The cluster itself: a pod without an identity runs to its end."""

from __future__ import annotations

import pytest

from tests.go_tools import Progress

from .cluster import Cluster
from .image import TEST_IMAGE
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)


def test_a_plain_pod_runs_to_its_end(cluster: Cluster, progress: Progress) -> None:
    cluster.pods.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "plain"},
            "spec": {
                "hostNetwork": True,
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "main",
                        "image": TEST_IMAGE,
                        "imagePullPolicy": "Never",
                        "args": ["-c", "id -u; openssl version"],
                        "securityContext": {"runAsUser": 10001, "runAsGroup": 10001},
                    }
                ],
            },
        }
    )

    def succeeded() -> bool | str:
        phase = (cluster.pods.find("plain") or {})["status"].get("phase", "")
        assert phase != "Failed", cluster.pods.describe("plain")
        return True if phase == "Succeeded" else str(phase)

    wait_for("the plain pod to end", succeeded, progress=progress)
    log = cluster.pods.log("plain").splitlines()
    assert log[0] == "10001"
    assert log[1].startswith("OpenSSL")
