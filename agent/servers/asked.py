"""How much of what the exposed process asks for waits for its answer."""

import sys
from typing import Self

from agent.channel.messages import Wanted

# Bytes of what is asked for, until it is answered: of all sockets, and of one.
MOST, MOST_EACH = 8 * 1024 * 1024, 1024 * 1024


def size(wanted: Wanted) -> int:
    """Bytes that it takes here."""
    return sys.getsizeof(wanted.spiffe_id) + sum(sys.getsizeof(each) for each in wanted.audiences)


class Asked:
    """So many questions of so many bytes at most; they count in the `whole` as well."""

    def __init__(self, number: int, most: int, whole: Self | None = None) -> None:
        self._number = number
        self._most = most
        self._whole = whole
        self.number = self.bytes = 0

    def take(self, size: int) -> bool:
        """Whether there is room for one more, which is taken then."""
        if self.number >= self._number or self.bytes + size > self._most:
            return False
        if self._whole is not None and not self._whole.take(size):
            return False
        self.number += 1
        self.bytes += size
        return True

    def give(self, size: int) -> None:
        """One was answered."""
        self.number -= 1
        self.bytes -= size
        if self._whole is not None:
            self._whole.give(size)
