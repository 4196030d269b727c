"""kill -9 and SIGSTOP of every part of a real cluster, podsvid's own and Kubernetes', one after another.

Running pods keep an SVID that is valid, by handshakes without a pause; new pods get theirs by themselves afterwards;
what is deleted leaves nothing.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.go_tools import Progress

from . import product_image
from .api import ApiError
from .chart import CHART
from .cluster import Cluster
from .host import ClusterError
from .installation import NAMESPACE, component, empty, release, settings, volumes_of_podsvid
from .traffic import Traffic, running, serial, target, workload
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)
# PODSVID_LONG=1: more of each, in another order.
ROUNDS = 4 if os.environ.get("PODSVID_LONG") else 1
PODS = 6
# Of each signer, as where its container has two cores.
WORKERS = 2
# Renewal comes between 48 and 60 s, so no fault may last longer than a minute for a running pod.
TTL = "2m"
TRUST_DOMAIN = "cluster.test"
Fault = Callable[[Cluster], AbstractContextManager[None]]


def _component_killed(name: str) -> Fault:
    return lambda cluster: cluster.killed(name)


def _component_stopped(name: str) -> Fault:
    return lambda cluster: cluster.paused(name)


@contextmanager
def _process_killed(cluster: Cluster, name: str) -> Iterator[None]:
    """kubelet starts the container again."""
    os.kill(_process(cluster, name), signal.SIGKILL)
    yield


@contextmanager
def _process_stopped(cluster: Cluster, name: str) -> Iterator[None]:
    pid = _process(cluster, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _process(cluster: Cluster, name: str) -> int:
    return cluster.pods.process(component(cluster, name)[0]["metadata"]["name"], NAMESPACE)


@contextmanager
def _worker_killed(cluster: Cluster) -> Iterator[None]:
    """The signer starts another one."""
    pid = _process(cluster, "signer")
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(found) == WORKERS
    os.kill(int(found[0]), signal.SIGKILL)
    yield


FAULTS: dict[str, Fault] = {
    "kill -9 of the agent": lambda cluster: _process_killed(cluster, "agent"),
    "SIGSTOP of the agent": lambda cluster: _process_stopped(cluster, "agent"),
    "kill -9 of a signer": lambda cluster: _process_killed(cluster, "signer"),
    "SIGSTOP of a signer": lambda cluster: _process_stopped(cluster, "signer"),
    "kill -9 of a signer's worker": _worker_killed,
    "kill -9 of kubelet": _component_killed("kubelet"),
    "kill -9 of containerd": _component_killed("containerd"),
    "kill -9 of the API server": _component_killed("kube-apiserver"),
    "SIGSTOP of the API server": _component_stopped("kube-apiserver"),
    "kill -9 of etcd": _component_killed("etcd"),
}


@pytest.fixture(scope="module")
def installed(cluster: Cluster, images: dict[str, str], progress: Progress) -> Iterator[None]:
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    try:
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
                *settings(cluster, images["now"], TRUST_DOMAIN), "--set", f"ttl.x509={TTL}",
                "--set", f"signer.settings.workers={WORKERS}")  # fmt: skip
        yield
    finally:
        for pod in cluster.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dtraffic")["items"]:
            cluster.pods.delete(pod["metadata"]["name"])
        empty(cluster)


def test_every_part_is_killed_or_stopped_once(cluster: Cluster, installed: None, progress: Progress) -> None:
    rng = random.Random(3)
    names = [f"chaos-{number}" for number in range(PODS)]
    for name in names:
        cluster.pods.create(workload(name))
    for name in names:
        wait_for(name, lambda name=name: running(cluster, name), progress=progress)  # type: ignore[misc]
    folders = [target(cluster, name) for name in names]
    first = [serial(folder) for folder in folders]
    traffic = Traffic(folders)
    driving = threading.Thread(target=traffic.run, daemon=True)
    driving.start()
    try:
        for number in range(ROUNDS):
            for what in FAULTS if number == 0 else rng.sample(sorted(FAULTS), len(FAULTS)):
                began = time.monotonic()
                with FAULTS[what](cluster):
                    time.sleep(rng.uniform(0.5, 8.0))
                lasted = time.monotonic() - began
                _well(cluster, what, names, progress)
                took = time.monotonic() - began - lasted
                progress(f"{what}, {lasted:.0f} s: well again after {took:.0f} s; {traffic.done} handshakes")
                assert traffic.failures == [], what
        wait_for(
            "every SVID to be renewed",
            lambda: not set(first) & {serial(folder) for folder in folders},
            progress=progress,
        )
    finally:
        traffic.stop()
        driving.join()
    assert traffic.failures == []
    assert traffic.done > 100
    for name in names:
        cluster.pods.delete(name)
    # Without a grace period they are gone from the API before kubelet has taken their volumes down.
    wait_for("the pods' volumes to be gone", lambda: volumes_of_podsvid(cluster) == [], progress=progress)


def _well(cluster: Cluster, what: str, names: list[str], progress: Progress) -> None:
    """The cluster works again: everything is ready, a new pod gets an identity and leaves nothing."""

    def guarded(ask: Callable[[], bool | str]) -> Callable[[], bool | str]:
        def asked() -> bool | str:
            try:
                return ask()
            except (ApiError, OSError, ClusterError) as error:
                return str(error)[:200]

        return asked

    def parts() -> bool | str:
        for kind in ("agent", "signer"):
            for pod in component(cluster, kind):
                found = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
                if found.get("Ready") != "True":
                    return f"{pod['metadata']['name']} is not ready"
        return True

    def new_pod() -> bool | str:
        if cluster.pods.find("chaos-new") is None:
            cluster.pods.create(workload("chaos-new"))
        return running(cluster, "chaos-new")

    def gone() -> bool | str:
        if cluster.pods.find("chaos-new") is not None:
            cluster.pods.delete("chaos-new")
            return "it is there"
        left = len(volumes_of_podsvid(cluster))
        return True if left == len(names) else f"{left} volumes for {len(names)} pods"

    for wanted, ask in (
        ("the cluster", cluster.ready),
        ("podsvid", parts),
        ("a new pod", new_pod),
        ("the new pod to leave nothing", gone),
    ):
        wait_for(f"{wanted} after {what}", guarded(ask), progress=progress)
    assert all(running(cluster, name) is True for name in names)
