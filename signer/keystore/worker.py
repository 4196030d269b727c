"""One thread for what one must do: a process that is to end with the signer ends with the thread that began it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


class Worker:
    """Does one thing after another. It keeps no process from ending, and begins with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._beginning = threading.Lock()

    def begin(self, work: Callable[[], _T]) -> "Future[_T]":
        """What `work` will return or raise, once it is its turn; until then it can be cancelled."""
        with self._beginning:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        future: Future[_T] = Future()
        self._work.put((work, future))
        return future

    def call(self, work: Callable[[], _T]) -> _T:
        """What `work` returns or raises: waits for its turn, on another thread than the worker's own."""
        return work() if threading.current_thread() is self._thread else self.begin(work).result()

    def end(self) -> None:
        """Begin nothing that comes after this, and do not wait for what was begun."""
        self._work.put(None)

    def _run(self) -> None:
        while (found := self._work.get()) is not None:
            work, future = found
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            # Not kept until the next comes: it may hold what somebody asked for.
            del found, work, future
