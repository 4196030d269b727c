"""The SPIFFE Workload API for one workload, X.509 and JWT profiles: the listener that accepted a call is the caller.

Methods that are not served (the WIT profile, the JWT profile of an authority without JWT keys) are not registered, so
that gRPC answers UNIMPLEMENTED for them (Workload Endpoint, appendix A).
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeAlias

import grpc

from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.pb import workload_pb2
from agent.socket.guard import DENIED, WORKLOAD_API, AnyContext
from agent.socket.methods import Methods, table
from agent.socket.requests import invalid, read
from runtime.clock import Clock
from runtime.feed import Followed
from runtime.terminal import shown
from svid.errors import InvalidSpiffeId, SvidError
from svid.handed import Identity, Svid
from svid.jwtsvid import MAX_AUDIENCE_BYTES, MAX_AUDIENCES, JwtSvid, check_jwt_svid
from svid.spiffeid import SpiffeId

Render: TypeAlias = Callable[[Identity], bytes]
_MAX_DEPTH = 16
# Seconds. The wall clock may step: look again at least this often.
_MAX_NAP = 30.0
_NOT_NOW = "the SVID could not be renewed in time; try again"


class KeptJwtSvid(Protocol):
    """A JWT-SVID that may be handed out more than once."""

    @property
    def svid(self) -> JwtSvid: ...


class JwtSource(Protocol):
    """The workload's JWT-SVIDs."""

    async def get(self, spiffe_id: SpiffeId, audiences: Iterable[str]) -> KeptJwtSvid:
        """One that is valid. Raises AuthorityUnavailable, AuthorityRefused."""
        ...


def x509_svid_response(identity: Identity) -> bytes:
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


def x509_bundles_response(identity: Identity) -> bytes:
    """A serialized X509BundlesResponse (Workload API 5.2.2): bundles keyed by trust domain ID, own included."""
    response = workload_pb2.X509BundlesResponse(
        bundles={
            str(bundle.trust_domain.id): bundle.to_der()
            for bundle in (identity.bundle, *identity.federated)
            if bundle.x509_authorities
        }
    )
    return response.SerializeToString(deterministic=True)


def jwt_bundles_response(identity: Identity) -> bytes:
    """A serialized JWTBundlesResponse (Workload API 6.2.2): the own trust domain always, others with JWT keys only."""
    response = workload_pb2.JWTBundlesResponse(
        bundles={
            str(bundle.trust_domain.id): bundle.to_jwt_jwks()
            for bundle in (identity.bundle, *identity.federated)
            if bundle.jwt_authorities or bundle is identity.bundle
        }
    )
    return response.SerializeToString(deterministic=True)


