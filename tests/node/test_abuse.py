"""A pod that runs wild against its own socket: it may be refused there, but the other pods' sockets answer and the
agent's memory stays bounded. A real agent, two pods; nothing here asserts a time."""

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.pb import workload_pb2
from bench.attacks import ATTACKERS
from tests.support import HEADER, ROOT, VOLUME, Host, first, node, pod

pytestmark = pytest.mark.alone  # thousands of connections, which other tests are not made for
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
MB = 1024 * 1024
# The most that the floods below may cost; without limits 2,000 connections alone took several times as much.
ALLOWED = 48 * MB


class Pods:
    """The agent, the socket that is attacked, and one that must not notice."""

    def __init__(self, host: Host, attacked: Path, other: Path) -> None:
        self.host = host
        self.attacked = attacked
        self.other = other

    def rss(self) -> int:
        found = 0
        # Without the one that waits: it comes in the middle of a measurement.
        for process in self.host.processes()[:2]:
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            resident = re.search(r"VmRSS:\s+(\d+) kB", status)
            assert resident
            found += int(resident[1]) * 1024
        return found

    async def other_answers(self) -> None:
        assert (await first(self.other)).svids

    async def attacked_recovers(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await first(self.attacked)).svids
                    return
                except grpc.aio.AioRpcError as error:
                    # CANCELLED is what grpc says where it drops a call itself, as too many wait to be looked at.
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
                    await asyncio.sleep(0.1)


def under_attack(main: Callable[[Pods], Awaitable[Any]], *flags: str, ttl: str = "1h", allowed: int = ALLOWED) -> None:
    async def run() -> None:
        async with node(*flags, ttl=ttl) as (here, kubelet):
            paths = []
            for name in ("bad", "good"):
                paths.append(here.short(await kubelet.publish(pod(name, name), VOLUME)) / "socket")
            pods = Pods(here, *paths)
            await pods.attacked_recovers()
            before = pods.rss()
            await main(pods)
            await pods.other_answers()
            await pods.attacked_recovers()
            grown = pods.rss() - before
            assert grown < allowed, f"the agent grew by {grown / MB:.1f} MB"

    asyncio.run(run())


async def connections(path: Path, number: int, first_bytes: bytes) -> list[asyncio.StreamWriter]:
    found = []
    for _ in range(number):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(first_bytes)
            found.append(writer)
    return found


@pytest.mark.spec("C-14")
@pytest.mark.parametrize(
    "first_bytes", [PREFACE, b"", b"PRI * HT", b"\x16\x03\x01" * 300], ids=["h2", "mute", "half", "tls"]
)
def test_2000_connections_to_one_socket(first_bytes: bytes) -> None:
    async def main(pods: Pods) -> None:
        writers = await connections(pods.attacked, 2000, first_bytes)
        await pods.other_answers()
        assert pods.rss() < 300 * MB
        for writer in writers:
            writer.close()

    under_attack(main)


def test_clients_that_open_streams_and_never_read_while_everything_rotates() -> None:
    async def main(pods: Pods) -> None:
        channels = [
            grpc.aio.insecure_channel(f"unix:{pods.attacked}", options=(("grpc.use_local_subchannel_pool", 1),))
            for _ in range(20)
        ]
        calls: list[Any] = [
            channel.unary_stream(f"/SpiffeWorkloadAPI/{method}")(b"", metadata=HEADER)  # type: ignore[arg-type]
            for channel in channels
            for method in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles")
            for _ in range(10)
        ]
        seen: set[bytes] = set()
        async with grpc.aio.insecure_channel(f"unix:{pods.other}") as channel:
            call: Any = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", metadata=HEADER)  # type: ignore[arg-type]
            while len(seen) < 5:
                seen.add(await call.read())
        for each in calls:
            each.cancel()
        for channel in channels:
            await channel.close()

    under_attack(main, ttl="4s")


def test_streams_opened_and_cancelled_by_the_thousand() -> None:
    async def main(pods: Pods) -> None:
        async with grpc.aio.insecure_channel(f"unix:{pods.attacked}") as channel:
            codes = set()
            for _ in range(20):
                calls: list[Any] = [
                    channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", metadata=HEADER)  # type: ignore[arg-type]
                    for _ in range(200)
                ]
                for each in calls[::2]:
                    each.cancel()
                for each in calls[1::2]:
                    try:
                        await each.read()
                    except grpc.aio.AioRpcError as error:
                        codes.add(error.code())
                    each.cancel()
            # CANCELLED is what grpc says where it drops a call itself, as too many wait to be looked at.
            assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            await pods.other_answers()

    under_attack(main)


