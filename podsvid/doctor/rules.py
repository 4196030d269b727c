"""By which rules what was seen is wrong; which of it is believed at once, and how it is printed for programs."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from podsvid.doctor import nodes, trust, workloads
from podsvid.doctor.finding import Finding, some
from podsvid.doctor.looking import Seen

# Kubernetes: the oldest that the chart takes, and the one that the tests run. Minor versions of 1.
OLDEST, TRIED = 30, 35
DEFINED: Final = ("clusterworkloadidentities", "workloadidentities", "federatedtrustdomains")
# What is so for a moment while all is well: between two answers, while a pod starts, until a signer has written.
PASSING: Final = frozenset(
    {
        *("AGENTS_NOT_READY", "AGENTS_SILENT", "BUNDLE_STALE", "DRIVER_UNREGISTERED"),
        *("SIGNERS_TOO_FEW", "SIGNER_WARNS", "TAINT_LEFT", "UPGRADE_STUCK"),
        *("UPSTREAM_AWAY", "UPSTREAM_ROOTS_REFUSED"),
    }
)


def findings(seen: Seen, now: datetime) -> list[Finding]:
    """All that is wrong, worst first. `now`: for what ends, where the API server did not say what time it is."""
    at = seen.heard or now
    found = [Finding("COULD_NOT_LOOK", f"{title}: {why}") for title, why in seen.missing.items()]
    for rule in _RULES:
        found += rule(seen, at)
    return sorted(found, key=lambda each: each.weight)


def passing(found: Sequence[Finding]) -> bool:
    """Whether something of it is to be looked at once more."""
    return any(each.reason in PASSING for each in found)


def lasting(before: Sequence[Finding], after: Sequence[Finding]) -> list[Finding]:
    """Of `after`, what was seen `before`, or does not pass by itself."""

    def lasts(each: Finding) -> bool:
        same = [one for one in before if one.reason == each.reason]
        return each.reason not in PASSING or any(one.about == each.about or one.about & each.about for one in same)

    return [each for each in after if lasts(each)]


def _kubernetes(seen: Seen, _: datetime) -> Iterator[Finding]:
    version = re.match(r"v?(\d+)\.(\d+)", seen.version or "")
    if version is None:
        return
    minor = (int(version[1]) - 1) * 1000 + int(version[2])
    if minor < OLDEST:
        yield Finding("KUBERNETES_TOO_OLD", f"the API server is {seen.version}; 1.{OLDEST} is the oldest that will do")
    elif minor != TRIED:
        yield Finding("KUBERNETES_UNTRIED", f"the API server is {seen.version}; tests run 1.{TRIED}")


def _definitions(seen: Seen, _: datetime) -> Iterator[Finding]:
    lacking = [each for each in DEFINED if seen.kinds is not None and each not in seen.kinds]
    if lacking:
        yield Finding("DEFINITIONS_MISSING", ", ".join(f"{each}.podsvid.io" for each in lacking))
    if seen.admission:
        yield Finding("ADMISSION_MISSING", seen.admission)


def _policies(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.policies == () and not (seen.kinds is not None and set(DEFINED[:2]) - seen.kinds):
        yield Finding("NO_POLICY", "there is neither a ClusterWorkloadIdentity nor a WorkloadIdentity")
    idle = []
    for policy in seen.policies or ():
        ready = policy.condition("Ready")
        if ready is not None and ready.status == "False":
            yield Finding("POLICY_UNUSABLE", f"policy {policy.named}: {ready.message}")
        elif policy.status is not None and policy.status.pods_matched == 0:
            idle.append(policy.named)
    if idle:
        yield Finding("POLICY_MATCHES_NOTHING", some(sorted(idle)))


def federations(seen: Seen, _: datetime) -> Iterator[Finding]:
    """What is wrong with a federation: that it has no bundle, or that the last look at its endpoint failed."""
    for each in seen.federations or ():
        wrong = [said for name in ("Ready", "Fetched") if (said := each.condition(name)) and said.status == "False"]
        if wrong:
            yield Finding("FEDERATION_FETCH_FAILED", f"FederatedTrustDomain {each.named}: {wrong[0].message}")


def as_json(found: Sequence[Finding]) -> str:
    """As `-o json` prints it."""
    document = {
        "findings": [
            {
                "weight": each.weight.name.lower(),
                "reason": each.reason,
                "seen": each.seen,
                "to_do": each.to_do,
                "link": each.link,
            }
            for each in found
        ]
    }
    return json.dumps(document, indent=2) + "\n"


_RULES: Final[tuple[Callable[[Seen, datetime], Iterator[Finding]], ...]] = (
    *(_kubernetes, workloads.agents, workloads.signers, workloads.versions),
    *(nodes.drivers, nodes.registered, nodes.clocks, _definitions, _policies),
    *(federations, trust.authorities, trust.bundles),
)
