"""A server that could not be made: the next attempt makes it, as if there had been none."""

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from signer.front.admission import Admission
from signer.front.door import Door
from signer.front.server import AgentServer
from tests.signer_rig import StepClock
from tests.unit.signer.test_lifecycle import first

NOTHING = grpc.method_handlers_generic_handler("nothing", {})


@pytest.mark.parametrize(
    ("step", "serves"),
    [("add_secure_port", False), ("start", False), ("listen", False), ("add_secure_port", True), ("start", True)],
)
def test_what_failed_midway_is_made_again(monkeypatch: pytest.MonkeyPatch, step: str, serves: bool) -> None:
    """At a start, and where the certificate is renewed: else it would end a day later, and nobody reach the signer."""
    clock, state = StepClock(), first()

    class Failing(socket.socket):
        def listen(self, *_: object) -> None:
            raise OSError(98, "no room")

    def fails(*_: object) -> Any:
        raise RuntimeError("no room")

    async def run(folder: Path) -> None:
        door = Door(Admission(1000, lambda _: None, asyncio.get_running_loop().time), 1, 1)
        server = AgentServer(NOTHING, door, ("127.0.0.1", 0), folder / "run", clock)
        if serves:
            await server.renew(state)
            clock.pass_by(hours=13)
        before, listening = door.target, list(door._listening)
        with monkeypatch.context() as full:
            if step == "listen":
                full.setattr(socket, "socket", Failing)
            else:
                full.setattr(type(grpc.aio.server()), step, fails)
            for _ in range(2):
                with pytest.raises(OSError, match="no room"):
                    await server.renew(state)
        assert server.serving is serves
        assert (door.target, door._listening) == (before, listening)
        await server.renew(state)
        assert server.serving
        assert door.target != before
        assert len(door._listening) == 1
        made = door.target
        await server.renew(state)
        assert door.target == made, "it was made once more though it is good"
        await server.close(0)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        asyncio.run(run(Path(name)))
