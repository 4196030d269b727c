"""A file that one run at a time holds, and that is gone when nobody does."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from .host import ClusterError


class Lock:
    """Held from `take` to `release`; the kernel releases it for a run that was killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether by this object."""
        return self._file is not None

    def take(self) -> None:
        """Raises ClusterError if another run has it."""
        while self._file is None:
            file = self._path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ClusterError(f"another run holds {self._path}") from None
            if self._is_still(file):
                self._file = file
            else:  # whoever had it removed it between our opening and locking: that file is nobody's now
                file.close()

    def release(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _is_still(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
