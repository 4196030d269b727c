"""A Workload API on a real socket that answers what a test wants, right or wrong, and the credentials to answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, Self

import grpc
import grpc.aio

from agent.pb import workload_pb2
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import check_jwt_svid
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
AnyContext = grpc.aio.ServicerContext[Any, Any]


def authority(trust_domain: str = "example.org") -> X509Authority:
    return X509Authority.create(
        TrustDomain(trust_domain), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=datetime.now(UTC)
    )


def x509_svid(
    issuer: X509Authority, spiffe_id: SpiffeId = WEB, *, hint: str = "", now: datetime | None = None
) -> X509Svid:
    """A new key and its chain, valid for an hour from `now`."""
    key = KeyAlgorithm.EC_P256.generate()
    chain = issuer.issue(key.public_key(), spiffe_id, ttl=timedelta(hours=1), now=now or datetime.now(UTC))
    return X509Svid(spiffe_id, chain, key, hint)


def entry(svid: X509Svid, bundle: TrustBundle) -> workload_pb2.X509SVID:
    return workload_pb2.X509SVID(
        spiffe_id=str(svid.spiffe_id),
        x509_svid=svid.chain_der(),
        x509_svid_key=svid.key_der(),
        bundle=bundle.to_der(),
        hint=svid.hint,
    )


def x509_answer(issuer: X509Authority, *svids: X509Svid, federated: Sequence[TrustBundle] = ()) -> bytes:
    return workload_pb2.X509SVIDResponse(
        svids=[entry(svid, issuer.bundle) for svid in svids or (x509_svid(issuer),)],
        federated_bundles={str(bundle.trust_domain.id): bundle.to_der() for bundle in federated},
    ).SerializeToString()


class Refusal(Exception):
    """Answer with this status."""

    def __init__(self, code: grpc.StatusCode, details: str = "as the test wants") -> None:
        self.code = code
        self.details = details


class FakeWorkloadApi:
    """Serves the socket at `path` while it is entered, and `port` of 127.0.0.1.

    A stream sends its feed's value and then each newer one. `before[method]`, and `after_each` message of a stream,
    may raise Refusal; with OK it ends the stream. A method in `missing` is not registered. `flood` is sent before all
    that, as fast as it is read.
    """

    def __init__(self, path: Path, issuer: X509Authority | None = None, *, missing: Sequence[str] = ()) -> None:
        self.path = path
        self.issuer = issuer or authority()
        self.key = JwtSigningKey.create(JwtAlgorithm.ES256)
        self.x509: Feed[bytes] = Feed()
        self.x509_bundles: Feed[bytes] = Feed()
        self.jwt_bundles: Feed[bytes] = Feed()
        self.jwt: Callable[[workload_pb2.JWTSVIDRequest], bytes] = self.issue_jwt
        self.validate: Callable[[workload_pb2.ValidateJWTSVIDRequest], bytes] = self.validate_jwt
        self.before: dict[str, Callable[[], None]] = {}
        self.after_each: Callable[[], None] = lambda: None
        self.flood: list[bytes] = []
        self.calls: list[str] = []
        self.sent = 0
        self.port = 0
        self._missing = missing
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(self._stream("FetchX509SVID", self.x509)),
            "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(
                self._stream("FetchX509Bundles", self.x509_bundles)
            ),
            "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(self._stream("FetchJWTBundles", self.jwt_bundles)),
            "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(self._fetch_jwt),
            "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(self._validate_jwt),
        }
        served = {name: handler for name, handler in handlers.items() if name not in self._missing}
        self.path.unlink(missing_ok=True)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", served),))
        self._server.add_insecure_port(f"unix:{self.path}")
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    def rotate(self, *svids: X509Svid, federated: Sequence[TrustBundle] = ()) -> None:
        """Send a new state on the SVID stream."""
        self.x509.publish(x509_answer(self.issuer, *svids, federated=federated))

    def publish_bundles(self, *foreign: TrustBundle) -> None:
        """Send the own trust bundle, JWT key included, and foreign ones."""
        own = TrustBundle(self.issuer.trust_domain, self.issuer.bundle.x509_authorities, (self.key.public,))
        known = {str(bundle.trust_domain.id): bundle for bundle in (own, *foreign)}
        self.x509_bundles.publish(
            workload_pb2.X509BundlesResponse(
                bundles={name: bundle.to_der() for name, bundle in known.items()}
            ).SerializeToString()
        )
        self.jwt_bundles.publish(
            workload_pb2.JWTBundlesResponse(
                bundles={name: bundle.to_jwt_jwks() for name, bundle in known.items()}
            ).SerializeToString()
        )

    def issue_jwt(self, request: workload_pb2.JWTSVIDRequest) -> bytes:
        wanted = SpiffeId.parse(request.spiffe_id) if request.spiffe_id else WEB
        svid = self.key.issue(wanted, request.audience, ttl=timedelta(minutes=5), now=datetime.now(UTC))
        answer = workload_pb2.JWTSVIDResponse(svids=[workload_pb2.JWTSVID(spiffe_id=str(wanted), svid=svid.token)])
        return answer.SerializeToString()

    def validate_jwt(self, request: workload_pb2.ValidateJWTSVIDRequest) -> bytes:
        bundle = TrustBundle(self.issuer.trust_domain, (), (self.key.public,))
        found = check_jwt_svid(request.svid, {bundle.trust_domain: bundle}, request.audience, datetime.now(UTC))
        answer = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=str(found.spiffe_id))
        answer.claims.update(dict(found.claims))
        return answer.SerializeToString()

    def _stream(self, method: str, feed: Feed[bytes]) -> Callable[[bytes, AnyContext], AsyncIterator[bytes]]:
        async def serve(_: bytes, context: AnyContext) -> AsyncIterator[bytes]:
            try:
                await self._called(method, context)
                for message in self.flood:
                    yield message
                seen = 0
                while True:
                    seen = await feed.wait_beyond(seen)
                    assert feed.current is not None
                    yield feed.current
                    self.sent += 1
                    self.after_each()
            except Refusal as refusal:
                if refusal.code is not grpc.StatusCode.OK:
                    await _refuse(context, refusal)

        return serve

    async def _fetch_jwt(self, data: bytes, context: AnyContext) -> bytes:
        try:
            await self._called("FetchJWTSVID", context)
        except Refusal as refusal:
            await _refuse(context, refusal)
        return self.jwt(workload_pb2.JWTSVIDRequest.FromString(data))

    async def _validate_jwt(self, data: bytes, context: AnyContext) -> bytes:
        try:
            await self._called("ValidateJWTSVID", context)
            return self.validate(workload_pb2.ValidateJWTSVIDRequest.FromString(data))
        except Refusal as refusal:
            await _refuse(context, refusal)
        except SvidError as error:
            await _refuse(context, Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)))

    async def _called(self, method: str, context: AnyContext) -> None:
        self.calls.append(method)
        given = [value for name, value in context.invocation_metadata() or () if name == "workload.spiffe.io"]
        if given != ["true"]:
            await _refuse(context, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request"))
        self.before.get(method, lambda: None)()


async def _refuse(context: AnyContext, refusal: Refusal) -> NoReturn:
    await context.abort(refusal.code, refusal.details)
    raise AssertionError


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
