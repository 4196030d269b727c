"""What went wrong for a pod, for the person who asks: bounded, and the same thing again is counted, not repeated."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from agent.admin_api import code_of
from csi.model import PodRef


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that went wrong for a volume, `times` times from `first_at` to `at`; the message says what to do."""

    at: datetime
    pod: PodRef
    volume_id: str
    reason: str
    message: str
    first_at: datetime
    times: int = 1

    @property
    def code(self) -> str:
        """The most specific reason code: the one that the message begins with, where an authority gave one."""
        return code_of(self.message, self.reason)


class Problems:
    """The newest `most` problems, oldest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str, str], Problem] = OrderedDict()

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._kept.values()))

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def newest(self) -> Problem | None:
        """The one that happened last."""
        return next(reversed(self._kept.values()), None)

    def has(self, volume_id: str, reason: str) -> bool:
        """Whether one of that reason is there of that volume."""
        return any(key[:2] == (volume_id, reason) for key in self._kept)

    def add(self, problem: Problem) -> None:
        """Keep it; one that was there already is counted and becomes the newest."""
        key = (problem.volume_id, problem.reason, problem.message)
        before = self._kept.pop(key, None)
        if before is not None:
            problem = replace(problem, first_at=before.first_at, times=before.times + problem.times)
        self._kept[key] = problem
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def take(self, volume_id: str) -> list[Problem]:
        """Remove and return those of one volume."""
        keys = [key for key in self._kept if key[0] == volume_id]
        return [self._kept.pop(key) for key in keys]
