"""TLS to the signer, made here and not by grpc: grpc's Python looks at a server's DNS name and at nothing else.

Under an upstream CA that others share, somebody else can have a certificate with that DNS name; the SPIFFE ID is the
signer's alone. What grpc connects to is a socket of this process; behind it are servers that have proved themselves.
Their certificates are verified by the validator for all that is received: OpenSSL before 3.5 knows no ML-DSA, by which
a CA above may sign.
"""

import asyncio
import errno
import math
import os
import re
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.authority.pacing import Pacing
from runtime.pipe import pass_on
from runtime.settings import host_and_port
from runtime.stopping import end
from runtime.tls import shown
from svid.bundle import TrustBundle
from svid.certificates import certificate_from_der, extension
from svid.dnsnames import SIGNER_NAME, signer_id
from svid.errors import InvalidBundle, InvalidSvid
from svid.spiffeid import TrustDomain
from svid.x509svid import check_extensions, check_path, issued_by, leaf_spiffe_id

SOCKET = "to-signer.sock"
# Seconds: for addresses, connection and handshake together; between two addresses of one name; for TLS's goodbye.
CONNECT_SECONDS, NEXT_ADDRESS_SECONDS, GOODBYE_SECONDS = 10.0, 0.25, 1.0
ACCEPT_AGAIN_SECONDS = 1.0
# Bytes that are passed on at once. What is written to the signer at once is one record of TLS, and it reads nothing of
# that before it is whole. Until a call has proven this agent it takes a few KiB and no more: many calls in one large
# record would wait there until they are given up.
_FROM_SIGNER, _TO_SIGNER = 64 * 1024, 1024
# So are the first bytes of a connection written, as many as the signer takes of whoever has proven nothing: whatever it
# can read until then comes in small records, the headers of the first call whole among them. And so is what comes while
# the connection is young, since of all young ones together the signer holds little. Later it reads on as far as the
# node's rate goes, and nothing waits in a large record but for the rest of it.
FIRST, _TO_SIGNER_LATER = 8 * 1024, 16 * 1024
_BACKLOG = 16
_END = b"-----END CERTIFICATE-----"
_SERVING = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})
# What the network says where nothing listens.
_NOBODY = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})


class NotProven(Exception):
    """Nothing that proves to be the signer was reached; `nobody` is there. Its text begins with a reason code."""

    def __init__(self, message: str, *, nobody: bool = False) -> None:
        super().__init__(message)
        self.nobody = nobody


