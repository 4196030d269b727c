"""Where SVIDs come from: the one protocol that every kind of authority speaks."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from cryptography import x509

from csi.model import PodRef, PodToken
from runtime.feed import Feed
from svid.identity import Trust
from svid.jwtsvid import JwtSvid
from svid.keys import PublicKey
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId


@dataclass(frozen=True, slots=True)
class MintRequest:
    """What an authority is asked to certify: this public key, for the pod that this token proves.

    `ttl` and `dns_names` are the pod author's wishes: the authority may cap the one and refuse the others.
    """

    pod: PodRef
    token: PodToken | None
    public_key: PublicKey
    ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Minted:
    """An authority's answer: chain leaf first without the root, what verifies it, and when to renew.

    `notice` says what of the wishes was not granted; empty when all was.
    """

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    trust: Trust
    renewal: RenewalWindow
    notice: str = ""


@dataclass(frozen=True, slots=True)
class JwtRequest:
    """A JWT-SVID for the pod that this token proves: `spiffe_id` is one of its own, `audiences` become `aud`."""

    pod: PodRef
    token: PodToken | None
    spiffe_id: SpiffeId
    audiences: tuple[str, ...]


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

    async def mint_x509(self, request: MintRequest) -> Minted:
        """Raises AuthorityUnavailable (try again) or AuthorityRefused (do not)."""
        ...

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        """Raises AuthorityUnavailable (try again) or AuthorityRefused (do not)."""
        ...
