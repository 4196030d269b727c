"""A client of any SPIFFE Workload API, as the command line needs it.

Whatever a socket answers is checked before anybody gets to see it: an answer is a whole and valid one, or an error.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from agent.errors import WorkloadApiError
from agent.pb import workload_pb2
from agent.socket.endpoint import HEADER, WORKLOAD_API
from runtime.clock import Clock
from svid.bundle import TrustBundle
from svid.errors import InvalidSpiffeId, SvidError
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct, Value

    from svid.jwtsvid import JwtSvid

_OPTIONS = (
    # A new connection each time: gRPC's own back-off, up to two minutes, is not in the way of ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
# RFC 3986 section 3.3, one segment or more.
_URI_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%(?!00)[0-9A-Fa-f]{2})+", re.ASCII)
_TCP = re.compile(r"//(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", re.ASCII)
_SHOWN = 200
# RFC 7515 section 7.1; a token goes to terminals, into HTTP headers and files as it is.
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_JWT_USES = ("jwt-svid", "sig")
_Answer = TypeVar("_Answer", bound=Message)
_Returned = TypeVar("_Returned")


class InvalidAddress(WorkloadApiError):
    """Not the address of a Workload API."""

    reason = "INVALID_WORKLOAD_API_ADDRESS"


class Unreachable(WorkloadApiError):
    """Nobody answers, or the answer is to come back later."""

    reason = "WORKLOAD_API_UNREACHABLE"


class NoIdentity(WorkloadApiError):
    """The caller has no identity, or not the one that it asked for."""

    reason = "NO_IDENTITY"


class RequestRefused(WorkloadApiError):
    """INVALID_ARGUMENT: asking the same again does not help."""

    reason = "WORKLOAD_API_REFUSED"


class NotServed(WorkloadApiError):
    """UNIMPLEMENTED: this server has no such method."""

    reason = "WORKLOAD_API_NOT_SERVED"


class UnusableAnswer(WorkloadApiError):
    """The answer breaks the specification, or what it holds is not valid now."""

    reason = "WORKLOAD_API_ANSWER_UNUSABLE"


_BY_STATUS: Mapping[grpc.StatusCode, type[WorkloadApiError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.PERMISSION_DENIED: NoIdentity,
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.UNIMPLEMENTED: NotServed,
}


@dataclass(frozen=True, slots=True)
class HeldSvid:
    """An SVID and the trust bundle that came with it, which it verifies against."""

    svid: X509Svid
    bundle: TrustBundle


@dataclass(frozen=True, slots=True)
class X509State:
    """One answer of FetchX509SVID: SVIDs, default first, and the bundles of foreign trust domains by name."""

    svids: tuple[HeldSvid, ...]
    federated: tuple[TrustBundle, ...]


@dataclass(frozen=True, slots=True)
class ValidToken:
    """What a server says of a JWT-SVID that it found valid."""

    spiffe_id: SpiffeId
    claims: Mapping[str, Any] = field(repr=False)


def target(address: str) -> str:
    """A gRPC target from a Workload Endpoint address (section 4), or from an absolute path. Raises InvalidAddress.

    Parsed by hand: URL libraries strip and complete what the specification refuses.
    """
    if address.startswith("/"):
        return f"unix:{_quoted(address)}"
    scheme, _, rest = address.partition(":")
    if scheme.lower() == "unix":
        path = rest.removeprefix("//")
        if _URI_PATH.fullmatch(path):
            return f"unix:{path}"
        raise InvalidAddress(f"{shown(address)} is not unix:///PATH: an absolute path, without host, query or fragment")
    if scheme.lower() == "tcp":
        found = _tcp(rest)
        if found is not None:
            return found
        raise InvalidAddress(f"{shown(address)} is not tcp://IP:PORT: an IP address, never a name, and nothing else")
    raise InvalidAddress(f"{shown(address)} is not unix:///PATH, tcp://IP:PORT or an absolute path")


def shown(text: str) -> str:
    """`text` for a message or a terminal: quoted, escaped and cut, since a server may have sent it."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


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
        answer = _parsed(workload_pb2.X509SVIDResponse(), data)
        try:
            held = tuple(self._held(entry) for entry in answer.svids)
            federated = _x509_bundles(answer.federated_bundles)
        except SvidError as error:
            raise UnusableAnswer(f"the answer is unusable: {error}") from None
        if not held:
            raise UnusableAnswer("the answer is unusable: it holds no SVID")
        for each in held:
            if each.svid.spiffe_id.trust_domain in federated:
                raise UnusableAnswer(f"the answer calls the own trust domain {each.bundle.trust_domain} a foreign one")
        return X509State(held, _by_name(federated))

    async def fetch_bundles(self) -> tuple[TrustBundle, ...]:
        """The bundles of all trust domains, by name; a profile that the server has not is left out, not both."""
        x509 = await _unless_not_served(self._first("FetchX509Bundles", workload_pb2.X509BundlesRequest()))
        jwt = await _unless_not_served(self._first("FetchJWTBundles", workload_pb2.JWTBundlesRequest()))
        found: dict[TrustDomain, TrustBundle] = {}
        try:
            if x509 is not None:
                found = _x509_bundles(_parsed(workload_pb2.X509BundlesResponse(), x509).bundles)
            if jwt is not None:
                for trust_domain, keys in _jwt_bundles(_parsed(workload_pb2.JWTBundlesResponse(), jwt).bundles).items():
                    known = found.get(trust_domain, TrustBundle(trust_domain))
                    found[trust_domain] = replace(known, jwt_authorities=keys.jwt_authorities)
        except SvidError as error:
            raise UnusableAnswer(f"the answer is unusable: {error}") from None
        if x509 is None and jwt is None:
            raise NotServed(f"{self._target} serves no trust bundles")
        if not found:
            raise UnusableAnswer("the answer is unusable: it holds no trust bundle")
        return _by_name(found)

    async def fetch_jwt(self, audiences: Sequence[str], spiffe_id: SpiffeId | None) -> "tuple[JwtSvid, ...]":
        """JWT-SVIDs for `audiences`: of `spiffe_id`, or one for each identity.

        Their signatures are not checked: the server is who vouches for them, and the audience who verifies them.
        """
        request = workload_pb2.JWTSVIDRequest(audience=audiences, spiffe_id="" if spiffe_id is None else str(spiffe_id))
        answer = _parsed(workload_pb2.JWTSVIDResponse(), await self._call("FetchJWTSVID", request))
        try:
            found = tuple(self._jwt_svid(entry, audiences) for entry in answer.svids)
        except SvidError as error:
            raise UnusableAnswer(f"the answer is unusable: {error}") from None
        if not found:
            raise UnusableAnswer("the answer is unusable: it holds no JWT-SVID")
        if spiffe_id is not None and any(each.spiffe_id != spiffe_id for each in found):
            raise UnusableAnswer(f"the answer holds another identity than {spiffe_id}")
        return found

    async def validate_jwt(self, token: str, audience: str) -> ValidToken:
        """Let the server validate a JWT-SVID; an invalid one is RequestRefused."""
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
        answer = _parsed(workload_pb2.ValidateJWTSVIDResponse(), await self._call("ValidateJWTSVID", request))
        try:
            spiffe_id = SpiffeId.parse(answer.spiffe_id)
        except InvalidSpiffeId as error:
            raise UnusableAnswer(f"the answer is unusable: {error}") from None
        claims = _claims(answer.claims)
        # The server has read the token; whoever decides by its answer must not be told of somebody else.
        if claims.get("sub") != str(spiffe_id):
            raise UnusableAnswer(f"the answer names {spiffe_id}, but its claims do not")
        return ValidToken(spiffe_id, claims)

    def _held(self, entry: workload_pb2.X509SVID) -> HeldSvid:
        svid = X509Svid.from_der(entry.x509_svid, entry.x509_svid_key, entry.hint)
        _check_named(entry.spiffe_id, svid.spiffe_id)
        bundle = TrustBundle.from_der(svid.spiffe_id.trust_domain, entry.bundle)
        svid.check(bundle, self._clock.now())
        return HeldSvid(svid, bundle)

    def _jwt_svid(self, entry: workload_pb2.JWTSVID, audiences: Sequence[str]) -> "JwtSvid":
        from svid.jwtsvid import parse_jwt_svid_unverified

        if not _TOKEN.fullmatch(entry.svid):
            raise UnusableAnswer("the answer holds something else than a JWT")
        svid = replace(parse_jwt_svid_unverified(entry.svid), hint=entry.hint)
        _check_named(entry.spiffe_id, svid.spiffe_id)
        missing = [audience for audience in audiences if audience not in svid.audiences]
        if missing:
            raise UnusableAnswer(f"the JWT-SVID of {svid.spiffe_id} is not for {shown(missing[0])}")
        if svid.expires_at <= self._clock.now():
            raise UnusableAnswer(f"the JWT-SVID of {svid.spiffe_id} has expired")
        return svid

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


