"""What is asked of a cloud's KMS, whichever it is, and the forms in which keys, digests and signatures go there."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.held_key import Scheme, Unsupported
from svid.errors import InvalidKey
from svid.keys import KeyAlgorithm, PublicKey, algorithm_of


class KmsFailed(Exception):
    """The KMS did not do it; the text tells people why. `again`: at once it may, as where a connection ended."""

    def __init__(self, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


class KmsMissing(KmsFailed):
    """It answers, and has no such key, or one that may sign no more."""


class KmsUnfinished(KmsFailed):
    """It made a key that cannot be used: another attempt would make one more, and each is paid for."""


def unfinished(error: KmsFailed, key: str, end: Callable[[], object]) -> KmsUnfinished:
    """What is to be raised where `key` was made and cannot be used: it is ended before, or else named for people."""
    try:
        end()
    except KmsFailed as left:
        said = f"{error}; {key} was made, and is there and paid for until somebody destroys it: {left}"
        return KmsUnfinished(said, again=error.again)
    return KmsUnfinished(str(error), again=error.again)


class Kms(Protocol):
    """Keys in one account, or one key ring. All of it blocks, for seconds at most, and raises KmsFailed."""

    def sign(self, key: str, public: PublicKey, scheme: Scheme, data: bytes) -> bytes:
        """What `held` takes for a signature, by a key that has that name there. Nobody has verified it."""
        ...

    def create(self, name: str, algorithm: KeyAlgorithm) -> PublicKey:
        """Make a key that is found again by `name`. Raises KmsUnfinished where one was made in vain."""
        ...

    def destroy(self, name: str) -> bool:
        """Have it end, some days from now where the cloud has it so; whether there was one, which was made here."""
        ...

    def names(self, prefix: str) -> Sequence[str]:
        """Those of keys that were made here and are not destroyed, beginning so."""
        ...

    def path(self, name: str) -> str:
        """By what `sign` knows a key that was made here."""
        ...

    def look(self) -> None:
        """Whether the place where keys are made can be asked for them."""
        ...

    def close(self) -> None:
        """Ask nothing more."""
        ...


@dataclass(frozen=True, slots=True)
class Digest:
    """What a KMS signs: `hash` by its name in lower case, `rsa` where it is by PKCS #1 v1.5, else ECDSA."""

    hash: str
    value: bytes
    rsa: bool


_NAME = re.compile(r"(?P<begun>podsvid-.*)-(?P<rest>[0-9a-f]{8}-(?:[0-9a-f]{16})?)", re.ASCII)
_NUMBER = re.compile(r"[0-9a-f]{16}", re.ASCII)
# Of the digest of what names begin with: what is called in a KMS has 63 characters at most.
DIGITS = 26
_BY_LENGTH: Mapping[int, str] = MappingProxyType({32: "sha256", 48: "sha384"})


def digest_of(scheme: Scheme, data: bytes) -> Digest:
    """Of what `held` wants signed. Raises Unsupported."""
    if scheme is Scheme.RSA_SHA256:
        return Digest("sha256", hashlib.sha256(data).digest(), rsa=True)
    if scheme is not Scheme.ECDSA or len(data) not in _BY_LENGTH:
        raise Unsupported("in a KMS a key is EC P-256, EC P-384 or RSA")
    return Digest(_BY_LENGTH[len(data)], data, rsa=False)


def signature_for(public: PublicKey, found: bytes) -> bytes:
    """What a KMS signed, as `held` takes it: of ECDSA it gives DER. Raises KmsFailed."""
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return found
    size = (public.key_size + 7) // 8
    try:
        return b"".join(each.to_bytes(size) for each in decode_dss_signature(found))
    except (ValueError, OverflowError):
        raise KmsFailed("what it signed cannot be read") from None


def public_of(found: bytes, algorithm: KeyAlgorithm) -> PublicKey:
    """The public half of a key that was made, in DER. Raises KmsFailed where it is not of that algorithm."""
    try:
        key = load_der_public_key(found)
        weak = isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e != 65537
        if algorithm_of(key) is algorithm and not weak:
            return cast(PublicKey, key)
    except (ValueError, UnsupportedAlgorithm, InvalidKey):
        pass
    raise KmsFailed(f"it made a key that is not {algorithm.value}")


def id_of(name: str) -> str:
    """What a key is called in a KMS, where neither dots nor long names are; also of how names begin.

    Of `podsvid-TRUST-DOMAIN-OWNER-NUMBER` the trust domain is in it as a digest. Raises Unsupported.
    """
    found = _NAME.fullmatch(name)
    # It may come from the Secret, and goes into a path there.
    if found is None:
        raise Unsupported("its name is not one that podsvid gives")
    return f"podsvid-{hashlib.sha256(found['begun'].encode()).hexdigest()[:DIGITS]}-{found['rest']}"


def named(found: str, prefix: str) -> str | None:
    """The name of a key that is called so, if `prefix` is how it begins."""
    begins = id_of(prefix)
    number = found.removeprefix(begins)
    return prefix + number if found.startswith(begins) and _NUMBER.fullmatch(number) else None
