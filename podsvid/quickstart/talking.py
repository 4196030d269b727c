"""Two pods that speak mutual TLS: each side has its own volume's files, and checks who the other one is."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podsvid.quickstart.failure import QuickstartError

_TIMEOUT: Final = 5.0
_HELLO: Final = b"hello\n"


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom one side found at the other end, by the certificate that TLS has verified."""

    spiffe_id: str
    serial: str


@dataclass(frozen=True, slots=True)
class Talk:
    """One conversation: whom the server saw, and whom the client."""

    client: Peer
    server: Peer


def talk(client: Path, server: Path, client_id: str, server_id: str) -> Talk:
    """Let the pod of the volume `client` speak to that of `server`. Raises QuickstartError."""
    try:
        seen, found = _speak(_context(client, ssl.PROTOCOL_TLS_CLIENT), _context(server, ssl.PROTOCOL_TLS_SERVER))
        return Talk(_expected(seen.result(), client_id), _expected(found.result(), server_id))
    except OSError as error:
        raise QuickstartError(f"the pods could not speak TLS: {error}") from error


def strangers_refusal(server: Path, spiffe_id: str) -> str:
    """Why the pod of the volume `server` refuses whoever claims `spiffe_id` by a certificate of his own making.

    Raises QuickstartError where it does not.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # He does not care whom he deceives.
    client.verify_mode = ssl.CERT_NONE
    with _strangers_files(spiffe_id) as (certificate, key):
        client.load_cert_chain(certificate, key)
    seen, _ = _speak(client, _context(server, ssl.PROTOCOL_TLS_SERVER))
    refused = seen.exception()
    if not isinstance(refused, ssl.SSLCertVerificationError):
        raise QuickstartError(f"a stranger's certificate for {spiffe_id} was not refused ({refused})")
    return refused.verify_message


def _speak(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[Future[Peer], Future[Peer]]:
    """What the server, and what the client saw."""
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(2) as threads:
        return threads.submit(_answer, server, ours), threads.submit(_ask, client, theirs)


def _answer(context: ssl.SSLContext, plain: socket.socket) -> Peer:
    plain.settimeout(_TIMEOUT)
    with plain, context.wrap_socket(plain, server_side=True) as connection:
        connection.sendall(connection.recv(len(_HELLO)))
        return _peer(connection)


def _ask(context: ssl.SSLContext, plain: socket.socket) -> Peer:
    plain.settimeout(_TIMEOUT)
    with plain, context.wrap_socket(plain) as connection:
        connection.sendall(_HELLO)
        if connection.recv(len(_HELLO)) != _HELLO:
            raise ConnectionError("no answer")
        return _peer(connection)


def _peer(connection: ssl.SSLSocket) -> Peer:
    found = connection.getpeercert() or {}
    names = found.get("subjectAltName", ())
    ids = [str(value) for kind, value in names if kind == "URI"]  # type: ignore[str-unpack]
    return Peer(", ".join(ids), str(found.get("serialNumber", "")).lower())


def _expected(peer: Peer, spiffe_id: str) -> Peer:
    if peer.spiffe_id != spiffe_id:
        raise QuickstartError(f"a pod that is to speak to {spiffe_id} met {peer.spiffe_id}")
    return peer


def _context(volume: Path, protocol: int) -> ssl.SSLContext:
    """TLS with one generation of the volume's files. Raises OSError."""
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            generation = volume / os.readlink(volume / "..data")
            context = ssl.SSLContext(protocol)
            # An ID is checked in place of a host name.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(generation / "ca.crt")
            context.load_cert_chain(generation / "tls.crt", generation / "tls.key")
            return context
    raise QuickstartError(f"there are no files in the volume {volume}")


@contextlib.contextmanager
def _strangers_files(spiffe_id: str) -> Iterator[tuple[str, str]]:
    """A certificate that says `spiffe_id` and is signed by nobody's authority, and its key; in memory only."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now, name = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC), x509.Name([])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with contextlib.ExitStack() as files:
        paths = []
        for data in (made.public_bytes(encoding), secret):
            descriptor = os.memfd_create("stranger")
            files.callback(os.close, descriptor)
            os.write(descriptor, data)
            paths.append(f"/proc/self/fd/{descriptor}")
        yield paths[0], paths[1]
