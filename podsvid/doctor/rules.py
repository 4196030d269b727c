"""By which rules what was seen is wrong, and what is said of it."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from podsvid.doctor import objects
from podsvid.doctor.kinds import KINDS, Weight
from podsvid.doctor.looking import Seen

TAINT: Final = "podsvid.io/agent-not-ready"
# Kubernetes: the oldest that the chart takes, and the one that the tests run. Minor versions of 1.
OLDEST, TRIED = 30, 35
DEFINED: Final = ("clusterworkloadidentities", "workloadidentities", "federatedtrustdomains")
# Kubelets renew their leases every ten seconds; what is later is a clock, or a kubelet that hangs.
AHEAD, BEHIND = timedelta(seconds=5), timedelta(seconds=90)
# Agents acknowledge within seconds; a bundle that has just changed is nobody's fault.
PATIENCE = timedelta(minutes=2)
# Of an authority's life; its successor is there long before.
LAST_PART = 10
ROOT_ENDS = timedelta(days=30)
# Named in one finding.
MOST_NAMED = 5
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen that makes a reason of KINDS true."""

    reason: str
    seen: str

    @property
    def weight(self) -> Weight:
        return KINDS[self.reason].weight

    @property
    def to_do(self) -> str:
        return KINDS[self.reason].to_do

    @property
    def link(self) -> str:
        """Where the documentation has it."""
        return f"docs/troubleshooting.md#{self.reason.lower()}"


def findings(seen: Seen, now: datetime) -> list[Finding]:
    """All that is wrong, worst first. `now`: for what ends, where the API server did not say what time it is."""
    at = seen.heard or now
    found = [Finding("COULD_NOT_LOOK", f"{title}: {why}") for title, why in seen.missing.items()]
    for rule in _RULES:
        found += rule(seen, at)
    return sorted(found, key=lambda each: each.weight)


def _kubernetes(seen: Seen, _: datetime) -> Iterator[Finding]:
    version = re.match(r"v?(\d+)\.(\d+)", seen.version or "")
    if version is None:
        return
    minor = (int(version[1]) - 1) * 1000 + int(version[2])
    if minor < OLDEST:
        yield Finding("KUBERNETES_TOO_OLD", f"the API server is {seen.version}; 1.{OLDEST} is the oldest that will do")
    elif minor != TRIED:
        yield Finding("KUBERNETES_UNTRIED", f"the API server is {seen.version}; tests run 1.{TRIED}")


