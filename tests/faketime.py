"""The clock of a process as a test sets it, at its start and while it runs: by libfaketime, a package of Debian's.

All that the process does by the time of day goes by it: Python's own clock, TLS in gRPC and OpenSSL, files' times.
How much time passes stays true.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class SetClock:
    """Of every process that has `environment`: all of them are as far ahead, in seconds, as was said last."""

    def __init__(self, folder: Path, ahead: float = 0.0) -> None:
        self._file = folder / "clock"
        self.ahead = ahead
        self.set(ahead)

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead: float) -> None:
        """From now on; below 0: behind."""
        self.ahead = ahead
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead:+.0f}\n")
        new.replace(self._file)
