"""Signals that end a command: what has something to clean up is unwound by the first one, and by no other."""

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the command, and everything is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class FirstOnly:
    """A handler: the first signal raises KeyboardInterrupt. A second must not end what the first one has begun: a
    terminal that is closed sends two, and people press Ctrl-C again."""

    def __init__(self) -> None:
        self.came: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.came is None:
            self.came = number
            if not sys.warnoptions:
                # A library's coroutine that was made and not awaited yet is no news to whoever pressed Ctrl-C.
                warnings.simplefilter("ignore")
            raise KeyboardInterrupt

    def again(self) -> None:
        """It was raised where nothing can be: it comes once more."""
        number, self.came = self.came, None
        if number is not None:
            signal.raise_signal(number)


@contextmanager
def unwinding() -> Iterator[None]:
    """Within, the signals that end a process raise KeyboardInterrupt, once; outside of it that is Interrupted.

    What is ignored stays ignored. On another than the main thread signals are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first = FirstOnly()
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, first)
        yield
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT if first.came is None else first.came) from None
    finally:
        for number, handler in before.items():
            # Where one has come the process is about to end, and has files to remove yet.
            signal.signal(number, first if first.came is not None and handler == signal.SIG_DFL else handler)
