"""PKCS#12 key and trust stores for Java, from the same SVID as every other file (RFC 7292)."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import KeySerializationEncryption, PrivateFormat, pkcs12

from svid.bundle import TrustBundle
from svid.errors import InvalidKey
from svid.x509svid import X509Svid

ALIAS = b"svid"
# The password lies beside the store: iterations would cost every rotation time and an attacker nothing.
_ITERATIONS = 2048


def keystore(svid: X509Svid, password: str) -> bytes:
    """Key and chain as the one entry `svid`, AES-256 with a SHA-256 MAC (Java 8u301 and later). Raises InvalidKey."""
    key = svid.private_key
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise InvalidKey("a keystore holds RSA and EC keys")
    return pkcs12.serialize_key_and_certificates(ALIAS, key, svid.leaf, svid.chain[1:], _encryption(password))


def truststore(bundle: TrustBundle, password: str) -> bytes:
    """The X.509 authorities as trusted entries, `<trust domain>-0` and on."""
    certificates = [
        pkcs12.PKCS12Certificate(certificate, f"{bundle.trust_domain}-{number}".encode())
        for number, certificate in enumerate(bundle.x509_authorities)
    ]
    return pkcs12.serialize_java_truststore(certificates, _encryption(password))


def _encryption(password: str) -> KeySerializationEncryption:
    return (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(_ITERATIONS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(password.encode())
    )
