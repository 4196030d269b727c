"""The console's HTTP: a listener on loopback with a random port, its page, and what that asks for."""

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPException, LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import MappingProxyType
from typing import Any, BinaryIO, Final, Self
from urllib.parse import parse_qs, urlsplit

from podsvid import outcome
from podsvid.console.guard import HEADERS, Asked, Guard, Refusal, is_name
from podsvid.console.picture import Source
from podsvid.console.watching import Watch

# Connections at once; any user of this machine can open some. Of each: seconds for all of its request, and again for
# taking the answer; bytes of the request.
MOST_CONNECTIONS, PATIENCE, MOST_HEAD = 64, 10.0, 16 * 1024
# Explanations at once: each starts processes in pods.
MOST_EXPLAINED = 4
_TYPES: Final = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)
# Seconds until it is seen that the console is to end.
_POLL: Final = 0.1
_JSON: Final = "application/json"
_PAGE: Final = "index.html"


class Console:
    """The page of `source` for who has its `url`. Bound when made, it answers while it is entered. Raises OSError.

    `patience`: seconds, as PATIENCE.
    """

    def __init__(self, source: Source, patience: float = PATIENCE) -> None:
        token = secrets.token_urlsafe(32)
        self._watch = Watch(source)
        # No name is asked for: whoever answers it would choose where this listens.
        self._server = _Server(("127.0.0.1", 0), BaseHTTPRequestHandler, patience)
        self.port: int = self._server.server_address[1]
        self._server.RequestHandlerClass = _handler(
            Guard(token, self.port), self._watch, source, assets(), self._server
        )
        # Behind the #: a browser sends that to nobody, and it is in no log.
        self.url = f"http://127.0.0.1:{self.port}/#token={token}"

    def __enter__(self) -> Self:
        # On threads that keep no process from ending.
        self._watch.start()
        threading.Thread(target=self._server.serve_forever, args=(_POLL,), daemon=True, name="console").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._watch.close()


def assets() -> Mapping[str, bytes]:
    """The files of the page by name."""
    folder = resources.files("podsvid.console") / "assets"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.name.rpartition(".")[2] in _TYPES}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], patience: float) -> None:
        self.patience = patience
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        # Whose request is not read yet, and until when it may be: a timeout counts anew with each byte.
        self._reading: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the resolver for this host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._reading[request] = time.monotonic() + self.patience
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread, so none that gives it back.
            self.read(request)
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.read(request)
            self._room.release()

    def read(self, request: socket.socket) -> None:
        """Its request is there, or will not come."""
        with self._lock:
            self._reading.pop(request, None)

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._lock:
            for request in [each for each, until in self._reading.items() if until < now]:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
                del self._reading[request]

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Who closes a tab in the middle of an answer is no news.
        pass


class _Head:
    """The lines of a request, MOST_HEAD bytes all in all. Raises LineTooLong."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MOST_HEAD

    def readline(self, most: int) -> bytes:
        """The next one, as a file has it."""
        line = self._file.readline(min(most, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("request")
        return line

    def close(self) -> None:
        """Nothing more is read."""
        self._file.close()


def _handler(
    guard: Guard, watch: Watch, source: Source, files: Mapping[str, bytes], server: _Server
) -> type[BaseHTTPRequestHandler]:
    explaining = threading.BoundedSemaphore(MOST_EXPLAINED)

    class Handler(BaseHTTPRequestHandler):
        timeout = server.patience
        server_version, sys_version = "podsvid", ""
        headers: Message

        def handle(self) -> None:
            self.rfile: Any = _Head(self.rfile)
            try:
                super().handle()
            except HTTPException:
                # Of the first line; what is too long below it is the library's to answer.
                self.requestline = self.request_version = self.command = ""
                self.send_error(431)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server calls it so
            pass

        def parse_request(self) -> bool:
            # Before any method is looked for: of those that it does not know the library says something of its own.
            if not super().parse_request():
                return False
            server.read(self.connection)
            refusal = guard.refuses(self._asked())
            if refusal is not None:
                self._refuse(refusal)
            return refusal is None

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            self._refuse(Refusal(code, "BAD_REQUEST", "this is no request that a browser sends"))

        def do_GET(self) -> None:
            try:
                url = urlsplit(self.path)
            except ValueError:
                self.send_error(400)
                return
            name = _PAGE if url.path == "/" else url.path.removeprefix("/assets/")
            if name in files and url.path in ("/", f"/assets/{name}"):
                self._answer(200, _TYPES[name.rpartition(".")[2]], files[name])
            elif url.path not in ("/data", "/explain"):
                self._refuse(Refusal(404, "NOT_FOUND", "there is no such page"))
            elif (refusal := guard.refuses_data(self._asked())) is not None:
                self._refuse(refusal)
            elif url.path == "/data":
                self._data()
            else:
                self._explain(url.query)

        def _asked(self) -> Asked:
            get = self.headers.get_all
            return Asked(self.command, tuple(get("Host", [])), tuple(get("Authorization", [])))

        def _data(self) -> None:
            newest = watch.newest()
            same = self.headers.get("If-None-Match") == newest.tag
            self._answer(304 if same else 200, _JSON, b"" if same else newest.body, newest.tag)

        def _explain(self, query: str) -> None:
            try:
                asked = parse_qs(query, max_num_fields=2)
            except ValueError:
                asked = {}
            namespace, pod = (asked.get(each, [""])[0] for each in ("namespace", "pod"))
            if not (is_name(namespace) and is_name(pod)):
                self._refuse(Refusal(400, "WRONG_USAGE", "say which pod, by namespace and pod"))
            elif not explaining.acquire(blocking=False):
                self._refuse(Refusal(503, "TOO_MANY", "other pods are being explained; try again in a few seconds"))
            else:
                try:
                    found = source.explain(namespace, pod)
                except Exception as error:
                    ended = outcome.of(error)
                    self._refuse(Refusal(502, ended.reason, ended.text))
                else:
                    self._answer(200, _JSON, json.dumps(found).encode())
                finally:
                    explaining.release()

        def _refuse(self, refusal: Refusal) -> None:
            told = {"reason": refusal.reason, "text": refusal.text}
            self._answer(refusal.status, _JSON, json.dumps(told).encode())

        def _answer(self, status: int, kind: str, body: bytes, tag: str = "") -> None:
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if tag:
                self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.write(body)

    return Handler
