"""Service account tokens: verified by the API server, or offline by its published keys while it is away."""

import asyncio
import base64
import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import msgspec

from runtime.clock import Clock
from runtime.deadlines import Deadlines
from runtime.newest import keep
from signer.attestation.asking import Asking
from signer.attestation.doubt import Asked, Doubt
from signer.attestation.outage import Outage
from signer.cluster.kube import KubeApi, Object
from signer.errors import ApiUnavailable, Forbidden, Reason, Refused, SignerError
from signer.model import BoundToken, Sender, Standing

_log = logging.getLogger("podsvid.tokens")
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
JWKS = "/openid/v1/jwks"
_ACCOUNT = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"
ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
# Seconds between reads of the cluster's keys; and after each, before a token of an unknown key makes for the next.
JWKS_SECONDS, REFRESH_PAUSE = 300.0, 10.0
_LEEWAY = timedelta(seconds=30)
# While the API server hangs, callers are told soon, and only now and then does one of them wait to find out.
REVIEW_SECONDS = 5.0
DOUBTFUL_RETRY = timedelta(seconds=1)
# A caller of whom nothing is known.
NOBODY = Sender(Standing.STRANGER, "")
_FORM = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)


class TokenRefused(SignerError):
    """The token does not prove what it should. `fault`: INVALID, EXPIRED or AUDIENCE. `reviewed`: by the API server."""

    reason = "TOKEN_REFUSED"

    def __init__(self, fault: str, message: str, reviewed: bool = False) -> None:
        super().__init__(message)
        self.fault = fault
        self.reviewed = reviewed


@dataclass(frozen=True, slots=True)
class _Known:
    proven: BoundToken
    answered_at: float


