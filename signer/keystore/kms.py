"""Authorities' keys in a cloud's KMS: made there, asked for signatures by one process, and destroyed there."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from signer.clouds import process
from signer.held_key import KeyRef, Scheme, Unsupported, held
from signer.key_uri import KmsPlace
from signer.keystore.store import KeyMissing, KeyStoreUnavailable, KeyUnfinished
from signer.keystore.worker import Worker
from signer.kms.interface import Kms, KmsFailed, KmsMissing, KmsUnfinished
from signer.kms_uri import AwsPlace
from svid.keys import KeyAlgorithm, PrivateKey, PublicKey

AWS, GOOGLE = "awskms", "gcpkms"
# To try it, with two kinds of keys.
PROBE_SECONDS = process.OPEN_SECONDS + 2 * process.ANSWER_SECONDS
_T = TypeVar("_T")
_MISSING = (
    "with it the authority was to sign: is this the account, or the key ring, that the key was made in? Where it is "
    "lost, replace the authority: podsvid authority rotate --forced"
)


class KmsStore:
    """Implements KeyStore. Everything that is asked of the KMS is asked by `worker`, on whose thread it may run."""

    def __init__(self, uri: KmsPlace, kms: Kms, worker: Worker) -> None:
        self._uri = uri
        self._kms = kms
        self._worker = worker

    def __str__(self) -> str:
        return str(self._uri)

    @property
    def kind(self) -> str:
        return AWS if isinstance(self._uri, AwsPlace) else GOOGLE

    def create(self, name: str, algorithm: KeyAlgorithm) -> PrivateKey:
        return self.open(KeyRef(self.kind, name), self._asked(lambda: self._kms.create(name, algorithm)))

    def open(self, ref: KeyRef, public: PublicKey) -> PrivateKey:
        path = self._kms.path(ref.name)

        def signed(scheme: Scheme, data: bytes) -> bytes:
            return self._asked(lambda: _again(lambda: self._kms.sign(path, public, scheme, data)))

        return held(public, signed, ref)

    def delete(self, name: str) -> bool:
        try:
            return self._asked(lambda: self._kms.destroy(name))
        except Unsupported:
            # What is called otherwise was not made here.
            return False

    def names(self, prefix: str) -> Sequence[str]:
        try:
            return self._asked(lambda: self._kms.names(prefix))
        except Unsupported:
            return ()

    def probe(self, algorithm: KeyAlgorithm) -> None:
        """Only whether it answers: a key that was made would be there for days, and be paid for."""
        self._asked(self._kms.look)

    def close(self) -> None:
        """Ask nothing more, and have the process end; what is being asked now is not waited for."""
        self._worker.begin(self._kms.close)
        self._worker.end()

    def _asked(self, work: Callable[[], _T]) -> _T:
        return self._worker.call(lambda: self._told(work))

    def _told(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except KmsMissing as error:
            raise KeyMissing(f"{self._uri}: {error}; {_MISSING}") from None
        except KmsUnfinished as error:
            raise KeyUnfinished(f"{self._uri}: {error}", again=error.again) from None
        except KmsFailed as error:
            raise KeyStoreUnavailable(f"{self._uri}: {error}") from None


def _again(sign: Callable[[], bytes]) -> bytes:
    """Signing twice harms nobody."""
    try:
        return sign()
    except KmsFailed as error:
        if not error.again:
            raise
    return sign()
