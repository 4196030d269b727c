"""podsvid beside SPIRE, both on this machine, asked by one Go client: `python -m bench.peers [--rows ROW,…]`.

Builds what it needs into the cache (SPIRE: some ten minutes, once), and needs root, two cores and some ten minutes.
Writes bench/results/peers.md, and the values of the day beside it. Rows measured alone are merged into those of
before, of another day too: each says of which run it is.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.peers import disk, latencies, minting, nodes
from bench.peers.asking import Client
from bench.peers.figures import Figures, merged, read, to_json
from bench.peers.machine import CLIENTS
from bench.peers.page import ALL_SIDES, page
from bench.peers.programs import CLIENT, SPIRE, built
from bench.peers.progress import say
from bench.peers.rows import BY_KEY
from bench.report import RESULTS, environment
from tests.go_tools import BuildError

# Seconds; a run that takes longer hangs.
LIMIT = 1500.0

Part = Callable[[Figures, Mapping[str, Path], Client, frozenset[str], int, float], Awaitable[None]]


def parts(image: float | None) -> Mapping[str, tuple[Part, tuple[str, ...]]]:
    """What measures which rows; `image` as disk.measure has it."""
    return {
        "disk": (partial(disk.measure, image), disk.KEYS),
        "latencies": (latencies.measure, tuple(latencies.KEYS)),
        "mints": (minting.measure, minting.KEYS),
        "nodes": (nodes.measure, nodes.KEYS),
    }


@dataclass(frozen=True)
class Wanted:
    """Which rows, how many rounds of each, how much of it, and the size of the image."""

    rows: frozenset[str]
    rounds: int
    scale: float
    image: float | None


async def run(figures: Figures, programs: Mapping[str, Path], wanted: Wanted) -> None:
    """Each part that has a wanted row. What one fails of is told, and the others go on."""
    with tempfile.TemporaryDirectory(prefix="pb", dir="/tmp") as name:
        client = Client(programs["client"], Path(name))
        for part, (measure, keys) in parts(wanted.image).items():
            rows = wanted.rows.intersection(keys)
            if not rows:
                continue
            began = time.monotonic()
            say(f"{part}: begins")
            try:
                await measure(figures, programs, client, rows, wanted.rounds, wanted.scale)
            except Exception as error:
                # A row that cannot be measured is named as that; what the others found is worth having.
                why = f"{type(error).__name__}: {error}".partition("\n")[0]
                say(f"{part}: ended by {error!r}")
                for key in rows:
                    figures.lack(key, ALL_SIDES, f"it ended early, by {why}")
            say(f"{part}: took {time.monotonic() - began:.0f} s")


async def _bounded(measuring: Coroutine[None, None, None]) -> None:
    """Whoever ends this process ends what it started with it."""
    task = asyncio.ensure_future(measuring)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait_for(task, LIMIT)


def _rows(text: str) -> frozenset[str]:
    found = frozenset(text.split(","))
    if unknown := found - set(BY_KEY):
        raise argparse.ArgumentTypeError(f"no rows: {', '.join(sorted(unknown))}; there are: {', '.join(BY_KEY)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rows", type=_rows, default=frozenset(BY_KEY), metavar="ROW,…", help="these alone")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--quick", action="store_true", help="one round of a fifth of it; records nothing")
    image = "the size of podsvid's image, unpacked; without it that is not measured"
    parser.add_argument("--image-mib", type=float, metavar="MIB", help=image)
    arguments = parser.parse_args()
    if os.geteuid() != 0 or (os.cpu_count() or 1) < 2:
        print("bench.peers needs root, as it mounts, and two cores, one for each side of a call", file=sys.stderr)
        return 2
    try:
        programs = built()
    except BuildError as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    about = {key: each for key, each in environment().items() if key in ("date", "commit", "cores", "load before")}
    figures = Figures(about)
    rounds, scale = (1, 0.2) if arguments.quick else (arguments.rounds, 1.0)
    wanted = Wanted(arguments.rows, rounds, scale, arguments.image_mib)
    os.sched_setaffinity(0, {CLIENTS})
    try:
        asyncio.run(_bounded(run(figures, programs, wanted)))
    except (TimeoutError, asyncio.CancelledError) as ended:
        say("ended by a signal" if isinstance(ended, asyncio.CancelledError) else f"not done after {LIMIT:g} s")
        for key in wanted.rows.difference(figures.values, figures.missing):
            figures.lack(key, ALL_SIDES, "the run was ended before it")
    figures.about = {**about, "load after": f"{os.getloadavg()[0]:.2f}"}
    file = RESULTS / f"{about['date']}-{about['cores']}c-peers.json"
    found = figures.found() if arguments.quick else merged(read(RESULTS, about["cores"]), figures.found())
    text = page(found, figures.about, versions())
    print(text)
    if not arguments.quick:
        file.write_text(to_json(found), encoding="utf-8")
        (RESULTS / "peers.md").write_text(text, encoding="utf-8")
    return 0


def versions() -> dict[str, str]:
    """Of both sides and of what is below them."""
    grpc = next(
        line.split()[-1]
        for line in (CLIENT.manifest_dir / "go.mod").read_text(encoding="utf-8").splitlines()
        if "google.golang.org/grpc " in line
    )
    below = {key: each for key, each in environment().items() if key not in ("date", "commit", "cores", "load before")}
    return {"SPIRE": SPIRE.version.removeprefix("v"), "client's grpc-go": grpc.removeprefix("v"), **below}


if __name__ == "__main__":
    sys.exit(main())
