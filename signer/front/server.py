"""The server that agents connect to, or proxies: one after another, each with a newer certificate, behind one door."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeAlias

import grpc.aio

from runtime.clock import Clock
from runtime.stopping import end
from signer.authority.state import AuthorityState
from signer.front import budget
from signer.front.admission import Admission, Places
from signer.front.agents import STREAM_LIFE
from signer.front.door import Door
from signer.front.tls import Made, ServerIdentity
from signer.keystore.keys import Keys
from signer.keystore.store import KeyStoreUnavailable
from signer.metrics import Metrics
from svid.errors import SvidError

_log = logging.getLogger("podsvid.signer")
MAX_ANSWER = 8 * budget.MIB
# That a key store may take to sign the server's certificate: until then no change of trust is passed on.
RENEW_SECONDS = 5.0
# A dead agent's connection is noticed; an idle one is kept for a while.
_OPTIONS = (
    ("grpc.max_receive_message_length", budget.MAX_MINT),
    ("grpc.max_send_message_length", MAX_ANSWER),
    ("grpc.max_metadata_size", budget.MAX_HEADERS),
    ("grpc.absolute_max_metadata_size", budget.MOST_HEADERS),
    ("grpc.max_concurrent_streams", budget.STREAMS),
    # What grpc takes of a call that nobody reads, and that it never takes more by itself.
    ("grpc.http2.lookahead_bytes", budget.WINDOW),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.settings_timeout", int(budget.SETTINGS_SECONDS * 1000)),
    ("grpc.server_handshake_timeout_ms", int(budget.GREETING_SECONDS * 1000)),
    ("grpc.server.max_pending_requests", budget.PENDING // 2),
    ("grpc.server.max_pending_requests_hard_limit", budget.PENDING),
    # An open call keeps whole what its metadata was read with.
    ("grpc.experimental.tcp_max_read_chunk_size", 16 * budget.KIB),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)


Options: TypeAlias = tuple[tuple[str, int], ...]


class Server(Protocol):
    """gRPC below a socket of its own, with one certificate."""

    async def start(self, inside: Path, made: Made) -> None:
        """Serve what comes for `inside`. Raises OSError, RuntimeError."""

    async def stop(self, grace: float | None) -> None:
        """Take no more calls; those in flight get so many seconds."""


class Behind(Protocol):
    """Where gRPC runs behind a door: in this process, or in others."""

    @property
    def serves(self) -> bool:
        """Whether a server that was started is there now."""
        ...

    def server(self, options: Options) -> Server:
        """A new one, which is not started yet."""
        ...

    def closing(self) -> None:
        """The signer stops: nothing is begun any more, and what ends may take little longer than it is given."""

    async def close(self) -> None:
        """Nothing of it is left. May be repeated."""


class Here:
    """Implements Behind in this process."""

    serves = True

    def __init__(self, handlers: grpc.GenericRpcHandler) -> None:
        self._handlers = handlers

    def server(self, options: Options) -> Server:
        return _Here(self._handlers, options)

    def closing(self) -> None:
        """It begins nothing by itself."""

    async def close(self) -> None:
        """There is nothing."""


class _Here:
    """Implements Server."""

    def __init__(self, handlers: grpc.GenericRpcHandler, options: Options) -> None:
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((handlers,))

    async def start(self, inside: Path, made: Made) -> None:
        self._server.add_secure_port(f"unix:{inside}", made.credentials)
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)


def counted(metrics: Metrics, address_rate: int, node_rate: int, node_burst: int, agents_at: Places) -> Door:
    """A door with its books, which `metrics` shows. The numbers are the settings of these names.

    `agents_at`: the addresses where agents run.
    """
    admission = Admission(address_rate, metrics.turned_away, time.monotonic, expected=agents_at)
    door = Door(admission, *budget.bytes_of_node(node_rate, node_burst))
    metrics.watch_connections(
        lambda: float(admission.agents), lambda: float(admission.strangers), lambda: float(door.aside.count)
    )
    return door


class AgentServer:
    """Serves what is `behind` the `door` at `address` (host, port), once `renew` gave it a certificate and it is open.

    `identity`: how it proves itself, to agents where none is given. `options` of gRPC go before its own. One that has
    an older certificate goes on for `stays` seconds.

    grpc's own sockets are in a new folder below `folder`, which nobody else can open.
    """

    def __init__(
        self,
        behind: Behind,
        door: Door,
        address: tuple[str, int],
        folder: Path,
        clock: Clock,
        keys: Keys | None = None,
        identity: ServerIdentity | None = None,
        options: Mapping[str, int] = MappingProxyType({}),
        stays: float = STREAM_LIFE.total_seconds(),
    ) -> None:
        self._options = tuple({**dict(_OPTIONS), **options}.items())
        self._stays = stays
        self._behind = behind
        self._door = door
        self._address = address
        self._folder = folder
        self._private: Path | None = None
        self._made = 0
        self._identity = identity or ServerIdentity(clock)
        self._keys = keys or Keys()
        self._server: Server | None = None
        self._certified = asyncio.Event()
        self._opened = self._closing = False
        self._retiring: dict[asyncio.Task[None], Server] = {}

    @property
    def serving(self) -> bool:
        """Whether it has a certificate and listens."""
        return self._server is not None and self._opened and self._behind.serves

    @property
    def lacks(self) -> str:
        """What there is not while it is not `serving`."""
        if self._server is not None and self._opened:
            return "workers that serve agents (the log says how each ended)"
        return "its own certificate"

    async def open(self, *first: Callable[[], Awaitable[object]]) -> None:
        """Listen, once all that is to come `first` has come about and there is a certificate. Raises OSError.

        Whoever came before could only be told to come again: that is work for nothing when all agents come at once.
        """
        for known in (*first, self._certified.wait):
            await known()
        self._door.open()
        self._opened = True

    async def renew(self, state: AuthorityState) -> None:
        """Take a new certificate of `state` where one is due. Raises OSError when the address cannot be bound."""
        if self._closing or not self._identity.due(state):
            return
        make = partial(self._identity.made, state)
        try:
            made = await self._keys.do(state.active_x509.private_key, make, seconds=RENEW_SECONDS)
        except (SvidError, KeyStoreUnavailable) as error:
            _log.error("server certificate cannot be renewed", extra={"reason": error.reason, "error": str(error)})
            return
        try:
            self._identity.taken(made)
            await self._replace(made)
        except BaseException:
            self._identity.unused()
            raise

    async def close(self, grace: float) -> None:
        """Stop listening; calls in flight get `grace` seconds, those of older servers too."""
        self._closing = True
        self._behind.closing()
        self._door.close()
        retiring = dict(self._retiring)
        servers = [*retiring.values(), *([self._server] if self._server is not None else [])]
        await end(retiring)
        await asyncio.gather(*(each.stop(grace) for each in servers))
        await self._door.end()
        await self._behind.close()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    async def _replace(self, made: Made) -> None:
        """New connections meet a server with this; those of the one before go on, and end in their own time."""
        if self._closing:
            return
        server = self._behind.server(self._options)
        if self._private is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._private = Path(tempfile.mkdtemp(prefix="door-", dir=self._folder))
        self._made += 1
        inside = self._private / str(self._made)
        present = self._door.target
        try:
            await server.start(inside, made)
            if self._closing:
                # Whoever closes knows nothing of it.
                await server.stop(None)
                return
            self._door.target = inside
            if self._server is None:
                self._door.bind(*self._address)
        except BaseException as error:
            self._door.target = present
            await server.stop(None)
            if isinstance(error, RuntimeError):
                raise OSError(None, f"cannot listen below {self._folder}: {error}") from None
            raise
        before, self._server = self._server, server
        self._certified.set()
        if before is not None:
            retiring = asyncio.create_task(_retire(before, self._stays), name="old server")
            self._retiring[retiring] = before
            retiring.add_done_callback(self._retiring.pop)


async def _retire(server: Server, stays: float) -> None:
    """Let it go on for a while: one that is told to stop takes no more calls, so that all agents would come at once.

    An agent makes a new connection when its stream has ended, and by then each one has.
    """
    await asyncio.sleep(stays)
    await server.stop(stays)
