"""grpc.health.v1 on a volume's socket: SERVING while the workload's SVID is valid."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import grpc
from grpc_health.v1 import health_pb2

from agent.socket.guard import WORKLOAD_API, AnyContext
from agent.socket.methods import Methods, table
from agent.socket.requests import read
from runtime.clock import Clock
from runtime.feed import Followed
from svid.handed import Identity

SERVICES = ("", WORKLOAD_API)
_Status = health_pb2.HealthCheckResponse
# The wall clock may step: look again at least this often.
_MAX_NAP = 30.0


class Health:
    """Answers for the socket as a whole ("") and for the Workload API."""

    def __init__(self, feed: Followed[Identity], clock: Clock) -> None:
        self._feed = feed
        self._clock = clock

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service under its real path."""
        return Methods(self, self._METHODS)

    async def _check(self, data: bytes, context: AnyContext) -> bytes:
        service = (await read(data, health_pb2.HealthCheckRequest(), context)).service
        if service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service; ask for none or for " + WORKLOAD_API)
        return _Status(status=self._status()).SerializeToString()

    async def _watch(self, data: bytes, context: AnyContext) -> AsyncIterator[bytes]:
        service = (await read(data, health_pb2.HealthCheckRequest(), context)).service
        sent = None
        while True:
            version = self._feed.version
            status = self._status() if service in SERVICES else _Status.SERVICE_UNKNOWN
            if status != sent:
                sent = status
                yield _Status(status=status).SerializeToString()
            try:
                async with asyncio.timeout(self._nap()):
                    await self._feed.wait_beyond(version)
            except TimeoutError:
                continue

    def _status(self) -> int:
        identity = self._feed.current
        valid = identity is not None and identity.expires_at > self._clock.now()
        return _Status.SERVING if valid else _Status.NOT_SERVING

    def _nap(self) -> float:
        identity = self._feed.current
        left = (identity.expires_at - self._clock.now()).total_seconds() if identity else _MAX_NAP
        # After the end only a new SVID changes anything, and that wakes this.
        return min(left, _MAX_NAP) if left > 0 else _MAX_NAP

    _METHODS: ClassVar = table(
        "grpc.health.v1.Health",
        {
            "Check": (grpc.unary_unary_rpc_method_handler, _check),
            "Watch": (grpc.unary_stream_rpc_method_handler, _watch),
        },
    )
