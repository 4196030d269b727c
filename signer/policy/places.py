"""Which policies of one namespace count: the oldest ones. Of the others only an outline is kept."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from signer.policy.policy import Age, Policy


class Places:
    """The policies of a namespace, `most` of which have a place.

    An outline ranks as its policy does and is for more pods: who is not refused gets what all policies together say.
    Each step costs the logarithm of how many there are; a namespace may have very many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_age: list[Policy] = []
        self._outlines: list[Policy] = []
        self._deciding: tuple[Policy, ...] | None = None

    def add(self, policy: Policy) -> None:
        """One that is not there."""
        insort(self._by_age, policy, key=_age)
        if policy.left_out:
            insort(self._outlines, policy, key=_rank)
        self._deciding = None

    def remove(self, policy: Policy) -> None:
        """One that is there."""
        del self._by_age[bisect_left(self._by_age, _age(policy), key=_age)]
        if policy.left_out:
            del self._outlines[bisect_left(self._outlines, _rank(policy), key=_rank)]
        self._deciding = None

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return not self._by_age

    def room(self, age: Age) -> bool:
        """Whether one of that age has a place, or would have one."""
        return bisect_left(self._by_age, age, key=_age) < self._most

    @property
    def over(self) -> Policy | None:
        """The one that is whole and has no place any more; one that came took it."""
        more = self._by_age[self._most : self._most + 1]
        return more[0] if more and not more[0].left_out else None

    @property
    def due(self) -> Policy | None:
        """The oldest outline of one that has a place."""
        if len(self._by_age) - len(self._outlines) >= min(self._most, len(self._by_age)):
            return None
        return next((each for each in self._by_age[: self._most] if each.left_out), None)

    @property
    def deciding(self) -> Sequence[Policy]:
        """Those that have a place, and the outline that ranks before the others: all of them are for everybody."""
        if self._deciding is None:
            whole = (each for each in self._by_age[: self._most] if not each.left_out)
            self._deciding = (*whole, *self._outlines[:1])
        return self._deciding


def _age(policy: Policy) -> Age:
    return policy.age


def _rank(policy: Policy) -> tuple[tuple[bool, int, bool, str, str], str]:
    return (policy.rank, policy.uid)
