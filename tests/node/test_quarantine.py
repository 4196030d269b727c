"""A pod whose socket costs the process of all sockets too much: the others' calls go on, it is served apart, closed
when it goes on there, and comes back. A real agent; nothing here asserts a time."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent import budget
from agent.servers.served import NICE
from csi.room import Bounds
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod
from tests.early_quarantine import plant
from tests.node.test_abuse import attacked
from tests.node.test_exposed import answered, has_nothing, held, planted_node
from tests.support import DRIVER, IS_ROOT, ROOT, VOLUME, Host, first, node, pod

pytestmark = [
    pytest.mark.alone,  # thousands of connections, which other tests are not made for
    pytest.mark.skipif(not IS_ROOT, reason="another process of another user"),
]
# Seconds: a flood on a busy machine; what was closed is served again.
LONG = 100
MOVED = "a pod's sockets are moved"
# Seconds from one call of a pod that does no harm to its next: three of them take less of a core than is planted below.
OFTEN = 0.5


class Pods:
    """The agent, the socket that is attacked, and those that must not notice."""

    def __init__(self, here: Host, kubelet: StandInKubelet) -> None:
        self.here = here
        self.kubelet = kubelet
        self.pods: dict[str, Pod] = {}
        self.targets: dict[str, Path] = {}
        self.sockets: dict[str, Path] = {}

    async def publish(self, *names: str) -> None:
        for name in names:
            self.pods[name] = pod(name, name)
            self.targets[name] = await self.kubelet.publish(self.pods[name], VOLUME)
            self.sockets[name] = self.here.short(self.targets[name]) / "socket"
            assert await answered(self.sockets[name])

    def moves(self) -> list[tuple[str, str]]:
        return [(each["pod"].partition("/")[2], each["to"]) for each in self.here.events() if each["event"] == MOVED]

    def ends(self, which: str = "shared") -> int:
        ended = "the process that serves pods' sockets ended; it is started again"
        return len([each for each in self.here.events() if each["event"] == ended and each["which"] == which])

    def moves_of(self, names: Sequence[str]) -> list[tuple[str, str]]:
        return [each for each in self.moves() if each[0] in names]

    def apart(self, names: Sequence[str]) -> set[str]:
        """Those that are not served with all others now."""
        return {name for name, to in dict(self.moves_of(names)).items() if to != "shared"}

    def moments(self, names: Sequence[str]) -> int:
        """How often something happened that each of them may lose calls by: a pod left, a process that serves them
        ended, they were moved themselves."""
        own = self.moves_of(names)
        return 1 + self.ends() + (len(own) + self.ends("quarantine") if own else 0)

    def kill(self, *, apart: bool) -> int:
        """The processes for those that cost too much, or all others; how many there were."""
        killed = 0
        for each in self.processes(apart=apart):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
                killed += 1
        return killed

    def processes(self, *, apart: bool) -> list[int]:
        """Those for pods that cost too much, or all others but the agent."""
        agent, *others = self.here.processes()
        own, found = os.getpriority(os.PRIO_PROCESS, agent), []
        for each in others:
            with suppress(ProcessLookupError):
                # Those of all others give way to the agent as well, by less.
                if (os.getpriority(os.PRIO_PROCESS, each) == own + NICE) == apart:
                    found.append(each)
        return found

    async def fetching(self, names: Sequence[str], until: Callable[[], object]) -> int:
        """How often one of these pods, which fetched one call after the other until that was so, was served no longer.

        A client waits a second after a call that failed, as they do; where it takes longer until it is served again,
        that is once. Each is served at the end."""
        interrupted = 0

        async def fetch(name: str) -> None:
            nonlocal interrupted
            served = True
            while not (served and until()):
                try:
                    assert (await first(self.sockets[name])).svids
                    served = True
                    await asyncio.sleep(OFTEN)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                    interrupted += served
                    served = False
                    await asyncio.sleep(1)

        async with asyncio.timeout(LONG):
            await asyncio.gather(*(fetch(each) for each in names))
        return interrupted

    def explained(self, name: str) -> Any:
        command = [sys.executable, "-m", "podsvid", "node", "explain", f"default/{name}", "--output", "json"]
        socket = ["--socket", str(self.here.base / "r" / "admin.sock")]
        done = subprocess.run([*command, *socket], cwd=ROOT, capture_output=True, text=True, check=False)
        (volume,) = json.loads(done.stdout)["volumes"]
        return volume

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(LONG):
            while not true():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def early(folder: Path) -> AsyncIterator[tuple[Host, StandInKubelet]]:
    plant(folder, quiet=30.0)
    async with planted_node(folder) as found:
        yield found


def on_node(main: Callable[[Pods], Awaitable[None]], folder: Path | None = None) -> None:
    async def run() -> None:
        async with node() if folder is None else early(folder) as (here, kubelet):
            await main(Pods(here, kubelet))

    asyncio.run(run())


# Calls without an end, connections one after the other, many fast calls: each goes on while it is served. (Calls that
# are held, "unfinished", come to rest once they are refused, and who is at rest is to blame for nothing.)
KINDS = ("begun", "garbage", "forks", "calls")
# Headers of 15 MB, in large frames and small ones, and of 400 KB: from clients that acknowledge nothing, and that do;
# more connections at once than there may be; and those that bring descriptors, or bytes that change while they wait.
BORNE = ("headers", "continuations", "early metadata", "metadata", "connections", "descriptors", "spliced")
GOOD = ("g1", "g2", "g3")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", BORNE)
def test_large_headers_and_too_many_connections_cost_no_other_pod_a_call(kind: str, tmp_path: Path) -> None:
    async def main(at: Pods) -> None:
        await at.publish("bad", *GOOD)
        with attacked(kind, [at.sockets["bad"]]):
            ends = asyncio.get_running_loop().time() + 8
            interrupted = await at.fetching(GOOD, lambda: asyncio.get_running_loop().time() > ends)
        assert interrupted == 0
        assert at.ends() == 0
        assert {each for each, _ in at.moves()} <= {"bad"}

    on_node(main, tmp_path / "planted")


@pytest.mark.timeout(300)
def test_calls_without_end_end_in_quarantine_and_then_closed_and_all_others_are_served() -> None:
    async def main(at: Pods) -> None:
        await at.publish("bad", *GOOD)
        before = held([at.targets["bad"]], at.here)
        with attacked("begun", [at.sockets["bad"]]):
            interrupted = await at.fetching(GOOD, lambda: ("bad", "closed") in at.moves())
            assert at.moves()[:2] == [("bad", "quarantine"), ("bad", "closed")]
            volume = at.explained("bad")
            assert (volume["state"], volume["state_reason"]) == ("closed", "SOCKET_CLOSED")
            assert "closed for" in volume["notice"]
            assert {each["reason"] for each in volume["problems"]} == {"SOCKET_QUARANTINED", "SOCKET_CLOSED"}
            assert all(each["advice"] for each in volume["problems"])
            assert at.explained("g1")["state"] == "ok"
            # Nobody else waits for anything now, new pods neither.
            reference = asyncio.get_running_loop().time()
            assert await at.fetching(GOOD, lambda: asyncio.get_running_loop().time() > reference + 3) == 0
            await at.publish("fresh")
        # Of each death at most what was under way; without one, nothing.
        assert interrupted <= len(GOOD) * at.ends()
        assert {each for each, _ in at.moves()} == {"bad"}
        # It has stopped, and is served again, in quarantine.
        await at.until(lambda: at.moves()[-1] == ("bad", "quarantine"))
        assert await answered(at.sockets["bad"]) == "spiffe://example.org/ns/default/sa/bad"
        assert at.explained("bad")["state"] == "ok"
        assert "SOCKET_QUARANTINED" in at.explained("bad")["notice"]
        (apart,) = at.processes(apart=True)
        has_nothing(apart, at.here.processes()[0], budget.QUARANTINE, budget.descriptors(Bounds().volumes))
        assert held([at.targets["bad"]], at.here)[0] == before[0], "something was minted"

    on_node(main)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_flood_is_moved_away_and_closed(kind: str, tmp_path: Path) -> None:
    async def main(at: Pods) -> None:
        await at.publish("bad", *GOOD)
        with attacked(kind, [at.sockets["bad"]]):
            interrupted = await at.fetching(GOOD, lambda: ("bad", "closed") in at.moves())
            assert at.moves()[0] == ("bad", "quarantine")
            for each in GOOD:
                assert await answered(at.sockets[each]) == f"spiffe://example.org/ns/default/sa/{each}"
        assert interrupted <= len(GOOD) * at.moments(GOOD)
        # Where a machine is slow, an innocent one may stand out as well; it is served all the same, and goes back.
        await at.until(lambda: not at.apart(GOOD))
        assert {to for _, to in at.moves_of(GOOD)} <= {"quarantine", "shared"}
        assert {each for each, _ in at.moves()} <= {"bad", *GOOD}

    on_node(main, tmp_path / "planted")


@pytest.mark.timeout(300)
def test_each_process_and_the_agent_are_killed_while_a_pod_is_moved(tmp_path: Path) -> None:
    async def main(at: Pods) -> None:
        await at.publish("bad", *GOOD)
        await at.publish("leaving")
        targets = [at.targets[each] for each in ("bad", *GOOD)]
        before = [(each / "tls.crt").read_bytes() for each in targets]
        with attacked("calls", [at.sockets["bad"]]):
            await at.until(lambda: ("bad", "quarantine") in at.moves())
            # On its way: nobody has it yet.
            at.kill(apart=False)
            await at.kubelet.unpublish(at.pods["leaving"], VOLUME)
            await at.publish("fresh")
            for each in GOOD:
                assert await answered(at.sockets[each])
            # There, until it is closed for what it does.
            at.kill(apart=True)
            at.kill(apart=False)
            for each in (*GOOD, "fresh"):
                assert await answered(at.sockets[each])
            at.here.kill()
        at.here.start()
        await at.kubelet.wait_registered(DRIVER)
        # A new agent knows nothing of it: all are served together.
        for each in ("bad", *GOOD):
            assert await answered(at.sockets[each]) == f"spiffe://example.org/ns/default/sa/{each}"
        assert [(each / "tls.crt").read_bytes() for each in targets] == before, "something was minted"
        assert len(at.here.journal()) == 5
        # A socket answers a moment before the place where it was bound is cleared away.
        places = [at.targets[name] / "..socket" for name in ("bad", *GOOD)]
        await at.until(lambda: not any(each.exists() for each in places))

    on_node(main, tmp_path / "planted")
