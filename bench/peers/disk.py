"""The row of what each side takes of a node's disk."""

from collections.abc import Mapping
from pathlib import Path

from bench.peers.asking import Client
from bench.peers.figures import Figures
from bench.peers.machine import MIB
from bench.peers.side import EMBEDDED, PEER, SIGNER

KEYS = ("disk",)
NO_IMAGE = "no image was built for this run: `make image`, and give its size unpacked as --image-mib"


async def measure(
    image: float | None,
    figures: Figures,
    programs: Mapping[str, Path],
    client: Client,
    wanted: frozenset[str],
    rounds: int,
    scale: float,
) -> None:
    """`image`: MiB of podsvid's, unpacked; None where nobody has said."""
    figures.add("disk", PEER, programs["spire-agent"].stat().st_size / MIB)
    for side in (EMBEDDED, SIGNER):
        if image is None:
            figures.lack("disk", side, NO_IMAGE)
        else:
            figures.add("disk", side, image)
