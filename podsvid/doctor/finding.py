"""A finding, and how what it names is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from podsvid.doctor.kinds import KINDS, Weight
from podsvid.reading import where

# Named in one finding.
MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen that makes a reason of KINDS true. `about`: the nodes, pods or objects, where there are several."""

    reason: str
    seen: str
    about: frozenset[str] = frozenset()

    @property
    def weight(self) -> Weight:
        return KINDS[self.reason].weight

    @property
    def to_do(self) -> str:
        return KINDS[self.reason].to_do

    @property
    def link(self) -> str:
        """Where the documentation has it."""
        return where(self.reason)


def some(names: Sequence[str], more: int = 0) -> str:
    """The first of them, and how many there are beside; `more`: beyond `names`."""
    left = len(names) - MOST_NAMED + more if len(names) > MOST_NAMED else more
    return ", ".join(names[:MOST_NAMED]) + (f" and {left} more" if left > 0 else "")


def seconds(span: timedelta) -> str:
    """In words."""
    return f"{span // timedelta(seconds=1)} s"


def utc(at: datetime) -> datetime:
    """With a zone, whatever wrote it: without one it is compared with nothing."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def moment(text: str | None) -> datetime | None:
    """None as well where it is no time, or one that no calendar has."""
    try:
        return utc(datetime.fromisoformat(text or "")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
