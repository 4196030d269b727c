"""The rows of one workload that asks, and of eight at once: nodes of all sides are there, and are asked in turn."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import jwt

from agent.pb import workload_pb2
from bench.peers.asking import FETCH, WORKLOAD_API, Answered, AskingFailed, Client, Lane
from bench.peers.figures import Figures, p50, p99
from bench.peers.machine import CLIENTS, SERVERS, cpu, move
from bench.peers.ours import by_signer, embedded
from bench.peers.progress import say
from bench.peers.side import Side, turns
from bench.peers.spire import spire
from tests.support import HEADER

IDENTITIES = 100
AT_ONCE = 8
IDLE_AFTER, IDLE_SECONDS = 5.0, 10.0
AUDIENCE = "bench"


@dataclass(frozen=True)
class Asked:
    """What a row is measured with: whom, by what, in which round, how much of it."""

    side: Side
    client: Client
    round: int
    scale: float
    token: str

    def count(self, number: int) -> int:
        return max(100, int(number * self.scale))


# Of one side, in one round: values by row.
Measured = Callable[[Asked], Awaitable[Mapping[str, float]]]


async def first_at_once(asked: Asked) -> Mapping[str, float]:
    """Connections a second until the first SVID, eight at once, servers on one core."""
    found = await _connecting(asked, asked.count(2000), AT_ONCE, (CLIENTS,))
    return {"first-8": found.rate}


async def first_at_once_everywhere(asked: Asked) -> Mapping[str, float]:
    """The same, with servers and client on all cores."""
    everywhere = range(os.cpu_count() or 1)
    move(asked.side.servers(), *everywhere)
    try:
        found = await _connecting(asked, asked.count(2000), AT_ONCE, everywhere)
    finally:
        move(asked.side.servers(), SERVERS)
    return {"first-8-everywhere": found.rate}


async def first(asked: Asked) -> Mapping[str, float]:
    """Milliseconds from connecting to the first SVID, one after the other."""
    found = await _connecting(asked, asked.count(1000), 1, (CLIENTS,))
    return {"first-p50": p50(found.milliseconds), "first-p99": p99(found.milliseconds)}


async def validate(asked: Asked) -> Mapping[str, float]:
    """ValidateJWTSVID of a token of its own."""
    request = workload_pb2.ValidateJWTSVIDRequest(audience=AUDIENCE, svid=asked.token).SerializeToString()
    return {"validate": await _calls(asked, "ValidateJWTSVID", [request] * asked.count(500))}


async def jwt_kept(asked: Asked) -> Mapping[str, float]:
    """FetchJWTSVID for an audience that was asked for before."""
    return {"jwt-kept": await _calls(asked, "FetchJWTSVID", [_audience(AUDIENCE)] * asked.count(500))}


async def jwt_new(asked: Asked) -> Mapping[str, float]:
    """FetchJWTSVID for ever new audiences."""
    requests = [_audience(f"new-{asked.round}-{number}") for number in range(asked.count(300))]
    return {"jwt-new": await _calls(asked, "FetchJWTSVID", requests)}


ROWS: Mapping[Measured, Sequence[str]] = {
    first_at_once: ("first-8",),
    first_at_once_everywhere: ("first-8-everywhere",),
    first: ("first-p50", "first-p99"),
    validate: ("validate",),
    jwt_kept: ("jwt-kept",),
    jwt_new: ("jwt-new",),
}
IDLE = "idle"
# By nodes of its own, as an authority has one algorithm; few identities, of which one asks.
ALIKE, ALIKE_IDENTITIES, ALIKE_FLAGS = "jwt-new-es256", 8, ("--jwt-algorithm", "ES256")
KEYS = [IDLE, ALIKE, *(key for keys in ROWS.values() for key in keys)]


async def _connecting(asked: Asked, count: int, at_once: int, cores: Sequence[int]) -> Answered:
    """By as many identities as there are workers: the first ones, in turn on each side."""
    each = count // at_once
    # Where the address says who asks, another pod's each time; where a process is looked at, that is who it is.
    lanes = [replace(lane, requests=[b""] * each, group=0) for lane in asked.side.lanes[:at_once]]
    return await asked.client.call(FETCH, lanes, at_once, connect=True, cores=cores)


async def _calls(asked: Asked, method: str, requests: Sequence[bytes]) -> float:
    """The median of calls one after the other on one connection."""
    lane = replace(asked.side.lanes[0], requests=requests)
    return p50((await asked.client.call(f"{WORKLOAD_API}/{method}", [lane])).milliseconds)


def _audience(name: str) -> bytes:
    return workload_pb2.JWTSVIDRequest(audience=[name]).SerializeToString()


async def token_of(lane: Lane) -> str:
    """A JWT-SVID that the identity has for AUDIENCE."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))
    async with grpc.aio.insecure_channel(lane.address, options=options) as channel:
        fetch = channel.unary_unary(f"{WORKLOAD_API}/FetchJWTSVID", bytes, workload_pb2.JWTSVIDResponse.FromString)
        answer = await fetch(_audience(AUDIENCE), metadata=HEADER)
        return answer.svids[0].svid


