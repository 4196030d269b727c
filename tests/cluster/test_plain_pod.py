"""The cluster itself: a pod without an identity runs to its end."""

from __future__ import annotations

import pytest

from .binaries import Progress
from .harness import Cluster, wait_for
from .image import TEST_IMAGE

pytestmark = pytest.mark.timeout(5400)


def test_a_plain_pod_runs_to_its_end(cluster: Cluster, progress: Progress) -> None:
    cluster.create_pod(
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
        phase = (cluster.pod("plain") or {})["status"].get("phase", "")
        assert phase != "Failed", cluster.describe_pod("plain")
        return True if phase == "Succeeded" else str(phase)

    wait_for("the plain pod to end", succeeded, progress=progress)
    log = cluster.pod_log("plain").splitlines()
    assert log[0] == "10001"
    assert log[1].startswith("OpenSSL")
