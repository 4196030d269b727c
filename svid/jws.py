"""Signatures of JWT-SVIDs: the nine algorithms that these may have (JWT-SVID.md 2.1), as RFC 7518 3.3 to 3.5 say.

Only which padding, hash and form go with which name is here; `cryptography` signs and verifies. A JWT library would
bring an HTTP client for fetching keys into each process, which nobody here uses, and read a token once for each key
that it is tried with. The tests hold this against one.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from svid.bundle import JwtKey

JwtPrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class JwtAlgorithm(StrEnum):
    """The signature algorithms of JWT-SVIDs: these nine and no others."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"

    @property
    def slow(self) -> bool:
        """Whether `generate` takes long enough to be kept off an event loop."""
        return self.value[0] != "E"

    def generate(self) -> JwtPrivateKey:
        """A new key: RSA with 2048 bits, which clouds take, or one on the algorithm's curve."""
        curve = _CURVES.get(self)
        return ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, 2048)

    def fits(self, key: JwtKey) -> bool:
        """Whether this is an algorithm for `key`."""
        curve = _CURVES.get(self)
        if curve is None:
            return isinstance(key, rsa.RSAPublicKey)
        return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == curve.name

    def sign(self, data: bytes, key: JwtPrivateKey) -> bytes:
        """The signature of `data` as it stands in a JWS. The key must be one that `fits`."""
        digest = _HASHES[self.value[2:]]
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, self._padding(digest), digest)
        width = _width(key.curve)
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(width, "big") + s.to_bytes(width, "big")

    def verifies(self, signature: bytes, data: bytes, key: JwtKey) -> bool:
        """Whether `signature` was made of `data` with this algorithm and the private part of `key`."""
        if not self.fits(key):
            return False
        digest = _HASHES[self.value[2:]]
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, self._padding(digest), digest)
            else:
                width = _width(key.curve)
                # Else one signature would have several spellings.
                if len(signature) != 2 * width:
                    return False
                r, s = (int.from_bytes(each, "big") for each in (signature[:width], signature[width:]))
                key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            return False
        return True

    def _padding(self, digest: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
        # The salt's length is fixed (3.5): a verifier that takes any takes other signatures than it should.
        return padding.PSS(padding.MGF1(digest), digest.digest_size) if self.value[0] == "P" else padding.PKCS1v15()


_CURVES: Mapping[JwtAlgorithm, ec.EllipticCurve] = MappingProxyType(
    {
        JwtAlgorithm.ES256: ec.SECP256R1(),
        JwtAlgorithm.ES384: ec.SECP384R1(),
        JwtAlgorithm.ES512: ec.SECP521R1(),
    }
)
# By the number in the algorithm's name.
_HASHES: Mapping[str, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = MappingProxyType(
    {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
)


def _width(curve: ec.EllipticCurve) -> int:
    """Bytes of each of a signature's two numbers."""
    return (curve.key_size + 7) // 8
