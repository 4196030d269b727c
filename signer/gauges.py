"""What the signer's gauges show: asked of the parts on their event loop; and that loop's lag."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from runtime.stopping import side_by_side
from signer.attestation.pods import Pods
from signer.authority.acknowledgements import Agents
from signer.authority.key_care import KeyWatch
from signer.authority.rotation import Rotation
from signer.cluster.leader import Leader
from signer.cluster.witness import Witness
from signer.federation.domains import Domains
from signer.front.pod_certificates import PodCertificates
from signer.metrics import Metrics
from signer.policy.policies import Policies

# Seconds between looks at the event loop.
LAG_SECONDS = 0.1
_NEVER = datetime.fromtimestamp(0, UTC)


def watch(
    metrics: Metrics,
    rotation: Rotation,
    leader: Leader,
    agents: Agents,
    pods: Pods,
    policies: Policies,
    witness: Witness,
    keys: KeyWatch,
    domains: Domains,
    certificates: PodCertificates,
) -> None:
    """Have `metrics` ask these."""

    def authority_ends() -> float:
        state = rotation.state
        return state.active_x509.not_after.timestamp() if state else 0.0

    def authority_life() -> float:
        state = rotation.state
        if state is None:
            return 0.0
        authority = state.active_x509
        return (authority.not_after - authority.chain[0].not_valid_before_utc).total_seconds()

    def upstream_ends() -> float:
        state = rotation.state
        ends = state.active_x509.above_ends if state else None
        return ends.timestamp() if ends else 0.0

    metrics.watch(
        agents=lambda: float(agents.connected),
        unacknowledged=lambda: float(rotation.lacking),
        leading=lambda: float(leader.leading),
        authority_ends=authority_ends,
        authority_life=authority_life,
        upstream_ends=upstream_ends,
        authority_wanted=lambda: rotation.waiting_since.timestamp() if rotation.waiting_since else 0.0,
        roots_refused=lambda: float(leader.leading and rotation.roots.refuses),
        contact=lambda: (pods.last_contact or _NEVER).timestamp(),
        services_left_out=lambda: float(policies.services_left_out),
        pods_left_out=lambda: float(pods.left_out),
        clock_ahead=lambda: witness.ahead.total_seconds(),
        key_store_down=lambda: float(bool(keys.trouble)),
    )
    metrics.watch_federation(domains.ages)
    metrics.watch_certificates(lambda: float(certificates.waiting), lambda: certificates.oldest_seconds)


async def keep(metrics: Metrics) -> None:
    """Keep what `metrics` shows fresh, and measure the lag, for ever."""
    await side_by_side(metrics.keep_fresh(), measure_lag(metrics))


async def measure_lag(
    metrics: Metrics,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Count for ever how much later than wanted this task has its turn: so long the others waited, too."""
    while True:
        wanted = monotonic() + LAG_SECONDS
        await sleep(LAG_SECONDS)
        metrics.lagged(max(0.0, monotonic() - wanted))
