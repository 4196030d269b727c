"""Private keys that stay where they are: this process has their public half, and asks for signatures."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from svid.keys import PrivateKey, PublicKey

T = TypeVar("T")


class Scheme(StrEnum):
    """How something is signed: ECDSA over a digest, giving r and s side by side; PKCS #1 v1.5 with SHA-256; Ed25519."""

    ECDSA = "ecdsa"
    RSA_SHA256 = "rsa-sha256"
    ED25519 = "ed25519"


# Of that scheme and those bytes the signature; what it raises passes through.
Sign = Callable[[Scheme, bytes], bytes]


@dataclass(frozen=True, slots=True, order=True)
class KeyRef:
    """By what somebody who keeps no key knows one: the kind of store that has it, and its name there."""

    store: str
    name: str


class Unsupported(Exception):
    """A key cannot do what it was asked for, or is of another kind than those here."""


def held(public: PublicKey, sign: Sign, ref: KeyRef | None = None) -> PrivateKey:
    """The private key to `public`, that signs by `sign`, as x509's builders take it. Raises Unsupported.

    Each signature is verified before it is given out: nobody looks at it again, and of another key it would be none.
    Signing raises cryptography's InvalidSignature then.
    """
    if isinstance(public, ec.EllipticCurvePublicKey):
        return _EcKey(public, sign, ref)
    if isinstance(public, rsa.RSAPublicKey):
        return _RsaKey(public, sign, ref)
    if isinstance(public, ed25519.Ed25519PublicKey):
        return _Ed25519Key(public, sign, ref)
    raise Unsupported("its algorithm is not EC, RSA or Ed25519")


def ref_of(key: object) -> KeyRef | None:
    """By what the key is known where it is; None of one whose private half is in this process, and of one without."""
    return key.ref if isinstance(key, _EcKey | _RsaKey | _Ed25519Key) else None


def _stays(*_: object, **__: object) -> NoReturn:
    raise Unsupported("the private key stays where it is")


def _itself(key: T, memo: object = None) -> T:
    return key


class _EcKey(ec.EllipticCurvePrivateKey):
    exchange = private_numbers = private_bytes = _stays
    __copy__ = __deepcopy__ = _itself

    def __init__(self, public: ec.EllipticCurvePublicKey, sign: Sign, ref: KeyRef | None) -> None:
        self._public = public
        self._sign = sign
        self.ref = ref

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: object, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed):
            raise Unsupported("only what is not hashed yet is signed")
        digest = hashes.Hash(algorithm)
        digest.update(_bytes(data))
        pair = self._sign(Scheme.ECDSA, digest.finalize())
        half = len(pair) // 2
        signature = encode_dss_signature(int.from_bytes(pair[:half]), int.from_bytes(pair[half:]))
        self._public.verify(signature, _bytes(data), signature_algorithm)
        return signature


class _RsaKey(rsa.RSAPrivateKey):
    decrypt = private_numbers = private_bytes = _stays
    __copy__ = __deepcopy__ = _itself

    def __init__(self, public: rsa.RSAPublicKey, sign: Sign, ref: KeyRef | None) -> None:
        self._public = public
        self._sign = sign
        self.ref = ref

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public

    def sign(self, data: object, padding: object, algorithm: object) -> bytes:
        if not isinstance(padding, _PKCS1) or not isinstance(algorithm, hashes.SHA256):
            raise Unsupported("only PKCS #1 v1.5 with SHA-256 is signed")
        signature = self._sign(Scheme.RSA_SHA256, _bytes(data))
        self._public.verify(signature, _bytes(data), padding, algorithm)
        return signature


class _Ed25519Key(ed25519.Ed25519PrivateKey):
    private_bytes = private_bytes_raw = _stays
    __copy__ = __deepcopy__ = _itself

    def __init__(self, public: ed25519.Ed25519PublicKey, sign: Sign, ref: KeyRef | None) -> None:
        self._public = public
        self._sign = sign
        self.ref = ref

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public

    def sign(self, data: object) -> bytes:
        signature = self._sign(Scheme.ED25519, _bytes(data))
        self._public.verify(signature, _bytes(data))
        return signature


_PKCS1 = padding.PKCS1v15


def _bytes(data: object) -> bytes:
    return bytes(memoryview(data))  # type: ignore[arg-type]
