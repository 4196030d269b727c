"""What the exposed process reports about itself, as far as it is believed: counts, and lines for the log."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.channel.messages import METHODS, REFUSALS, Counted, Said
from runtime.bucket import Bucket
from runtime.terminal import printable

_log = logging.getLogger("podsvid.servers")
# Who may speak there; everything else is the process's own.
LOGGERS = ("podsvid.endpoint", "podsvid.sds", "podsvid.exposed")
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "lines_lost", "said_by"}
# What a line says of itself, and what the text format writes as lines of its own.
_OF_A_LINE = {"time", "level", "logger", "event", "traceback"}
# No server takes more calls than this between two reports.
MOST_AT_ONCE = 10_000_000


class SocketMetrics(Protocol):
    """What is counted about pods' sockets."""

    def calls_taken(self, method: str, number: int) -> None: ...

    def calls_opened(self, method: str, number: int) -> None: ...

    def calls_refused(self, why: str, number: int) -> None: ...

    def sds_answers(self, pushed: int, rejected: int) -> None: ...


class Allowance:
    """So many a second for ever, `burst` of them at once. `now`: a clock in seconds that only rises."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._bucket = Bucket(rate, burst, now())
        self._now = now

    def take(self) -> bool:
        """Whether there was one left."""
        return self._bucket.take(self._now())


class Tally:
    """Counts of one exposed process, of which the metrics get what was added. Unknown labels are nobody's.

    A report beyond the rate is passed over: the next one counts what it did.
    """

    def __init__(self, metrics: SocketMetrics, allowance: Allowance) -> None:
        self._metrics = metrics
        self._allowance = allowance
        self._last = Counted({}, {}, {}, 0, 0)

    def take(self, counted: Counted) -> None:
        """The newest report."""
        if not self._allowance.take():
            return
        last, self._last = self._last, counted
        for method in METHODS:
            self._metrics.calls_taken(method, _added(last.calls, counted.calls, method))
            self._metrics.calls_opened(method, _open(counted, method) - _open(last, method))
        for why in REFUSALS:
            self._metrics.calls_refused(why, _added(last.refused, counted.refused, why))
        self._metrics.sds_answers(_bounded(counted.pushed - last.pushed), _bounded(counted.rejected - last.rejected))

    def end(self) -> None:
        """The process is gone, and so are its calls."""
        for method in METHODS:
            self._metrics.calls_opened(method, -_open(self._last, method))


class Log:
    """Writes what the process says as lines of this one, marked, within a rate."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._lost = 0

    def take(self, said: Said) -> None:
        """A line. Its level is at most ERROR: what is critical for the agent, the agent finds."""
        if not self._allowance.take():
            self._lost += 1
            return
        fields = {
            f"said_{key}" if key in _OF_A_LINE else key: value
            for key, value in said.fields.items()
            if key.isidentifier() and key not in _RESERVED
        }
        if self._lost:
            fields["lines_lost"], self._lost = str(self._lost), 0
        name = said.logger if said.logger in LOGGERS else "podsvid.exposed"
        level = min(max(said.level, logging.DEBUG), logging.ERROR)
        logging.getLogger(name).log(level, "%s", printable(said.event), extra={**fields, "said_by": "exposed"})


def _added(last: Mapping[str, int], now: Mapping[str, int], label: str) -> int:
    return _bounded(now.get(label, 0) - last.get(label, 0))


def _open(counted: Counted, method: str) -> int:
    return min(counted.open.get(method, 0), MOST_AT_ONCE)


def _bounded(number: int) -> int:
    return min(max(number, 0), MOST_AT_ONCE)
