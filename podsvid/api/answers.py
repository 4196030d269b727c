"""What a Workload API answers, checked: an answer is a whole and valid one, or an error."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from agent.pb import workload_pb2
from podsvid.api.errors import UnusableAnswer, shown
from svid.bundle import TrustBundle
from svid.errors import InvalidSpiffeId, SvidError
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct, Value

    from svid.jwtsvid import JwtSvid

# RFC 7515 section 7.1; a token goes to terminals, into HTTP headers and files as it is.
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_JWT_USES = ("jwt-svid", "sig")
_Answer = TypeVar("_Answer", bound=Message)


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


def x509_state(data: bytes, now: datetime) -> X509State:
    """What a FetchX509SVID answer holds. Raises UnusableAnswer for all of it when one SVID is not valid now."""
    answer = _parsed(workload_pb2.X509SVIDResponse(), data)
    try:
        held = tuple(_held(entry, now) for entry in answer.svids)
        federated = _x509_bundles(answer.federated_bundles)
    except SvidError as error:
        raise UnusableAnswer(f"the answer is unusable: {error}") from None
    if not held:
        raise UnusableAnswer("the answer is unusable: it holds no SVID")
    for each in held:
        if each.svid.spiffe_id.trust_domain in federated:
            raise UnusableAnswer(f"the answer calls the own trust domain {each.bundle.trust_domain} a foreign one")
    return X509State(held, _by_name(federated))


def jwt_svids(
    data: bytes, audiences: Sequence[str], spiffe_id: SpiffeId | None, now: datetime
) -> "tuple[JwtSvid, ...]":
    """What a FetchJWTSVID answer holds; signatures are not checked. Raises UnusableAnswer."""
    answer = _parsed(workload_pb2.JWTSVIDResponse(), data)
    try:
        found = tuple(_jwt_svid(entry, audiences, now) for entry in answer.svids)
    except SvidError as error:
        raise UnusableAnswer(f"the answer is unusable: {error}") from None
    if not found:
        raise UnusableAnswer("the answer is unusable: it holds no JWT-SVID")
    if spiffe_id is not None and any(each.spiffe_id != spiffe_id for each in found):
        raise UnusableAnswer(f"the answer holds another identity than {spiffe_id}")
    return found


def valid_token(data: bytes) -> ValidToken:
    """What a ValidateJWTSVID answer says. Raises UnusableAnswer."""
    answer = _parsed(workload_pb2.ValidateJWTSVIDResponse(), data)
    try:
        spiffe_id = SpiffeId.parse(answer.spiffe_id)
    except InvalidSpiffeId as error:
        raise UnusableAnswer(f"the answer is unusable: {error}") from None
    claims = _claims(answer.claims)
    # The server has read the token; whoever decides by its answer must not be told of somebody else.
    if claims.get("sub") != str(spiffe_id):
        raise UnusableAnswer(f"the answer names {spiffe_id}, but its claims do not")
    return ValidToken(spiffe_id, claims)


def bundles(x509: bytes | None, jwt: bytes | None) -> tuple[TrustBundle, ...]:
    """The bundles of FetchX509Bundles and FetchJWTBundles together, by name; None is a profile that is not served.

    Raises UnusableAnswer.
    """
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
    if not found:
        raise UnusableAnswer("the answer is unusable: it holds no trust bundle")
    return _by_name(found)


def _held(entry: workload_pb2.X509SVID, now: datetime) -> HeldSvid:
    svid = X509Svid.from_der(entry.x509_svid, entry.x509_svid_key, entry.hint)
    _check_named(entry.spiffe_id, svid.spiffe_id)
    bundle = TrustBundle.from_der(svid.spiffe_id.trust_domain, entry.bundle)
    svid.check(bundle, now)
    return HeldSvid(svid, bundle)


def _jwt_svid(entry: workload_pb2.JWTSVID, audiences: Sequence[str], now: datetime) -> "JwtSvid":
    from svid.jwtsvid import parse_jwt_svid_unverified

    if not _TOKEN.fullmatch(entry.svid):
        raise UnusableAnswer("the answer holds something else than a JWT")
    svid = replace(parse_jwt_svid_unverified(entry.svid), hint=entry.hint)
    _check_named(entry.spiffe_id, svid.spiffe_id)
    missing = [audience for audience in audiences if audience not in svid.audiences]
    if missing:
        raise UnusableAnswer(f"the JWT-SVID of {svid.spiffe_id} is not for {shown(missing[0])}")
    if svid.expires_at <= now:
        raise UnusableAnswer(f"the JWT-SVID of {svid.spiffe_id} has expired")
    return svid


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
