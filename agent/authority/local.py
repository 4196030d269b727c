"""The authorities whose keys are on this node: made and kept here (embedded), or given in files."""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509

from agent.authority.files import read_secret, write_secret
from agent.authority.jwt_keys import JwtKeys
from agent.authority.protocol import EarlyRenewal, JwtRequest, Minted, MintedJwt, MintRequest
from agent.errors import AuthorityDamaged, AuthorityRefused, AuthorityUnavailable
from csi.model import PodRef
from runtime import durations
from runtime.bounded import Bounded, Unanswered
from runtime.clock import Clock
from runtime.federation import FederatedBundles
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem, extension, to_pem
from svid.dnsnames import allows
from svid.errors import SvidError
from svid.identity import Trust
from svid.keys import KeyAlgorithm, key_from_pem, key_to_pem
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain

_log = logging.getLogger("podsvid.authority")
STATE_FILE = "authority.pem"
EMBEDDED_LIFETIME = timedelta(days=3650)
# How often the keys' life and the federated bundles' files are looked at.
REFRESH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class IssuePolicy:
    """What a local authority grants. A requested TTL is brought between the bounds.

    `dns_names` are patterns: `{namespace}`, `{service_account}` and `{pod}` stand for the pod's own, a leading `*.`
    for one label.
    """

    x509_ttl: timedelta
    x509_min_ttl: timedelta
    x509_max_ttl: timedelta
    jwt_ttl: timedelta = timedelta(minutes=5)
    jwt_issuer: str = ""
    jwt_id: bool = False
    dns_names: tuple[str, ...] = ()


class X509Source(Protocol):
    """The X.509 authority that signs, and what verifies the SVIDs that are in use: its roots, and older ones."""

    @property
    def authority(self) -> X509Authority: ...

    @property
    def bundle(self) -> TrustBundle: ...

    def advance(self, now: datetime, longest: timedelta) -> bool:
        """Whether one of them changed; `longest` is an SVID's life. Blocks."""
        ...


@dataclass(frozen=True)
class Kept:
    """One that does not change while the process lives."""

    authority: X509Authority

    @property
    def bundle(self) -> TrustBundle:
        return self.authority.bundle

    def advance(self, now: datetime, longest: timedelta) -> bool:
        return False