def _agents(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.agents is None:
        if "the agents' DaemonSet" not in seen.missing:
            yield Finding("AGENTS_MISSING", f"namespace {seen.namespace} has no DaemonSet podsvid-agent")
        return
    status = seen.agents.status
    if status.number_ready < status.desired_number_scheduled:
        some = f"{status.number_ready} of {status.desired_number_scheduled} agents are ready"
        yield Finding("AGENTS_NOT_READY", some + _why(seen, "agent"))
    for container in seen.agents.spec.template.spec.containers:
        pods = [each for each in container.volume_mounts or () if each.mount_path.rstrip("/").endswith("/pods")]
        if container.name == "agent" and not any(each.mount_propagation == "Bidirectional" for each in pods):
            where = f"its mount of {pods[0].mount_path}" if pods else "it has no mount of kubelet's pods, which"
            said = pods[0].mount_propagation or "None" if pods else "None"
            yield Finding("MOUNT_NOT_SHARED", f"DaemonSet podsvid-agent: {where} has mountPropagation {said}")


def _signers(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.signers is None:
        if "the signers' Deployment" not in seen.missing:
            yield Finding("SIGNERS_MISSING", f"namespace {seen.namespace} has no Deployment podsvid-signer")
        return
    wanted = 1 if seen.signers.spec.replicas is None else seen.signers.spec.replicas
    if seen.signers.status.ready_replicas < max(wanted, 1):
        some = f"{seen.signers.status.ready_replicas} of {wanted} signers are ready"
        yield Finding("SIGNERS_NOT_READY", some + _why(seen, "signer"))


def _why(seen: Seen, component: str) -> str:
    """Of the first pod that is not ready, what Kubernetes says of it."""
    for pod in seen.pods or ():
        if pod.component != component or pod.ready or pod.metadata.deletion_timestamp is not None:
            continue
        said = [
            f"{state.reason} {state.message}".strip()
            for each in pod.status.container_statuses or ()
            for state in (each.state.waiting, each.state.terminated, each.last_state.terminated)
            if state is not None and state.reason
        ]
        said += [each.message for each in pod.status.conditions or () if each.status == "False" and each.message]
        on = f" on node {pod.spec.node_name}" if pod.spec.node_name else ""
        return (
            f"; pod {pod.metadata.name}{on}: {'; '.join(dict.fromkeys(said)) or pod.status.phase or 'nothing is said'}"
        )
    return ""


def _versions(seen: Seen, _: datetime) -> Iterator[Finding]:
    images: dict[str, list[str]] = defaultdict(list)
    for pod in seen.pods or ():
        for container in pod.spec.containers:
            if container.name == pod.component and pod.metadata.deletion_timestamp is None:
                images[container.image].append(pod.metadata.name)
    if len(images) > 1:
        each = (f"{image} ({_some(pods)})" for image, pods in sorted(images.items()))
        yield Finding("VERSIONS_DIFFER", "; ".join(each))


def _drivers(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.drivers is None:
        return
    if not seen.drivers:
        yield Finding("DRIVER_MISSING", "no CSIDriver object has the label app.kubernetes.io/name=podsvid")
    for driver in seen.drivers:
        spec = driver.spec
        wrong = [
            text
            for text, good in (
                ("attachRequired is not false", not spec.attach_required),
                ("podInfoOnMount is not true", spec.pod_info_on_mount),
                ("requiresRepublish is not true", spec.requires_republish),
                ("tokenRequests is empty", bool(spec.token_requests)),
                ("volumeLifecycleModes is without Ephemeral", "Ephemeral" in (spec.volume_lifecycle_modes or ())),
            )
            if not good
        ]
        if wrong:
            yield Finding("DRIVER_WRONG", f"CSIDriver {driver.metadata.name}: {', '.join(wrong)}")


def _registered(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.csi_nodes is None or seen.pods is None:
        return
    ready = {each.spec.node_name for each in seen.pods if each.component == "agent" and each.ready}
    on = _drivers_by_node(seen)
    for driver in seen.drivers or ():
        lacking = sorted(node for node in ready if driver.metadata.name not in on.get(node, frozenset()))
        if lacking:
            yield Finding("DRIVER_UNREGISTERED", f"{driver.metadata.name} on {_some(lacking)}, whose agent is ready")
    names = {each.metadata.name for each in seen.drivers or ()}
    left = [
        node.metadata.name
        for node in seen.nodes or ()
        if any(each.key == TAINT for each in node.spec.taints or ())
        and node.metadata.name in ready
        and names & on.get(node.metadata.name, frozenset())
    ]
    if left:
        yield Finding("TAINT_LEFT", f"on {_some(sorted(left))}")


def _drivers_by_node(seen: Seen) -> dict[str, frozenset[str]]:
    return {
        each.metadata.name: frozenset(driver.name for driver in each.spec.drivers or ())
        for each in seen.csi_nodes or ()
    }


def _clocks(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.heard is None:
        return
    ready = {each.metadata.name for each in seen.nodes or () if each.ready}
    for lease in seen.leases or ():
        renewed, node = lease.spec.renew_time, lease.metadata.name
        if renewed is None or node not in ready:
            continue
        if renewed - seen.heard > AHEAD:
            yield Finding("CLOCKS_DIFFER", f"node {node} is {_time(renewed - seen.heard)} ahead of the API server")
        elif seen.heard - renewed > BEHIND:
            late = _time(seen.heard - renewed)
            yield Finding("CLOCKS_DIFFER", f"node {node} is ready, and {late} behind the API server by its lease")


def _definitions(seen: Seen, _: datetime) -> Iterator[Finding]:
    lacking = [each for each in DEFINED if seen.kinds is not None and each not in seen.kinds]
    if lacking:
        yield Finding("DEFINITIONS_MISSING", ", ".join(f"{each}.podsvid.io" for each in lacking))
    if seen.admission is False:
        lacks = "ValidatingAdmissionPolicy podsvid-signer or its binding is not there"
        yield Finding("ADMISSION_MISSING", lacks)


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
        yield Finding("POLICY_MATCHES_NOTHING", _some(sorted(idle)))
    for each in seen.federations or ():
        wrong = [said for name in ("Ready", "Fetched") if (said := each.condition(name)) and said.status == "False"]
        if wrong:
            yield Finding("FEDERATION_FETCH_FAILED", f"FederatedTrustDomain {each.named}: {wrong[0].message}")


def _authorities(seen: Seen, now: datetime) -> Iterator[Finding]:
    status = seen.authority or {}
    authorities = [each for each in status.get("authorities", ()) if isinstance(each, dict)]
    waiting = [str(each) for each in status.get("waiting_nodes", ())]
    changed = [at for each in authorities for name in ("prepared_at", "activated_at") if (at := _at(each, name))]
    if waiting and all(now - at > PATIENCE for at in changed):
        more = int(status.get("agents_waiting") or 0) - len(waiting)
        of = f"{status.get('agents_waiting')} of {status.get('agents')} agents"
        yield Finding("AGENTS_SILENT", f"{of} at sequence {status.get('sequence')}: {_some(waiting, more)}")
    for each in authorities:
        ends, began = _at(each, "not_after"), _at(each, "prepared_at")
        if str(each.get("stage")) != "active" or ends is None:
            continue
        followed = any(
            other.get("stage") == "prepared" and other.get("kind") == each.get("kind") for other in authorities
        )
        if not followed and ends - now < (ends - (began or now)) / LAST_PART:
            yield Finding("AUTHORITY_ENDS", f"{each.get('kind')} {each.get('id')} at {ends:%Y-%m-%dT%H:%M:%SZ}")
    for root in status.get("upstream_roots", ()):
        ends = _at(root, "not_after")
        if ends is not None and ends - now < ROOT_ENDS:
            yield Finding("AUTHORITY_ENDS", f"the root above, {root.get('subject')}, at {ends:%Y-%m-%dT%H:%M:%SZ}")
    requested = status.get("requested_x509") or {}
    if requested.get("said"):
        yield Finding("UPSTREAM_AWAY", f"a request at {requested.get('at')}: {requested['said'][-1]}")
    for text in dict.fromkeys([*status.get("to_do", ()), *status.get("warnings", ())]):
        yield Finding("SIGNER_WARNS", str(text))


def _bundles(seen: Seen, _: datetime) -> Iterator[Finding]:
    if seen.published is None or not (own := _certificates(str(seen.published.get("pem") or ""))):
        return
    domain = str(seen.published.get("trust_domain") or "")
    stale = [
        f"ConfigMap {each.metadata.namespace}/{each.metadata.name}"
        for each in seen.config_maps or ()
        # What signers note of agents and of other domains has no such file.
        if "bundle.json" in (each.data or {})
        and _of(each) == domain[:63].strip("-._")  # as signers make a label of it
        and _certificates((each.data or {}).get("ca.crt", "")) != own
    ]
    stale += [
        f"ClusterTrustBundle {each.metadata.name}"
        for each in seen.trust_bundles or ()
        if each.metadata.name == f"podsvid.io:spiffe:{domain}" and _certificates(each.spec.trust_bundle) != own
    ]
    if stale:
        yield Finding("BUNDLE_STALE", _some(stale))


def _of(each: objects.ConfigMap) -> str:
    return (each.metadata.labels or {}).get("podsvid.io/trust-domain", "")


def _certificates(pem: str) -> frozenset[str]:
    return frozenset("".join(each.split()) for each in _PEM.findall(pem))


def _at(each: Mapping[str, Any], name: str) -> datetime | None:
    try:
        return datetime.fromisoformat(str(each.get(name) or "")).astimezone(UTC)
    except ValueError:
        return None


def _some(names: Sequence[str], more: int = 0) -> str:
    left = len(names) - MOST_NAMED + more if len(names) > MOST_NAMED else more
    return ", ".join(names[:MOST_NAMED]) + (f" and {left} more" if left > 0 else "")


def _time(span: timedelta) -> str:
    return f"{span // timedelta(seconds=1)} s"


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
    *(_kubernetes, _agents, _signers, _versions, _drivers, _registered, _clocks, _definitions, _policies),
    *(_authorities, _bundles),
)
