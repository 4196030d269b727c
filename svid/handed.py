"""What is handed to workloads: SVIDs that another process has read and checked stay unread by who hands them on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from svid.bundle import TrustBundle
from svid.certificates import certificates_from_der
from svid.errors import InvalidSvid
from svid.identity import Withheld
from svid.keys import key_from_der
from svid.spiffeid import SpiffeId
from svid.x509svid import X509Svid


class Svid(Protocol):
    """An X.509-SVID, as far as handing it on needs it; X509Svid is one."""

    @property
    def spiffe_id(self) -> SpiffeId: ...

    @property
    def not_after(self) -> datetime: ...

    @property
    def hint(self) -> str: ...

    def lean(self) -> X509Svid:
        """To be looked at and dropped. Raises InvalidSvid, InvalidKey."""
        ...

    def chain_der(self) -> bytes: ...

    def chain_pem(self) -> bytes: ...

    def key_der(self) -> bytes: ...

    def key_pem(self) -> bytes: ...


class Identity(Protocol):
    """What a workload is handed at one moment; WorkloadIdentity is one."""

    @property
    def svids(self) -> Sequence[Svid]: ...

    @property
    def bundle(self) -> TrustBundle: ...

    @property
    def federated(self) -> Sequence[TrustBundle]: ...

    @property
    def withheld(self) -> Withheld | None: ...

    @property
    def default(self) -> Svid: ...

    @property
    def expires_at(self) -> datetime: ...

    @property
    def is_kept_back(self) -> bool: ...

    def is_granted(self, now: datetime) -> bool: ...


@dataclass(frozen=True, slots=True)
class UnreadSvid:
    """One that was checked where it came from: DER, leaf first, and PKCS#8 that podsvid wrote itself.

    To read it takes as long as to send it to a workload, and its key takes more memory read than written.
    """

    spiffe_id: SpiffeId
    not_after: datetime
    chain: bytes
    key: bytes = field(repr=False)
    hint: str = ""

    def lean(self) -> X509Svid:
        """Read. Raises InvalidSvid, InvalidKey."""
        try:
            chain = certificates_from_der(self.chain)
        except ValueError as error:
            raise InvalidSvid(f"not a DER chain: {error}") from None
        return X509Svid(self.spiffe_id, chain, key_from_der(self.key, own=True), self.hint)

    def chain_der(self) -> bytes:
        return self.chain

    def chain_pem(self) -> bytes:
        return self.lean().chain_pem()

    def key_der(self) -> bytes:
        return self.key

    def key_pem(self) -> bytes:
        return self.lean().key_pem()


@dataclass(frozen=True, slots=True)
class UnreadIdentity:
    """SVIDs (default first), the own trust bundle and federated ones, of a WorkloadIdentity. Raises InvalidSvid."""

    svids: tuple[UnreadSvid, ...]
    bundle: TrustBundle
    federated: tuple[TrustBundle, ...] = ()
    withheld: Withheld | None = None

    def __post_init__(self) -> None:
        if not self.svids:
            raise InvalidSvid("a workload identity needs an SVID")

    @property
    def default(self) -> UnreadSvid:
        """See WorkloadIdentity.default."""
        return self.svids[0]

    @property
    def expires_at(self) -> datetime:
        """When the first SVID ends."""
        return min(svid.not_after for svid in self.svids)

    @property
    def is_kept_back(self) -> bool:
        """See WorkloadIdentity.is_kept_back."""
        return self.withheld is not None and self.withheld.at_once

    def is_granted(self, now: datetime) -> bool:
        """See WorkloadIdentity.is_granted."""
        return self.expires_at > now and not self.is_kept_back
