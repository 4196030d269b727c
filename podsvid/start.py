"""The first lines of the process: whatever signal comes when, and whoever reads, there is no traceback.

Nothing heavy is imported before a signal ends the process without a word. What must be cleaned up asks to be unwound
(interrupts.py) while there is something to clean up.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

from podsvid.interrupts import ENDING, FirstOnly
from podsvid.outcome import SIGNALLED


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    _die_without_a_word()
    sys.excepthook = _uncaught
    sys.unraisablehook = _uncatchable
    from podsvid import streams

    streams.reopen_closed()
    sys.stdout = streams.output()
    from podsvid.cli import main as run

    code = 0
    try:
        code = run()
        return code
    finally:
        # The event loop leaves a handler behind that raises.
        ended = code - SIGNALLED in ENDING
        _die_without_a_word(ignore=ended)
        streams.let_go(sys.stdout, flush=not ended)


def _die_without_a_word(*, ignore: bool = False) -> None:
    """`ignore`: one of these signals has ended the command, which has some files to remove yet."""
    for number in ENDING:
        if ignore:
            signal.signal(number, signal.SIG_IGN)
            continue
        # What was ignored when the process began (nohup) stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            # The kernel gives the first process of a container no default action.
            signal.signal(number, _end if os.getpid() == 1 else signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # Python ends the process by SIGINT after this.
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def _uncatchable(problem: "sys.UnraisableHookArgs") -> None:
    """A signal that came where nothing can be raised, such as in a destructor, comes once more."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        handler = signal.getsignal(signal.SIGINT)
        if isinstance(handler, FirstOnly):
            handler.again()
        else:
            signal.raise_signal(signal.SIGINT)
    else:
        sys.__unraisablehook__(problem)