class ProvenSigner:
    """A Unix socket in `folder` whose connections each lead to a server that has proved to be the signer.

    `roots` are asked for at each connection (PEM, never empty). For so many seconds a connection is `young`. Only this
    process's user can connect. Belongs to one event loop.
    """

    def __init__(
        self,
        address: str,
        trust_domain: TrustDomain,
        folder: Path,
        roots: Callable[[], bytes],
        pacing: Pacing | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        young: float = math.inf,
    ) -> None:
        self._pacing = pacing
        self._young = young
        self._now = now
        self._address = address
        self._wanted = signer_id(trust_domain)
        self._folder = folder
        self._roots = roots
        self._directory = -1
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure = ""
        # Connections that were proven; and of the roots those (PEM) that proved one, each with the number of the last.
        self.proven = 0
        # When the last was, by the loop's clock.
        self.proven_at = 0.0
        self._proven_by: dict[bytes, int] = {}

    @property
    def proven_by(self) -> frozenset[bytes]:
        """The roots (PEM) that proved connections, but for those that were forgotten."""
        return frozenset(self._proven_by)

    def forget(self, number: int) -> None:
        """Nothing of the connections up to that number is in use any more."""
        self._proven_by = {root: last for root, last in self._proven_by.items() if last > number}

    @property
    def failure(self) -> str:
        """Why the last attempt reached no signer, beginning with a reason code; empty when it did."""
        return self._failure

    def open(self) -> str:
        """The socket as grpc's target, which is for a new channel; listens from the first call on. Raises OSError."""
        if self._pacing is not None:
            self._pacing.forget()
        if self._listening is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with ExitStack() as undo:
                directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, directory)
                (self._folder / SOCKET).unlink(missing_ok=True)
                listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                undo.callback(listening.close)
                listening.bind(_path(directory))
                undo.callback((self._folder / SOCKET).unlink, missing_ok=True)
                os.chmod(_path(directory), 0o600)
                listening.listen(_BACKLOG)
                undo.pop_all()
            self._directory, self._listening = directory, listening
            self._start(self._accept(listening))
        return f"unix:{_path(self._directory)}"

    async def close(self) -> None:
        """End what is open; the socket is gone when this returns."""
        await end(self._tasks)
        if self._listening is not None:
            listening, self._listening = self._listening, None
            listening.close()
            os.close(self._directory)
            (self._folder / SOCKET).unlink(missing_ok=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                # Out of descriptors: that passes, and this loop must be there then.
                self._failure = f"SIGNER_UNREACHABLE: this agent cannot open a connection: {error.strerror}"
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
            else:
                self._start(self._serve(accepted))

    async def _serve(self, accepted: socket.socket) -> None:
        near, near_out = await asyncio.open_connection(sock=accepted)
        far_out: asyncio.StreamWriter | None = None
        try:
            if self._pacing is not None and not self._pacing.may_try():
                return  # grpc comes again in a moment
            far, far_out = await self._connect()
            if self._pacing is not None:
                self._pacing.forget()
            ways = [
                asyncio.ensure_future(_to_signer(near, far_out, self._young)),
                asyncio.ensure_future(pass_on(far, near_out, _FROM_SIGNER)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(ways)
        except NotProven as error:
            # grpc sees its connection closed, and comes back.
            self._failure = str(error)
            if self._pacing is not None:
                self._pacing.failed(nobody=error.nobody)
        finally:
            near_out.close()
            if far_out is not None:
                far_out.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = host_and_port(self._address)
        roots = self._roots()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                far, far_out = await asyncio.open_connection(
                    host,
                    port,
                    ssl=_context(),
                    server_hostname=SIGNER_NAME,
                    happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
                    ssl_shutdown_timeout=GOODBYE_SECONDS,
                )
        except TimeoutError:
            raise NotProven(
                f"SIGNER_UNREACHABLE: {self._address} does not answer within {CONNECT_SECONDS:g} s"
            ) from None
        except OSError as error:
            raise NotProven(f"SIGNER_UNREACHABLE: {self._address}: {_why(error)}", nobody=_is_nobody(error)) from None
        try:
            leaf = self._check(shown(far_out.get_extra_info("ssl_object")), roots)
        except BaseException:
            far_out.transport.abort()
            raise
        self.proven += 1
        self.proven_at = asyncio.get_running_loop().time()
        self._proven_by |= dict.fromkeys(_signers(leaf, certificates(roots)), self.proven)
        self._failure = ""
        return far, far_out

    def _check(self, shown: list[bytes], roots: bytes) -> x509.Certificate:
        """The leaf of what a server showed, which TLS has seen to have its key. Raises NotProven."""
        try:
            chain = [certificate_from_der(each) for each in shown]
            trusted = TrustBundle.from_pem(self._wanted.trust_domain, roots)
            anchors = tuple(filter(_certifies_servers, trusted.x509_authorities))
            check_path(chain, TrustBundle(trusted.trust_domain, anchors), self._now())
            if not all(map(_certifies_servers, chain[1:])):
                raise InvalidSvid("a signing certificate of it is not for servers")
            leaf = chain[0]
            if not _is_named(leaf):
                raise InvalidSvid("it has another name")
        except (InvalidSvid, InvalidBundle, ValueError) as error:
            raise NotProven(
                f"SIGNER_NOT_TRUSTED: what answers at {self._address} has a certificate that this agent's trust bundle "
                f"does not verify for {SIGNER_NAME}: {error}"
            ) from None
        try:
            found = leaf_spiffe_id(leaf)
        except InvalidSvid as error:
            raise NotProven(self._stranger(f"no X.509-SVID: {error}")) from None
        if found != self._wanted:
            raise NotProven(self._stranger(str(found)))
        return leaf

    def _stranger(self, found: str) -> str:
        return (
            f"SIGNER_WRONG_IDENTITY: what answers at {self._address} proves to be {found}, not {self._wanted}; "
            "is signer_address the signer's, and trust_domain this cluster's?"
        )


async def _to_signer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, young: float) -> None:
    """As `pass_on`, in records that the signer can read as it knows its agent."""
    loop = asyncio.get_running_loop()
    grown, first = loop.time() + young, FIRST
    with suppress(OSError):
        while first > 0 or loop.time() < grown:
            data = await reader.read(_TO_SIGNER)
            if not data:
                return
            first -= len(data)
            writer.write(data)
            await writer.drain()
        await pass_on(reader, writer, _TO_SIGNER_LATER)


def certificates(pem: bytes) -> frozenset[bytes]:
    """Each certificate of `pem`, as PEM of its own."""
    parts = pem.split(_END)
    return frozenset(each.strip() + _END for each in parts[:-1])


def _signers(leaf: x509.Certificate, roots: frozenset[bytes]) -> frozenset[bytes]:
    """Those that signed it; all of them where none did itself: which one a chain led to cannot be asked for."""
    return frozenset(each for each in roots if issued_by(leaf, x509.load_pem_x509_certificate(each))) or roots


def _path(directory: int) -> str:
    # A folder's own path may be longer than a socket's address can be.
    return f"/proc/self/fd/{directory}/{SOCKET}"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Whose the certificate is will be looked at before a byte is sent: here only that who shows it has its key.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _is_named(leaf: x509.Certificate) -> bool:
    names = extension(leaf, x509.SubjectAlternativeName)
    return names is not None and SIGNER_NAME in names.value.get_values_for_type(x509.DNSName)


def _certifies_servers(signing: x509.Certificate) -> bool:
    """Nothing that limits what it is for lets it be. Under a CA that others share there are some for mail, or for a
    name of somebody else's; no authority of a signer is below such a one (svid/acceptance.py)."""
    try:
        check_extensions(signing)
    except InvalidSvid:
        return False
    usages = extension(signing, x509.ExtendedKeyUsage)
    return usages is None or not _SERVING.isdisjoint(usages.value)


def _why(error: OSError) -> str:
    # asyncio writes over what the kernel says of a connection.
    if error.errno is None or isinstance(error, ssl.SSLError | socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _is_nobody(error: OSError) -> bool:
    """Whether nothing listens at any of the addresses, or there is none."""
    # Of several addresses asyncio puts what became of each into one text.
    said = [int(each) for each in re.findall(r"\[Errno (\d+)\]", str(error))] if error.errno is None else [error.errno]
    if isinstance(error, socket.gaierror):
        # Of one that is overloaded nobody asks again at once.
        return error.errno == socket.EAI_NONAME
    return bool(said) and _NOBODY.issuperset(said)
