"""Connections at their bound: the process behind pods' sockets has descriptors left for every other pod, and where the
host gives fewer than that, it listens on when there are some again."""

import asyncio
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from agent import budget
from agent.socket.accounts import Limits
from agent.socket.connections import POD
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import PodVolume
from tests.node.test_exposed import answered, exposed, flood
from tests.ports import free_port
from tests.support import DEADLINE, DRIVER, IS_ROOT, VOLUME, Host, host, node, pod, svid_stream

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root"),
    pytest.mark.alone,  # thousands of connections, which other tests are not made for
]
VOLUMES = POD // Limits().connections
# gRPC's own line.
NONE_LEFT = "File descriptor limit reached"


async def published(here: Host, kubelet: StandInKubelet, pods: int, volumes: int = VOLUMES) -> list[Path]:
    """The sockets of so many pods, each with as many volumes as it takes to have all the connections that it may."""
    return [
        here.short(await kubelet.publish(each, PodVolume(name=f"v{number}"))) / "socket"
        for each in [pod(f"wild{number}", "wild") for number in range(pods)]
        for number in range(volumes)
    ]


@contextmanager
def full(sockets: Sequence[Path]) -> Iterator[None]:
    """While each has all its connections, and others are made and dropped there without end."""
    held: list[socket.socket] = []
    ending = threading.Event()

    def again() -> None:
        while not ending.is_set():
            ends = []
            for path in sockets:
                end = socket.socket(socket.AF_UNIX)
                end.setblocking(False)
                with suppress(OSError):
                    end.connect(str(path))
                ends.append(end)
            for end in ends:
                end.close()

    threads = [threading.Thread(target=again) for _ in range(2)]
    try:
        for path in sockets:
            held += [flood(path, 0) for _ in range(Limits().connections)]
        for each in threads:
            each.start()
        yield
    finally:
        ending.set()
        for each in threads:
            if each.ident is not None:
                each.join()
        for end in held:
            end.close()


def test_connections_that_are_refused_are_counted_by_what_they_were_refused_for() -> None:
    async def run() -> None:
        metrics = f"127.0.0.1:{free_port()}"

        def counted() -> dict[str, int]:
            with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as answer:
                text = answer.read().decode()
            return {
                why: int(float(number))
                for why, number in re.findall(r'^podsvid_api_refused_calls_total{limit="(.+)"} (.+)$', text, re.M)
                if float(number)
            }

        async def until(wanted: dict[str, int]) -> None:
            async with asyncio.timeout(DEADLINE):
                while await asyncio.to_thread(counted) != wanted:
                    await asyncio.sleep(0.05)

        def connected(path: Path, said: bytes = b"") -> socket.socket:
            end = socket.socket(socket.AF_UNIX)
            end.settimeout(DEADLINE)
            end.connect(str(path))
            end.sendall(said)
            return end

        async with node("--metrics-listen", metrics, "--socket-connections", "150") as (here, kubelet):
            one, two = await published(here, kubelet, 1, volumes=2)
            process = here.processes()[1]
            before = descriptors(process)
            with ExitStack() as stack:
                # gRPC's settings have come: it is in the books.
                for path, number in ((one, 150), (two, POD - 150)):
                    for _ in range(number):
                        end = stack.enter_context(closing(connected(path)))
                        await asyncio.to_thread(end.recv, 1)
                for path in (one, two, two):
                    with closing(connected(path)) as refused:
                        assert await asyncio.to_thread(refused.recv, 1) == b""
                await until({"connections of a socket": 1, "connections of a pod": 2})
            # One that is refused while those above are still being closed would be counted, too.
            async with asyncio.timeout(DEADLINE):
                while descriptors(process) > before + 30:
                    await asyncio.sleep(0.05)
            assert await answered(one)
            with closing(connected(two, b"GET / HTTP/1.1\r\n\r\n")) as other:
                while await asyncio.to_thread(other.recv, 100):
                    pass
            await until({"connections of a socket": 1, "connections of a pod": 2, "first bytes": 1})

    asyncio.run(run())


def descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def lines(here: Host) -> str:
    return "\n".join(each["line"] for each in here.events() if each["event"] == "the exposed process wrote")


def test_connections_at_their_bound_take_no_others_descriptors() -> None:
    async def run() -> None:
        # Nobody is moved away: what is tried is what the process itself bears.
        async with node("--socket-quarantine", "false") as (here, kubelet):
            sockets = await published(here, kubelet, budget.CONNECTIONS // POD - 1)
            other = here.short(await kubelet.publish(pod("other", "other"), VOLUME)) / "socket"
            agent, process = here.processes()[:2]
            of_agent = descriptors(agent)
            async with svid_stream(other) as stream:
                await anext(aiter(stream))
                most = 0
                with full(sockets):
                    async with asyncio.timeout(DEADLINE):
                        while most < len(sockets) * Limits().connections * budget.EACH:
                            most = max(most, descriptors(process))
                            await asyncio.sleep(0.05)
                    for _ in range(20):
                        assert (await answered(other)).endswith("/other")
                        most = max(most, descriptors(process))
                    fresh = await kubelet.publish(pod("fresh", "fresh"), VOLUME)
                    assert (await answered(here.short(fresh) / "socket")).endswith("/fresh")
                    assert descriptors(agent) < of_agent + 50
                assert most < budget.descriptors(len(sockets) + 2), most
                print("descriptors at most:", most)
            assert (await answered(sockets[0])).endswith("/wild")
            assert exposed(here) == process
            assert NONE_LEFT not in lines(here)

    asyncio.run(run())


def test_where_the_host_gives_fewer_descriptors_it_listens_on_when_there_are_some() -> None:
    most = 400

    async def run() -> None:
        with host() as here:
            here.start(within=lambda *command: ["prlimit", f"--nofile={most}:{most}", *command])
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await kubelet.wait_registered(DRIVER)
                sockets = await published(here, kubelet, 2)
                other = here.short(await kubelet.publish(pod("other", "other"), VOLUME)) / "socket"
                process = exposed(here)
                assert re.search(rf"Max open files +{most} +{most} ", Path(f"/proc/{process}/limits").read_text())
                async with svid_stream(other) as stream:
                    streamed = aiter(stream)
                    await anext(streamed)
                    with full(sockets):
                        async with asyncio.timeout(60):
                            while NONE_LEFT not in lines(here):
                                await asyncio.sleep(0.05)
                        # Its socket cannot be bound now; kubelet tries again.
                        with suppress(Exception):
                            await kubelet.publish(pod("fresh", "fresh"), VOLUME)
                    for path in (*sockets, other):
                        await answered(path)
                    # What was open is open still.
                    await kubelet.publish(pod("last", "last"), VOLUME)
                    assert exposed(here) == process

    asyncio.run(run())