class WorkloadApi:
    """Serves one workload's feed; `jwt_svids` is None where the JWT profile is switched off."""

    def __init__(self, feed: Followed[Identity], jwt_svids: JwtSource | None, clock: Clock) -> None:
        self._feed = feed
        self._jwt_svids = jwt_svids
        self._clock = clock
        self._rendered: dict[Render, tuple[int, bytes]] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service under its real path, /SpiffeWorkloadAPI/<method>."""
        return Methods(self, self._X509 if self._jwt_svids is None else self._ALL)

    async def _fetch_x509_svid(self, data: bytes, context: AnyContext) -> AsyncIterator[bytes]:
        await read(data, workload_pb2.X509SVIDRequest(), context)
        async for message in self._svids(context):
            yield message

    async def _fetch_x509_bundles(self, data: bytes, context: AnyContext) -> AsyncIterator[bytes]:
        await read(data, workload_pb2.X509BundlesRequest(), context)
        async for message in self._states(x509_bundles_response, context):
            yield message

    async def _fetch_jwt_bundles(self, data: bytes, context: AnyContext) -> AsyncIterator[bytes]:
        await read(data, workload_pb2.JWTBundlesRequest(), context)
        async for message in self._states(jwt_bundles_response, context):
            yield message

    async def _fetch_jwt_svid(self, data: bytes, context: AnyContext) -> bytes:
        request = await read(data, workload_pb2.JWTSVIDRequest(), context)
        audiences = tuple(dict.fromkeys(request.audience))
        if not audiences or "" in audiences:
            await invalid(context, "audience is missing: name at least one, none of them empty")
        if len(audiences) > MAX_AUDIENCES or any(len(each.encode()) > MAX_AUDIENCE_BYTES for each in audiences):
            await invalid(context, f"at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE_BYTES} bytes are possible")
        identity = await self._current(context)
        svids = await _asked_for(request.spiffe_id, identity, context)
        assert self._jwt_svids is not None
        response = workload_pb2.JWTSVIDResponse()
        try:
            for svid in svids:
                kept = await self._jwt_svids.get(svid.spiffe_id, audiences)
                response.svids.add(spiffe_id=str(svid.spiffe_id), svid=kept.svid.token, hint=svid.hint)
        except AuthorityRefused as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{DENIED}: {error}")
        except AuthorityUnavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"no JWT-SVID now: {error}")
        return response.SerializeToString()

    async def _validate_jwt_svid(self, data: bytes, context: AnyContext) -> bytes:
        request = await read(data, workload_pb2.ValidateJWTSVIDRequest(), context)
        if not request.audience:
            await invalid(context, "audience is missing")
        if not request.svid:
            await invalid(context, "svid is missing")
        # The bundles are good even when the own SVID is not: this asks about somebody else.
        identity = await self._held(context)
        bundles = {bundle.trust_domain: bundle for bundle in (identity.bundle, *identity.federated)}
        try:
            found = check_jwt_svid(request.svid, bundles, request.audience, self._clock.now())
        except SvidError as error:
            await invalid(context, f"JWT-SVID is invalid: {error}")
        response = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=str(found.spiffe_id))
        response.claims.update(_as_struct(found.claims))
        return response.SerializeToString()

    async def _states(self, render: Render, context: AnyContext) -> AsyncIterator[bytes]:
        """Bundles: the whole state at once, then at each change of what `render` makes of it; never twice the same.

        Whatever has become of the own SVIDs: who is told of no change goes on trusting what others do not any more.
        """
        identity = await self._held(context)
        sent: bytes | None = None
        while True:
            version = self._feed.version
            identity = self._feed.current or identity
            message = self._message(render, version, identity)
            if message != sent:
                sent = message
                yield message
            await self._feed.wait_beyond(version)

    async def _svids(self, context: AnyContext) -> AsyncIterator[bytes]:
        """The same of SVIDs, until they are refused."""
        identity = await self._current(context)
        sent: bytes | None = None
        while True:
            version = self._feed.version
            identity = self._feed.current or identity
            # What has ended meanwhile is never sent; the next renewal is.
            if identity.is_granted(self._clock.now()):
                message = self._message(x509_svid_response, version, identity)
                if message != sent:
                    sent = message
                    yield message
            elif identity.withheld is not None and identity.withheld.refused:
                await self._current(context)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._nap(identity)):
                    await self._feed.wait_beyond(version)

    def _nap(self, identity: Identity) -> float | None:
        """Seconds until it is to be looked at again though nothing has changed."""
        if identity.withheld is None:
            return None
        left = (identity.expires_at - self._clock.now()).total_seconds()
        return min(max(left, 0.0) or _MAX_NAP, _MAX_NAP)

    async def _held(self, context: AnyContext) -> Identity:
        """What the workload has, SVIDs that have ended too; else UNAVAILABLE."""
        identity = self._feed.current
        if identity is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _NOT_NOW)
        assert identity is not None
        return identity

    async def _current(self, context: AnyContext) -> Identity:
        """The identity, if its SVIDs may be handed out; else UNAVAILABLE, since it will be, or why it will not."""
        identity = await self._held(context)
        if not identity.is_granted(self._clock.now()):
            held = identity.withheld
            if held is not None and held.refused:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{DENIED}: {held.why}")
            await context.abort(grpc.StatusCode.UNAVAILABLE, _NOT_NOW)
        return identity

    def _message(self, render: Render, version: int, identity: Identity) -> bytes:
        kept = self._rendered.get(render)
        if kept is None or kept[0] != version:
            kept = self._rendered[render] = (version, render(identity))
        return kept[1]

    _X509: ClassVar = table(
        WORKLOAD_API,
        {
            "FetchX509SVID": (grpc.unary_stream_rpc_method_handler, _fetch_x509_svid),
            "FetchX509Bundles": (grpc.unary_stream_rpc_method_handler, _fetch_x509_bundles),
        },
    )
    _JWT: ClassVar = table(
        WORKLOAD_API,
        {
            "FetchJWTSVID": (grpc.unary_unary_rpc_method_handler, _fetch_jwt_svid),
            "FetchJWTBundles": (grpc.unary_stream_rpc_method_handler, _fetch_jwt_bundles),
            "ValidateJWTSVID": (grpc.unary_unary_rpc_method_handler, _validate_jwt_svid),
        },
    )
    _ALL: ClassVar = MappingProxyType({**_X509, **_JWT})


async def _asked_for(text: str, identity: Identity, context: AnyContext) -> Sequence[Svid]:
    if not text:
        return identity.svids
    try:
        wanted = SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        await invalid(context, f"spiffe_id is not a SPIFFE ID: {error}")
    found = tuple(svid for svid in identity.svids if svid.spiffe_id == wanted)
    if not found:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{DENIED} for {shown(text)} to this workload")
    return found


def _as_struct(claims: Mapping[str, Any]) -> dict[str, Any]:
    """The claims that a Struct holds: one whose numbers are beyond a double is left out, `aud` is always a list."""
    found = {name: value for name, value in claims.items() if _representable(name) and _representable(value)}
    if isinstance(found.get("aud"), str):
        found["aud"] = [found["aud"]]
    return found


def _representable(value: Any, depth: int = 0) -> bool:
    if isinstance(value, str):
        # A lone surrogate is JSON, but no text.
        return value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        try:
            return math.isfinite(float(value))
        except OverflowError:
            return False
    # Protobuf readers give up at a depth of 100, and each level of a Struct takes several.
    if depth >= _MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(_representable(name) and _representable(each, depth + 1) for name, each in value.items())
    return isinstance(value, list) and all(_representable(each, depth + 1) for each in value)
