"""How a pod's socket ends, frame by frame: every call gets its status before its connection is taken away."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.socket import endpoint, guard
from bench import attacks
from podsvid.quickstart.kubelet import StandInKubelet
from runtime.stopping import SIGNALS
from tests.fake_authority import root
from tests.node.test_endpoint import GOOD, Served, served, stream_code_of, until
from tests.support import DEADLINE, ROOT, VOLUME, Host, first, host, node, pod

HEADERS, SETTINGS, PING, GOAWAY = 1, 4, 6, 7
ACK = 1
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
# No table for headers: what is sent can be read as it is. And as much room for messages as is asked for.
TABLE, WINDOW = 1, 4


@dataclass
class Heard:
    """What a client was sent: the streams that ended, each with its status, and GOAWAYs with the error; in order."""

    order: list[tuple[str, int, int]] = field(default_factory=list)

    def take(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS and b"grpc-status" in payload:
            at = payload.index(b"grpc-status") + len(b"grpc-status")
            length = payload[at] & 0x7F
            text = payload[at + 1 : at + 1 + length]
            # Digits may come in Huffman's code: 14 is 00001 011010, and ones.
            status = 14 if text in (b"14", b"\x0b\x5f", b"\x0b\x4f") else int(text) if text.isdigit() else -1
            self.order.append(("status", stream, status))
        elif kind == GOAWAY:
            self.order.append(("goaway", stream, struct.unpack(">I", payload[4:8])[0]))

    @property
    def statuses(self) -> dict[int, int]:
        return {stream: status for what, stream, status in self.order if what == "status"}


class Client:
    """Speaks HTTP/2 by hand, acknowledges what a client does, and keeps what it hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.heard = Heard()
        self.messages = 0

    @classmethod
    async def connect(cls, path: Path, window: int = 1 << 20) -> "Client":
        reader, writer = await asyncio.open_unix_connection(path)
        settings = attacks.frame(SETTINGS, 0, 0, struct.pack(">HIHI", TABLE, 0, WINDOW, window))
        writer.write(attacks.PREFACE + settings)
        return cls(reader, writer)

    async def listen(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Until the connection ends, or there is enough."""
        while not enough():
            try:
                head = await self._reader.readexactly(9)
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            self.messages += kind == attacks.DATA
            self.heard.take(kind, stream, payload)
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.writer.write(attacks.frame(kind, ACK, 0, payload if kind == PING else b""))


def begun(stream: int, path: bytes) -> bytes:
    """The headers of a call that has not said what it asks."""
    return attacks.frame(HEADERS, attacks.END_HEADERS, stream, attacks.headers(path))


def asked(stream: int, path: bytes, content: bytes = b"x") -> bytes:
    return begun(stream, path) + attacks.message(stream, content)


def clean(heard: Heard, streams: int) -> None:
    """Every call was told UNAVAILABLE, and only then that the connection ends, which is no error."""
    assert heard.statuses == dict.fromkeys(range(1, 2 * streams, 2), 14)
    assert [each[0] for each in heard.order[:streams]] == ["status"] * streams
    goaways = heard.order[streams:]
    assert goaways
    assert {error for _, _, error in goaways} == {0}


@pytest.mark.spec("CL-1", "CL-2", "C-27", "WL-6")
def test_a_stop_tells_every_call_and_then_the_connection() -> None:
    async def main(at: Served) -> None:
        client = await Client.connect(at.path)
        api = b"/SpiffeWorkloadAPI/"
        calls = [
            asked(1, api + b"WaitStream"),
            asked(3, api + b"Wait"),
            begun(5, api + b"Call"),
            begun(7, api + b"Echo"),
            begun(9, api + b"Echo") + attacks.message(9, b"one", flags=0),
        ]
        client.writer.write(b"".join(calls))
        await client.listen(lambda: client.messages == 2)
        await until(lambda: at.counts.open == 5)
        closing = asyncio.ensure_future(at.endpoint.close())
        await client.listen()
        await closing
        clean(client.heard, 5)
        assert at.counts.open == 0
        assert not at.path.exists()

    served(main)


def test_a_call_that_comes_while_the_others_are_told_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(at: Served) -> None:
        # One whose client takes nothing keeps the socket there, until it goes.
        monkeypatch.setattr(endpoint, "ENDING", DEADLINE)
        stuck = await Client.connect(at.path, window=0)
        stuck.writer.write(asked(1, b"/SpiffeWorkloadAPI/WaitStream"))
        await until(lambda: at.counts.open == 1)
        async with at.channel() as channel:
            await channel.channel_ready()
            closing = asyncio.ensure_future(at.endpoint.close())
            await asyncio.sleep(0)
            late = channel.unary_stream("/SpiffeWorkloadAPI/WaitStream")(b"", metadata=GOOD)
            assert await stream_code_of(late) == ([], UNAVAILABLE, guard.CLOSED)
            stuck.writer.close()
            await closing
        assert not at.path.exists()

    served(main)


def test_who_takes_nothing_keeps_no_socket_open() -> None:
    async def main(at: Served) -> None:
        mute = await Client.connect(at.path, window=0)
        mute.writer.write(asked(1, b"/SpiffeWorkloadAPI/WaitStream"))
        await until(lambda: at.counts.open == 1)
        await at.endpoint.close()
        await until(lambda: at.counts.open == 0)
        assert not at.path.exists()

    served(main)


def test_an_answer_that_is_on_its_way_is_not_cut_short() -> None:
    async def main(at: Served) -> None:
        class Seen(list[bytes]):
            def append(self, request: bytes) -> None:
                # The stop begins while it answers.
                closing.append(asyncio.ensure_future(at.endpoint.close()))

        closing: list[asyncio.Future[None]] = []
        at.methods.seen = Seen()
        async with at.channel() as channel:
            answer = await channel.unary_unary("/SpiffeWorkloadAPI/Call")(b"answer", metadata=GOOD)
            assert answer == b"answer"
        await closing[0]

    served(main)


def test_a_stop_that_is_given_up_leaves_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(at: Served) -> None:
        monkeypatch.setattr(endpoint, "ENDING", DEADLINE)
        stuck = await Client.connect(at.path, window=0)
        stuck.writer.write(asked(1, b"/SpiffeWorkloadAPI/WaitStream"))
        await until(lambda: at.counts.open == 1)
        closing = asyncio.ensure_future(at.endpoint.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not at.path.exists()

    served(main)


async def streaming(path: Path, streams: int = 3) -> Client:
    """A client with so many open streams, each of which has its first answer."""
    client = await Client.connect(path)
    client.writer.write(b"".join(asked(1 + 2 * each, attacks.FETCH, b"") for each in range(streams)))
    await client.listen(lambda: client.messages == streams)
    return client


async def waited(here: Host) -> None:
    assert here.process is not None
    await asyncio.to_thread(here.process.wait, DEADLINE)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "unpublish"])
def test_a_stop_of_the_agent_and_a_volume_that_goes_end_streams_so(how: str) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        it = pod()
        target = await kubelet.publish(it, VOLUME)
        async with asyncio.timeout(DEADLINE):
            client = await streaming(here.short(target) / "socket")
            assert here.process is not None
            ending: asyncio.Future[Any]
            if how == "unpublish":
                ending = asyncio.ensure_future(kubelet.unpublish(it, VOLUME))
            else:
                here.process.send_signal(signal.Signals[how])
                ending = asyncio.ensure_future(waited(here))
            await client.listen()
            await ending
        clean(client.heard, 3)
        if how != "unpublish":
            assert here.process.returncode == 0
            assert not list((here.kubelet_root / "plugins_registry").iterdir())

    run(main)


@pytest.mark.parametrize("number", sorted({*SIGNALS} - {signal.SIGTERM, signal.SIGHUP}))
def test_every_signal_that_ends_a_process_is_a_stop(number: signal.Signals) -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        assert here.process is not None
        here.process.send_signal(number)
        assert await asyncio.to_thread(here.process.wait, DEADLINE) == 0
        # Without a volume nothing stays on the node.
        assert not list((here.kubelet_root / "plugins_registry").iterdir())
        assert not list((here.kubelet_root / "plugins").iterdir())
        assert not list((here.base / "r").iterdir())

    run(main)


def test_a_signal_to_the_whole_process_group_does_not_end_the_sockets_before_the_agent_does() -> None:
    async def main(here: Host, kubelet: StandInKubelet) -> None:
        target = await kubelet.publish(pod(), VOLUME)
        path = here.short(target) / "socket"
        exposed = here.processes()[1]
        for number in SIGNALS:
            os.kill(exposed, number)
        await first(path)
        assert here.processes()[1] == exposed

    run(main)


# An agent on a host where the attempt to mount hangs, as one may on a file system that does.
HUNG = """
import runpy, sys, threading
from csi import mountable
mountable._tried = lambda *_: threading.Event().wait()
sys.argv = ["podsvid", *sys.argv[1:]]
runpy.run_module("podsvid", run_name="__main__", alter_sys=True)
"""


def test_an_agent_whose_host_hangs_stops() -> None:
    with host() as here:
        here.start(within=lambda *command: [command[0], "-c", HUNG, *command[3:]])
        assert here.process is not None
        waits_until = time.monotonic() + DEADLINE
        while not list((here.kubelet_root / "plugins_registry").iterdir()):
            assert here.process.poll() is None
            assert time.monotonic() < waits_until
            time.sleep(0.01)
        assert here.stop() == 0
        assert [each["event"] for each in here.events()].count("agent stopping") == 1


# One where the volumes of before cannot be looked at; it says when it does.
UNFOUND = """
import pathlib, runpy, sys, threading
from csi.journal import Journal
looks = pathlib.Path(sys.argv[1])
Journal.entries = lambda _: (looks.touch(), threading.Event().wait())
sys.argv = ["podsvid", *sys.argv[2:]]
runpy.run_module("podsvid", run_name="__main__", alter_sys=True)
"""


def test_an_agent_whose_volumes_of_before_hang_stops(tmp_path: Path) -> None:
    looks = tmp_path / "looks"
    with host() as here:
        here.start(within=lambda *command: [command[0], "-c", UNFOUND, str(looks), *command[3:]])
        assert here.process is not None
        waits_until = time.monotonic() + DEADLINE
        while not looks.exists():
            assert here.process.poll() is None
            assert time.monotonic() < waits_until
            time.sleep(0.01)
        assert here.stop() == 0
        assert [each["event"] for each in here.events()].count("agent stopping") == 1


def test_an_agent_that_is_told_to_stop_while_it_starts_stops() -> None:
    """It waits for a signer that does not answer, and for nothing else."""
    with host() as here:
        (here.base / "bundle").write_bytes(root(datetime.now(UTC)).bundle.to_jwks())
        (here.base / "token").write_text("x.y.z", encoding="ascii")
        here.start(
            *("--authority", "signer", "--signer-address", "127.0.0.1:9", "--signer-bundle", str(here.base / "bundle")),
            *("--agent-token-file", str(here.base / "token")),
        )
        assert here.process is not None
        waits_until = time.monotonic() + DEADLINE
        while not here.base.joinpath("r", "lock").exists():
            assert here.process.poll() is None
            assert time.monotonic() < waits_until
            time.sleep(0.01)
        assert here.stop() == 0
        assert not any(each.get("event") == "agent serving" for each in here.events())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signer_that_waits_for_its_api_server_stops(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tmp_path / "kubeconfig"
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": server}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        command = [sys.executable, "-m", "podsvid", "signer", "--trust-domain", "example.org", "--namespace", "podsvid"]
        command += ["--identity", "signer-1", "--kubeconfig", str(config), "--metrics-listen", "off"]
        command += ["--admin-socket", str(tmp_path / "admin.sock")]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            silent.settimeout(DEADLINE)
            asked, _ = silent.accept()
            with asked:
                # It would give up by itself, with an error.
                process.send_signal(number)
                assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
            process.wait()


def run(main: Callable[[Host, StandInKubelet], Awaitable[None]]) -> None:
    async def play() -> None:
        async with node() as (here, kubelet):
            await main(here, kubelet)

    asyncio.run(play())