def test_jwt_svids_for_ever_new_audiences() -> None:
    async def main(pods: Pods) -> None:
        async with grpc.aio.insecure_channel(f"unix:{pods.attacked}") as channel:
            fetch: Any = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
            refused = 0
            for start in range(0, 4000, 100):
                requests = [
                    workload_pb2.JWTSVIDRequest(audience=[f"{number}-{n}" for n in range(20)]).SerializeToString()
                    for number in range(start, start + 100)
                ]
                answers = await asyncio.gather(
                    *(fetch(request, metadata=HEADER) for request in requests), return_exceptions=True
                )
                for answer in answers:
                    if isinstance(answer, grpc.aio.AioRpcError):
                        # CANCELLED is what grpc says where it drops a call itself, as too many wait to be looked at.
                        assert answer.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                        refused += 1
            assert refused > 1000
            await pods.other_answers()

    under_attack(main, "--socket-rate", "50", "--socket-burst", "200")


def test_giant_requests_and_metadata_are_refused() -> None:
    async def main(pods: Pods) -> None:
        async with grpc.aio.insecure_channel(f"unix:{pods.attacked}") as channel:
            fetch: Any = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
            for request, metadata in ((b"\x0a" * 8 * MB, HEADER), (b"", (*HEADER, ("x", "y" * 500_000)))):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await fetch(request, metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    under_attack(main)


def test_many_short_connections_one_after_the_other() -> None:
    async def main(pods: Pods) -> None:
        for _ in range(20):
            for writer in await connections(pods.attacked, 100, PREFACE):
                writer.transport.abort()
            await pods.other_answers()

    under_attack(main)


# Calls with half a megabyte of metadata, from clients that acknowledge no setting: as many as are on their way at once.
ALLOWED_OF = {"metadata": 192 * MB}
# Sixty thousand calls at once, of which a thousand are open and some wait to be refused.
ALLOWED_OF_HELD = 80 * MB


@pytest.mark.spec("C-14")
@pytest.mark.parametrize(
    "kind",
    ["http1", "garbage", "slow", "connections", "streams", "reset", "requests", "unread", "metadata", "forks"],
)
def test_processes_that_do_one_thing_for_ever(kind: str) -> None:
    async def main(pods: Pods) -> None:
        with attacked(kind, [pods.attacked]):
            for _ in range(20):
                await pods.other_answers()

    under_attack(main, allowed=ALLOWED_OF.get(kind, ALLOWED))


@pytest.mark.spec("C-14")
@pytest.mark.parametrize("kind", ["unfinished", "half", "empty", "shut"])
def test_sixty_thousand_calls_that_are_held(kind: str) -> None:
    """They ask for nothing, or take no answer. No fetch of others fails, and the process that serves them stays."""

    async def main(pods: Pods) -> None:
        before = pods.host.processes()[1]
        with attacked(kind, [pods.attacked]):
            for _ in range(30):
                await pods.other_answers()
        assert pods.host.processes()[1] == before

    under_attack(main, allowed=ALLOWED_OF_HELD)


@pytest.mark.parametrize("kind", ["connections", "calls", "metadata"])
def test_several_pods_run_wild_at_once_and_new_pods_start(kind: str) -> None:
    """Where five at once take all the memory of the process that serves sockets, others lose the calls of that moment:
    who is to blame is served apart then."""

    async def run() -> None:
        async with node() as (here, kubelet):
            targets = [await kubelet.publish(pod(f"p{number}", "web"), VOLUME) for number in range(6)]
            *wild, other = [here.short(target) / "socket" for target in targets]
            interrupted = 0
            with attacked(kind, wild):
                for number in range(10):
                    await kubelet.publish(pod(f"new{number}", "web"), VOLUME)
                    interrupted += await was_interrupted(other)
            assert len(here.mounts()) == 16
            ended = "the process that serves pods' sockets ended; it is started again"
            ends = [each for each in here.events() if each["event"] == ended and each["which"] == "shared"]
            assert interrupted <= len(ends)
            moved = {each["pod"] for each in here.events() if each["event"] == "a pod's sockets are moved"}
            assert moved <= {f"default/p{number}" for number in range(5)}

    asyncio.run(run())


async def was_interrupted(socket: Path) -> bool:
    """Whether it had to be asked more than once until it answered; how long another process takes is the machine's."""
    failed = False
    async with asyncio.timeout(60):
        while True:
            try:
                assert (await first(socket)).svids
                return failed
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                failed = True
                # As clients do, who come again then.
                await asyncio.sleep(1)


@contextlib.contextmanager
def attacked(kind: str, sockets: Sequence[Path]) -> Iterator[None]:
    """While other processes do this to the sockets; they must still be at it at the end."""
    command = [sys.executable, "-m", "bench.attacks", "--seconds", "120", kind, *map(str, sockets)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(ATTACKERS)]
    try:
        for each in processes:
            assert each.stdout is not None
            assert each.stdout.readline() == b"attacking\n"
        yield
        assert [each.poll() for each in processes] == [None] * ATTACKERS
    finally:
        for each in processes:
            each.kill()
            each.communicate()
