"""One server after another behind one port: made again where it failed, open once all is known, and none cut off."""

import asyncio
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from signer.attestation.pods import AgentAddresses
from signer.front.admission import Admission
from signer.front.door import Door
from signer.front.server import AgentServer, Here
from svid.dnsnames import SIGNER_NAME
from tests.ports import free_port
from tests.signer_rig import StepClock
from tests.unit.runtime.test_stopping import Loses, on_fake_time
from tests.unit.signer.test_lifecycle import done, first, life

SAYS = "/test.Echo/Say"
NOTHING = grpc.method_handlers_generic_handler("nothing", {})


@pytest.mark.parametrize(
    ("step", "serves"),
    [("add_secure_port", False), ("start", False), ("bind", False), ("add_secure_port", True), ("start", True)],
)
def test_what_failed_midway_is_made_again(monkeypatch: pytest.MonkeyPatch, step: str, serves: bool) -> None:
    """At a start, and where the certificate is renewed: else it would end a day later, and nobody reach the signer."""
    clock, state = StepClock(), first()

    class Failing(socket.socket):
        def bind(self, *_: object) -> None:
            raise OSError(98, "no room")

    def fails(*_: object) -> Any:
        raise RuntimeError("no room")

    async def run(folder: Path) -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
        server = AgentServer(Here(NOTHING), door, ("127.0.0.1", 0), folder / "run", clock)
        if serves:
            await server.renew(state)
            clock.pass_by(hours=13)
        before, listening = door.target, list(door._listening)
        with monkeypatch.context() as full:
            if step == "bind":
                full.setattr(socket, "socket", Failing)
            else:
                full.setattr(type(grpc.aio.server()), step, fails)
            for _ in range(2):
                with pytest.raises(OSError, match="no room"):
                    await server.renew(state)
        assert (server._server is not None) is serves
        assert (door.target, door._listening) == (before, listening)
        await server.renew(state)
        assert door.target != before
        assert len(door._listening) == 1
        made = door.target
        await server.renew(state)
        assert door.target == made, "it was made once more though it is good"
        await server.close(0)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


async def echo(request: bytes, _: object) -> bytes:
    return request


def handlers() -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler("test.Echo", {"Say": grpc.unary_unary_rpc_method_handler(echo)})


def test_with_a_new_certificate_old_connections_are_served_on_and_new_ones_see_it() -> None:
    """All agents would come anew at once, else: in the middle of a forced re-issue, say."""
    begin = datetime.now(UTC) - timedelta(hours=13)
    clock, state = StepClock(begin), done(life().first(begin))

    async def run(folder: Path) -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
        port = free_port()
        server = AgentServer(Here(handlers()), door, ("127.0.0.1", port), folder / "run", clock)
        await server.renew(state)
        await server.open()
        roots = state.bundle.to_pem()
        options = (("grpc.default_authority", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1))

        def channel() -> grpc.aio.Channel:
            return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots), options)

        async with channel() as old, channel() as new, asyncio.timeout(30):
            assert await old.unary_unary(SAYS, bytes, bytes)(b"1") == b"1"
            clock.pass_by(hours=13)
            before = door.target
            await server.renew(state)
            assert door.target != before
            for _ in range(3):
                # So that what the server before has to say would be there.
                assert await new.unary_unary(SAYS, bytes, bytes)(b"2") == b"2"
                assert await old.unary_unary(SAYS, bytes, bytes)(b"3") == b"3"
            assert door._sweep.came == 2
            await server.close(0)
            with pytest.raises(grpc.aio.AioRpcError):
                await old.unary_unary(SAYS, bytes, bytes)(b"4", timeout=10)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


def test_nobody_is_let_in_before_all_is_known() -> None:
    """Else all agents come while a replica reads the cluster, and each comes to nothing."""
    clock, state = StepClock(), first()

    async def run(folder: Path) -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
        port = free_port()
        server = AgentServer(Here(NOTHING), door, ("127.0.0.1", port), folder / "run", clock)
        pods, policies = asyncio.Event(), asyncio.Event()
        opening = asyncio.ensure_future(server.open(pods.wait, policies.wait))

        async def come() -> bool:
            for _ in range(20):
                await asyncio.sleep(0)
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return False
            writer.close()
            return True

        pods.set()
        policies.set()
        assert not await come()
        opening.cancel()
        pods.clear()
        await server.renew(state)
        opening = asyncio.ensure_future(server.open(pods.wait, policies.wait))
        assert (await come(), server.serving) == (False, False)
        pods.set()
        assert (await come(), server.serving) == (True, True)
        await opening
        await server.close(0)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))


def test_an_older_server_that_loses_its_cancellation_keeps_no_signer_from_stopping(tmp_path: Path) -> None:
    stopped: list[float] = []

    class Older:
        async def stop(self, grace: float) -> None:
            stopped.append(grace)

    async def main() -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time, expected=AgentAddresses()), 1, 1)
        server, retiring = AgentServer(Here(NOTHING), door, ("127.0.0.1", 0), tmp_path, StepClock()), Loses()
        server._retiring[asyncio.create_task(retiring.run())] = Older()  # type: ignore[assignment]
        await asyncio.sleep(0)
        await server.close(3.0)
        assert retiring.ended
        assert stopped == [3.0]

    on_fake_time(main)
