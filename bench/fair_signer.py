"""A signer with its usual limits of a node, and many pods of two namespaces on one node: for bench.fair.

    python -m bench.fair_signer FOLDER PODS

Until it is ended; FOLDER/site.json tells the agent's token, the address, the bundle, and of each pod its namespace,
name, uid and token.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, Popen
from time import monotonic, sleep
from typing import Any

from runtime.clock import SystemClock
from runtime.tls import require_tls13
from tests.signer_process import slow

NODE = "node-1"
# Of a TokenReview; and of the tokens.
REVIEW_SECONDS, LIFE = 0.002, 86_400.0
START_SECONDS = 90.0


@contextmanager
def signer(folder: Path, pods: int) -> Iterator[dict[str, Any]]:
    """It runs, and this is what it wrote. Raises TimeoutError."""
    site, until = folder / "site.json", monotonic() + START_SECONDS
    running = Popen([sys.executable, "-m", "bench.fair_signer", str(folder), str(pods)], stdout=DEVNULL, stderr=DEVNULL)
    try:
        while not site.exists():
            if running.poll() is not None or monotonic() > until:
                raise TimeoutError("the signer did not start")
            sleep(0.05)
        yield json.loads(site.read_text())
    finally:
        running.terminate()
        running.wait()


async def main(arguments: Sequence[str]) -> None:
    # Not before TLS 1.2 is switched off.
    from tests.signer_rig import Site, serving

    folder, pods = Path(arguments[0]), int(arguments[1])
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    site = Site(datetime.now(UTC).replace(microsecond=0))
    agent = site.agent(NODE, LIFE)
    known = []
    for number in range(pods):
        claim = site.pod(f"p{number}", node=NODE, namespace="other" if number else "offender")
        known.append([claim.namespace, claim.name, claim.uid, site.token(claim, node=NODE, life=LIFE)])
    slow(site, REVIEW_SECONDS)
    async with serving(site, folder, SystemClock()) as found:
        written = {"agent": agent, "pods": known, "address": found.address, "bundle": str(found.bundle_file)}
        (folder / "site.new").write_text(json.dumps(written))
        (folder / "site.new").rename(folder / "site.json")
        await stopping.wait()


if __name__ == "__main__":
    require_tls13()
    asyncio.run(main(sys.argv[1:]))
