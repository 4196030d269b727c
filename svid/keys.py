"""Key algorithms a workload or an authority may use, and keys as unencrypted PKCS#8."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, TypeAlias, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa

from svid.errors import InvalidKey

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)
PublicKey: TypeAlias = (
    ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | rsa.RSAPublicKey
    | mldsa.MLDSA44PublicKey
    | mldsa.MLDSA65PublicKey
    | mldsa.MLDSA87PublicKey
)


class KeyAlgorithm(StrEnum):
    """The key algorithms podsvid issues for; the value is the word used in settings and volumeAttributes."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    ED25519 = "ed25519"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"

    @property
    def slow(self) -> bool:
        """Whether making a key takes so long that it belongs off an event loop."""
        return self.value.startswith("rsa-")

    def generate(self) -> PrivateKey:
        """A new private key."""
        return _GENERATORS[self]()


_GENERATORS: Mapping[KeyAlgorithm, Callable[[], PrivateKey]] = MappingProxyType(
    {
        KeyAlgorithm.EC_P256: lambda: ec.generate_private_key(ec.SECP256R1()),
        KeyAlgorithm.EC_P384: lambda: ec.generate_private_key(ec.SECP384R1()),
        KeyAlgorithm.ED25519: ed25519.Ed25519PrivateKey.generate,
        KeyAlgorithm.RSA_2048: lambda: rsa.generate_private_key(65537, 2048),
        KeyAlgorithm.RSA_3072: lambda: rsa.generate_private_key(65537, 3072),
        KeyAlgorithm.RSA_4096: lambda: rsa.generate_private_key(65537, 4096),
        KeyAlgorithm.ML_DSA_44: mldsa.MLDSA44PrivateKey.generate,
        KeyAlgorithm.ML_DSA_65: mldsa.MLDSA65PrivateKey.generate,
        KeyAlgorithm.ML_DSA_87: mldsa.MLDSA87PrivateKey.generate,
    }
)
_CURVES = MappingProxyType({"secp256r1": KeyAlgorithm.EC_P256, "secp384r1": KeyAlgorithm.EC_P384})
_RSA_SIZES = MappingProxyType({2048: KeyAlgorithm.RSA_2048, 3072: KeyAlgorithm.RSA_3072, 4096: KeyAlgorithm.RSA_4096})


def algorithm_of(public_key: object) -> KeyAlgorithm:
    """Which listed algorithm `public_key` has. Raises InvalidKey for every other."""
    found: KeyAlgorithm | None = None
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        found = _CURVES.get(public_key.curve.name)
    elif isinstance(public_key, ed25519.Ed25519PublicKey):
        found = KeyAlgorithm.ED25519
    elif isinstance(public_key, rsa.RSAPublicKey):
        found = _RSA_SIZES.get(public_key.key_size)
    elif isinstance(public_key, mldsa.MLDSA44PublicKey):
        found = KeyAlgorithm.ML_DSA_44
    elif isinstance(public_key, mldsa.MLDSA65PublicKey):
        found = KeyAlgorithm.ML_DSA_65
    elif isinstance(public_key, mldsa.MLDSA87PublicKey):
        found = KeyAlgorithm.ML_DSA_87
    if found is None:
        raise InvalidKey(f"key algorithm is not one of {', '.join(KeyAlgorithm)}")
    return found


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    """The certificate's key. Raises InvalidKey when it is unreadable or not of a listed algorithm."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidKey("certificate's key cannot be read") from None
    algorithm_of(key)
    return cast(PublicKey, key)


def signature_hash(private_key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """The hash to sign with: by curve for ECDSA, SHA-256 for RSA, none where the algorithm brings its own."""
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        return hashes.SHA384() if private_key.key_size > 256 else hashes.SHA256()
    return hashes.SHA256() if isinstance(private_key, rsa.RSAPrivateKey) else None


def public_bytes(public_key: PublicKey) -> bytes:
    """The key as DER SubjectPublicKeyInfo, good for comparing."""
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_to_der(key: PrivateKey) -> bytes:
    """Unencrypted PKCS#8 as DER (workloadapi.proto: x509_svid_key)."""
    return _private(key, serialization.Encoding.DER)


def key_to_pem(key: PrivateKey) -> bytes:
    """Unencrypted PKCS#8 as PEM."""
    return _private(key, serialization.Encoding.PEM)


def key_from_der(data: bytes, *, own: bool = False) -> PrivateKey:
    """A private key from unencrypted PKCS#8 DER. Raises InvalidKey.

    `own` is for what podsvid made and wrote itself: whether an RSA key's numbers are prime is not looked at again. That
    takes a fifth of a second for RSA-4096, in which no other thread runs.
    """
    return _load(data, serialization.load_der_private_key, own)


def key_from_pem(data: bytes, *, own: bool = False) -> PrivateKey:
    """A private key from unencrypted PEM; `own` as above. Raises InvalidKey."""
    return _load(data, serialization.load_pem_private_key, own)


def _private(key: PrivateKey, encoding: serialization.Encoding) -> bytes:
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class _Loader(Protocol):
    def __call__(self, data: bytes, password: None, *, unsafe_skip_rsa_key_validation: bool) -> object: ...


def _load(data: bytes, loader: _Loader, own: bool) -> PrivateKey:
    try:
        key = loader(data, None, unsafe_skip_rsa_key_validation=own)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's text may quote its input, which here is a key.
        raise InvalidKey("not an unencrypted private key") from None
    if not isinstance(key, PrivateKey):
        raise InvalidKey(f"key algorithm is not one of {', '.join(KeyAlgorithm)}")
    algorithm_of(key.public_key())
    return key
