"""The authority in a cluster: a signer that is asked over one connection and never gets a workload's private key."""

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority.calls import Calls
from agent.authority.connection import Connection, SignerSettings, is_token
from agent.authority.contact import Contact
from agent.authority.held import HeldTrust
from agent.authority.protocol import EarlyRenewal, JwtRequest, Minted, MintedJwt, MintRequest
from agent.authority.trust_stream import TrustStream, instant
from agent.errors import AuthorityDamaged, AuthorityRefused, AuthorityUnavailable
from csi.model import PodRef, PodToken
from csi.turns import turn_of
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.tracing import NO_TRACING, Tracing
from runtime.turns import Seen
from signer.pb import signer_pb2
from svid.certificates import certificates_from_der
from svid.errors import InvalidSvid, SvidError
from svid.identity import Trust
from svid.jwtsvid import parse_jwt_svid_unverified
from svid.keys import PrivateKey, signature_hash
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid

# Seconds. The trust that a new SVID needs comes by the other stream: moments before or after.
TRUST_SECONDS = 5.0


class SignerAuthority:
    """Implements agent.authority.protocol.Authority by calls to a signer. Belongs to one event loop."""

    def __init__(
        self,
        settings: SignerSettings,
        clock: Clock,
        rng: random.Random,
        tracing: Tracing = NO_TRACING,
        seen: Seen | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._held = HeldTrust(clock)
        self.early_renewals: Feed[tuple[EarlyRenewal, ...]] = Feed()
        self.contact = Contact(settings.address, clock, rng)
        self.connection = Connection(settings, self._held, self.contact, rng)
        self._stream = TrustStream(settings, self.connection, self.contact, self._held, self.early_renewals)
        # How far this node's clock was behind the signer's when that signed last.
        self.clock_behind = timedelta(0)
        self._calls = Calls(settings.address, self.connection, self.contact, rng, tracing, seen)

    @property
    def trust(self) -> Feed[Trust]:
        return self._held.feed

    @property
    def returns(self) -> Feed[None]:
        return self.contact.returns

    @property
    def issues_jwt(self) -> bool:
        return self._stream.issues_jwt

    @property
    def waiting(self) -> int:
        """How many mints wait for their turn at the signer."""
        return self._calls.waiting

    def load(self) -> None:
        """Take the bundle file as the first trust, so that there is one before anything is served.

        Raises AuthorityDamaged.
        """
        try:
            self._held.begin(self.connection.read_bundle_file())
        except (OSError, SvidError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            raise AuthorityDamaged(
                f"signer_bundle {self._settings.bundle_file} cannot be used: {why}; it must be the trust bundle that "
                "the signer publishes (ConfigMap podsvid-bundle)"
            ) from None

    async def wait_answered(self) -> None:
        """Wait for the signer's first answer, though not long: volumes must be picked up whether it is there or not."""
        await self._stream.wait_answered()

    async def run(self) -> None:
        """Follow the signer's trust for ever."""
        await self._stream.run()

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        self._stream.hold(trust, svids)

    async def mint_x509(self, request: MintRequest) -> Minted:
        message = signer_pb2.MintX509SVIDRequest(
            pod=_pod(request.pod),
            pod_token=self._pod_token(request.token),
            csr=_request_for(request.key),
            ttl_seconds=int(request.ttl.total_seconds()) if request.ttl else 0,
            dns_names=request.dns_names,
            ttl=request.ttl_text,
        )
        asked_at = self._clock.now()
        answer = await self._calls.mint_x509(
            message, turn_of(request.pod), renewal=request.renewal, while_away=request.patience
        )
        answered_at = self._clock.now()
        sequence = self._held.believed(answer.trust_sequence) or 0
        trust = await self._trust_of(sequence)
        try:
            chain = certificates_from_der(answer.chain)
            self._check_trust(chain, trust, sequence)
            signed_at = instant(answer.signed_at) if answer.HasField("signed_at") else None
            if signed_at is not None:
                self.clock_behind = _behind(signed_at, asked_at, answered_at)
            federated = None if answer.federates_with_all else tuple(map(TrustDomain, answer.federates_with))
            return Minted(
                SpiffeId.parse(answer.spiffe_id),
                chain,
                trust,
                self._window(answer, chain[0].not_valid_after_utc),
                answer.notice,
                answer.hint,
                federated,
                signed_at,
                answer.policy,
            )
        except (SvidError, ValueError) as error:
            raise AuthorityRefused(f"the signer's answer cannot be used: {error}") from None

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        message = signer_pb2.MintJWTSVIDRequest(
            pod=_pod(request.pod),
            pod_token=self._pod_token(request.token),
            spiffe_id=str(request.spiffe_id),
            audiences=request.audiences,
        )
        answer: signer_pb2.MintJWTSVIDResponse = await self._calls.call(
            "MintJWTSVID",
            message,
            signer_pb2.MintJWTSVIDResponse.FromString,
            turn_of(request.pod),
            later=not request.for_file,
        )
        # It is verified under the trust that is there.
        await self._trust_of(0)
        try:
            svid = parse_jwt_svid_unverified(answer.token)
            window = self._window(answer, svid.expires_at)
        except (SvidError, ValueError) as error:
            raise AuthorityRefused(f"the signer's answer cannot be used: {error}") from None
        return MintedJwt(svid, window, answer.reusable)

    async def _trust_of(self, sequence: int) -> Trust:
        """The newest trust that the signer sent, which is to be that of `sequence` or newer; soon at the latest.

        No workload gets the bundle file's. Raises AuthorityUnavailable.
        """
        if not self._has_trust(sequence):
            with suppress(TimeoutError):
                async with asyncio.timeout(TRUST_SECONDS):
                    while not self._has_trust(sequence):
                        await self.trust.wait_beyond(self.trust.version)
        if not self._trust().proven:
            raise AuthorityUnavailable("TRUST_BEHIND: the signer has not sent its trust bundle yet")
        return self._trust()

    def _has_trust(self, sequence: int) -> bool:
        return self._trust().proven and (self._trust().bundle.sequence or 0) >= sequence

    def _check_trust(self, chain: tuple[x509.Certificate, ...], trust: Trust, sequence: int) -> None:
        """Tell an SVID whose trust is late from one that is no good. Raises AuthorityUnavailable."""
        if (trust.bundle.sequence or 0) >= sequence:
            return
        try:
            check_x509_svid(chain, trust.bundle, self._clock.now())
        except InvalidSvid:
            raise AuthorityUnavailable(
                "TRUST_BEHIND: the SVID is of an authority whose trust bundle the signer has not sent yet"
            ) from None

    def _window(
        self, answer: signer_pb2.MintX509SVIDResponse | signer_pb2.MintJWTSVIDResponse, ends_at: datetime
    ) -> RenewalWindow:
        """When to renew, by this node's clock."""
        window, now = RenewalWindow(instant(answer.renew_from), instant(answer.renew_until)), self._clock.now()
        # Where the clocks differ by as much it would be due again as soon as it is there; and a window that goes on
        # beyond the SVID's end would leave the pod without one.
        return window if now < window.start and window.end < ends_at else RenewalWindow.of(now, ends_at)

    def _trust(self) -> Trust:
        trust = self.trust.current
        assert trust is not None
        return trust

    def _pod_token(self, token: PodToken | None) -> str:
        audience = self._settings.audience
        advice = f"the CSIDriver object needs tokenRequests with audience {audience} and requiresRepublish true"
        if token is None:
            # After an agent's restart kubelet brings it within about a minute, with its next republish.
            raise AuthorityUnavailable(f"POD_TOKEN_MISSING: kubelet has not passed a token of this pod; {advice}")
        try:
            found = json.loads(token.text)[audience]
            text = found["token"]
            if not isinstance(text, str) or not is_token(text):
                raise ValueError("not one token")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AuthorityUnavailable(
                f"POD_TOKEN_MISSING: kubelet passed no token of audience {audience}; {advice}"
            ) from None
        # One that has expired is for the signer to judge: kubelet brings none to a pod that ends and still serves.
        return text


def _behind(signed_at: datetime, asked_at: datetime, answered_at: datetime) -> timedelta:
    """How far this clock is behind the one that said `signed_at` at least: that was between asking and the answer."""
    return max(signed_at - answered_at, timedelta(0)) + min(signed_at - asked_at, timedelta(0))


def _request_for(key: PrivateKey) -> bytes:
    """A DER certificate request that proves possession of `key` and names nobody: who it is for is not ours to say."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


def _pod(pod: PodRef) -> signer_pb2.Pod:
    return signer_pb2.Pod(namespace=pod.namespace, name=pod.name, uid=pod.uid)