class TokenReviews:
    """Asks the API server (TokenReview), which also knows whether account and pod are still there.

    An answer counts for `seconds`, so that the agent's token is not reviewed with each mint; the cache holds hashes
    and at most `limit` of them. Refusals are not kept, but who brings many of them has `offline` go first. `told`
    hears what became of each token that was not known: accepted, refused, unanswered, forged, or busy.
    """

    def __init__(
        self,
        api: KubeApi,
        audience: str,
        offline: "OfflineTokens",
        clock: Clock,
        *,
        seconds: float = 10.0,
        limit: int = 20_000,
        told: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._api = api
        self._audience = audience
        self._offline = offline
        self._clock = clock
        self._seconds = seconds
        self._limit = limit
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._outage = Outage(clock)
        self._asking: dict[bytes, Asking[BoundToken]] = {}
        self._told = told
        self._doubt = Doubt(clock)
        self._patience = Deadlines(REVIEW_SECONDS)

    async def verify(self, token: str, sender: Sender = NOBODY) -> BoundToken:
        """What `token` proves, which `sender` brought. Raises TokenRefused, ApiUnavailable, Refused (BUSY)."""
        key = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        known = self._known.get(key)
        if known is not None and self._counts(known):
            return known.proven
        # After: what is known was of that form when it was asked about.
        if not _FORM.fullmatch(token):
            raise TokenRefused("INVALID", "it is no service account token, which has three parts with dots between")
        node = sender.name if sender.standing is Standing.AGENT else ""
        if self._outage.leaves(key, node, lambda: bool(self._node_of(token))):
            raise ApiUnavailable("the API server did not answer a moment ago")
        asking = self._asking.get(key)
        if asking is None:
            asked = self._doubted(token, sender)
            asking = Asking(self._ask(token, key), lambda task: self._answered(key, task, asked))
            self._asking[key] = asking
        return await asking.answer()

    def _counts(self, known: _Known) -> bool:
        old = self._clock.monotonic() - known.answered_at >= self._seconds
        return not old and self._clock.now() < known.proven.expires_at

    def _node_of(self, token: str) -> str:
        """Of which node the cluster signed it; empty where its keys do not prove that."""
        try:
            return self._offline.verify(token, self._audience).node_uid
        except TokenRefused:
            return ""

    def _doubted(self, token: str, sender: Sender) -> Asked:
        """What asking about `token` is paid from while it may be bad. Raises TokenRefused, Refused (BUSY)."""
        # First, as it also has the keys read anew.
        known = self._offline.knows_key_of(token)
        asked = self._doubt.ask(sender)
        if asked is None and known:
            try:
                proven = self._offline.verify(token, self._audience)
            except TokenRefused:
                self._told("forged")
                raise
            sender = Sender(Standing.PROVEN, f"{proven.service_account_uid}/{proven.pod_uid}")
            asked = self._doubt.ask(sender)
        if asked is None:
            self._told(f"busy_{sender.standing}")
            raise Refused(
                Reason.BUSY, "too many tokens are refused at present; this one waits", retry_after=DOUBTFUL_RETRY
            )
        return asked

    def _answered(self, key: bytes, task: "asyncio.Task[BoundToken]", asked: Asked) -> None:
        del self._asking[key]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            keep(self._known, key, _Known(task.result(), self._clock.monotonic()), self._limit)
        else:
            self._known.pop(key, None)
        refused = isinstance(error, TokenRefused)
        self._doubt.answered(asked, refused)
        self._told("refused" if refused else "unanswered" if error else "accepted")

    async def _ask(self, token: str, key: bytes) -> BoundToken:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            with self._patience.one():
                answer = await self._api.create(REVIEWS, body)
        except Forbidden as error:
            self._outage.answered()
            text = _without(token, str(error))
            raise ApiUnavailable(f"the signer may not review tokens: {text}; apply its RBAC") from None
        except (ApiUnavailable, TimeoutError) as error:
            self._outage.unanswered(key, self._node_of(token))
            text = _without(token, str(error))
            raise ApiUnavailable(text or f"no TokenReview within {REVIEW_SECONDS:g} s") from None
        self._outage.answered()
        status = answer.get("status") or {}
        if not status.get("authenticated"):
            raise self._refused(token, str(status.get("error") or ""))
        if self._audience not in (status.get("audiences") or []):
            raise TokenRefused("AUDIENCE", f"the token is not for audience {self._audience}")
        return _reviewed(status.get("user") or {}, _expiry(token))

    def _refused(self, token: str, why: str) -> TokenRefused:
        # What the token says of itself only chooses the words: it is refused already.
        claims = unverified_claims(token)
        expiry = _instant(claims.get("exp"))
        if expiry is not None and expiry <= self._clock.now():
            return TokenRefused("EXPIRED", "the token has expired; kubelet gives a new one", reviewed=True)
        audience = claims.get("aud")
        audiences = [audience] if isinstance(audience, str) else audience
        if isinstance(audiences, list) and audiences and self._audience not in audiences:
            return TokenRefused("AUDIENCE", f"the token is not for audience {self._audience}", reviewed=True)
        # The API server's text may quote parts of the token; only a known harmless kind of it is passed on.
        deleted = " (it is bound to an object that is gone)" if "has been deleted" in why or "not found" in why else ""
        return TokenRefused("INVALID", f"the API server does not accept the token{deleted}", reviewed=True)


class OfflineTokens:
    """Verifies by the cluster's published keys, for the time in which the API server is away.

    It says nothing of what was deleted since; the caller bounds that. `told` hears why keys were read (start, time,
    unknown_key), and whether that succeeded.
    """

    def __init__(
        self, api: KubeApi, audience: str, clock: Clock, told: Callable[[str, bool], None] = lambda why, done: None
    ) -> None:
        self._api = api
        self._audience = audience
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._failed = False
        # A token's first part, and the key that it names: all that one key signs have the same.
        self._head = ("", "")
        self._told = told
        self._missed = asyncio.Event()

    async def run(self) -> None:
        """Keep the keys fresh, for ever: now and then, and soon after a token named one that was not read."""
        why = "start"
        while True:
            # Before: what is missed while they are read may be newer than what is read.
            self._missed.clear()
            self._told(why, await self.refresh())
            # Anybody can make up names of keys: the API server is asked so often by each replica, and not more often.
            await asyncio.sleep(REFRESH_PAUSE)
            why = "time"
            with suppress(TimeoutError):
                async with asyncio.timeout(JWKS_SECONDS - REFRESH_PAUSE):
                    await self._missed.wait()
                    why = "unknown_key"

    async def refresh(self) -> bool:
        """Read the keys; on failure, which is told by False, the ones at hand stay."""
        try:
            found = await self._api.get(JWKS)
            keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(found).keys if key.key_id}
        except (SignerError, jwt.PyJWTError) as error:
            if not self._failed:
                _log.warning("the cluster's token keys cannot be read", extra={"error": str(error)})
            self._failed = True
            return False
        self._keys, self._failed = dict(keys), False
        return True

    def knows_key_of(self, token: str) -> bool:
        """Whether the token names a key that was read: only then does a refusal say anything.

        Where it names another one the keys are read anew soon.
        """
        head = token.partition(".")[0]
        if head != self._head[0]:
            self._head = (head, _key_name(token))
        name = self._head[1]
        if name and name not in self._keys:
            self._missed.set()
        return name in self._keys

    def verify(self, token: str, audience: str = "") -> BoundToken:
        """`audience`: another one than its own. Raises TokenRefused."""
        proven = self.once(token, audience)
        if proven.expires_at <= self._clock.now():
            raise TokenRefused("EXPIRED", "the token has expired; kubelet gives a new one")
        return proven

    def once(self, token: str, audience: str = "") -> BoundToken:
        """As `verify`, of one that may have expired since. Raises TokenRefused."""
        audience = audience or self._audience
        try:
            key = self._keys.get(_key_name(token))
            if key is None:
                raise TokenRefused("INVALID", "the token is signed with a key that this signer does not know")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=ALGORITHMS,
                audience=audience,
                # Times are compared with the clock that was handed in.
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "require": ["exp", "sub"]},
            )
        except jwt.InvalidAudienceError:
            raise TokenRefused("AUDIENCE", f"the token is not for audience {audience}") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise TokenRefused("INVALID", "the token's signature or form is wrong") from None
        proven = _claimed(claims)
        not_before = _instant(claims.get("nbf"))
        if not_before is not None and not_before > self._clock.now() + _LEEWAY:
            raise TokenRefused("INVALID", "the token is not valid yet")
        return proven


