"""Looks at the exposed processes while they serve, and says whose sockets are to be moved where. Moves nothing."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.channel.messages import Weighed
from agent.servers.load import Usage, Watch
from agent.servers.quarantine import Held, Move, Place, Quarantine, Times, Why
from agent.servers.reports import Allowance
from agent.servers.weights import Weights

_log = logging.getLogger("podsvid.servers")
# Seconds between two looks: when nothing happens, while something is suspicious, and at least.
CALM, SOON, LEAST = 5.0, 1.0, 0.25
# Seconds after which what nobody stands out for is as it is; and for which it is what is felt of those who left.
ACCEPTED, FELT = 60.0, 10.0
# Reports of weights in a second, and at once; it sends ten.
REPORTS, REPORTS_BURST = 30, 60
# Of a core, what is too much in quarantine: what a pod may ask for within its limits is no reason to close its sockets.
SHARE_IN_QUARANTINE = 0.8


@dataclass(slots=True)
class _Life:
    """One process while it serves."""

    pid: int
    watch: Watch
    weights: Weights
    allowance: Allowance
    looked: float
    # Since when something is wrong that nobody stands out for; when somebody was moved.
    wrong: float | None = None
    moved: float | None = None


class Warden:
    """`moved` is told what is decided, by one that is `active`; `usage` is what the kernel says of a process; `now`:
    seconds of a clock that only rises."""

    def __init__(
        self,
        times: Times,
        moved: Callable[[tuple[Move, ...]], None],
        usage: Callable[[int], Usage],
        now: Callable[[], float],
        *,
        active: bool = True,
    ) -> None:
        self._active = active
        self._state = Quarantine(times)
        self._moved = moved
        self._usage = usage
        self._now = now
        self._lives: dict[Place, _Life] = {}
        self._changed = asyncio.Event()

    def place(self, pod: str) -> Place:
        """Who is to serve the pod's sockets."""
        return self._state.place(pod)

    def held(self, pod: str) -> Held | None:
        """What is known of a pod that is not with all others."""
        return self._state.held.get(pod)

    def closed_for(self, pod: str) -> float:
        """Seconds until its sockets are served again; 0 where they are."""
        held = self.held(pod)
        return max(held.until - self._now(), 0.0) if held and held.place is Place.CLOSED else 0.0

    def began(self, place: Place, pid: int, memory: int, pod: Callable[[int], str | None]) -> None:
        """Another process serves there, with so many bytes of memory; `pod` says whose a volume's number is."""
        # In quarantine it is kept waiting on purpose.
        apart = place is Place.QUARANTINE
        watch = Watch(memory, SHARE_IN_QUARANTINE, SHARE_IN_QUARANTINE) if apart else Watch(memory)
        allowance = Allowance(REPORTS, REPORTS_BURST, self._now)
        self._lives[place] = _Life(pid, watch, Weights(pod, self._now), allowance, self._now())

    def left(self, place: Place, number: int) -> None:
        """It serves this volume no longer."""
        if place in self._lives:
            self._lives[place].weights.left(number)

    def weighed(self, place: Place, report: Weighed) -> None:
        """What the process says; something happens there."""
        life = self._lives.get(place)
        if life is None or not self._active or not life.allowance.take():
            return
        life.weights.take(report)
        if self._now() - life.looked >= LEAST:
            self._look(place, life)

    def look(self, place: Place) -> float:
        """Look at the process; answers in how many seconds to look again, whatever happens."""
        life = self._lives.get(place)
        if life is None or not self._active:
            return CALM
        self._look(place, life)
        return SOON if life.watch.suspicious else CALM

    def ended(self, place: Place, *, asked: bool) -> None:
        """The process there has ended, because it was `asked` to or not."""
        life = self._lives.pop(place, None)
        if life is not None and not asked:
            why = Why.MEMORY if life.watch.full else Why.ENDED
            self._decide(self._state.trouble(place, why, life.weights.by_pod(), self._now()))

    async def run(self) -> None:
        """Bring pods back in time, for ever."""
        while True:
            self._changed.clear()
            due = self._state.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(due - self._now(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                self._decide(self._state.due(self._now()))

    def _look(self, place: Place, life: _Life) -> None:
        now = life.looked = self._now()
        try:
            why = life.watch.look(self._usage(life.pid), now)
        except OSError:
            return  # it has ended, which is told by its channel
        weights = life.weights.by_pod()
        if why is not None:
            if self._decide(self._state.trouble(place, why, weights, now)):
                life.watch.acted()
                life.wrong, life.moved = None, now
            elif life.moved is not None and now - life.moved < FELT:
                # It keeps what they filled, and forgets soon who that was: whoever is left is not to blame.
                life.watch.acted()
            elif life.wrong is None:
                life.wrong = now
                # Who it is shows when there is one more; that something is, is worth a line.
                _log.warning(
                    "a process that serves pods' sockets costs too much, and no pod stands out",
                    extra={"which": str(place), "why": str(why), "heaviest": _heaviest(weights)},
                )
            elif now - life.wrong >= ACCEPTED:
                # What is kept of a flood that is over is nobody's who comes later.
                life.watch.acted()
            return
        life.wrong = None
        if place is Place.QUARANTINE:
            self._state = self._state.looked(weights, now)

    def _decide(self, decided: tuple[Quarantine, tuple[Move, ...]]) -> bool:
        """Whether something is moved."""
        self._state, moves = decided
        self._changed.set()
        if moves:
            self._moved(moves)
        return bool(moves)


def _heaviest(weights: Mapping[str, float]) -> list[str]:
    found = sorted(weights.items(), key=lambda each: -each[1])[:5]
    return [f"{pod} {weight:.0f}" for pod, weight in found]
