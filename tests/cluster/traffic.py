"""Pods with a volume of podsvid, and handshakes between them without a pause."""

from __future__ import annotations

import random
import time
from pathlib import Path

from svid.certificates import certificates_from_pem

from .api import Object
from .fleet import handshake
from .harness import Cluster
from .image import TEST_IMAGE
from .installation import DRIVER


def workload(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "traffic"}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "main",
                    "image": TEST_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-ec", "[ -s /identity/tls.crt ]; trap 'exit 0' TERM; sleep 100000 & wait"],
                    "volumeMounts": [{"name": "identity", "mountPath": "/identity", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "identity", "csi": {"driver": DRIVER, "readOnly": True}}],
        },
    }


def running(cluster: Cluster, name: str) -> bool | str:
    pod = cluster.pod(name) or {}
    phase = str(pod.get("status", {}).get("phase", "not there"))
    return True if phase == "Running" else phase


def target(cluster: Cluster, name: str) -> Path:
    pod = cluster.pod(name)
    assert pod is not None
    uid = str(pod["metadata"]["uid"])
    return cluster.kubelet_root / "pods" / uid / "volumes/kubernetes.io~csi/identity/mount"


def serial(folder: Path) -> int:
    return certificates_from_pem((folder / "tls.crt").read_bytes())[0].serial_number


class Traffic:
    """Handshakes between random pairs of pods, by the files that they have, from a thread."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._rng = random.Random(1)
        self._stop = False
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._stop:
            one, other = self._rng.sample(self._folders, 2)
            try:
                handshake(one, other)
            except Exception as error:
                self.failures.append(repr(error))
            self.done += 1
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop = True