async def idle(figures: Figures, sides: Sequence[Side], client: Client, rounds: int) -> None:
    """Per cent of a core that the agents take with a stream for each identity, while nothing happens; all at once."""
    async with AsyncExitStack() as opened:
        for side in sides:
            await opened.enter_async_context(client.streams(side.lanes))
        await asyncio.sleep(IDLE_AFTER)
        for _ in range(rounds):
            agents = [side.agent() for side in sides]
            before, began = [cpu(each) for each in agents], time.monotonic()
            await asyncio.sleep(IDLE_SECONDS)
            lasted = time.monotonic() - began
            for side, agent, then in zip(sides, agents, before, strict=True):
                figures.add(IDLE, side.name, (cpu(agent) - then) / lasted * 100)


async def measure(
    figures: Figures, programs: Mapping[str, Path], client: Client, wanted: frozenset[str], rounds: int, scale: float
) -> None:
    """Those rows of this part that are wanted."""
    if not wanted.isdisjoint({*KEYS} - {ALIKE}):
        await _as_installed(figures, programs, client, wanted, rounds, scale)
    if ALIKE in wanted:
        await _alike(figures, programs, client, rounds, scale)


async def _as_installed(
    figures: Figures, programs: Mapping[str, Path], client: Client, wanted: frozenset[str], rounds: int, scale: float
) -> None:
    """Each side by its defaults."""
    async with (
        spire(programs, IDENTITIES) as peer,
        embedded(IDENTITIES) as own,
        by_signer(IDENTITIES) as behind,
    ):
        sides = [peer.side, own.side, behind.side]
        if IDLE in wanted:
            await idle(figures, sides, client, rounds)
        tokens = [await token_of(side.lanes[0]) for side in sides]
        for number in range(rounds):
            for row, keys in ROWS.items():
                if wanted.isdisjoint(keys):
                    continue
                for side, token in turns(number, list(zip(sides, tokens, strict=True))):
                    for key, value in (await row(Asked(side, client, number, scale, token))).items():
                        figures.add(key, side.name, value)
                        say(f"round {number + 1}: {key}, {side.name}: {value:.4g}")


async def _alike(figures: Figures, programs: Mapping[str, Path], client: Client, rounds: int, scale: float) -> None:
    """New JWT-SVIDs that all sides sign by the same algorithm."""
    async with (
        spire(programs, ALIKE_IDENTITIES) as peer,
        embedded(ALIKE_IDENTITIES, *ALIKE_FLAGS) as own,
        by_signer(ALIKE_IDENTITIES, *ALIKE_FLAGS) as behind,
    ):
        sides = [peer.side, own.side, behind.side]
        for side in sides:
            algorithm = jwt.get_unverified_header(await token_of(side.lanes[0]))["alg"]
            if algorithm != "ES256":
                raise AskingFailed(f"{side.name} signs by {algorithm}")
        for number in range(rounds):
            for side in turns(number, sides):
                value = (await jwt_new(Asked(side, client, number, scale, "")))["jwt-new"]
                figures.add(ALIKE, side.name, value)
                say(f"round {number + 1}: {ALIKE}, {side.name}: {value:.4g}")
