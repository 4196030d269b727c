"""The standard streams of a command, wherever they lead: to nobody, to a full disk, or closed."""

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from podsvid.outcome import OutputFailed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def reopen_closed() -> None:
    """Have the standard streams open, before a file or a connection gets the number of one."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The output cannot be written then either, and is not lost without a word.
            os.open(os.devnull, flags)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "wb", closefd=False), errors="backslashreplace", write_through=True)


class _Output(io.RawIOBase):
    """The standard output, whose troubles are told from those of other files."""

    def fileno(self) -> int:
        return 1

    def isatty(self) -> bool:
        return os.isatty(1)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return os.write(1, data)
        except OSError as error:
            raise OutputFailed(error.errno, error.strerror) from None


def output() -> io.TextIOWrapper:
    """The standard output of this process, which raises OutputFailed and never cannot spell something."""
    before = sys.stdout
    return io.TextIOWrapper(
        io.BufferedWriter(_Output()),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=os.isatty(1),
    )


def let_go(stdout: TextIO, *, flush: bool = True) -> None:
    """Python writes what is left when it ends, and would complain then; without `flush` nobody waits for a reader."""
    try:
        if not flush:
            raise OutputFailed
        stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