class Random(Protocol):
    """The one method of random.Random that jitter needs."""

    def uniform(self, a: float, b: float) -> float: ...


class Backoff:
    """How long to wait before the next attempt: seconds, doubling from `first` to `most`, the upper half random."""

    def __init__(self, random: Random, first: float = 0.5, most: float = 20.0) -> None:
        self._random = random
        self._first = self._next = first
        self._most = most

    def reset(self) -> None:
        """Start over after a success."""
        self._next = self._first

    def draw(self) -> float:
        """The seconds to wait now."""
        wait, self._next = self._next, min(self._next * 2, self._most)
        return self._random.uniform(wait / 2, wait)


async def follow_x509(
    target: str,
    clock: Clock,
    backoff: Backoff,
    report: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[X509State, None]:
    """Every valid state that the server sends, for ever, over one connection after the other.

    `report` is told of trouble. Raises RequestRefused and NotServed, which no other attempt would mend.
    """
    while True:
        reason = f"{target} ended the stream"
        try:
            async with WorkloadApiClient(target, clock) as client, aclosing(client.x509_answers()) as answers:
                async for data in answers:
                    try:
                        state = client.parse_x509(data)
                    except UnusableAnswer as error:
                        report(f"{error}; waiting for a better one")
                        continue
                    backoff.reset()
                    yield state
        except (RequestRefused, NotServed):
            raise
        except WorkloadApiError as error:
            reason = str(error)
        wait = backoff.draw()
        report(f"{reason}; trying again in {wait:.1f} s")
        await sleep(wait)


async def _unless_not_served(call: Awaitable[_Returned]) -> _Returned | None:
    try:
        return await call
    except NotServed:
        return None


def _path(method: str) -> str:
    return f"/{WORKLOAD_API}/{method}"


def _quoted(path: str) -> str:
    # gRPC decodes a target as a URI; a path given as such means what it says.
    octets = path.encode("utf-8", "surrogateescape").decode("latin-1")
    return "".join(c if _URI_PATH.fullmatch(f"/{c}") else f"%{ord(c):02X}" for c in octets)


def _tcp(rest: str) -> str | None:
    match = _TCP.fullmatch(rest)
    if match is None or not 1 <= int(match[3]) <= 65535:
        return None
    from ipaddress import ip_address

    try:
        ip = ip_address(match[1] or match[2])
    except ValueError:
        return None
    if (ip.version == 6) != bool(match[1]):
        return None
    return f"ipv6:[{ip}]:{match[3]}" if ip.version == 6 else f"ipv4:{ip}:{match[3]}"


def _parsed(message: _Answer, data: bytes) -> _Answer:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise UnusableAnswer(f"the answer is unusable: not a {message.DESCRIPTOR.name}") from None
    return message


def _check_named(name: str, spiffe_id: SpiffeId) -> None:
    if name != str(spiffe_id):
        raise UnusableAnswer(f"the answer names {shown(name)}, but its SVID is for {spiffe_id}")


def _trust_domain(text: str) -> TrustDomain:
    found = SpiffeId.parse(text)
    if found.path:
        raise InvalidSpiffeId(f"{shown(text)} is not the ID of a trust domain")
    return found.trust_domain


def _x509_bundles(entries: Mapping[str, bytes]) -> dict[TrustDomain, TrustBundle]:
    found = {}
    for name, data in entries.items():
        trust_domain = _trust_domain(name)
        # An empty one authenticates nothing, as does one that is not there; it must not cost the SVID beside it.
        if data:
            found[trust_domain] = TrustBundle.from_der(trust_domain, data)
    return found


def _jwt_bundles(entries: Mapping[str, bytes]) -> dict[TrustDomain, TrustBundle]:
    return {(name := _trust_domain(text)): _jwt_bundle(name, data) for text, data in entries.items()}


def _jwt_bundle(trust_domain: TrustDomain, data: bytes) -> TrustBundle:
    """The keys of a JWK Set, which unlike a trust bundle's document need not say what they are for (6.2.2)."""
    TrustBundle.from_jwks(trust_domain, data)  # refuses what the lenient parser below would accept
    document = json.loads(data.decode())
    keys = [
        {**entry, "use": "jwt-svid"}
        for entry in document["keys"]
        if isinstance(entry, dict) and entry.get("use", "jwt-svid") in _JWT_USES
    ]
    return TrustBundle.from_jwks(trust_domain, json.dumps({"keys": keys}).encode())


def _by_name(bundles: Mapping[TrustDomain, TrustBundle]) -> tuple[TrustBundle, ...]:
    return tuple(bundles[trust_domain] for trust_domain in sorted(bundles, key=str))


def _claims(claims: "Struct") -> dict[str, Any]:
    return {name: _plain(value) for name, value in claims.fields.items()}


def _plain(value: "Value") -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _claims(value.struct_value)
        case "list_value":
            return [_plain(each) for each in value.list_value.values]
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            # A Struct has doubles only; up to here they are exact, and a time reads better without a fraction.
            return int(number) if abs(number) <= 2**53 and number.is_integer() else _finite(number)
    return None


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise UnusableAnswer("the answer is unusable: a claim is not a JSON number")
    return number
