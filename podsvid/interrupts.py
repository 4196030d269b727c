"""Signals that end a command: what has something to clean up is unwound by them, and no more often than that."""

import signal
import threading
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


@contextmanager
def unwinding() -> Iterator[None]:
    """Within, the signals that end a process raise KeyboardInterrupt; outside of it that is Interrupted.

    What is ignored stays ignored. On another than the main thread signals are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    before = {number: signal.getsignal(number) for number in ENDING}

    def as_ctrl_c(number: int, _: FrameType | None) -> None:
        # A terminal that is closed sends two, and the second must not end what the first one has begun.
        if came:
            return
        came.append(number)
        if before[signal.SIGINT] == signal.SIG_IGN:
            # As in a script's background.
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                # asyncio.run lets Ctrl-C cancel its work, where Python's own handler is there, and nothing else.
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else as_ctrl_c)
        yield
    except KeyboardInterrupt:
        raise Interrupted(came[-1] if came else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
