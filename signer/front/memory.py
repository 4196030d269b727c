"""Gives memory that is free back to the system: a process that freed much after an attack would stay as large."""

import ctypes
from collections.abc import Callable


def trimmer() -> Callable[[], object]:
    """What does it; it takes milliseconds, without the interpreter's lock. Nothing on a C library that cannot."""
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)
