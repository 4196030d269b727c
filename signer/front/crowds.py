"""Of whom there are most, and fewest, without a look at all of them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Numbers(Generic[T]):
    """Each with its number. Those with the same one come in the order in which they came to it.

    There are as many different numbers at most as add up to what is counted: 34 for 600 connections.
    """

    def __init__(self) -> None:
        self._of: dict[T, int] = {}
        self._with: dict[int, OrderedDict[T, None]] = {}

    def put(self, one: T, number: int) -> None:
        """It has that number from now on; with none it is not there."""
        before = self._of.pop(one, 0)
        if number:
            self._of[one] = number
        if before == number:
            return
        if before:
            those = self._with[before]
            del those[one]
            if not those:
                del self._with[before]
        if number:
            self._with.setdefault(number, OrderedDict())[one] = None

    def number(self, one: T) -> int:
        return self._of.get(one, 0)

    def most(self) -> T | None:
        return next(iter(self._with[max(self._with)])) if self._with else None

    def fewest(self) -> T | None:
        return next(iter(self._with[min(self._with)])) if self._with else None


class Crowds(Generic[T]):
    """Each with its number, and those that are `known` apart from the others; asked whenever a number is told."""

    def __init__(self, known: Callable[[T], bool]) -> None:
        self._is_known = known
        self._known: Numbers[T] = Numbers()
        self._unknown: Numbers[T] = Numbers()

    def put(self, one: T, number: int) -> None:
        known = self._is_known(one)
        self._known.put(one, number if known else 0)
        self._unknown.put(one, 0 if known else number)

    def least_welcome(self) -> T | None:
        """Of whom there are most: of the unknown ones, or of the others if there are none."""
        while (found := self._unknown.most()) is not None:
            if not self._is_known(found):
                return found
            self._known.put(found, self._unknown.number(found))
            self._unknown.put(found, 0)
        return self._known.most()