def names_a_key(token: str) -> bool:
    """Whether a token says which key it is signed with; all of the cluster's do."""
    return bool(_key_name(token))


def _key_name(token: str) -> str:
    """The `kid` that a token says it is signed with; empty when it says none."""
    name = _part_of(token, 0).get("kid")
    return name if isinstance(name, str) else ""


def unverified_claims(token: str) -> Mapping[str, Any]:
    """What a token says of itself, for choosing words only; empty when it is none."""
    return _part_of(token, 1)


def _part_of(token: str, number: int) -> Mapping[str, Any]:
    # By hand: a JWT library looks at each character of it, which took a tenth of a mint's time.
    part = token.split(".")[number : number + 1]
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(part[0] + "=" * (-len(part[0]) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def claimed_pod(token: str) -> tuple[str, str, str]:
    """Namespace, name and uid of the pod that a token says it is of; empty texts when it says nothing."""
    kubernetes = unverified_claims(token).get("kubernetes.io")
    if not isinstance(kubernetes, dict):
        return "", "", ""
    pod = _part(kubernetes, "pod")
    return str(kubernetes.get("namespace", "")), pod["name"], pod["uid"]


def _expiry(token: str) -> datetime:
    # Legacy tokens have none; they are not bound to a pod either, which the caller asks for.
    return _instant(unverified_claims(token).get("exp")) or datetime.fromtimestamp(0, UTC)


def _instant(value: object) -> datetime | None:
    """A claim's time; None for what is none, or beyond all calendars."""
    if not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _without(token: str, text: str) -> str:
    """What the API server says of a call, which may quote the call."""
    return text.replace(token, "(the token)")


def _reviewed(user: Object, expires_at: datetime) -> BoundToken:
    name = str(user.get("username") or "")
    namespace, _, account = name.removeprefix(_ACCOUNT).partition(":")
    if not name.startswith(_ACCOUNT) or not account:
        raise TokenRefused("INVALID", "the token is not one of a service account")
    extra = user.get("extra") or {}

    def one(key: str) -> str:
        values = extra.get(_EXTRA + key) or []
        return str(values[0]) if len(values) == 1 else ""

    return BoundToken(
        namespace=namespace,
        service_account=account,
        service_account_uid=str(user.get("uid") or ""),
        pod_name=one("pod-name"),
        pod_uid=one("pod-uid"),
        node_name=one("node-name"),
        node_uid=one("node-uid"),
        expires_at=expires_at,
    )


def _claimed(claims: Mapping[str, Any]) -> BoundToken:
    kubernetes = claims.get("kubernetes.io")
    subject, expiry = claims.get("sub"), _instant(claims.get("exp"))
    if not isinstance(kubernetes, dict) or not isinstance(subject, str) or expiry is None:
        raise TokenRefused("INVALID", "the token is not one of a service account")
    namespace, account = str(kubernetes.get("namespace", "")), _part(kubernetes, "serviceaccount")
    if subject != f"{_ACCOUNT}{namespace}:{account['name']}":
        raise TokenRefused("INVALID", "the token contradicts itself")
    pod, node = _part(kubernetes, "pod"), _part(kubernetes, "node")
    return BoundToken(
        namespace=namespace,
        service_account=account["name"],
        service_account_uid=account["uid"],
        pod_name=pod["name"],
        pod_uid=pod["uid"],
        node_name=node["name"],
        node_uid=node["uid"],
        expires_at=expiry,
    )


def _part(kubernetes: Mapping[str, Any], name: str) -> dict[str, str]:
    found = kubernetes.get(name)
    if not isinstance(found, dict):
        return {"name": "", "uid": ""}
    return {"name": str(found.get("name", "")), "uid": str(found.get("uid", ""))}
