"""A signer in a process of its own, at an API server in memory that takes its time for a TokenReview.

python -m bench.signer_process FOLDER PODS NODES MILLISECONDS PORT: until it is ended; FOLDER/site.json tells who.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from runtime import log
from runtime.clock import SystemClock
from runtime.tls import require_tls13
from signer.kube import Object
from signer.tokens import REVIEWS
from tests.signer_rig import Site, serving

SECRET = "/api/v1/namespaces/podsvid/secrets/podsvid-authority"


def slow(site: Site, seconds: float) -> None:
    """Let every TokenReview take that long."""
    create = site.kube.create

    async def later(path: str, body: Object) -> Object:
        if path == REVIEWS:
            await asyncio.sleep(seconds)
        return await create(path, body)

    site.kube.create = later  # type: ignore[method-assign]


def populated(folder: Path, pods: int, nodes: int) -> tuple[Site, Mapping[str, object]]:
    """Pods on nodes, and everybody's tokens. What an earlier process wrote is taken over, the authorities too."""
    # The tokens' times are part of them: those of an earlier process must stay good.
    begun = folder / "begun"
    if not begun.exists():
        begun.write_text(datetime.now(UTC).replace(microsecond=0).isoformat())
    site = Site(datetime.fromisoformat(begun.read_text()))
    names = [f"node-{number}" for number in range(nodes)]
    agents = [site.agent(name) for name in names]
    found = []
    for number in range(pods):
        claim = site.pod(f"p{number}", node=names[number % nodes], uid=f"uid-{number}")
        token = site.token(claim, node=names[number % nodes])
        found.append([claim.namespace, claim.name, claim.uid, token, number % nodes])
    kept = folder / "secret.json"
    if kept.exists():
        site.kube.put(SECRET, json.loads(kept.read_text()))
    return site, {"agents": agents, "pods": found}


async def main(folder: Path, pods: int, nodes: int, milliseconds: float, port: int) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    site, known = populated(folder, pods, nodes)
    slow(site, milliseconds / 1000)
    limits = ("--node-rate", "100000", "--node-burst", "100000", "--node-concurrency", "100000")
    async with serving(site, folder, SystemClock(), *limits, port=port) as signer:
        (folder / "secret.json").write_text(json.dumps({"data": site.kube.objects[SECRET]["data"]}))
        written = {**known, "address": signer.address, "bundle": str(signer.bundle_file)}
        (folder / "site.new").write_text(json.dumps(written))
        (folder / "site.new").rename(folder / "site.json")
        await stopping.wait()


if __name__ == "__main__":
    require_tls13()
    log.configure("json", "info")
    folder, pods, nodes, milliseconds, port = sys.argv[1:]
    asyncio.run(main(Path(folder), int(pods), int(nodes), float(milliseconds), int(port)))
