"""The SPIFFE Workload API on one volume's socket: the listener that accepted a call is the caller's identity.

Workload Endpoint and Workload API specifications; the X.509 profile. Methods of other profiles are not registered,
so that gRPC answers UNIMPLEMENTED for them (Workload Endpoint, appendix A), after the header check.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from agent.clock import Clock
from agent.feed import Feed
from agent.metrics import Metrics
from agent.pb import workload_pb2
from svid.identity import WorkloadIdentity

SERVICE = "SpiffeWorkloadAPI"
HEADER = ("workload.spiffe.io", "true")
_MAX_REQUEST = 64 * 1024
OPTIONS = (
    # Workload API streams are idle by nature: a client's keepalive pings are no abuse.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", _MAX_REQUEST),
    ("grpc.so_reuseport", 0),
)
Render = Callable[[WorkloadIdentity], bytes]
AnyContext = grpc.aio.ServicerContext[Any, Any]


def x509_svid_response(identity: WorkloadIdentity) -> bytes:
    """A serialized X509SVIDResponse (Workload API 5.2.1)."""
    bundle = identity.bundle.to_der()
    response = workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id=str(svid.spiffe_id),
                x509_svid=svid.chain_der(),
                x509_svid_key=svid.key_der(),
                bundle=bundle,
                hint=svid.hint,
            )
            for svid in identity.svids
        ],
        # An empty bundle would be an unusable entry that stops some clients; its absence says the same.
        federated_bundles={str(b.trust_domain.id): b.to_der() for b in identity.federated if b.x509_authorities},
    )
    return response.SerializeToString(deterministic=True)


def x509_bundles_response(identity: WorkloadIdentity) -> bytes:
    """A serialized X509BundlesResponse (Workload API 5.2.2): bundles keyed by trust domain ID, own included."""
    response = workload_pb2.X509BundlesResponse(
        bundles={
            str(bundle.trust_domain.id): bundle.to_der()
            for bundle in (identity.bundle, *identity.federated)
            if bundle.x509_authorities
        }
    )
    return response.SerializeToString(deterministic=True)


class SecurityHeader(grpc.aio.ServerInterceptor):
    """Refuses a call without exactly one `workload.spiffe.io: true`, known method or not (Workload Endpoint 3)."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        name, wanted = HEADER
        values = [value for key, value in handler_call_details.invocation_metadata or () if key == name]
        if values == [wanted]:
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        if handler is not None and handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_refuse_stream)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(request: bytes, context: AnyContext) -> None:
    await context.abort(
        grpc.StatusCode.INVALID_ARGUMENT, f"security header missing: send metadata {HEADER[0]}: {HEADER[1]}"
    )


async def _refuse_stream(request: bytes, context: AnyContext) -> AsyncIterator[bytes]:
    await _refuse(request, context)
    yield b""


class WorkloadApi:
    """Serves one workload's feed. `open` and `close` bracket the socket."""

    def __init__(self, feed: Feed[WorkloadIdentity], clock: Clock, metrics: Metrics) -> None:
        self._feed = feed
        self._clock = clock
        self._metrics = metrics
        self._server: grpc.aio.Server | None = None
        self._rendered: dict[Render, tuple[int, bytes]] = {}

    async def open(self, address: str) -> None:
        """Listen at the Unix socket path `address`. Raises OSError."""
        server = grpc.aio.server(interceptors=[SecurityHeader()], options=OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(self._fetch_x509_svid),
            "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(self._fetch_x509_bundles),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            server.add_insecure_port(f"unix:{address}")
        except RuntimeError as error:
            raise OSError(None, f"cannot listen on the volume's socket: {error}") from None
        await server.start()
        self._server = server

    async def close(self) -> None:
        """End all calls with UNAVAILABLE, so that clients reconnect, and remove the socket."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def _fetch_x509_svid(self, request: bytes, context: AnyContext) -> AsyncIterator[bytes]:
        await _check(request, workload_pb2.X509SVIDRequest(), context)
        async for message in self._states(x509_svid_response, context):
            yield message

    async def _fetch_x509_bundles(self, request: bytes, context: AnyContext) -> AsyncIterator[bytes]:
        await _check(request, workload_pb2.X509BundlesRequest(), context)
        async for message in self._states(x509_bundles_response, context):
            yield message

    async def _states(self, render: Render, context: AnyContext) -> AsyncIterator[bytes]:
        """The whole state at once, then at each change of what `render` makes of it; never twice the same."""
        with self._counted():
            sent: bytes | None = None
            version = 0
            while True:
                identity = self._feed.current
                if sent is None and (identity is None or identity.expires_at <= self._clock.now()):
                    await context.abort(
                        grpc.StatusCode.UNAVAILABLE, "the SVID could not be renewed in time; trying again"
                    )
                if identity is not None:
                    version = self._feed.version
                    message = self._message(render, version, identity)
                    if message != sent:
                        sent = message
                        yield message
                await self._feed.wait_beyond(version)

    def _message(self, render: Render, version: int, identity: WorkloadIdentity) -> bytes:
        kept = self._rendered.get(render)
        if kept is None or kept[0] != version:
            kept = self._rendered[render] = (version, render(identity))
        return kept[1]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._metrics.streams.inc()
        try:
            yield
        finally:
            self._metrics.streams.dec()


async def _check(data: bytes, message: Any, context: AnyContext) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a {message.DESCRIPTOR.name} message")
