"""The agent as a process of the host at the real kubelet's root, and what it has left behind there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.go_tools import Progress
from tests.mounted import mount_points
from tests.ports import free_port
from tests.processes import end

from . import chart, signing
from .cluster import Cluster
from .layout import NODE
from .signing import ROOT, TRUST_DOMAIN, SignerProcess
from .waiting import wait_for


@dataclass(frozen=True)
class Agent:
    """The agent under test and what it may leave behind."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    log: Path
    url: str
    sockets: frozenset[str]

    def check(self) -> None:
        """Fail the test if the agent has ended."""
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]

    def gauge(self, name: str) -> float:
        """That metric, which has no labels."""
        return gauge(self.url, name)

    def volumes(self) -> float:
        """The metric of published volumes."""
        return self.gauge("podsvid_volumes")

    def left(self, pods: Path, *uids: str) -> list[str]:
        """What is there still of these pods, below kubelet's `pods`, and of its journal, and sockets of pods."""
        mounts = [each for uid in uids for each in mounts_at(pods / uid)]
        journal = [str(path) for path in files_below(self.run_dir / "journal")]
        own = [path.name for path in files_below(self.run_dir) if path.is_socket() and path.name not in self.sockets]
        return [*mounts, *journal, *own, *(str(path) for path in files_below(pods) if path.is_socket())]


def gauge(url: str, name: str) -> float:
    """A metric without labels that a process shows at `url`."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


@contextmanager
def agent_process(cluster: Cluster, name: str, sockets: set[str], *flags: str) -> Iterator[Agent]:
    """Run it until left; `sockets` are its own, by name."""
    home = cluster.directory / name
    home.mkdir()
    listen = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "podsvid", "agent", *flags]
    command += ["--trust-domain", TRUST_DOMAIN, "--node-name", NODE, "--kubelet-root", str(cluster.kubelet_root)]
    command += ["--state-dir", str(home / "state"), "--run-dir", str(home / "run")]
    command += ["--metrics-listen", listen]
    log = cluster.logs / f"{name}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=cluster.child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Agent(process, home / "run", log, f"http://{listen}", frozenset(sockets))
    finally:
        end(process)


@contextmanager
def agent_of_signer(cluster: Cluster, progress: Progress, name: str, signer: SignerProcess) -> Iterator[Agent]:
    """One that has its SVIDs from `signer`, with a pod on this node that its token is bound to, as a DaemonSet's is."""
    body = signing.pod(cluster, name, NODE, "podsvid-agent", namespace=signing.NAMESPACE, driver=None)
    flags = signing.agent_flags(cluster, progress, signer, body)
    with agent_process(cluster, name, {"admin.sock", "to-signer.sock"}, *flags) as running:
        yield running
    cluster.api.delete(f"/api/v1/namespaces/{signing.NAMESPACE}/pods/{name}", grace_seconds=0)


def register(cluster: Cluster, agent: Agent, progress: Progress) -> str:
    """The driver's name, once the API server knows it and kubelet has registered it."""
    (definition,) = (each for each in chart.render(f"trustDomain={TRUST_DOMAIN}") if each["kind"] == "CSIDriver")
    cluster.api.apply([definition])
    name = str(definition["metadata"]["name"])

    def registered() -> bool:
        found = cluster.api.find(f"/apis/storage.k8s.io/v1/csinodes/{NODE}") or {}
        return name in [each["name"] for each in found.get("spec", {}).get("drivers") or []]

    wait_for("kubelet to register the driver", registered, progress=progress, alive=agent.check)
    return name


def files_below(folder: Path) -> Iterator[Path]:
    """All that is no folder, but for what kubelet or the agent removes meanwhile."""
    for path, _, names in os.walk(folder):
        yield from (Path(path) / name for name in names)


def mounts_at(folder: Path) -> list[str]:
    """Where something is mounted below a folder."""
    return [point for point in mount_points() if point.startswith(f"{folder}/")]
