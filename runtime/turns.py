"""Turns at something scarce: so many at once, and who waits is served fairly, whatever others ask for."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

# While both kinds wait, every so many-th turn is of those that can wait: they come later, but they come.
LATER_SHARE = 4


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a turn is for: a member of a group. Groups are treated alike, and in each its members."""

    group: str
    member: str


class Crowded(Exception):
    """No turn: `why` is `full` (too many of this member wait already) or `late` (it did not come in time)."""

    def __init__(self, why: str, waiting: int) -> None:
        super().__init__(f"{why}, {waiting} wait")
        self.why = why
        self.waiting = waiting


class Seen(Protocol):
    """Who counts what happens."""

    def waited(self, seconds: float) -> None:
        """A turn came after so long."""
        ...

    def refused(self, why: str) -> None:
        """No turn came."""
        ...


class Unseen:
    """Counts nothing."""

    def waited(self, seconds: float) -> None: ...

    def refused(self, why: str) -> None: ...


class Turns:
    """At most `at_once` turns, of one group at most `of_group`; of one member at most `most_waiting` wait.

    Groups get turns one after the other, in a group its members, and a member's are in the order that they were asked
    for: who asks for a thousand and who asks for one wait for each other once. Belongs to one event loop.
    """

    def __init__(
        self, at_once: int, *, of_group: int | None = None, most_waiting: int | None = None, seen: Seen | None = None
    ) -> None:
        self._at_once = at_once
        self._of_group = of_group or at_once
        self._most_waiting = most_waiting
        self._seen = seen or Unseen()
        self._first, self._later = _Line(), _Line()
        self._running: Counter[str] = Counter()
        self._since_later = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._first) + len(self._later)

    @asynccontextmanager
    async def turn(self, who: Who, *, patience: float | None = None, later: bool = False) -> AsyncIterator[None]:
        """A turn, over the block. Who is cancelled while it waits leaves.

        `patience` is for how many seconds it waits. `later` is for what can wait for others, and is not counted
        towards `most_waiting`. Raises Crowded.
        """
        await self._take(who, patience, later)
        try:
            yield
        finally:
            self._give_back(who)

    async def _take(self, who: Who, patience: float | None, later: bool) -> None:
        line = self._later if later else self._first
        if not later and self._most_waiting is not None and line.of(who) >= self._most_waiting:
            raise self._refused("full")
        loop = asyncio.get_running_loop()
        began, turn = loop.time(), loop.create_future()
        line.add(who, turn)
        self._serve()
        try:
            async with asyncio.timeout(patience):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_back(who)  # it came in the same instant
            else:
                line.remove(who, turn)
            if isinstance(error, TimeoutError):
                raise self._refused("late") from None
            raise
        self._seen.waited(loop.time() - began)

    def _refused(self, why: str) -> Crowded:
        self._seen.refused(why)
        return Crowded(why, self.waiting)

    def _give_back(self, who: Who) -> None:
        self._running[who.group] -= 1
        if not self._running[who.group]:
            del self._running[who.group]
        self._serve()

    def _serve(self) -> None:
        while self._running.total() < self._at_once:
            found = self._next()
            if found is None:
                return
            who, turn = found
            if not turn.cancelled():  # who was cancelled in this instant has not had the time to leave
                self._running[who.group] += 1
                turn.set_result(None)

    def _next(self) -> "tuple[Who, asyncio.Future[None]] | None":
        lines = (self._first, self._later)
        if self._since_later >= LATER_SHARE - 1:
            lines = (self._later, self._first)
        for line in lines:
            found = line.next(lambda group: self._running[group] < self._of_group)
            if found is not None:
                self._since_later = self._since_later + 1 if line is self._first and len(self._later) else 0
                return found
        return None


class _Line:
    """Who waits: groups take turns, in each its members, of each the one that came first."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, OrderedDict[str, deque[asyncio.Future[None]]]] = OrderedDict()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def of(self, who: Who) -> int:
        """How many of that member wait."""
        members = self._groups.get(who.group)
        return len(members.get(who.member, ())) if members else 0

    def add(self, who: Who, turn: "asyncio.Future[None]") -> None:
        self._groups.setdefault(who.group, OrderedDict()).setdefault(who.member, deque()).append(turn)
        self._waiting += 1

    def remove(self, who: Who, turn: "asyncio.Future[None]") -> None:
        """It waits no more, if it does."""
        members = self._groups.get(who.group)
        if members and turn in members.get(who.member, ()):
            members[who.member].remove(turn)
            self._taken(who)

    def next(self, may: Callable[[str], bool]) -> "tuple[Who, asyncio.Future[None]] | None":
        """Whose turn it is, out of the groups that may; it waits no more, and its group and member come last then."""
        for group, members in self._groups.items():
            if may(group):
                member = next(iter(members))
                turn = members[member].popleft()
                members.move_to_end(member)
                self._groups.move_to_end(group)
                self._taken(Who(group, member))
                return Who(group, member), turn
        return None

    def _taken(self, who: Who) -> None:
        self._waiting -= 1
        members = self._groups[who.group]
        if not members[who.member]:
            del members[who.member]
        if not members:
            del self._groups[who.group]
