"""Where SVIDs come from: the one protocol that every kind of authority speaks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509

from csi.model import PodRef, PodToken
from runtime.feed import Feed
from svid.identity import Trust
from svid.jwtsvid import JwtSvid
from svid.keys import PrivateKey, PublicKey
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain

# As many renewals of a node are under way at once, and asked for in batches.
RENEWALS_AT_ONCE = 56


@dataclass(frozen=True, slots=True)
class MintRequest:
    """What an authority is asked to certify: the key's public half, for the pod that this token proves.

    The private half never leaves the node; it is here because a certificate request is signed with it.
    `patience`: seconds for which an authority that is away may be waited for; None: as usual.
    `ttl` and `dns_names` are the pod author's wishes: the authority may cap the one and refuse the others. `ttl_text`
    is that wish as it was written, for people. `renewal`: the pod has an SVID, and can wait for pods that have none.
    """

    pod: PodRef
    token: PodToken | None
    key: PrivateKey = field(repr=False)
    ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()
    ttl_text: str = ""
    patience: float | None = None
    renewal: bool = False

    @property
    def public_key(self) -> PublicKey:
        """What is certified."""
        return self.key.public_key()


@dataclass(frozen=True, slots=True)
class Minted:
    """An authority's answer: chain leaf first without the root, what verifies it, and when to renew.

    `federates_with`: whose bundles the workload gets beside its own, None for all there are. `notice` says what of the
    wishes was not granted; empty when all was. `signed_at`: by the authority's clock. `policy`: which one decided, for
    people; empty where the authority has none.
    """

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    trust: Trust
    renewal: RenewalWindow
    notice: str = ""
    hint: str = ""
    federates_with: tuple[TrustDomain, ...] | None = None
    signed_at: datetime | None = None
    policy: str = ""


@dataclass(frozen=True, slots=True)
class EarlyRenewal:
    """SVIDs of this X.509 authority are to be renewed in this window, even if their own comes later."""

    authority_id: str
    window: RenewalWindow


@dataclass(frozen=True, slots=True)
class JwtRequest:
    """A JWT-SVID for the pod that this token proves: `spiffe_id` is one of its own, `audiences` become `aud`.

    `for_file`: a publish or a renewal waits for it; else the pod asked.
    """

    pod: PodRef
    token: PodToken | None
    spiffe_id: SpiffeId
    audiences: tuple[str, ...]
    for_file: bool = False


@dataclass(frozen=True, slots=True)
class MintedJwt:
    """A JWT-SVID and when to renew it. `reusable` is false when each caller must get one of its own (`jti`)."""

    svid: JwtSvid
    renewal: RenewalWindow
    reusable: bool = True


class Authority(Protocol):
    """Mints SVIDs. The agent does not know which kind it has."""

    @property
    def trust(self) -> Feed[Trust]:
        """The bundles to hand to workloads; has a value before anything is minted."""
        ...

    @property
    def issues_jwt(self) -> bool:
        """Whether there are JWT-SVIDs at all; without, the JWT profile is not served."""
        ...

    @property
    def early_renewals(self) -> Feed[tuple[EarlyRenewal, ...]]:
        """Those in force; an authority that knows none never publishes."""
        ...

    @property
    def returns(self) -> Feed[None]:
        """Published each time that it answers again; one that is never away never publishes."""
        ...

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        """Take note that all workloads have `trust` or newer, and how many SVIDs they hold by X.509 authority."""
        ...

    async def mint_x509(self, request: MintRequest) -> Minted:
        """Raises AuthorityUnavailable (try again) or AuthorityRefused (do not)."""
        ...

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        """Raises AuthorityUnavailable (try again) or AuthorityRefused (do not)."""
        ...
