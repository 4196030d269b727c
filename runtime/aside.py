"""Work that may hang, on a thread of its own that keeps no process from ending. For event loops there is `bounded`."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

_Answer = TypeVar("_Answer")


def begun(work: Callable[[], _Answer]) -> "Future[_Answer]":
    """What `work` will return or raise."""
    # Not above: the command line loads this, and most commands wait for nothing.
    from concurrent.futures import Future

    future: Future[_Answer] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
