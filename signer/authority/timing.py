"""How long each step of the authorities' life takes."""

from dataclasses import dataclass
from datetime import timedelta

from svid.jwtsvid import JwtAlgorithm
from svid.keys import KeyAlgorithm

# After the window of a forced re-issue: the last drawn renewals are carried out.
FORCED_GRACE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class LifecyclePolicy:
    """How long things take. `jwt_algorithm` None: there are no JWT authorities.

    `ack_bound`: the fallback for agents that do not acknowledge. `overlap`: how much longer than its last SVID an old
    authority stays trusted. `jwt_lead`: how long before its turn a scheduled JWT key is published, for verifiers
    outside that look at the bundle now and then.
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
