"""How long an exposed process is waited for: by what the kernel says that it does meanwhile, and not by a clock alone.

One that could go on and sleeps is ended soon, since others wait for it; one that gets no processor is not to blame.
Time is counted in turns of the agent's own loop: what the agent is late for itself counts for nothing.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agent.servers.load import Effort
from runtime.bucket import Bucket

# Seconds of a turn. What is done within two of them is not looked at.
TURN: Final = 0.1
# Turns of the loop in which what the process has sent is read before the process is looked at.
_READING = 3
# Seconds in which it may do nothing while something waits for it: of its life at first, and so many more each second.
IDLE, IDLE_AGAIN = 2.0, 0.02
# Seconds until one thing is done: in which it runs or does nothing; and with those that it waits for a processor.
RUNNING, WAITING = 5.0, 60.0
# And so many more for each thing that is waited for at once: an agent that stops has all sockets closed together.
EACH = 0.05
# Bytes a second that it takes at least of what waits for it, beyond that.
PACE = 1024 * 1024
# Orders that it may refuse: of its life at first, and so many more each second.
REFUSED, REFUSED_AGAIN = 3.0, 1 / 600
# How much more patience there is with one after others that were ended for want of it, at most: whatever the reason is
# that is not known here, the node is not kept starting processes. One that lives for so many seconds ends that.
MOST_MORE, FORGIVEN = 4.0, 600.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the clocks said when something began to be waited for, and whether that may take sleep."""

    asleep: bool
    turns: int
    running: float
    taken: int


class Patience:
    """With one process, for its life. `effort`: what the kernel says of it, None where it says nothing; `taken`: bytes
    that it took so far; `more`: how much more than usual there is; `now`: seconds of a clock that only rises."""

    def __init__(
        self,
        effort: Callable[[], Effort | None],
        taken: Callable[[], int],
        more: float = 1.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.more = more
        # Whether it is over.
        self.over = False
        self._effort = effort
        self._taken = taken
        self._now = now
        self._idle = Bucket(IDLE_AGAIN / TURN, more * IDLE / TURN, now())
        self._refusals = Bucket(REFUSED_AGAIN, more * REFUSED, now())
        self._waiting: dict[asyncio.Future[Any], _Mark] = {}
        self._some = asyncio.Event()
        self._turns = 0
        self._running = 0.0
        self._cpu: float | None = None

    def begin(self, waited: "asyncio.Future[Any]", *, asleep: bool = False) -> None:
        """This is waited for, until it is done. `asleep`: it takes some time of others, in which the process has
        nothing to do; as much as it may run."""
        self._waiting[waited] = _Mark(asleep, self._turns, self._running, self._taken())
        waited.add_done_callback(lambda done: self._waiting.pop(done, None))
        self._some.set()

    def refused(self) -> bool:
        """It did not do as it was told; whether that may be."""
        self.over = self.over or not self._refusals.take(self._now())
        return not self.over

    async def run(self) -> str:
        """Wait until there is no patience any more; answers why."""
        while True:
            await self._some.wait()
            self._some.clear()
            self._cpu = None
            while self._waiting:
                await asyncio.sleep(TURN)
                for _ in range(_READING):
                    await asyncio.sleep(0)
                why = self.turn()
                if why:
                    return why

    def turn(self) -> str:
        """One more has passed. Answers why there is no patience any more, or nothing."""
        self._turns += 1
        waiting = [mark for each, mark in self._waiting.items() if not each.done() and self._turns - mark.turns >= 2]
        if not waiting:
            self._cpu = None
            return ""
        effort = self._effort()
        idle = effort is not None and not effort.awake
        before, self._cpu = self._cpu, None if effort is None else effort.cpu
        if idle or effort is None:
            self._running += TURN
        elif before is not None:
            self._running += min(max(effort.cpu - before, 0.0), TURN)
        why = self._why(idle, waiting)
        self.over = bool(why)
        return why

    def _why(self, idle: bool, waiting: list[_Mark]) -> str:
        if idle and not all(mark.asleep for mark in waiting) and not self._idle.take(self._now()):
            return "it did nothing while it was waited for"
        # No more of this than usual: a caller's own time would be over before.
        taken, running = self._taken(), RUNNING + EACH * len(waiting)
        for mark in waiting:
            given = (taken - mark.taken) / PACE
            if self._running - mark.running - given >= running:
                return f"it ran for {running:g} s and did not do as it was told"
            if (self._turns - mark.turns) * TURN - given >= self.more * WAITING:
                return f"it did not do as it was told for {self.more * WAITING:g} s"
        return ""


def next_patience(before: Patience, lived: float) -> float:
    """How much more of it there is with the next process, after one that lived for so many seconds."""
    if before.over:
        return min(2 * before.more, MOST_MORE)
    return 1.0 if lived >= FORGIVEN else before.more
