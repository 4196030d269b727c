"""The server that agents connect to: one after another, each with a newer certificate on the same address."""

import asyncio
import logging

import grpc.aio

from runtime.clock import Clock
from signer.authority.state import AuthorityState
from signer.front.agents import MAX_MESSAGE, STREAM_LIFE
from signer.front.tls import ServerIdentity
from svid.errors import SvidError

_log = logging.getLogger("podsvid.signer")
# A dead agent's connection is noticed; an idle one is kept.
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", 8 * MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_metadata_size", 32 * 1024),
    # The server of a new certificate takes over the port before the old one gives it up.
    ("grpc.so_reuseport", 1),
)


class AgentServer:
    """Serves `handlers` at `address` (HOST:PORT) once `renew` has given it a certificate."""

    def __init__(self, handlers: grpc.GenericRpcHandler, address: str, clock: Clock) -> None:
        self._handlers = handlers
        self._address = address
        self._identity = ServerIdentity(clock)
        self._server: grpc.aio.Server | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> bool:
        """Whether it has a certificate and listens."""
        return self._server is not None

    async def renew(self, state: AuthorityState) -> None:
        """Take a new certificate of `state` where one is due. Raises OSError when the address cannot be bound."""
        try:
            credentials = self._identity.renewed(state)
        except SvidError as error:
            _log.error("server certificate cannot be renewed", extra={"reason": error.reason, "error": str(error)})
            return
        if credentials is not None:
            await self._replace(credentials)

    async def close(self, grace: float) -> None:
        """Stop listening; calls in flight get `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)
        for each in self._retiring:
            each.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _replace(self, credentials: grpc.ServerCredentials) -> None:
        """New connections meet a server with these; the streams of the one before end in their own time."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._handlers,))
        if server.add_secure_port(self._address, credentials) == 0:
            raise OSError(f"{self._address} cannot be bound; choose another --listen")
        await server.start()
        before, self._server = self._server, server
        if before is not None:
            retiring = asyncio.create_task(before.stop(STREAM_LIFE.total_seconds()), name="old server")
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
