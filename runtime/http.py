"""Health, readiness and metrics over HTTP, on threads of their own so that a stuck event loop shows as unhealthy."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# Seconds; kubelet gives GetInfo as long.
CHECK_DEADLINE = 1.0
Check = Callable[[], Awaitable[str | None]]


@contextmanager
def serving(
    address: tuple[str, int],
    loop: asyncio.AbstractEventLoop,
    healthy: Check,
    ready: Check,
    registry: CollectorRegistry,
    notes: Callable[[], str] = str,
) -> Iterator[tuple[str, int]]:
    """Serve /healthz, /readyz and /metrics while inside; yields the bound address. Checks answer None or what is wrong.

    `notes` is what a person should know although nothing is wrong; /readyz shows it.
    Raises OSError when the address cannot be bound.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, encode(registry), content_type)
            elif self.path in ("/healthz", "/readyz"):
                wrong = self._ask(healthy if self.path == "/healthz" else ready)
                text = "\n".join(filter(None, [wrong or "ok", notes() if self.path == "/readyz" else "", ""]))
                self._answer(503 if wrong else 200, f"{text}\n".encode(), "text/plain; charset=utf-8")
            else:
                self._answer(404, b"try /healthz, /readyz or /metrics\n", "text/plain; charset=utf-8")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server calls it so
            """Probes and scrapes are no state change."""

        def _ask(self, check: Check) -> str | None:
            async def run() -> str | None:
                return await check()

            try:
                return asyncio.run_coroutine_threadsafe(run(), loop).result(CHECK_DEADLINE)
            except TimeoutError:
                return "the event loop does not answer"
            except RuntimeError:
                return "stopping"

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield str(host), int(port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
