"""A process behind pods' sockets that somebody took over and that lets others wait, or that has no memory any more: it
is replaced. Nothing here asserts a time."""

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from podsvid.quickstart.kubelet import StandInKubelet
from tests.node.test_exposed import answered, held, planted_node
from tests.support import DEADLINE, IS_ROOT, VOLUME, Host, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="another process of another user")
ENDED = "the process that serves pods' sockets ended; it is started again"
# In the exposed process: whoever calls this takes it over. Then each socket is opened after HOW.
OWNED = """
import sys
if "agent.exposed" in sys.orig_argv:
    import asyncio, time
    from agent.exposed import server
    from agent.socket import guard
    owned = []
    serve, opened = guard.Guard.intercept_service, server.Served._open

    async def intercept_service(self, continuation, details):
        owned.extend([1] if details.method == "/taken/over" else [])
        return await serve(self, continuation, details)

    async def _open(self, order, directory):
        if owned:
            HOW
        await opened(self, order, directory)

    guard.Guard.intercept_service, server.Served._open = intercept_service, _open
"""


async def take_over(path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}", options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/taken/over")(b"")  # type: ignore[arg-type]


def test_one_that_opens_each_socket_late_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OWNED.replace("HOW", "await asyncio.sleep(9.9)"), encoding="utf-8")

    async def main(here: Host, kubelet: StandInKubelet) -> None:
        target = await kubelet.publish(pod("first", "first"), VOLUME)
        socket, before = here.short(target) / "socket", held([target], here)
        assert await answered(socket) == "spiffe://example.org/ns/default/sa/first"
        await take_over(socket)
        for name in ("second", "third", "fourth"):
            fresh = await kubelet.publish(pod(name, name), VOLUME)
            assert await answered(here.short(fresh) / "socket") == f"spiffe://example.org/ns/default/sa/{name}"
        ends = [each["why"] for each in here.events() if each["event"] == ENDED]
        assert ends == ["it did nothing while it was waited for, signal 9"]
        assert await answered(socket) == "spiffe://example.org/ns/default/sa/first"
        assert held([target], here)[0] == before[0], "something was minted"

    async def run() -> None:
        async with planted_node(folder) as (here, kubelet):
            await main(here, kubelet)

    asyncio.run(run())


# In the exposed process: there is no memory when the third connection comes.
FULL = """
import sys
if "agent.exposed" in sys.orig_argv:
    from agent.socket.connections import Connections
    method, seen = Connections.enter, []

    def failing(self, *given):
        seen.append(given)
        if len(seen) == 3:
            raise MemoryError
        return method(self, *given)

    Connections.enter = failing
"""


def test_one_that_has_no_memory_for_a_connection_ends_instead_of_listening_no_more(tmp_path: Path) -> None:
    """Whatever it failed for would stay as it is for good."""
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FULL, encoding="utf-8")

    async def run() -> None:
        async with planted_node(folder) as (here, kubelet):
            target = await kubelet.publish(pod("first", "first"), VOLUME)
            socket, before = here.short(target) / "socket", held([target], here)
            # The third of them finds the next process.
            for _ in range(4):
                assert await answered(socket) == "spiffe://example.org/ns/default/sa/first"
            async with asyncio.timeout(DEADLINE):
                while not (ends := [each["why"] for each in here.events() if each["event"] == ENDED]):
                    await asyncio.sleep(0.02)
            assert ends == ["it closed the channel, exit code 75"]
            assert held([target], here)[0] == before[0], "something was minted"

    asyncio.run(run())
