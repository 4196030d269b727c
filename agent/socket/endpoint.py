"""A volume's socket: the gRPC server on it, who may call, how much at once, and that no call ends without a status."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio

from agent.socket.connections import MUTATOR, Mutator
from runtime.bucket import Bucket

_log = logging.getLogger("podsvid.endpoint")
WORKLOAD_API = "SpiffeWorkloadAPI"
HEADER = ("workload.spiffe.io", "true")
# These are no part of the Workload API: Envoy, probes and grpcurl send no SPIFFE header.
WITHOUT_HEADER = ("/envoy.service.secret.v3.SecretDiscoveryService/", "/grpc.health.v1.Health/", "/grpc.reflection.")
MAX_REQUEST = 64 * 1024
# Bytes of one call's metadata, names and values; the header above and what tracing adds are some hundred.
MAX_METADATA = 16 * 1024
AnyContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = Any  # grpc.RpcMethodHandler's fields are not typed


@dataclass(frozen=True, slots=True)
class Limits:
    """What one socket may take, so that a pod that runs wild hurts itself only.

    `connections` and `calls` are open at once; `rate` new calls a second go on for ever, `burst` of them at once, and
    what is asked on open streams counts as calls do. A call above them is answered UNAVAILABLE, a connection is closed:
    clients try again later. A request on an open stream waits.
    """

    connections: int = 64
    calls: int = 1024
    # Programs that do not keep JWT-SVIDs ask for one with each request that they send.
    rate: float = 500.0
    burst: int = 2000


class CallMetrics(Protocol):
    """What the endpoints count."""

    def call_started(self, method: str) -> None: ...

    def call_ended(self, method: str) -> None: ...

    def call_refused(self, why: str) -> None: ...


class Endpoint:
    """Serves `handlers` on one Unix socket. `open` and `close` bracket it, and may be repeated."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        limits: Limits,
        metrics: CallMetrics,
        mutator: Mutator | None = None,
    ) -> None:
        self._handlers = tuple(handlers)
        self._limits = limits
        self._metrics = metrics
        self._mutator = mutator
        self._server: grpc.aio.Server | None = None
        self._guard: _Guard | None = None

    @property
    def open_calls(self) -> list[tuple[str, float]]:
        """The calls under way, streams mostly: method, and for how many seconds; the oldest first."""
        return self._guard.calls() if self._guard else []

    async def open(self, address: str) -> None:
        """Listen at the Unix socket path `address`. Raises OSError."""
        guard = _Guard(self._limits, self._metrics)
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
                ("grpc.max_allowed_incoming_connections", self._limits.connections),
                ("grpc.max_concurrent_streams", self._limits.calls),
                # A connection on which no HTTP/2 is spoken, or no setting acknowledged; real clients begin within
                # milliseconds, and what they have not acknowledged does not limit them.
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.http2.settings_timeout", 10_000),
                ("grpc.so_reuseport", 0),
                *([(MUTATOR, self._mutator)] if self._mutator else []),
            ),
        )
        server.add_generic_rpc_handlers(self._handlers)
        try:
            server.add_insecure_port(f"unix:{address}")
            await server.start()
        except BaseException as error:
            await server.stop(None)
            if isinstance(error, RuntimeError):
                raise OSError(None, f"cannot listen on the volume's socket: {error}") from None
            raise
        self._server, self._guard = server, guard

    async def close(self) -> None:
        """End all calls with UNAVAILABLE, so that clients reconnect, and remove the socket."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)


class _Guard(grpc.aio.ServerInterceptor):
    """Stands before every method: the security header (Workload Endpoint 3), the limits, and what handlers raise."""

    def __init__(self, limits: Limits, metrics: CallMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._open: dict[object, tuple[str, float]] = {}
        self._allowance = Bucket(limits.rate, limits.burst, asyncio.get_running_loop().time())
        # Of all streams whose next request has to wait, one looks whether it may.
        self._turn = asyncio.Lock()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata or ()
        if sum(len(key) + len(value) for key, value in metadata) > MAX_METADATA:
            # grpc's own limit holds for clients that acknowledge it; a call of others keeps megabytes while it is open.
            return _refusal(handler, grpc.StatusCode.RESOURCE_EXHAUSTED, f"metadata of more than {MAX_METADATA} bytes")
        name, wanted = HEADER
        if not method.startswith(WITHOUT_HEADER):
            values = [value for key, value in metadata if key == name]
            if values != [wanted]:
                # Before the method is known: a call without it is refused whatever it asks for.
                return _refusal(handler, grpc.StatusCode.INVALID_ARGUMENT, f"security header missing: {name}: {wanted}")
        if handler is None:
            return None
        why = self._excess()
        if why:
            self._metrics.call_refused(why)
            return _refusal(handler, grpc.StatusCode.UNAVAILABLE, f"too many {why} on this socket; try again later")
        return self._guarded(method, handler)

    def calls(self) -> list[tuple[str, float]]:
        """See Endpoint.open_calls."""
        now = asyncio.get_running_loop().time()
        return [(method, now - began) for method, began in self._open.values()]

    def _excess(self) -> str:
        if len(self._open) >= self._limits.calls:
            return "open calls"
        return "calls a second" if self._take() else ""

    def _take(self) -> float:
        """Take one call from the allowance; or the seconds until there will be one."""
        now = asyncio.get_running_loop().time()
        return 0.0 if self._allowance.take(now) else self._allowance.wait(now)

    async def _paced(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for request in requests:
            async with self._turn:
                wait = self._take()
                while wait:
                    await asyncio.sleep(wait)
                    wait = self._take()
            yield request

    def _guarded(self, method: str, handler: _Handler) -> _Handler:
        behaviour = _behaviour(handler)
        taken = self._paced if handler.request_streaming else _as_it_is
        if inspect.isasyncgenfunction(inspect.unwrap(behaviour)):

            async def stream(request: Any, context: AnyContext) -> AsyncIterator[Any]:
                async with self._call(method, context):
                    async for message in behaviour(taken(request), context):
                        yield message

            return _like(handler, stream)

        async def call(request: Any, context: AnyContext) -> Any:
            async with self._call(method, context):
                return await behaviour(taken(request), context)

        return _like(handler, call)

    @asynccontextmanager
    async def _call(self, method: str, context: AnyContext) -> AsyncIterator[None]:
        this = object()
        self._open[this] = (method, asyncio.get_running_loop().time())
        self._metrics.call_started(method)
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                # Only grpc cancels a handler's task: the client has gone, or the server ends all calls itself. A status
                # for such a call fails, and each that fails keeps some hundred bytes for ever (grpc/grpc#43360).
                raise
            # What the handler waited for was cancelled by us. Without a status the client would wait for ever.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the agent ended this call; try again")
        except Exception as error:
            # Its text could hold anything, and a client could do nothing with it.
            _log.exception("call failed", extra={"method": method, "error": type(error).__name__})
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the agent's log says more")
        finally:
            del self._open[this]
            self._metrics.call_ended(method)


def _as_it_is(request: Any) -> Any:
    return request


def _behaviour(handler: _Handler) -> Callable[[Any, AnyContext], Any]:
    found: Callable[[Any, AnyContext], Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


def _like(handler: _Handler, behaviour: Callable[[Any, AnyContext], Any]) -> _Handler:
    """The same kind of method, (de)serializers included, with another behaviour."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _refusal(handler: _Handler, code: grpc.StatusCode, text: str) -> _Handler:
    """A method that only says no, before anything of the request was looked at."""

    async def refuse(request: Any, context: AnyContext) -> None:
        await context.abort(code, text)

    async def refuse_stream(request: Any, context: AnyContext) -> AsyncIterator[bytes]:
        await context.abort(code, text)
        yield b""

    if handler is None:
        return grpc.unary_unary_rpc_method_handler(refuse)
    return _like(handler, refuse_stream if handler.response_streaming else refuse)
