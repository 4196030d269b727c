"""The newest picture, looked for again as long as somebody looks at it."""

import hashlib
import json
import threading
from dataclasses import dataclass

from podsvid import outcome
from podsvid.console.picture import Picture, Source


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture as it is sent; `tag` differs where it does."""

    tag: str
    body: bytes


class Watch:
    """Asks `source` on one thread, and only while a page is open: by exec each look is a process on each node."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._picture = source.unseen()
        self._encoded: Encoded | None = None
        self._wanted = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        """Look whenever it is wanted, until `close`."""
        threading.Thread(target=self._run, daemon=True, name="console watch").start()

    def close(self) -> None:
        """No other look begins."""
        self._ended.set()
        self._wanted.set()

    def newest(self) -> Encoded:
        """What is known by now; a newer one is looked for."""
        self._wanted.set()
        with self._lock:
            if self._encoded is None:
                # Not when it was found: of a large cluster there are more than anybody asks for.
                body = json.dumps(self._picture.to_json(), separators=(",", ":")).encode()
                self._encoded = Encoded(f'"{hashlib.sha256(body).hexdigest()[:32]}"', body)
            return self._encoded

    def look(self) -> None:
        """Once, now. A source that fails leaves what was seen before, and the page says so."""
        try:
            self._source.look(self._keep)
        except Exception as error:
            found = outcome.of(error)
            self._keep(self._picture.lost(f"{found.reason}: {found.text}"))

    def _keep(self, picture: Picture) -> None:
        with self._lock:
            if picture != self._picture:
                self._picture, self._encoded = picture, None

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if not self._ended.is_set():
                self.look()
                self._ended.wait(self._source.every)
