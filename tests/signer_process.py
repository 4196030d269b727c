"""A signer in a process of its own, at an API server in memory that takes its time for a TokenReview.

python -m tests.signer_process FOLDER PODS NODES MILLISECONDS PORT [FLAG ...]: until it is ended; FOLDER/site.json tells
who.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import log
from runtime.clock import SystemClock
from runtime.tls import require_tls13
from signer.cluster.kube import Object
from signer.pod_certificate_settings import SIGNER_NAME

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from tests.signer_rig import Site

# What it logs: all, where this is not set.
LEVEL = "PODSVID_LOG_LEVEL"
# Reviews take so long, in milliseconds.
REVIEW = 2.0
START_SECONDS = 90.0
# Seconds: nobody brings newer ones.
TOKEN_LIFE = 86_400.0
# Pods that have podCertificate sources, of all nodes.
CROWD = 500
_BATCH = 10
_REQUESTS = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests"
SECRET = "/api/v1/namespaces/podsvid/secrets/podsvid-authority"


@contextmanager
def process(
    folder: Path,
    pods: int,
    nodes: int,
    port: int,
    *flags: str,
    profile: Path | None = None,
    within: Callable[..., list[str]] = lambda *command: list(command),
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A running signer and what it wrote about itself; `profile` is where cProfile writes at its end.

    `within` makes its command one that starts it elsewhere, in a cgroup say. It writes FOLDER/metrics.txt at SIGUSR1.
    With --pod-certificates kubelets ask for all pods of `CROWD`, of podsvid at SIGUSR2, of another signer at SIGHUP.
    """
    site = folder / "site.json"
    site.unlink(missing_ok=True)
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    command = [
        sys.executable,
        *profiler,
        "-m",
        "tests.signer_process",
        str(folder),
        str(pods),
        str(nodes),
        str(REVIEW),
        str(port),
    ]
    with (folder / "signer.log").open("ab") as log:
        running = subprocess.Popen(within(*command, *flags), stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_SECONDS
        while not site.exists():
            if running.poll() is not None or time.monotonic() > until:
                raise RuntimeError((folder / "signer.log").read_text()[-2000:])
            time.sleep(0.05)
        yield running, json.loads(site.read_text())
    finally:
        # One that is still starting does not look for a signal to end.
        if site.exists():
            running.terminate()
        else:
            running.kill()
        running.wait()


def slow(site: "Site", seconds: float) -> None:
    """Let every TokenReview take that long."""
    create = site.kube.create

    async def later(path: str, body: Object) -> Object:
        if path.endswith("/tokenreviews"):
            await asyncio.sleep(seconds)
        return await create(path, body)

    site.kube.create = later  # type: ignore[method-assign]


def populated(folder: Path, pods: int, nodes: int) -> tuple["Site", Mapping[str, object]]:
    """Pods on nodes, and everybody's tokens. What an earlier process wrote is taken over, the authorities too."""
    from tests.signer_rig import Site

    # The tokens' times are part of them: those of an earlier process must stay good.
    begun = folder / "begun"
    if not begun.exists():
        begun.write_text(datetime.now(UTC).replace(microsecond=0).isoformat())
    site = Site(datetime.fromisoformat(begun.read_text()))
    names = [f"node-{number}" for number in range(nodes)]
    for name in names:
        # A signer waits for agents that there are: without their pods it would take every step at once.
        site.pod(
            f"agent-{name}",
            node=name,
            account="podsvid-agent",
            namespace="podsvid",
            uid=f"agent-uid-{name}",
            driver=None,
        )
    agents = [site.agent(name, TOKEN_LIFE) for name in names]
    found = []
    for number in range(pods):
        account, node = f"account-{number}", names[number % nodes]
        claim = site.pod(f"p{number}", node=node, uid=f"uid-{number}", account=account)
        token = site.token(claim, node=node, account=account, life=TOKEN_LIFE)
        found.append([claim.namespace, claim.name, claim.uid, token, number % nodes, account])
    kept = folder / "secret.json"
    if kept.exists():
        site.kube.put(SECRET, json.loads(kept.read_text()))
    return site, {"agents": agents, "pods": found}


class Kubelets:
    """Those of all nodes ask for the certificates of their `CROWD` of pods, again and again if told so."""

    def __init__(self, site: "Site", nodes: int) -> None:
        from tests import pod_certificates

        self._kube, self._asked, self._bodies = site.kube, 0, list[Object]()
        for number in range(CROWD):
            node, name = f"node-{number % nodes}", f"certified-{number}"
            site.pod(name, node=node, uid=f"certified-uid-{number}", driver=None)
            path = f"/api/v1/namespaces/default/pods/{name}"
            pod = site.kube.objects[path]
            pod["spec"]["volumes"] = [{"name": "a", "projected": {"sources": [pod_certificates.source()]}}]
            site.kube.put(path, pod)
            account, on = ({"metadata": {"name": each, "uid": f"uid-{each}"}} for each in ("web", node))
            self._bodies.append(pod_certificates.body(pod, account, on)["spec"])
        site.kube.put("/api/v1/namespaces/default/serviceaccounts/web", {"metadata": {"uid": "uid-web"}})

    async def ask(self, signer: str) -> None:
        """As a watch brings it: all at once, and not all in one turn. Those of before are gone.

        What another signer decides is decided at once.
        """
        for number in range(self._asked):
            self._kube.remove(f"{_REQUESTS}/req-{number + 1}")
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0.001)
        self._asked = 0
        for number, spec in enumerate(self._bodies):
            self._asked += 1
            path, request = f"{_REQUESTS}/req-{self._asked}", {"spec": {**spec, "signerName": signer}}
            self._kube.put(path, request)
            if signer != SIGNER_NAME:
                issued = {"type": "Issued", "status": "True", "reason": "Issued", "message": ""}
                self._kube.put(path, {**request, "status": {"conditions": [issued], "certificateChain": "x" * 1500}})
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0.001)


