"""The small interface to what keeps authorities' private keys and gives none out, and the error that it raises."""

from collections.abc import Sequence
from typing import Protocol

from signer.errors import SignerError
from signer.held_key import KeyRef
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey


class KeyStoreUnavailable(SignerError):
    """The store that has the authorities' keys does not sign; asking again later may help."""

    reason = "AUTHORITY_KEY_STORE_UNAVAILABLE"


class KeyMissing(KeyStoreUnavailable):
    """The store answers, and does not have that key, or has several of its name."""


class KeyUnfinished(KeyStoreUnavailable):
    """The store made a key that cannot be used: each attempt would make another one, which is paid for.

    `again`: it may have been throttled, or away; where not, the same would come of the next attempt.
    """

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


class KeyStore(Protocol):
    """Makes keys that never leave it. All but `open` block, for seconds at most, and raise KeyStoreUnavailable."""

    @property
    def kind(self) -> str:
        """The `store` of its keys' KeyRef."""
        ...

    def create(self, name: str, algorithm: KeyAlgorithm) -> PrivateKey:
        """A new key of that name, as `open` gives it."""
        ...

    def open(self, ref: KeyRef, public: PublicKey) -> PrivateKey:
        """The key to that public half; signing with it asks the store, and verifies what comes.

        Signing raises KeyStoreUnavailable, and InvalidSignature where the store signed with another key.
        """
        ...

    def delete(self, name: str) -> bool:
        """Destroy that key for good; whether there was one."""
        ...

    def names(self, prefix: str) -> Sequence[str]:
        """Those of its private keys that begin so."""
        ...

    def probe(self, algorithm: KeyAlgorithm) -> None:
        """Make a key that is not kept, and sign with it."""
        ...
