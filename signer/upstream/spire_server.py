"""A connection to a SPIRE server, over which gRPC talks: mutual TLS, made here, as its certificate has no DNS name.

gRPC's Python looks at a server's DNS name and at nothing else; of a SPIRE server there is its SPIFFE ID. What gRPC
connects to is a socket without a name in the file system, which takes one connection, of this process.
"""

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import grpc.aio

from runtime.bounded import Bounded
from runtime.pipe import pass_on
from runtime.settings import host_and_port
from runtime.stopping import end
from runtime.tls import load, shown
from runtime.words import line
from signer.naming import addresses
from signer.upstream import rpc
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.downstream import DownstreamSvid
from signer.upstream.remote import UpstreamAway
from svid.certificates import certificate_from_der
from svid.errors import SvidError
from svid.keys import key_to_pem
from svid.spiffeid import SpiffeId
from svid.x509svid import check_x509_svid

# Seconds: for the connection and TLS's handshake, and for its goodbye.
CONNECT_SECONDS, GOODBYE_SECONDS = 5.0, 1.0
_AT_ONCE = 64 * 1024
_CREDENTIALS = struct.Struct("iII")


@asynccontextmanager
async def connected(
    address: str, wanted: SpiffeId, own: DownstreamSvid, resolver: Bounded, now: datetime
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the server at `address`, which has proved to be `wanted`; it is told who is `own`.

    Raises UpstreamAway, UpstreamUnusable.
    """
    far, far_out = await _reached(address, _context(own), resolver)
    try:
        _check(shown(far_out.get_extra_info("ssl_object")), address, wanted, own, now)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listening:
            listening.bind("")  # the kernel finds a name that nobody has
            listening.listen(1)
            passing = asyncio.ensure_future(_pass(listening, far, far_out))
            try:
                async with rpc.channel(f"unix-abstract:{listening.getsockname()[1:].decode()}") as channel:
                    yield channel
            except rpc.CallFailed:
                # A client's certificate is looked at after the handshake, and gRPC only sees that the socket is closed.
                if isinstance(why := far.exception(), OSError):
                    raise UpstreamAway(
                        f"the SPIRE server at {address} ended the connection of {own.svid.spiffe_id} "
                        f"({line(why.strerror or str(why))})"
                    ) from None
                raise
            finally:
                await end([passing])
    finally:
        far_out.transport.abort()


async def _reached(
    address: str, context: ssl.SSLContext, resolver: Bounded
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = host_and_port(address)
    loop = asyncio.get_running_loop()
    until = loop.time() + CONNECT_SECONDS
    try:
        async with asyncio.timeout_at(until):
            failed: OSError | None = None
            found = await addresses(resolver, host, port)
            for number, to in enumerate(found):
                # Each has its share of what is left: one that says nothing keeps the next from being asked no longer.
                share = (until - loop.time()) / (len(found) - number)
                try:
                    async with asyncio.timeout(share):
                        # The SPIFFE ID says who it is; no name is sent.
                        return await asyncio.open_connection(
                            *to, ssl=context, server_hostname="", ssl_shutdown_timeout=GOODBYE_SECONDS
                        )
                except OSError as error:  # TimeoutError is one
                    failed = error
            raise failed or OSError("its name has no address")
    except TimeoutError:
        raise UpstreamAway(f"the SPIRE server at {address} does not answer within {CONNECT_SECONDS:g} s") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise UpstreamAway(f"the SPIRE server at {address} cannot be reached ({why})") from None


def _context(own: DownstreamSvid) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Whose the certificate is will be looked at before a byte is sent: here only that who shows it has its key.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    load(context, own.svid.chain_pem(), key_to_pem(own.svid.private_key))
    return context


def _check(certificates: list[bytes], address: str, wanted: SpiffeId, own: DownstreamSvid, now: datetime) -> None:
    """Raises UpstreamUnusable."""
    try:
        found = check_x509_svid([certificate_from_der(each) for each in certificates], own.bundle, now)
    except (SvidError, ValueError) as error:
        raise UpstreamUnusable(
            f"what answers at {address} is not trusted by the bundle that came with the signer's SVID: {error}"
        ) from None
    if found != wanted:
        raise UpstreamUnusable(f"what answers at {address} proves to be {found}, not {wanted}")


async def _pass(listening: socket.socket, far: asyncio.StreamReader, far_out: asyncio.StreamWriter) -> None:
    """Between the first connection of this process and the server."""
    with suppress(OSError):
        accepted = await _own_connection(listening)
        listening.close()
        near, near_out = await asyncio.open_connection(sock=accepted)
        ways = [
            asyncio.ensure_future(pass_on(near, far_out, _AT_ONCE)),
            asyncio.ensure_future(pass_on(far, near_out, _AT_ONCE)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(ways)
            near_out.close()


async def _own_connection(listening: socket.socket) -> socket.socket:
    """Whoever is in the same network namespace can connect, and would speak as the signer."""
    while True:
        accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
        pid, _, _ = _CREDENTIALS.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if pid == os.getpid():
            return accepted
        accepted.close()