class LocalAuthority:
    """An authority whose keys are in this process; the SPIFFE ID is `spiffe://<td>/ns/<namespace>/sa/<account>`."""

    def __init__(
        self,
        source: X509Source,
        policy: IssuePolicy,
        clock: Clock,
        reader: Bounded,
        jwt_keys: JwtKeys | None = None,
        federated: FederatedBundles | None = None,
    ) -> None:
        self._source = source
        self._authority = source.authority
        self._policy = policy
        self._clock = clock
        self._reader = reader
        self._late = False
        self._jwt_keys = jwt_keys
        self._federated = federated or FederatedBundles({})
        self.trust: Feed[Trust] = Feed()
        self.early_renewals: Feed[tuple[EarlyRenewal, ...]] = Feed()
        self.returns: Feed[None] = Feed()
        self._publish_trust()

    @property
    def issues_jwt(self) -> bool:
        return self._jwt_keys is not None

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        """A local authority waits for nobody."""

    async def mint_x509(self, request: MintRequest) -> Minted:
        now = self._clock.now()
        # Signing takes a fraction of a millisecond with EC keys; giving way here keeps a storm of mints fair.
        await asyncio.sleep(0)
        for name in request.dns_names:
            pod = request.pod
            own = {"namespace": pod.namespace, "service_account": pod.service_account, "pod": pod.name}
            if not allows(self._policy.dns_names, name, **own):
                raise AuthorityRefused(
                    f"DNS_NAME_DENIED: {name} is not among the DNS names that this pod may have; "
                    "ask for another in volumeAttributes dnsNames, or allow it in the agent's dns_names"
                )
        ttl, notice = self._ttl(request.ttl, request.ttl_text)
        try:
            spiffe_id = pod_spiffe_id(self._authority.trust_domain, request.pod)
            # The issuer verifies whatever an authority answers.
            chain = self._authority.issue(
                request.public_key, spiffe_id, ttl=ttl, now=now, dns_names=request.dns_names, verified_later=True
            )
        except SvidError as error:
            if self._authority.not_after <= now:
                # Nobody is denied anything: whoever looks after its files brings another.
                raise AuthorityUnavailable(str(error)) from None
            raise AuthorityRefused(f"{error.reason}: {error}") from None
        renewal = RenewalWindow.of(now, chain[0].not_valid_after_utc)
        return Minted(spiffe_id, chain, self._trust(), renewal, notice, signed_at=now)

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        now = self._clock.now()
        if self._jwt_keys is None:
            raise AuthorityRefused("JWT_DISABLED: this authority issues no JWT-SVIDs; give it a JWT key")
        try:
            if request.spiffe_id != pod_spiffe_id(self._authority.trust_domain, request.pod):
                raise AuthorityRefused(f"NOT_ENTITLED: {request.spiffe_id} is not an identity of pod {request.pod}")
            svid = self._jwt_keys.signing_key(now).issue(
                request.spiffe_id,
                request.audiences,
                ttl=self._policy.jwt_ttl,
                now=now,
                issuer=self._policy.jwt_issuer,
                jwt_id=str(uuid.uuid4()) if self._policy.jwt_id else "",
            )
        except SvidError as error:
            raise AuthorityRefused(f"{error.reason}: {error}") from None
        return MintedJwt(svid, RenewalWindow.of(now, svid.expires_at), reusable=not self._policy.jwt_id)

    async def refresh(self) -> None:
        """Do what is due: files that changed, the JWT keys' life. Publishes `trust` when it changed."""
        now = self._clock.now()
        await self._federated.look()
        changed = self._federated.bundles != self._trust().federated
        try:
            changed = await self._reader.do(lambda: self._advance(now)) or changed or self._late
            self._late = False
        except Unanswered:
            if not self._late:
                _log.error(
                    "the authority's files are not read in time; what is held stays in service",
                    extra={"error": hung(self._reader)},
                )
            # What it finds at last nobody is told: it is published at the next look.
            self._late = True
        if changed:
            self._publish_trust()

    def _advance(self, now: datetime) -> bool:
        longest = max(self._policy.x509_ttl, self._policy.x509_max_ttl)
        changed = self._source.advance(now, longest)
        if self._jwt_keys is not None:
            try:
                changed = self._jwt_keys.advance(now) or changed
            except OSError as error:
                _log.error("JWT authorities cannot be kept; the present ones stay", extra={"error": str(error)})
        return changed

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()

    def _trust(self) -> Trust:
        found = self.trust.current
        assert found is not None
        return found

    def _publish_trust(self) -> None:
        # One sequence counts all changes (TDB 4.1.1). Only a keyring keeps one over restarts; without it there is none.
        keys = self._jwt_keys
        # It signs from now on: nobody gets an SVID that the trust beside it does not verify.
        self._authority = self._source.authority
        bundle = replace(
            self._source.bundle,
            jwt_authorities=keys.authorities if keys else (),
            sequence=keys.sequence if keys else None,
        )
        self.trust.publish(Trust(bundle, self._federated.bundles))

    def _ttl(self, wished: timedelta | None, written: str) -> tuple[timedelta, str]:
        if wished is None:
            return self._policy.x509_ttl, ""
        granted = min(max(wished, self._policy.x509_min_ttl), self._policy.x509_max_ttl)
        if granted == wished:
            return granted, ""
        why = "no SVID lives shorter (x509_min_ttl)" if granted > wished else "no SVID lives longer (x509_max_ttl)"
        asked = written or durations.text(wished)
        return granted, f"ttl {asked} was asked for, {durations.text(granted)} is granted: {why}"


def hung(reader: Bounded) -> str:
    """What may be wrong with files that were not read in time."""
    return f"no answer within {reader.seconds:g} s; is one on a file system that hangs, or no regular file?"


def pod_spiffe_id(trust_domain: TrustDomain, pod: PodRef) -> SpiffeId:
    """The default SPIFFE ID of a pod. Raises InvalidSpiffeId."""
    return SpiffeId.from_segments(trust_domain, "ns", pod.namespace, "sa", pod.service_account)


def open_embedded(state_dir: Path, trust_domain: TrustDomain, clock: Clock) -> X509Authority:
    """The authority kept in `state_dir`, made there on first use (0600, fsync, rename).

    Raises AuthorityDamaged when a file is there that cannot be used: replacing it would cut off every workload that
    trusts it, so that is left to a person.
    """
    path = state_dir / STATE_FILE
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    advice = f"restore {path} from a backup, or remove it to start a new authority that no running workload trusts"
    try:
        data = read_secret(path)
    except FileNotFoundError:
        authority = X509Authority.create(
            trust_domain, algorithm=KeyAlgorithm.EC_P256, lifetime=EMBEDDED_LIFETIME, now=clock.now()
        )
        write_secret(path, key_to_pem(authority.private_key) + to_pem(authority.chain))
        return authority
    except OSError as error:
        raise AuthorityDamaged(f"{path} cannot be read ({error.strerror}); {advice}") from None
    try:
        chain = certificates_from_pem(data)
        authority = X509Authority(trust_domain, chain, key_from_pem(data), TrustBundle(trust_domain, chain, sequence=1))
        names = extension(chain[0], x509.SubjectAlternativeName)
    except (ValueError, SvidError) as error:
        why = str(error) if isinstance(error, SvidError) else "it is not a key and certificate in PEM"
        raise AuthorityDamaged(f"{path} is damaged: {why}; {advice}") from None
    found = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if found != [str(trust_domain.id)]:
        raise AuthorityDamaged(
            f"{path} is the authority of {', '.join(found) or 'no trust domain'}, not of {trust_domain.id}; "
            "set trust_domain back, or choose another state_dir"
        )
    return authority
