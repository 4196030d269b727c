"""Why a policy decides for a pod, or does not: what `explain` and statuses say of it, for people."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from signer.model import LivePod
from signer.policy.policy import Policy

# Service accounts of a policy, and of its conditions, that are shown.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Other:
    """A policy that does not match a pod.

    `differences`: how many of its conditions do not hold, 0 where it matches and is left out. `elsewhere`: it is
    another namespace's.
    """

    policy: str
    because: str
    differences: int = 1
    elsewhere: bool = False


def others(
    policies: Iterable[Policy], matched: Sequence[Policy], pod: LivePod, namespace_labels: Mapping[str, str]
) -> tuple[Other, ...]:
    """Those that do not match, with what they want and what they find: what differs least comes first."""
    uids = {each.uid for each in matched}
    found = [_other(each, pod, namespace_labels) for each in policies if each.uid not in uids]
    said = (each for each in found if each.because)
    return tuple(sorted(said, key=lambda each: (each.elsewhere, each.differences, each.policy)))


def _other(policy: Policy, pod: LivePod, namespace_labels: Mapping[str, str]) -> Other:
    if policy.namespace not in ("", pod.namespace):
        return Other(str(policy), f"it is for namespace {policy.namespace}", elsewhere=True)
    found: list[str] = []
    if policy.service_accounts and pod.service_account not in policy.service_accounts:
        accounts = sorted(policy.service_accounts)
        more = ", …" if len(accounts) > _SHOWN else ""
        listed = " or ".join(each[:63] for each in accounts[:_SHOWN])
        found.append(f"serviceAccounts wants {listed}{more}, and the pod has {pod.service_account}")
    where = f"namespace {pod.namespace}"
    found += [f"namespaceSelector {each}" for each in policy.namespaces.unmet(namespace_labels, where)]
    found += [f"podSelector {each}" for each in policy.pods.unmet(pod.labels, "the pod")]
    rest = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return Other(str(policy), "; ".join(found[:_SHOWN] + rest) or policy.problem, len(found))


def goes_before(winner: Policy, loser: Policy) -> str:
    """By which part of the rule one that matches goes before another that does."""
    if winner.deny != loser.deny:
        return f"{winner} denies"
    if winner.priority != loser.priority:
        return f"{winner} has the higher priority, {winner.priority} over {loser.priority}"
    if bool(winner.namespace) != bool(loser.namespace):
        return f"{winner} is the namespace's own"
    if winner.created != loser.created:
        return f"{winner} is older; give one of them a priority"
    return f"{winner} comes first by name; give one of them a priority"