def told(registry: "CollectorRegistry", file: Path) -> None:
    """Write down the metrics."""
    from prometheus_client import generate_latest

    new = file.with_suffix(".new")
    new.write_bytes(generate_latest(registry))
    new.rename(file)


async def main(folder: Path, pods: int, nodes: int, milliseconds: float, port: int, flags: Sequence[str] = ()) -> None:
    from tests.signer_rig import serving

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    site, known = populated(folder, pods, nodes)
    slow(site, milliseconds / 1000)
    asking = set[asyncio.Task[None]]()
    if "--pod-certificates" in flags:
        kubelets = Kubelets(site, nodes)

        def ask(signer_name: str) -> None:
            asking.add(asyncio.ensure_future(kubelets.ask(signer_name)))

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, ask, SIGNER_NAME)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, ask, "example.org/other")
    limits = ["--node-rate", "100000", "--node-burst", "100000", "--node-concurrency", "100000"]
    limits += ["--address-rate", "100000"]
    async with serving(site, folder, SystemClock(), *limits, *flags, port=port) as signer:
        (folder / "secret.json").write_text(json.dumps({"data": site.kube.objects[SECRET]["data"]}))
        written = {**known, "address": signer.address, "bundle": str(signer.bundle_file)}
        (folder / "site.new").write_text(json.dumps(written))
        (folder / "site.new").rename(folder / "site.json")
        registry = signer.replica.metrics.registry
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told, registry, folder / "metrics.txt")
        await stopping.wait()
    # What it wrote to the API server, beside the one Secret: for whoever wants to see it.
    (folder / "objects.json").write_text(
        json.dumps({path: each for path, each in site.kube.objects.items() if path != SECRET})
    )


if __name__ == "__main__":
    require_tls13()
    log.configure("json", os.environ.get(LEVEL, "debug"))
    folder, pods, nodes, milliseconds, port, *flags = sys.argv[1:]
    asyncio.run(main(Path(folder), int(pods), int(nodes), float(milliseconds), int(port), flags))
