"""Certificates of web servers, and clients of the signer's public listeners, as strangers have them."""

import http.client
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from signer.public.shown import Pair

HOST = "oidc.example.org"
PATIENCE = 30.0
_YEAR = timedelta(days=365)


def web_pair(now: datetime, life: timedelta = _YEAR, password: bytes = b"", host: str = HOST) -> Pair:
    """A certificate for `host` that signs itself, since a year ago."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _YEAR)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return Pair(made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))


def write_pair(pair: Pair, folder: Path) -> tuple[Path, Path]:
    """Into two files."""
    chain, key = folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(pair.chain)
    key.write_bytes(pair.key)
    return chain, key


@dataclass(frozen=True, slots=True)
class Got:
    """An answer, and the leaf that the server proved itself with, in DER."""

    status: int
    headers: dict[str, str]
    body: bytes
    leaf: bytes
    version: str


def trusting(trusted: bytes | None = None) -> ssl.SSLContext:
    """A client's: of one CA; without one whoever answers is taken, and looked at by the test."""
    found = ssl.create_default_context(cadata=trusted.decode() if trusted else None)
    if trusted is None:
        found.check_hostname = False
        found.verify_mode = ssl.CERT_NONE
    return found


def connect(
    address: tuple[str, int], context: ssl.SSLContext | None = None, source: str = "127.0.0.1"
) -> ssl.SSLSocket:
    raw = socket.create_connection(address, timeout=PATIENCE, source_address=(source, 0))
    try:
        return (context or trusting()).wrap_socket(raw, server_hostname=HOST)
    except BaseException:
        raw.close()
        raise


def fetch(
    address: tuple[str, int],
    path: str = "/",
    method: str = "GET",
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    source: str = "127.0.0.1",
) -> Got:
    """One request."""
    with connect(address, context, source) as peer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        peer.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = http.client.HTTPResponse(peer, method=method)
        answer.begin()
        body = answer.read()
        leaf = peer.getpeercert(binary_form=True)
        assert leaf is not None
        return Got(answer.status, {k.lower(): v for k, v in answer.headers.items()}, body, leaf, str(peer.version()))
