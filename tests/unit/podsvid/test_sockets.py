"""A wrong socket is recognised by every command that asks one."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent import admin_api as agent
from agent.socket.guard import WORKLOAD_API
from podsvid import sockets
from podsvid.cli import main
from podsvid.sockets import trouble
from signer import admin_api as signer

pytestmark = pytest.mark.timeout(60)
COMMANDS = {
    "agent": ("node", "ls"),
    "signer": ("authority", "show"),
    "explain": ("explain", "a/b"),
    "pod": ("api", "fetch", "x509"),
}
SERVICES = {"agent": agent.SERVICE, "signer": signer.SERVICE, "pod": WORKLOAD_API, "csi": "csi.v1.Identity"}


class _Serves(grpc.GenericRpcHandler):
    """Knows one service, whose every method refuses."""

    def __init__(self, service: str) -> None:
        self._service = service

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        def refuse(_: object, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing of that name")

        known = str(call.method).startswith(f"/{self._service}/")
        return grpc.unary_unary_rpc_method_handler(refuse) if known else None


@contextmanager
def serving(service: str, path: Path) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Serves(service)])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Whoever sends something gets `answer`."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(1024)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("listens", SERVICES)
@pytest.mark.parametrize("asks", COMMANDS)
def test_who_listens_instead_is_named(asks: str, listens: str, short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "signer" if asks == "explain" else asks
    with serving(SERVICES[listens], short / "s"):
        code = main([*COMMANDS[asks], "--socket", str(short / "s")])
    err = capsys.readouterr().err
    if wanted == listens:
        assert "nothing of that name" in err
        return
    names = {"agent": "of an agent", "signer": "of a signer", "pod": "of a pod", "csi": "of a CSI driver"}
    assert f"{short / 's'} is the " in err
    assert f"socket {names[listens]}" in err
    assert (code, err.split(": ")[1]) in ((1, "WRONG_SOCKET"), (1, "WORKLOAD_API_NOT_SERVED"))


@pytest.mark.parametrize("asks", COMMANDS)
def test_an_http_server_is_named(asks: str, short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(short / "s", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"):
        main([*COMMANDS[asks], "--socket", str(short / "s")])
    assert f"an HTTP server listens at {short / 's'}, not a" in capsys.readouterr().err


@pytest.mark.parametrize("asks", COMMANDS)
def test_what_is_at_the_path_is_named(asks: str, short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(path: Path, *reasons: str) -> str:
        main([*COMMANDS[asks], "--socket", str(path)])
        err = capsys.readouterr().err
        assert err.split(": ")[1] in (*reasons, "WORKLOAD_API_UNREACHABLE")
        assert err.count("\n") == 1
        return err

    (short / "file").touch()
    assert "is a file and no socket" in said(short / "file", "NOT_A_SOCKET")
    assert "is a directory and no socket" in said(short, "NOT_A_SOCKET")
    with socket.socket(socket.AF_UNIX) as left, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        left.bind(str(short / "left"))
        other.bind(str(short / "other"))
        assert "nobody listens at" in said(short / "left", "NOBODY_LISTENS")
        assert "is a socket of another type" in said(short / "other", "NOT_A_SOCKET")


def test_a_socket_of_another_user(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short / "s"))
        listening.listen()
        (short / "s").chmod(0o600)

        def denied(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket.socket, "connect", denied)
        found = trouble(str(short / "s"), "an agent", agent.SERVICE)
    assert found is not None
    assert found.reason == "SOCKET_DENIED"
    user = f"user {os.geteuid()}"
    assert str(found) == f"{user} may not open {short / 's'}, which is {user}'s (mode 0600); run this as who may"


@pytest.mark.parametrize("line", [*COMMANDS.values(), ("node", "rotate", "a/b")], ids=" ".join)
def test_who_says_nothing_is_given_up(line: Sequence[str], short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(short / "s"))
        deaf.listen()
        code = main([*line, "--socket", str(short / "s"), "--timeout", "1s"])
    err = capsys.readouterr().err
    assert "TIMED_OUT: no answer from" in err or "WORKLOAD_API_UNREACHABLE: no answer from" in err
    assert f"{short / 's'} within 1 s; --timeout gives it longer" in err
    assert code == (3 if line[0] == "api" else 1)
    assert err.count("\n") == 1


def test_every_daemon_is_known_by_its_service() -> None:
    assert {method.split("/")[1] for method in sockets._KNOWN} == set(SERVICES.values())
