"""What is signed for an entitled pod: the certificate request's key under the identity that policy gave."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from runtime import durations
from runtime.clock import Clock
from signer import ttls, wishes
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState
from signer.errors import Reason, Refused
from signer.keystore.keys import Keys
from signer.keystore.store import KeyStoreUnavailable
from signer.model import SOON, Entitlement, LivePod, TtlLimits
from signer.pod_certificate_settings import LEAST_LIFE
from svid.authority import BACKDATE
from svid.bundle import TrustBundle
from svid.dnsnames import owner_of
from svid.errors import InvalidKey, SvidError
from svid.jwtsvid import JwtSvid
from svid.keys import KeyAlgorithm, PublicKey, algorithm_of
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId

MAX_CSR = 16 * 1024
RSA_EXPONENT = 65537
# How nearly all requests are signed: what a signature says of itself, and how it is verified.
_ECDSA: Mapping[x509.ObjectIdentifier, ec.ECDSA] = MappingProxyType(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256: ec.ECDSA(hashes.SHA256()),
        SignatureAlgorithmOID.ECDSA_WITH_SHA384: ec.ECDSA(hashes.SHA384()),
    }
)
# What lives for less is of no use to anybody.
LEAST = timedelta(seconds=5)
# The API server takes no pod certificate that begins more than five minutes ago by its own clock.
POD_CERTIFICATE_BACKDATE = timedelta(minutes=3)


@dataclass(frozen=True, slots=True)
class MintingSettings:
    """The signer's own bounds. `dns_names` are patterns of what a pod without a policy may ask for, `own_names` what
    the signer is called by, and no pod ever."""

    ttls: TtlLimits
    jwt_issuer: str = ""
    jwt_id: bool = False
    dns_names: tuple[str, ...] = ()
    backdate: timedelta = BACKDATE
    own_names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class IssuedX509:
    """A signed chain, leaf first without the root; `sequence` is that of the trust that verifies it.

    `notice` says what of the wishes was not granted; `clipped` what of the lifetime, for as long as nobody changes it.
    `at` is when it was signed, `bundle` that trust, `der` the chain as its bytes, one certificate behind the other.
    """

    chain: tuple[x509.Certificate, ...]
    renewal: RenewalWindow
    key_algorithm: KeyAlgorithm
    sequence: int
    at: datetime
    bundle: TrustBundle
    der: bytes
    notice: str = ""
    clipped: str = ""


@dataclass(frozen=True, slots=True)
class IssuedJwt:
    """A signed token. `reusable`: several callers may get the same."""

    svid: JwtSvid
    renewal: RenewalWindow
    reusable: bool


_Issued = TypeVar("_Issued", IssuedX509, IssuedJwt)


class Promises(Protocol):
    """Records how long SVIDs may live, before they do."""

    async def promise(self, kind: str, ttl: timedelta) -> None:
        """Afterwards the state says that SVIDs of the active authority live as long as `ttl`, if that is possible."""
        ...


class Minting:
    """Signs with the authority that is active in `state()`; None there means that nothing can be signed now.

    No SVID lives longer than the state says of its authority: what is longer is to be promised first, or is cut.
    """

    def __init__(
        self,
        state: Callable[[], AuthorityState | None],
        settings: MintingSettings,
        clock: Clock,
        promises: Promises | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._state = state
        self._settings = settings
        self._clock = clock
        self._promises = promises
        self._keys = keys or Keys()

    async def promise_x509(self, entitlement: Entitlement, wished_ttl: timedelta | None) -> None:
        """To be awaited before `x509`."""
        if self._promises is not None:
            await self._promises.promise("x509", self._ttl(entitlement, wished_ttl)[0])

    async def promise_pod_certificate(self, entitlement: Entitlement, most: timedelta) -> None:
        """To be awaited before `pod_certificate`."""
        if self._promises is not None:
            await self._promises.promise("x509", ttls.pod_certificate(self._settings.ttls, entitlement, most))

    async def promise_jwt(self, entitlement: Entitlement) -> None:
        """To be awaited before `jwt`."""
        if self._promises is not None:
            await self._promises.promise("jwt", ttls.jwt(self._settings.ttls, entitlement))

    async def signed(self, kind: str, holder: str, sign: Callable[[], _Issued]) -> _Issued:
        """What `sign`, which is `x509` or `jwt` of this with its arguments, returns or raises.

        Where a key store signs it is done off the loop, of each holder in turn. Raises Refused.
        """
        state = self._state()
        active = state.find(kind, Stage.ACTIVE) if state is not None else None
        try:
            return await self._keys.do(active.private_key if active is not None else None, sign, holder)
        except KeyStoreUnavailable as error:
            raise Refused(Reason.AUTHORITY_KEY_STORE_UNAVAILABLE, str(error), retry_after=SOON) from None

    def x509(
        self,
        pod: LivePod,
        entitlement: Entitlement,
        csr: bytes,
        wished_ttl: timedelta | None,
        wished: Sequence[str],
        written_ttl: str = "",
        until: datetime | None = None,
        *,
        verified_later: bool = False,
    ) -> IssuedX509:
        """`written_ttl`: that wish as it stands in the pod, for people. It ends at `until` at the latest.

        `verified_later`: whoever gets it verifies it before anybody uses it; see X509Authority.issue. Raises Refused.
        """
        now, state = self._clock.now(), self._ready()
        _check_id(entitlement.spiffe_id)
        public_key = proven_key(csr)
        algorithm = algorithm_of(public_key)
        wishes.check_key(entitlement, algorithm)
        settings = self._settings
        names = wishes.dns_names(pod, entitlement, wished, settings.dns_names, never=settings.own_names)
        wanted, clipped = self._ttl(entitlement, wished_ttl, written_ttl)
        ttl, notice = _within(state.longest("x509"), wanted, clipped)
        ttl = _ending(ttl, until, now)
        backdate = self._settings.backdate
        issued = _issue(
            state, entitlement, public_key, algorithm, names, ttl, now, backdate, verified_later=verified_later
        )
        return replace(issued, notice=notice, clipped=clipped) if notice or clipped else issued

    def pod_certificate(
        self,
        pod: LivePod,
        entitlement: Entitlement,
        public_key: PublicKey,
        most: timedelta,
        wished: Sequence[str],
        where: str,
    ) -> IssuedX509:
        """For a PodCertificateRequest: what the API server takes as one, `most` from its beginning to its end. `where`:
        in which place its author writes what DNS names are wished, for people.

        Raises Refused.
        """
        now, state = self._clock.now(), self._ready()
        _check_id(entitlement.spiffe_id)
        algorithm = algorithm_of(public_key)
        wishes.check_key(entitlement, algorithm)
        settings = self._settings
        names = wishes.dns_names(pod, entitlement, wished, settings.dns_names, where, never=settings.own_names)
        backdate = min(self._settings.backdate, POD_CERTIFICATE_BACKDATE)
        # Its whole life counts there, and it begins no earlier than its authority.
        begins = max(now - backdate, state.active_x509.chain[0].not_valid_before_utc)
        wanted = ttls.pod_certificate(self._settings.ttls, entitlement, most) - (now - begins)
        ttl, notice = _within(state.longest("x509"), wanted, "")
        # kubelet hands it on as it is: nobody looks at it after this.
        issued = _issue(state, entitlement, public_key, algorithm, names, ttl, now, backdate, verified_later=False)
        leaf = issued.chain[0]
        if leaf.not_valid_after_utc - leaf.not_valid_before_utc < LEAST_LIFE:
            raise Refused(
                Reason.AUTHORITY_UNAVAILABLE,
                f"a pod's certificate lives for {durations.text(LEAST_LIFE)} at least, and the active "
                f"authority cannot give so much now{f' ({notice})' if notice else ''}; it waits for the next one",
                retry_after=SOON,
            )
        given, raised = entitlement.x509_ttl, ""
        if given is not None and given < LEAST_LIFE:
            raised = (
                f"policy {entitlement.decided_by} gives x509TTL {entitlement.x509_ttl_text or durations.text(given)}, "
                f"and no pod's certificate lives for less than {durations.text(LEAST_LIFE)}"
            )
        return replace(issued, notice=raised)

    def jwt(
        self, entitlement: Entitlement, spiffe_id: str, audiences: Sequence[str], until: datetime | None = None
    ) -> IssuedJwt:
        """It ends at `until` at the latest. Raises Refused."""
        now, state = self._clock.now(), self._ready()
        _check_id(entitlement.spiffe_id)
        key = state.active_jwt
        if key is None:
            raise Refused(Reason.JWT_DISABLED, "this signer issues no JWT-SVIDs; start it with --jwt-svids")
        if spiffe_id != str(entitlement.spiffe_id):
            raise Refused(
                Reason.NOT_ENTITLED,
                f"the pod's identity is {entitlement.spiffe_id} (policy {entitlement.decided_by}), "
                "not the one asked for",
            )
        ttl, _ = _within(state.longest("jwt"), ttls.jwt(self._settings.ttls, entitlement), "")
        ttl = _ending(ttl, until, now)
        jwt_id = str(uuid.uuid4()) if self._settings.jwt_id else ""
        try:
            svid = key.issue(
                entitlement.spiffe_id, audiences, ttl=ttl, now=now, issuer=self._settings.jwt_issuer, jwt_id=jwt_id
            )
        except SvidError as error:
            raise Refused(Reason.INVALID_REQUEST, str(error)) from None
        return IssuedJwt(svid, RenewalWindow.of(now, svid.expires_at), reusable=not jwt_id)

    def _ready(self) -> AuthorityState:
        state = self._state()
        if state is None:
            raise Refused(
                Reason.AUTHORITY_UNAVAILABLE,
                "this replica does not know the authorities' present state; it signs again once it has read it",
                retry_after=SOON,
            )
        return state

    def _ttl(self, entitlement: Entitlement, wished: timedelta | None, written: str = "") -> tuple[timedelta, str]:
        limits = self._settings.ttls
        if wished is None:
            return ttls.usual(limits, entitlement), ""
        return ttls.granted(limits, entitlement, wished, written)


def _issue(
    state: AuthorityState,
    entitlement: Entitlement,
    public_key: PublicKey,
    algorithm: KeyAlgorithm,
    names: Sequence[str],
    ttl: timedelta,
    now: datetime,
    backdate: timedelta,
    *,
    verified_later: bool,
) -> IssuedX509:
    """Raises Refused."""
    try:
        issued = state.active_x509.issued(
            public_key,
            entitlement.spiffe_id,
            ttl=ttl,
            now=now,
            dns_names=names,
            common_name=entitlement.common_name,
            backdate=backdate,
            verified_later=verified_later,
        )
    except SvidError as error:
        if state.active_x509.not_after <= now:
            raise Refused(Reason.AUTHORITY_UNAVAILABLE, str(error)) from None
        raise Refused(Reason.ISSUANCE_REFUSED, str(error)) from None
    window = RenewalWindow.of(now, issued.chain[0].not_valid_after_utc)
    return IssuedX509(issued.chain, window, algorithm, state.sequence, now, state.bundle, issued.der)


def _within(longest: timedelta | None, ttl: timedelta, notice: str) -> tuple[timedelta, str]:
    """What lives longer than is recorded would outlive the trust in its authority."""
    if longest is None or ttl <= longest:
        return ttl, notice
    return longest, (
        f"ttl {durations.text(ttl)} could not be recorded yet, {durations.text(longest)} is granted meanwhile"
    )


def _ending(ttl: timedelta, until: datetime | None, now: datetime) -> timedelta:
    """Not longer than `until`. Raises Refused where this clock, which may be ahead, leaves next to nothing."""
    if until is None:
        return ttl
    if until - now < LEAST:
        raise Refused(
            Reason.POD_TOKEN_EXPIRED, f"the pod is being deleted, and gets nothing beyond {until:%Y-%m-%dT%H:%M:%SZ}"
        )
    return min(ttl, until - now)


def proven_key(csr: bytes) -> PublicKey:
    """The key of a DER certificate request that is signed with it; nothing else in it counts. Raises Refused."""
    if not csr or len(csr) > MAX_CSR:
        raise Refused(Reason.CSR_INVALID, f"csr is empty or longer than {MAX_CSR} bytes")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise Refused(Reason.CSR_INVALID, "csr is not a DER certificate request with a known kind of key") from None
    accepted = accepted_key(key)
    try:
        proven = _signed(request, key)
    except (ValueError, UnsupportedAlgorithm):
        proven = False
    if not proven:
        raise Refused(Reason.PROOF_OF_POSSESSION, "csr is not signed with the key that it asks a certificate for")
    return accepted


def _signed(request: x509.CertificateSigningRequest, key: object) -> bool:
    """Whether a request is signed with `key`, which was read from it. Raises ValueError, UnsupportedAlgorithm."""
    scheme = _ECDSA.get(request.signature_algorithm_oid)
    if scheme is None or not isinstance(key, ec.EllipticCurvePublicKey):
        return request.is_signature_valid
    # As the library has it, which would read the key from the request once more for it.
    try:
        key.verify(request.signature, request.tbs_certrequest_bytes, scheme)
    except InvalidSignature:
        return False
    return True


def accepted_key(key: object) -> PublicKey:
    """The key, if SVIDs are for such. Raises Refused."""
    try:
        algorithm_of(key)
    except InvalidKey as error:
        raise Refused(Reason.KEY_WEAK, str(error)) from None
    # Small ones are known to be misused; with huge ones a signature takes long to check, here and at every peer.
    if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e != RSA_EXPONENT:
        raise Refused(Reason.KEY_WEAK, f"an RSA key must have the public exponent {RSA_EXPONENT}")
    return key  # type: ignore[return-value]  # algorithm_of lets only these pass


def _check_id(spiffe_id: SpiffeId) -> None:
    if owner := owner_of(spiffe_id):
        raise Refused(Reason.POLICY_UNUSABLE, f"{spiffe_id} is {owner}'s own; no pod can have it")
