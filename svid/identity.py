"""Everything a workload holds at one moment, replaced as a whole."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from svid.bundle import TrustBundle
from svid.errors import InvalidSvid
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid

# Workload API section 8.
MAX_HINT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Trust:
    """What an agent trusts at one moment: the own trust domain's bundle and those of federated ones.

    `proven`: the authority itself said so. What is not is for finding the authority, and no workload gets it.
    """

    bundle: TrustBundle
    federated: tuple[TrustBundle, ...] = ()
    proven: bool = True


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why SVIDs are not handed out: `at_once`, or when they have ended. `refused`: the authority says so."""

    why: str
    refused: bool
    at_once: bool


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """SVIDs (default first, non-empty hints unique), the own trust bundle, and those of federated trust domains.

    Raises InvalidSvid at construction when these do not belong together.
    """

    svids: tuple[X509Svid, ...]
    bundle: TrustBundle
    federated: tuple[TrustBundle, ...] = ()
    # Whose bundles the workload may have beside its own; None: all that there are.
    federates_with: tuple[TrustDomain, ...] | None = None
    # Nothing that is held: two that differ in it are equal, and no file has it.
    withheld: Withheld | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.svids:
            raise InvalidSvid("a workload identity needs an SVID")
        if any(svid.spiffe_id.trust_domain != self.bundle.trust_domain for svid in self.svids):
            raise InvalidSvid("an SVID is of another trust domain than the bundle")
        hints = [svid.hint for svid in self.svids if svid.hint]
        if len(set(hints)) != len(hints):
            raise InvalidSvid("two SVIDs have the same hint")
        if any(len(hint.encode()) > MAX_HINT_BYTES for hint in hints):
            raise InvalidSvid(f"a hint is longer than {MAX_HINT_BYTES} bytes")
        if any(bundle.trust_domain == self.bundle.trust_domain for bundle in self.federated):
            raise InvalidSvid("the own trust domain is among the federated ones")
        domains = [bundle.trust_domain for bundle in self.federated]
        if len(set(domains)) != len(domains):
            raise InvalidSvid("two federated bundles are of one trust domain")

    @property
    def trust(self) -> Trust:
        return Trust(self.bundle, self.federated)

    def with_trust(self, trust: Trust) -> Self:
        """The same SVIDs with other bundles. Raises InvalidSvid when they do not belong together."""
        part = self.part_of(trust)
        return replace(self, bundle=part.bundle, federated=part.federated)

    def part_of(self, trust: Trust) -> Trust:
        """What of `trust` this workload gets."""
        if self.federates_with is None:
            return trust
        return Trust(trust.bundle, tuple(each for each in trust.federated if each.trust_domain in self.federates_with))

    def follows(self, trust: Trust) -> bool:
        """Whether it has the bundles of `trust`, or newer ones: what was read from files may be ahead after a start.

        There is nothing to follow in trust that is not proven.
        """
        if not trust.proven:
            return True
        mine, given = self.bundle.sequence, trust.bundle.sequence
        return self.trust == self.part_of(trust) or (mine is not None and given is not None and given < mine)

    def under(self, trust: Trust, now: datetime) -> Self:
        """With the newest bundles; as it is when these are older than its own, or do not verify its SVIDs.

        SVIDs that have ended keep none away: a pod that is refused another would have the cluster wait for its files.
        """
        if self.follows(trust):
            return self
        try:
            renewed = self.with_trust(trust)
        except InvalidSvid:
            return self
        return renewed if self.expires_at <= now or renewed.is_valid(now) else self

    def lean(self) -> Self:
        """The same in the least memory, to be kept: see X509Svid."""
        return replace(self, svids=tuple(each.lean() for each in self.svids))

    @property
    def default(self) -> X509Svid:
        """The SVID of a workload that does not choose (Workload API section 8)."""
        return self.svids[0]

    @property
    def expires_at(self) -> datetime:
        """When the first SVID ends."""
        return min(svid.not_after for svid in self.svids)

    def is_granted(self, now: datetime) -> bool:
        """Whether its SVIDs may be handed out. Its bundles always may: old ones trust what others do not."""
        return self.expires_at > now and not self.is_kept_back

    @property
    def is_kept_back(self) -> bool:
        """Whether its SVIDs are not handed out though they have not ended."""
        return self.withheld is not None and self.withheld.at_once

    def check(self, now: datetime) -> None:
        """Validate every SVID against the bundle. Raises InvalidSvid."""
        for svid in self.svids:
            svid.check(self.bundle, now)

    def is_valid(self, now: datetime) -> bool:
        """Whether `check` raises nothing. What is read for that is not kept with the SVIDs: see `lean`."""
        try:
            self.lean().check(now)
        except InvalidSvid:
            return False
        return True
