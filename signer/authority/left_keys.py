"""Keys in a key store that no authority signs with any more: remembered in the state, and destroyed after a week.

An older Secret that is restored may name them: until then it finds them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from signer.authority.slots import instant, read_ref
from signer.held_key import KeyRef, ref_of

KEPT = timedelta(days=7)


@dataclass(frozen=True, slots=True, order=True)
class LeftKey:
    """`left_at`: since when no authority of the state, and no request, names it."""

    ref: KeyRef
    left_at: datetime


def refs(keys: Iterable[object]) -> frozenset[KeyRef]:
    """By what those of these are known that are in a key store."""
    return frozenset(found for found in map(ref_of, keys) if found is not None)


def noted(
    left: Iterable[LeftKey], before: frozenset[KeyRef], named: frozenset[KeyRef], now: datetime
) -> tuple[LeftKey, ...]:
    """What is left once those are `named` that are, where `before` were: with those that are gone, and without any
    that came back."""
    known = {each.ref: each for each in left if each.ref not in named}
    gone = {ref: LeftKey(ref, now) for ref in before - named if ref not in known}
    return tuple(sorted([*known.values(), *gone.values()]))


def left_entry(each: LeftKey) -> dict[str, Any]:
    """Its entry in the stored state."""
    return {"store": each.ref.store, "name": each.ref.name, "left_at": each.left_at.isoformat()}


def read_left(each: dict[str, Any]) -> LeftKey:
    """What `left_entry` wrote. Raises ValueError, KeyError, TypeError."""
    return LeftKey(read_ref(each), instant(each["left_at"]))
