"""A volume's socket: the gRPC server on it. What a call meets there is in `guard`, its pod's limits in `accounts`."""

from collections.abc import Sequence

import grpc
import grpc.aio

from agent.socket.accounts import Account
from agent.socket.guard import MAX_METADATA, CallMetrics, Guard
from agent.socket.relay import Door, Relay

MAX_REQUEST = 64 * 1024
# Bytes that a call's client may send before it is read from; a longer request is asked for then.
WINDOW = 8 * 1024
# Calls that may wait until Python looks at them, 15 KB each; from half of them on gRPC drops some by chance. So many on
# a pod's first socket, fewer on each further one.
WAITING, LEAST_WAITING = 1024, 64
# Seconds that a stop waits at most for clients to take their calls' last answers; then for them to leave.
ENDING, LEAVING = 1.0, 0.5


class Endpoint:
    """Serves `handlers` on one Unix socket, as `account` allows. `open` and `close` bracket it, and may be repeated."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        account: Account,
        metrics: CallMetrics,
        relay: Relay | None = None,
    ) -> None:
        self._handlers = tuple(handlers)
        self._account = account
        self._metrics = metrics
        self._relay = relay
        self._door: Door | None = None
        self._server: grpc.aio.Server | None = None
        self._guard: Guard | None = None

    @property
    def open_calls(self) -> list[tuple[str, float]]:
        """The calls under way, streams mostly: method, and for how many seconds; the oldest first."""
        return self._guard.calls() if self._guard else []

    async def open(self, address: str) -> None:
        """Listen at the Unix socket path `address`. Raises OSError."""
        guard = Guard(self._account, self._metrics)
        limits = self._account.pod.limits
        waiting = max(WAITING // max(self._account.pod.sockets, 1), LEAST_WAITING)
        server = grpc.aio.server(
            interceptors=[guard],
            options=(
                # Workload API streams are idle by nature: a client's keepalive pings are no abuse.
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
                ("grpc.max_receive_message_length", MAX_REQUEST),
                ("grpc.max_metadata_size", MAX_METADATA),
                # An open call keeps whole what its metadata was read with.
                ("grpc.experimental.tcp_max_read_chunk_size", 16 * 1024),
                # The relay counts them itself, and knows of an end before gRPC does.
                *([] if self._relay else [("grpc.max_allowed_incoming_connections", limits.connections)]),
                ("grpc.max_concurrent_streams", limits.calls),
                ("grpc.server.max_pending_requests", waiting // 2),
                ("grpc.server.max_pending_requests_hard_limit", waiting),
                # Without its probes gRPC keeps to the window; with them a stream that nobody reads may hold 4 MB.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW),
                # A connection on which no HTTP/2 is spoken, or no setting acknowledged; real clients begin within
                # milliseconds, and what they have not acknowledged does not limit them.
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.http2.settings_timeout", 10_000),
                ("grpc.so_reuseport", 0),
            ),
        )
        server.add_generic_rpc_handlers(self._handlers)
        door = None
        try:
            if self._relay is None:
                server.add_insecure_port(f"unix:{address}")
            else:
                # Before anything is waited for: the directory is only for now this process's.
                door = self._relay.door(address, self._account.connections, limits.connections)
                server.add_insecure_port(f"unix-abstract:{door.inner}")
            await server.start()
            if door is not None:
                door.open()
        except BaseException as error:
            if door is not None:
                door.shut()
            await server.stop(None)
            if isinstance(error, RuntimeError):
                raise OSError(None, f"cannot listen on the volume's socket: {error}") from None
            raise
        self._server, self._guard, self._door = server, guard, door

    async def close(self) -> None:
        """End all calls with UNAVAILABLE, so that clients reconnect, then all connections, and remove the socket."""
        if self._server is not None and self._guard is not None:
            server, self._server = self._server, None
            try:
                await self._guard.end(ENDING)
            finally:
                door, self._door = self._door, None
                if door is not None:
                    door.shut()
                await server.stop(LEAVING)
                if door is not None:
                    door.end()
