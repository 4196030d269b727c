"""How many first words a replica answers at once: fewer while its answers come late, more while agents get theirs soon.

All whose first words are being answered share the processor. Of too many none is done before its agent gives up.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

# Seconds after which an answer is late; and how many are answered at once at least.
ANSWER_SECONDS, LEAST_AT_ONCE = 0.6, 4


class Answering(Generic[T]):
    """Who has a place and waits for the replica: `most` at once, while answers come soon.

    Late is what only the replica makes late: from first words that are whole to their answer. That number rises by
    agents only: who has first words answered soon and comes to nothing changes nothing. What is told of one that is not
    there, or twice, changes nothing. Times are seconds of `now`, which only grows.
    """

    def __init__(self, most: int, now: Callable[[], float]) -> None:
        self._most = most
        self._least = min(LEAST_AT_ONCE, most)
        self._now = now
        self.limit = most
        # Those of whom nothing has passed yet; those that the replica waits for; those whose first words are whole,
        # since when, the oldest first; of them those that are late; and those that were answered soon.
        self._begun: set[T] = set()
        self._halting: set[T] = set()
        self._asked: OrderedDict[T, float] = OrderedDict()
        self._late: set[T] = set()
        self._soon: set[T] = set()

    def __contains__(self, one: object) -> bool:
        """Whether the replica is to answer it."""
        return one in self._begun or one in self._asked or one in self._late

    @property
    def full(self) -> bool:
        """Whether as many wait for the replica as may, and fewer may than there are places."""
        self._look()
        return self.limit < self._most and len(self._begun) + len(self._asked) + len(self._late) >= self.limit

    def begin(self, one: T) -> None:
        """It has a place."""
        self._begun.add(one)

    def passed(self, one: T, *, whole: bool) -> None:
        """Something of its first words has passed: all of them, or the replica waits for it."""
        if one in self._begun or one in self._halting:
            self._begun.discard(one)
            self._halting.discard(one)
            if whole:
                self._asked[one] = self._now()
            else:
                self._halting.add(one)

    def answered(self, one: T) -> None:
        """Its first words were."""
        self._look()
        if self._asked.pop(one, None) is not None:
            self._soon.add(one)
        self._forget(one)

    def left(self, one: T, *, proven: bool = False) -> None:
        """It has its place no more: it left, was ended, or proved to be an agent."""
        self._look()
        if proven and one in self._soon:
            self.limit = min(self.limit + 1, self._most)
        self._asked.pop(one, None)
        self._soon.discard(one)
        self._forget(one)

    def _forget(self, one: T) -> None:
        for those in (self._begun, self._halting, self._late):
            those.discard(one)

    def _look(self) -> None:
        """Who waits for too long is late now, and not only once it is answered: it may never be."""
        before = self._now() - ANSWER_SECONDS
        while self._asked:
            one, since = next(iter(self._asked.items()))
            if since > before:
                return
            del self._asked[one]
            self._late.add(one)
            self.limit = max(self.limit - 1, self._least)
