"""Which objects of one namespace count: the oldest ones. Of the others only an outline is kept."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

# When it was made, its name and uid: no two are of one age.
Age: TypeAlias = tuple[str, str, str]


class Placed(Protocol):
    """What needs a place."""

    @property
    def age(self) -> Age:
        """The oldest have one."""
        ...

    @property
    def left_out(self) -> bool:
        """Whether this is an outline."""
        ...


Thing = TypeVar("Thing", bound=Placed)


class Places(Generic[Thing]):
    """The objects of a namespace, `most` of which have a place; outlines are in the order of `rank`.

    Each step costs the logarithm of how many there are; a namespace may have very many.
    """

    def __init__(self, most: int, rank: Callable[[Thing], Any]) -> None:
        self._most = most
        self._rank = rank
        self._by_age: list[Thing] = []
        self._outlines: list[Thing] = []
        self._deciding: tuple[Thing, ...] | None = None

    def add(self, thing: Thing) -> None:
        """One that is not there."""
        insort(self._by_age, thing, key=_age)
        if thing.left_out:
            insort(self._outlines, thing, key=self._rank)
        self._deciding = None

    def remove(self, thing: Thing) -> None:
        """One that is there."""
        del self._by_age[bisect_left(self._by_age, _age(thing), key=_age)]
        if thing.left_out:
            del self._outlines[bisect_left(self._outlines, self._rank(thing), key=self._rank)]
        self._deciding = None

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return not self._by_age

    @property
    def left_out(self) -> int:
        """How many of them are outlines."""
        return len(self._outlines)

    def room(self, age: Age) -> bool:
        """Whether one of that age has a place, or would have one."""
        return bisect_left(self._by_age, age, key=_age) < self._most

    @property
    def over(self) -> Thing | None:
        """The one that is whole and has no place any more; one that came took it."""
        more = self._by_age[self._most : self._most + 1]
        return more[0] if more and not more[0].left_out else None

    @property
    def due(self) -> Thing | None:
        """The oldest outline of one that has a place."""
        if len(self._by_age) - len(self._outlines) >= min(self._most, len(self._by_age)):
            return None
        return next((each for each in self._by_age[: self._most] if each.left_out), None)

    @property
    def deciding(self) -> Sequence[Thing]:
        """Those that have a place, and the outline that ranks before the others."""
        if self._deciding is None:
            whole = (each for each in self._by_age[: self._most] if not each.left_out)
            self._deciding = (*whole, *self._outlines[:1])
        return self._deciding


def _age(thing: Placed) -> Age:
    return thing.age
