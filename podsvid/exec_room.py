"""How many commands run in podsvid's pods at once for one process, those that hang among them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from podsvid.authority import CommandFailed

# Until its connection is upgraded, nothing bounds how long the client of exec waits.
MOST_EXECS = 32


class ExecRoom:
    """Places for `most` of them."""

    def __init__(self, most: int = MOST_EXECS) -> None:
        self._most = most
        self._places = threading.BoundedSemaphore(most)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One place, until the command has ended and not only until nobody waits for it. Raises CommandFailed."""
        if not self._places.acquire(blocking=False):
            raise CommandFailed(f"{self._most} commands in podsvid's pods have not ended; try again when some have")
        try:
            yield
        finally:
            self._places.release()
