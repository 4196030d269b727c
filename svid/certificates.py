"""Reading certificates from PEM and DER, shared by SVIDs and trust bundles."""

from collections.abc import Iterable
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import Encoding

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)


def certificates_from_pem(data: bytes) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM text, other blocks aside. Raises ValueError, also for one that is cut short."""
    try:
        found = tuple(x509.load_pem_x509_certificates(data))
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from None
    except ValueError:
        # The library's text quotes what it found, at any length: in a file that was mixed up that may be a key.
        raise ValueError("no PEM certificates can be read from it") from None
    # The library passes over a block without an end, which would lose a certificate without a word.
    if len(found) < data.count(b"-----BEGIN CERTIFICATE-----"):
        raise ValueError("a PEM block is cut short")
    return found


def certificate_from_der(data: bytes) -> x509.Certificate:
    """One DER certificate. Raises ValueError."""
    try:
        return x509.load_der_x509_certificate(data)
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from None


def certificates_from_der(data: bytes) -> tuple[x509.Certificate, ...]:
    """Certificates of concatenated DER (how the Workload API sends several). Raises ValueError."""
    found = []
    rest = memoryview(data)
    while rest:
        size = _element_size(rest)
        found.append(certificate_from_der(bytes(rest[:size])))
        rest = rest[size:]
    if not found:
        raise ValueError("no certificate")
    return tuple(found)


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """The certificates as concatenated PEM, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def to_der(certificates: Iterable[x509.Certificate]) -> bytes:
    """The certificates as concatenated DER, in order."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number in lower-case hex, of whole bytes, as openssl and Python's ssl print it but for the case."""
    number = certificate.serial_number
    digits = f"{abs(number):x}"
    # Old roots have negative ones, which RFC 5280 forbids.
    return ("-" if number < 0 else "") + digits.zfill(len(digits) + len(digits) % 2)


def check_readable(certificate: x509.Certificate) -> None:
    """Raise ValueError where a name, date or extension cannot be parsed, which else comes to light when it is read."""
    try:
        _ = certificate.subject, certificate.issuer
        # DER has a year 0, the library has none.
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except TypeError as error:
        # How the library answers a distinguished name of an impossible type.
        raise ValueError(str(error)) from None
    extensions(certificate)


def extensions(of: x509.Certificate | x509.CertificateSigningRequest) -> x509.Extensions:
    """All extensions. Raises ValueError where they cannot be parsed."""
    try:
        return of.extensions
    # KeyError: a TLS feature that the library does not know.
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, TypeError, KeyError) as error:
        raise ValueError(f"extensions cannot be read: {error}") from None


def extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> x509.Extension[ExtensionT] | None:
    """The extension of that kind, or None. Raises ValueError where the extensions cannot be parsed."""
    try:
        return extensions(certificate).get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _element_size(data: memoryview) -> int:
    if len(data) < 2 or data[0] != 0x30:
        raise ValueError("not a DER certificate")
    first = data[1]
    if first < 0x80:
        size, header = first, 2
    else:
        width = first & 0x7F
        if not 1 <= width <= 4 or len(data) < 2 + width:
            raise ValueError("not a DER certificate")
        size, header = int.from_bytes(bytes(data[2 : 2 + width]), "big"), 2 + width
    if len(data) < header + size:
        raise ValueError("DER certificate is cut short")
    return header + size


def is_ml_dsa(certificate: x509.Certificate) -> bool:
    """Whether its key is; what it signs then takes a verifier that knows the algorithm (RFC 9881)."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    return isinstance(key, mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey)
