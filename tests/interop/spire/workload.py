"""A workload in a process of its own: serves, and calls every other one, over mutual TLS by what a Workload API says.

python -m tests.interop.spire.workload NAME SOCKET FOLDER OWN: FOLDER/NAME has its port once it serves, in the place of
an earlier one's; OWN is an empty folder for its SVID. A line of JSON tells of each round. After a line on its
standard input it calls nobody any more, and it ends with that input.
"""

import json
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.cluster.fleet import tls_context
from tests.cluster.rounds import Follower, held

ACCOUNTS = "spiffe://example.org/ns/default/sa/"
# So long is what a caller says of itself, its name, filled up.
_HELLO = 32
_SECONDS = 20.0
# A pause, or the handshakes would have all cores for themselves.
_PAUSE = 0.1


@dataclass
class Told:
    """What one of these has seen: rounds that it has made, handshakes of its calls, what failed on either side, and
    which authorities signed for it; whether it has stopped to call."""

    rounds: int = 0
    made: int = 0
    failed: list[str] = field(default_factory=list)
    authorities: list[str] = field(default_factory=list)
    stopped: bool = False


class Workload:
    """Serves as `name` and calls the others that are in `folder`."""

    def __init__(self, name: str, folder: Path, own: Path) -> None:
        self._name, self._folder, self._own = name, folder, own
        self._lock = threading.Lock()
        self.told = Told()

    def serve(self) -> None:
        """Until the process ends; others find it when this has its port."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        new = self._own / "port"
        new.write_text(str(listening.getsockname()[1]))
        new.replace(self._folder / self._name)

    def round(self) -> None:
        """Call each of the others once."""
        for name in sorted(each.name for each in self._folder.iterdir() if each.name != self._name):
            try:
                self._call(name)
                self.told.made += 1
            except (OSError, ValueError) as error:
                self._failed(f"{self._name} calls {name}: {error}")
            time.sleep(_PAUSE / 5)
        authority = held(self._own).authority
        if authority not in self.told.authorities:
            self.told.authorities.append(authority)
        self.told.rounds += 1

    def _call(self, name: str) -> None:
        port = int((self._folder / name).read_text())
        context = tls_context(self._own, server_side=False)
        with socket.create_connection(("127.0.0.1", port), _SECONDS) as plain, context.wrap_socket(plain) as secure:
            if _ids(secure) != [ACCOUNTS + name]:
                raise ValueError(f"it is {_ids(secure)}")
            hello = self._name.encode().ljust(_HELLO)
            secure.sendall(hello)
            # With TLS 1.3 a client hears only here that the server refused it.
            if _received(secure) != hello:
                raise ValueError("it closed the connection")

    def _accept(self, listening: socket.socket) -> None:
        while True:
            plain, _ = listening.accept()
            threading.Thread(target=self._answer, args=(plain,), daemon=True).start()

    def _answer(self, plain: socket.socket) -> None:
        try:
            plain.settimeout(_SECONDS)
            with tls_context(self._own, server_side=True).wrap_socket(plain, server_side=True) as secure:
                hello = _received(secure)
                if _ids(secure) != [ACCOUNTS + hello.decode().rstrip()]:
                    raise ValueError(f"{_ids(secure)} calls, and says that it is {hello!r}")
                secure.sendall(hello)
        except (OSError, ValueError) as error:
            self._failed(f"{self._name} is called: {error}")

    def _failed(self, what: str) -> None:
        with self._lock:
            self.told.failed.append(what)


def _received(secure: ssl.SSLSocket) -> bytes:
    """One hello, or less where the other one ended before."""
    found = b""
    while len(found) < _HELLO and (more := secure.recv(_HELLO - len(found))):
        found += more
    return found


def _ids(secure: ssl.SSLSocket) -> list[str]:
    names = (secure.getpeercert() or {}).get("subjectAltName", ())
    return [str(each[1]) for each in names if isinstance(each, tuple) and each[0] == "URI"]


def following(api: str, own: Path) -> Follower:
    """One that has had an answer: SPIRE's agent knows an entry only at its next look at the server."""
    until = time.monotonic() + _SECONDS
    while True:
        found = Follower(api, own)
        threading.Thread(target=found.run, daemon=True).start()
        while not found.answers and not found.ended and time.monotonic() < until:
            time.sleep(_PAUSE)
        if found.answers:
            return found
        found.stop()
        if time.monotonic() >= until:
            raise SystemExit(found.ended or f"{api} does not answer")
        time.sleep(_PAUSE)


def main(name: str, api: str, folder: Path, own: Path) -> None:
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        stop.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    follower = following(api, own)
    here = Workload(name, folder, own)
    here.serve()
    while not stop.wait(_PAUSE):
        here.round()
        print(json.dumps(asdict(here.told)), flush=True)
    if follower.ended:
        here.told.failed.append(f"the stream of {name} has ended: {follower.ended}")
    here.told.stopped = True
    print(json.dumps(asdict(here.told)), flush=True)
    waiting.join()
    sys.stdin.read()
    print(json.dumps(asdict(here.told)), flush=True)
    # Threads of gRPC's may hold up an interpreter that ends.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
