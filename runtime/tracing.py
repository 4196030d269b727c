"""Traces of what takes time: what a span is, and the tracing of a process that has none."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Protocol

from runtime.headers import Headers

NO_FACTS: Mapping[str, str] = MappingProxyType({})


class Span(Protocol):
    """One step that is being timed."""

    def note(self, facts: Mapping[str, str]) -> None:
        """Add facts by name; never a token or a key."""
        ...


class Tracing(Protocol):
    """Where spans go. A span that is left by an exception has failed, and says its reason code and no text of it."""

    def span(
        self, name: str, facts: Mapping[str, str] = NO_FACTS, caller: Headers = ()
    ) -> AbstractContextManager[Span]:
        """A step inside of the present one, or of the one whose `headers` came with a call."""
        ...

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What tells the other side of a call which span it belongs to (W3C Trace Context)."""
        ...


class NoSpan:
    """Implements Span and forgets."""

    def note(self, facts: Mapping[str, str]) -> None:
        return


# Of one that forgets there need be no other.
_FORGOTTEN: AbstractContextManager[Span] = nullcontext(NoSpan())


class NoTracing:
    """Implements Tracing for processes that are not traced."""

    def span(
        self, name: str, facts: Mapping[str, str] = NO_FACTS, caller: Headers = ()
    ) -> AbstractContextManager[Span]:
        return _FORGOTTEN

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ()


NO_TRACING: Tracing = NoTracing()
