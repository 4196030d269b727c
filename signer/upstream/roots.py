"""What a CA above says is to be trusted, apart from what it certifies: it can change at any time."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509


@dataclass(frozen=True, slots=True)
class RootSet:
    """`complete`: these and no others, so that what is not among them may go; without any there is no CA above.

    One that is not complete and has no certificates says nothing.
    """

    certificates: tuple[x509.Certificate, ...] = ()
    complete: bool = False


# Says what is to be trusted now. Cheap, and called again and again. Raises SignerError.
RootSource: TypeAlias = Callable[[], Awaitable[RootSet]]
