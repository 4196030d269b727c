"""What each pod costs an exposed process, as far as that process says it; in milliseconds of a core, as an estimate."""

from collections.abc import Callable, Mapping
from typing import Final

from agent.channel.messages import Weighed, Weight

# Milliseconds: a connection that is taken; a call that arrives, and so much more when it is refused, be it for what it
# brought; a connection with something to be read, each time that somebody looks; a connection and a call that are open.
CONNECTION: Final = 1.0
CALL: Final = 0.3
REFUSED: Final = 5.0
BUSY: Final = 80.0
OPEN_CONNECTION: Final = 0.5
OPEN_CALL: Final = 0.1
# Seconds after which what was done counts half.
HALF: Final = 2.0
# Of what one report may say of a volume since the last one, and of what is open.
MOST: Final = 1e6


class Weights:
    """Of one process's life. `pod`: whose a volume's number is, of those that it serves; `now`: seconds of a clock."""

    def __init__(self, pod: Callable[[int], str | None], now: Callable[[], float]) -> None:
        self._pod = pod
        self._now = now
        self._at = now()
        self._last: dict[int, tuple[str, Weight]] = {}
        self._lately: dict[str, float] = {}

    def take(self, weighed: Weighed) -> None:
        """The newest report; of what is not served there nothing is believed."""
        self._age()
        for number, weight in weighed.volumes.items():
            pod = self._pod(number)
            if pod is None:
                continue
            _, last = self._last.get(number, (pod, Weight()))
            self._last[number] = (pod, weight)
            self._lately[pod] = self._lately.get(pod, 0.0) + _cost(last, weight)

    def left(self, number: int) -> None:
        """The volume is not served there any more; what it did there lately was done."""
        self._last.pop(number, None)

    def by_pod(self) -> Mapping[str, float]:
        """The weight of each pod now."""
        self._age()
        found = dict(self._lately)
        for pod, weight in self._last.values():
            held = OPEN_CONNECTION * min(weight.open_connections, MOST) + OPEN_CALL * min(weight.open_calls, MOST)
            found[pod] = found.get(pod, 0.0) + held
        return found

    def _age(self) -> None:
        now = self._now()
        left = 0.5 ** ((now - self._at) / HALF)
        self._at = now
        # What is next to nothing is forgotten: pods come and go.
        self._lately = {pod: cost * left for pod, cost in self._lately.items() if cost * left > 0.01}


def _cost(last: Weight, now: Weight) -> float:
    return (
        CONNECTION * _added(last.connections, now.connections)
        + CALL * _added(last.calls, now.calls)
        + REFUSED * _added(last.refused, now.refused)
        + BUSY * _added(last.busy, now.busy)
    )


def _added(last: int, now: int) -> float:
    return min(max(now - last, 0), MOST)
