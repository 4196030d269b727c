"""The rows of a node with many identities: its memory, and what happens when all SVIDs are due at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench.peers.asking import AskingFailed, Client, Streams
from bench.peers.figures import Figures
from bench.peers.machine import cpu, memory
from bench.peers.ours import Node, by_signer, embedded
from bench.peers.progress import say
from bench.peers.side import EMBEDDED, PEER, SIGNER, Side, turns
from bench.peers.spire import Spire, spire

SIZES = (100, 500)
KINDS = ("due", "written", "rotation", "resident", "anonymous", "anonymous-all")
KEYS = tuple(f"{kind}-{size}" for size in SIZES for kind in KINDS)
# Seconds that SPIRE's SVIDs live: it renews at half of a lifetime that begins ten seconds early, a tenth of that sooner
# or later, and looks each five seconds, a tenth of that sooner or later: it renews all of these at each look.
PEER_TTL = 15
# Seconds from when the agent is started anew until its SVIDs are due: some, and some for each of them.
LEAD, LEAD_EACH = 8.0, 0.02
# What was begun by starting, or by opening streams, is done by then.
SETTLED = 2.0
LOOK_SECONDS = 0.05
# What belongs to a rotation after the last stream was told.
AFTER = 0.3
PATIENCE = 60.0
TOO_LONG = f"no renewal of all at once within {PATIENCE:g} s"


class DueFailed(Exception):
    """SVIDs were not renewed all at once, or not in time. The text says what was."""


@dataclass
class Watch:
    """The agent's CPU time, looked at again and again, as the moment at which a rotation begins is known afterwards."""

    processes: Callable[[], list[int]]
    seen: list[tuple[float, float]] = field(default_factory=list)

    async def run(self) -> None:
        """Until it is cancelled."""
        found = self.processes()
        while True:
            self.seen.append((time.time(), cpu(found)))
            await asyncio.sleep(LOOK_SECONDS)

    def spent(self, begun: float, ended: float) -> float:
        """Seconds of CPU time between the last look before and the first after."""
        return spent(self.seen, begun, ended)


def spent(seen: Sequence[tuple[float, float]], begun: float, ended: float) -> float:
    """As `Watch.spent`, of pairs of time and CPU time. Raises DueFailed where nobody looked."""
    before = [used for at, used in seen if at <= begun]
    after = [used for at, used in seen if at >= ended]
    if not before or not after:
        raise DueFailed("nobody looked at the agent's CPU time before or after")
    return after[0] - before[-1]


@asynccontextmanager
async def _watched(side: Side) -> AsyncIterator[Watch]:
    found = Watch(side.agent)
    looking = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        looking.cancel()


async def peer(programs: Mapping[str, Path], client: Client, size: int) -> Mapping[str, float]:
    """SPIRE's values, by kind."""
    async with spire(programs, size, PEER_TTL) as at:
        await asyncio.sleep(SETTLED)
        found = {"resident": memory(at.side.agent()).resident}
        async with client.streams(at.side.lanes) as streams, _watched(at.side) as watch:
            await asyncio.sleep(SETTLED)
            found |= _streaming(at.side)
            async with asyncio.timeout(PATIENCE):
                begun, told = await _renewed(at, size, streams)
            await asyncio.sleep(AFTER + 2 * LOOK_SECONDS)
            used = watch.spent(begun - LOOK_SECONDS, told + AFTER)
    return {**found, "due": told - begun, "rotation": used / size * 1e3}


async def _renewed(at: Spire, size: int, streams: Streams) -> tuple[float, float]:
    """When a renewal of all at once began, and when the last stream was told; one that was of some is not counted."""
    while True:
        told = await streams.told()
        if at.told.renewed == size and at.told.begun <= told.first:
            return at.told.begun, told.last


NodeOf = Callable[[int], AbstractAsyncContextManager[Node]]


async def ours(node: NodeOf, client: Client, size: int) -> Mapping[str, float]:
    """The values of podsvid, by kind; a machine that is too slow gets twice the time once."""
    lead = LEAD + LEAD_EACH * size
    try:
        return await _ours(node, client, size, lead)
    except DueFailed as failed:
        say(f"once more, with twice the time: {failed}")
        return await _ours(node, client, size, 2 * lead)


async def _ours(node: NodeOf, client: Client, size: int, lead: float) -> Mapping[str, float]:
    async with node(size) as at:
        due = time.time() + lead
        await at.due(datetime.fromtimestamp(due, UTC))
        await asyncio.sleep(SETTLED)
        found = {"resident": memory(at.side.agent()).resident}
        async with client.streams(at.side.lanes) as streams, _watched(at.side) as watch:
            await asyncio.sleep(SETTLED / 2)
            found |= _streaming(at.side)
            before = at.links()
            if time.time() > due - AFTER:
                raise DueFailed("this machine is too slow to have every stream open before the SVIDs are due")
            async with asyncio.timeout(PATIENCE):
                told = await streams.told()
                while any(new == old for new, old in zip(at.links(), before, strict=True)):
                    await asyncio.sleep(LOOK_SECONDS)
            written = at.written()
            await asyncio.sleep(AFTER + 2 * LOOK_SECONDS)
            if told.first < due:
                raise DueFailed("an SVID was renewed before it was due")
            used = watch.spent(due - LOOK_SECONDS, max(told.last, written) + AFTER)
    return {**found, "due": told.last - due, "written": written - due, "rotation": used / size * 1e3}


def _streaming(side: Side) -> Mapping[str, float]:
    keys, *others = side.agent()
    return {
        "anonymous": memory([keys]).anonymous,
        "anonymous-all": memory([keys, *others]).anonymous,
    }


async def measure(
    figures: Figures, programs: Mapping[str, Path], client: Client, wanted: frozenset[str], rounds: int, scale: float
) -> None:
    """The rows of each size that has a wanted one; what one side fails of in a round is told, and the others go on."""
    sides: Mapping[str, Callable[[Client, int], Awaitable[Mapping[str, float]]]] = {
        PEER: partial(peer, programs),
        EMBEDDED: partial(ours, embedded),
        SIGNER: partial(ours, by_signer),
    }
    for size in SIZES:
        keys = {f"{kind}-{size}" for kind in KINDS} & wanted
        for number in range(rounds if keys else 0):
            for name, of in turns(number, list(sides.items())):
                try:
                    found = await of(client, size)
                except (DueFailed, TimeoutError, AskingFailed) as error:
                    for key in keys:
                        figures.lack(key, name, f"in round {number + 1}: {str(error) or TOO_LONG}")
                    continue
                for kind, value in found.items():
                    if f"{kind}-{size}" in wanted:
                        figures.add(f"{kind}-{size}", name, value)
                said = ", ".join(f"{kind} {value:.3g}" for kind, value in found.items())
                say(f"round {number + 1}: {size} identities, {name}: {said}")
