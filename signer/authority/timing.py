"""How long each step of the authorities' life takes."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from signer import audience_settings
from signer.config import SignerConfig
from svid.jws import JwtAlgorithm
from svid.keys import KeyAlgorithm

# The shortest lifetime that is recorded; each other is twice the one before. An hour is one of them.
SHORTEST = timedelta(hours=1) / 16
# After the window of a forced re-issue: the last drawn renewals are carried out.
FORCED_GRACE = timedelta(seconds=30)
# Other clusters and clouds look at a bundle every few minutes to hours; all know a scheduled key before it signs.
JWT_LEAD = timedelta(days=1)
# Of the wanted life of an authority: by how much it has to outlive the one that it replaces.
_GAIN = 0.1


@dataclass(frozen=True, slots=True)
class Audience:
    """Verifiers that read the trust and never acknowledge it.

    `x509`, `jwt`: how long a new authority is published before all of them have it; none where they read none of the
    kind. `told`: the same for those who read as often as they are told, which is all that a forced rotation waits for.
    `renewed`: of the life of a certificate, by when who has it has asked for the next one, of those who hear of roots
    by that; else none.
    """

    name: str
    x509: timedelta
    jwt: timedelta
    told: timedelta
    renewed: float = 0.0

    def settle(self, kind: str) -> timedelta:
        """That of a kind."""
        return self.x509 if kind == "x509" else self.jwt


@dataclass(frozen=True, slots=True)
class LifecyclePolicy:
    """How long things take. `jwt_algorithm` None: there are no JWT authorities.

    `x509_ttl`, `jwt_ttl`: how long SVIDs usually live; None: as long as they may.

    `ack_bound`: the fallback for agents that do not acknowledge. `overlap`: how much longer than its last SVID an old
    authority stays trusted. `jwt_lead`: how long before its turn a scheduled JWT key is published, for verifiers
    outside that look at the bundle now and then.

    `reissue_rate`: early renewals a second, of all agents together, that the signers are to be asked for at most.
    `root_interval`: how often the CA above is asked which roots there are. `audiences`: who reads the trust and never
    acknowledges it.
    """

    authority_ttl: timedelta
    jwt_period: timedelta
    x509_max_ttl: timedelta
    jwt_max_ttl: timedelta
    ack_bound: timedelta
    reissue_window: timedelta
    forced_window: timedelta
    overlap: timedelta
    key_algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256
    jwt_algorithm: JwtAlgorithm | None = JwtAlgorithm.RS256
    jwt_lead: timedelta = timedelta(0)
    x509_ttl: timedelta | None = None
    jwt_ttl: timedelta | None = None
    reissue_rate: int = 300
    root_interval: timedelta = timedelta(minutes=5)
    audiences: tuple[Audience, ...] = ()

    def settle(self, kind: str) -> timedelta:
        """How long a new authority of a kind is published before all of those audiences have it."""
        return max((each.settle(kind) for each in self.audiences), default=timedelta(0))

    def most(self, kind: str) -> timedelta:
        """How long an SVID of a kind may live by today's settings."""
        return self.x509_max_ttl if kind == "x509" else self.jwt_max_ttl

    def usual(self, kind: str) -> timedelta:
        """What is recorded of a new authority: SVIDs that live as long as usual need no other record."""
        ttl = self.x509_ttl if kind == "x509" else self.jwt_ttl
        return self.most(kind) if ttl is None else self.rounded(kind, ttl)

    @property
    def shortest_authority(self) -> timedelta:
        """How long a new X.509 authority must last: half of its life has to outlast what it usually issues.

        Not what verifiers outside need: the cluster's own pods would have no CA, that those may miss none.
        """
        return min(4 * self._full, self.authority_ttl * audience_settings.LEAST)

    def living(self, needed: timedelta) -> timedelta:
        """How long an X.509 authority lives that can be published for `needed`, and its successor, while it signs."""
        return max(self.authority_ttl, 4 * needed / audience_settings.LEAST)

    def spent_at(self, not_after: datetime) -> datetime:
        """From when on an X.509 authority that ends then has no time for one more SVID that lives as long as usual,
        and for renewing what it issued."""
        return not_after - self._full - min(self.reissue_window, self._full)

    @property
    def _full(self) -> timedelta:
        return self.x509_ttl or self.x509_max_ttl

    @property
    def gain(self) -> timedelta:
        """How much later than the active one a new X.509 authority ends, where it is to be worth a rotation."""
        return min(self.authority_ttl * _GAIN, self.x509_max_ttl)

    def serves_until(self, since: datetime, not_after: datetime) -> datetime:
        """By when an X.509 authority is to be replaced: a CA above may certify for years what was to serve a month."""
        return min(not_after, since + self.authority_ttl)

    def spread(self, shortest: timedelta, svids: int, longest: timedelta | None) -> timedelta:
        """Over how long that many SVIDs of an authority are renewed early: `shortest` where that is time enough.

        Signers that are asked for more than they can sign refuse, and renew none in time. Half of the `longest` life is
        the most: by then all are renewed anyway.
        """
        needed = timedelta(seconds=svids / self.reissue_rate)
        return max(shortest, min(needed, (longest or self.most("x509")) / 2))

    def rounded(self, kind: str, ttl: timedelta) -> timedelta:
        """What is recorded for SVIDs that live as long as `ttl`: few steps, so that few records are made."""
        step = SHORTEST
        while step < ttl:
            step *= 2
        return min(step, max(ttl, self.most(kind)))


def lifecycle_policy(config: SignerConfig) -> LifecyclePolicy:
    """As the settings have it."""
    return LifecyclePolicy(
        authority_ttl=config.authority_ttl,
        jwt_period=config.jwt_key_period,
        x509_max_ttl=config.x509_max_ttl,
        jwt_max_ttl=config.jwt_max_ttl,
        ack_bound=config.acknowledge_within,
        reissue_window=config.reissue_over,
        forced_window=config.forced_reissue_over,
        reissue_rate=config.reissue_rate,
        root_interval=config.upstream_root_interval,
        # A replica that is cut off from the API server signs by what it knew for as long as that.
        overlap=config.outage_limit + config.retire_after,
        key_algorithm=config.authority_algorithm,
        jwt_algorithm=config.jwt_algorithm if config.jwt_svids else None,
        jwt_lead=min(JWT_LEAD, config.jwt_key_period / 4),
        x509_ttl=config.x509_ttl,
        jwt_ttl=config.jwt_ttl,
        audiences=_audiences(config),
    )


def _audiences(config: SignerConfig) -> tuple[Audience, ...]:
    return tuple(
        Audience(
            name,
            audience_settings.settle(name, "x509", config),
            audience_settings.settle(name, "jwt", config),
            audience_settings.told(name, config),
            audience_settings.renewed(name),
        )
        for name in sorted(audience_settings.audiences(config))
    )
