"""Pods with a volume of podsvid, and handshakes between them without a pause."""

from __future__ import annotations

import random
import threading
from datetime import datetime
from pathlib import Path

from svid.certificates import certificates_from_pem

from .api import Object
from .cluster import Cluster
from .fleet import handshake
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
    pod = cluster.pods.find(name) or {}
    phase = str(pod.get("status", {}).get("phase", "not there"))
    return True if phase == "Running" else phase


def target(cluster: Cluster, name: str) -> Path:
    pod = cluster.pods.find(name)
    assert pod is not None
    uid = str(pod["metadata"]["uid"])
    return volume(cluster, uid)


def volume(cluster: Cluster, uid: str) -> Path:
    """Where a pod has its volume `identity`."""
    return cluster.kubelet_root / "pods" / uid / "volumes/kubernetes.io~csi/identity/mount"


def serial(folder: Path) -> int:
    return certificates_from_pem((folder / "tls.crt").read_bytes())[0].serial_number


class Traffic:
    """Handshakes between random pairs of volumes, by the files that they have, one after another, from a thread."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._rng = random.Random(1)
        self._stop = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        """Go on until `stop`. What fails is kept in `failures`, with its time and the two pods."""
        # A pause, or the handshakes would have a core for themselves.
        while not self._stop.wait(0.002):
            self.once()

    def once(self) -> None:
        """One of them."""
        one, other = self._rng.sample(self._folders, 2)
        try:
            handshake(one, other)
        except Exception as error:
            self.failures.append(f"{datetime.now()} {one.parts[-5][:8]} {other.parts[-5][:8]}: {error!r}")
        self.done += 1

    def stop(self) -> None:
        self._stop.set()
