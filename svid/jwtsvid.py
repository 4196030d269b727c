"""JWT-SVIDs: what one is, and the one validator for everything issued or received (JWT-SVID.md sections 2 to 5)."""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from svid.bundle import TrustBundle
from svid.errors import InvalidSpiffeId, InvalidSvid
from svid.jws import JwtAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.strictjson import strictly

MAX_TOKEN = 32 * 1024
# Of what is issued.
MAX_AUDIENCES = 32
MAX_AUDIENCE_BYTES = 512
# `nbf` alone gets a leeway: a clock that is behind must not refuse a token just made. `exp` gets none.
NOT_BEFORE_LEEWAY = timedelta(seconds=60)
# Without `kid` each key of the domain is tried; a domain has a few.
_MAX_TRIES = 16
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})
_TYPES = ("JWT", "JOSE")
_EPOCH_LIMIT = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A JWT-SVID: `token` is the JWS compact form, a bearer secret; `audiences` is `aud` as a list in its order.

    `issued_at` is None where the token has no `iat`. `claims` is the whole payload. `hint` may be empty.
    """

    spiffe_id: SpiffeId
    audiences: tuple[str, ...]
    expires_at: datetime
    issued_at: datetime | None
    token: str = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)
    hint: str = ""


def check_jwt_svid(token: str, bundles: Mapping[TrustDomain, TrustBundle], audience: str, now: datetime) -> JwtSvid:
    """Validate `token` for `audience` at `now` (aware), by the JWT keys of its subject's own trust domain.

    `exp` is strict: at that instant the token has ended. A token without `kid` is tried against every fitting key
    (2.2 makes it optional). Raises InvalidSvid.
    """
    read = _read(token)
    algorithm, key_id, svid = read.algorithm, read.key_id, read.svid
    bundle = bundles.get(svid.spiffe_id.trust_domain)
    if bundle is None:
        raise InvalidSvid(f"no trust bundle for trust domain {svid.spiffe_id.trust_domain}")
    candidates = [
        each.public_key
        for each in bundle.jwt_authorities
        if algorithm.fits(each.public_key) and key_id in (None, each.key_id)
    ]
    if not candidates:
        raise InvalidSvid(f"trust domain {bundle.trust_domain} has no {algorithm} key for this token's kid")
    data = token.rpartition(".")[0].encode()
    if not any(algorithm.verifies(read.signature, data, key) for key in candidates[:_MAX_TRIES]):
        raise InvalidSvid("signature does not match")
    if svid.expires_at <= now:
        raise InvalidSvid(f"token expired at {svid.expires_at:%Y-%m-%dT%H:%M:%SZ}")
    not_before = svid.claims.get("nbf")
    if not_before is not None and _instant("nbf", not_before) > now + NOT_BEFORE_LEEWAY:
        raise InvalidSvid("token is not valid yet (nbf)")
    if not audience or audience not in svid.audiences:
        raise InvalidSvid("token is not for this audience")
    return svid


def parse_jwt_svid_unverified(token: str) -> JwtSvid:
    """The structure and claims of a token whose signature and times nobody has checked. Raises InvalidSvid."""
    return _read(token).svid


@dataclass(frozen=True, slots=True)
class _Read:
    """A token's parts, each of which is read once."""

    algorithm: JwtAlgorithm
    key_id: str | None
    signature: bytes = field(repr=False)
    svid: JwtSvid


def _read(token: str) -> _Read:
    parts = _parts(token)
    algorithm, key_id = _header(parts[0])
    try:
        signature = _base64url(parts[2])
    except ValueError:
        raise InvalidSvid("token's signature is not base64url") from None
    claims = _json(parts[1], "payload")
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise InvalidSvid("token has no sub")
    try:
        spiffe_id = SpiffeId.parse(subject)
    except InvalidSpiffeId as error:
        raise InvalidSvid(f"sub is not a SPIFFE ID: {error}") from None
    if not spiffe_id.path:
        raise InvalidSvid("sub is a trust domain, not a workload")
    audiences = claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    if not isinstance(audiences, list) or not audiences or not all(isinstance(each, str) for each in audiences):
        raise InvalidSvid("token has no aud, or one that is not text")
    if "exp" not in claims:
        raise InvalidSvid("token has no exp")
    issued_at = _instant("iat", claims["iat"]) if "iat" in claims else None
    if "nbf" in claims:
        _instant("nbf", claims["nbf"])
    svid = JwtSvid(spiffe_id, tuple(audiences), _instant("exp", claims["exp"]), issued_at, token, claims)
    return _Read(algorithm, key_id, signature, svid)


def _header(part: str) -> tuple[JwtAlgorithm, str | None]:
    """`alg` and `kid`. The algorithm is judged before anything else of the token is."""
    header = _json(part, "header")
    try:
        algorithm = JwtAlgorithm(str(header.get("alg")))
    except ValueError:
        raise InvalidSvid("alg is not one of " + ", ".join(JwtAlgorithm)) from None
    if set(header) - _HEADER_MEMBERS:
        # jku, jwk, x5c and the like name keys of the sender's own choice; crit asks for what nobody here does.
        raise InvalidSvid("header has members beyond alg, kid and typ")
    if header.get("typ", "JWT") not in _TYPES:
        raise InvalidSvid("typ is neither JWT nor JOSE")
    key_id = header.get("kid")
    if "kid" in header and (not isinstance(key_id, str) or not key_id):
        raise InvalidSvid("kid is not text")
    return algorithm, key_id


def _parts(token: str) -> list[str]:
    if len(token) > MAX_TOKEN:
        raise InvalidSvid(f"token is longer than {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidSvid("not a JWS in compact form: it needs three parts")
    return parts


def _json(part: str, what: str) -> dict[str, Any]:
    try:
        document = strictly(_base64url(part).decode("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidSvid(f"token's {what} is not a JSON object in base64url, or a member stands in it twice") from None
    if not isinstance(document, dict):
        raise InvalidSvid(f"token's {what} is not a JSON object")
    return document


def _base64url(part: str) -> bytes:
    """RFC 7515 section 2: no padding, no white space, and the one spelling that encoding gives."""
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise ValueError("not canonical base64url")
    return data


def _instant(name: str, value: object) -> datetime:
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not finite:
        raise InvalidSvid(f"{name} is not a number")
    if value < 0:
        raise InvalidSvid(f"{name} is negative")
    return datetime.fromtimestamp(min(value, _EPOCH_LIMIT), UTC)
