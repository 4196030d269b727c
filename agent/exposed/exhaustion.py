"""The exposed process ends when its memory is used up: what failed for that may be missed for as long as it lives.

A connection that could not be passed on would stay as it is. Once the process is gone another one serves all sockets
within a second.
"""

import asyncio
import os
import sys
import threading
from typing import Any, Final

# Its exit code, and what it says then: nothing that needs memory.
STATUS: Final = 75
SAID: Final = b"memory is used up\n"


def end_when_exhausted() -> None:
    """From now on this process ends where memory failed and nobody can be told."""
    sys.unraisablehook = _unraisable
    threading.excepthook = _of_thread


def of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The same for what a task or a callback of the event loop failed with: its exception handler."""
    if isinstance(context.get("exception"), MemoryError):
        _end()
    loop.default_exception_handler(context)


def _unraisable(failed: "sys.UnraisableHookArgs") -> None:
    if issubclass(failed.exc_type, MemoryError):
        _end()
    sys.__unraisablehook__(failed)


def _of_thread(failed: threading.ExceptHookArgs) -> None:
    if issubclass(failed.exc_type, MemoryError):
        _end()
    threading.__excepthook__(failed)


def _end() -> None:
    try:
        os.write(2, SAID)
    finally:
        os._exit(STATUS)
