"""A client of any SPIFFE Workload API, as the command line needs it.

Whatever a socket answers is checked before anybody gets to see it (`answers.py`).
"""

from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from agent.errors import WorkloadApiError
from agent.pb import workload_pb2
from agent.socket.guard import HEADER, WORKLOAD_API
from podsvid.api import answers
from podsvid.api.answers import ValidToken, X509State
from podsvid.api.errors import NoIdentity, NotServed, RequestRefused, Unreachable, shown
from runtime.clock import Clock
from svid.bundle import TrustBundle
from svid.spiffeid import SpiffeId

if TYPE_CHECKING:
    from svid.jwtsvid import JwtSvid

_OPTIONS = (
    # A new connection each time: gRPC's own back-off, up to two minutes, is not in the way of ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_Returned = TypeVar("_Returned")
_BY_STATUS: Mapping[grpc.StatusCode, type[WorkloadApiError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.PERMISSION_DENIED: NoIdentity,
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.UNIMPLEMENTED: NotServed,
}


class WorkloadApiClient:
    """One connection to the Workload API at `target`; an async context manager.

    Its methods raise WorkloadApiError: Unreachable, NoIdentity, RequestRefused, NotServed, UnusableAnswer. None has a
    deadline of its own.
    """

    def __init__(self, target: str, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def fetch_x509(self) -> X509State:
        """The current X.509-SVIDs, each verified against its bundle."""
        return self.parse_x509(await self._first("FetchX509SVID", workload_pb2.X509SVIDRequest()))

    def x509_answers(self) -> AsyncGenerator[bytes, None]:
        """Every answer of one FetchX509SVID stream, for `parse_x509`."""
        return self._answers("FetchX509SVID", workload_pb2.X509SVIDRequest())

    def parse_x509(self, data: bytes) -> X509State:
        """What a FetchX509SVID answer holds. Raises UnusableAnswer for all of it when one SVID is not valid now."""
        return answers.x509_state(data, self._clock.now())

    async def fetch_bundles(self) -> tuple[TrustBundle, ...]:
        """The bundles of all trust domains, by name; a profile that the server has not is left out, not both."""
        x509 = await _unless_not_served(self._first("FetchX509Bundles", workload_pb2.X509BundlesRequest()))
        jwt = await _unless_not_served(self._first("FetchJWTBundles", workload_pb2.JWTBundlesRequest()))
        if x509 is None and jwt is None:
            raise NotServed(f"{self._target} serves no trust bundles")
        return answers.bundles(x509, jwt)

    async def fetch_jwt(self, audiences: Sequence[str], spiffe_id: SpiffeId | None) -> "tuple[JwtSvid, ...]":
        """JWT-SVIDs for `audiences`: of `spiffe_id`, or one for each identity.

        Their signatures are not checked: the server is who vouches for them, and the audience who verifies them.
        """
        request = workload_pb2.JWTSVIDRequest(audience=audiences, spiffe_id="" if spiffe_id is None else str(spiffe_id))
        data = await self._call("FetchJWTSVID", request)
        return answers.jwt_svids(data, audiences, spiffe_id, self._clock.now())

    async def validate_jwt(self, token: str, audience: str) -> ValidToken:
        """Let the server validate a JWT-SVID; an invalid one is RequestRefused."""
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return answers.valid_token(await self._call("ValidateJWTSVID", request))

    async def _first(self, method: str, request: Message) -> bytes:
        async with aclosing(self._answers(method, request)) as answers:
            async for data in answers:
                return data
        raise Unreachable(f"{self._target} ended the stream without an answer")

    async def _answers(self, method: str, request: Message) -> AsyncGenerator[bytes, None]:
        assert self._channel is not None
        # Bytes, not messages: the library turns what it cannot parse into None, without a word.
        start: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(_path(method))
        call = start(request.SerializeToString(), metadata=(HEADER,))
        try:
            async for data in call:
                yield data
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from None
        finally:
            call.cancel()

    async def _call(self, method: str, request: Message) -> bytes:
        assert self._channel is not None
        start: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_path(method))
        try:
            return await start(request.SerializeToString(), metadata=(HEADER,))
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from None

    def _explained(self, error: grpc.aio.AioRpcError) -> WorkloadApiError:
        kind = _BY_STATUS.get(error.code(), WorkloadApiError)
        return kind(f"{self._target}: {error.code().name}: {shown(error.details() or '')}")


async def _unless_not_served(call: Awaitable[_Returned]) -> _Returned | None:
    try:
        return await call
    except NotServed:
        return None


def _path(method: str) -> str:
    return f"/{WORKLOAD_API}/{method}"
