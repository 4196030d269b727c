"""What a CA above says is to be trusted, apart from what it certifies: it can change at any time."""

from dataclasses import dataclass

from cryptography import x509


@dataclass(frozen=True, slots=True)
class RootSet:
    """`complete`: these and no others, so that what is not among them may go. Without certificates it says nothing."""

    certificates: tuple[x509.Certificate, ...] = ()
    complete: bool = False
