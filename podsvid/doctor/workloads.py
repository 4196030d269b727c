"""By which rules podsvid's own workloads and their pods are wrong."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from podsvid.doctor import objects
from podsvid.doctor.finding import Finding, some, utc
from podsvid.doctor.looking import Seen
from runtime.version import VERSION

# Kubelet's words for a container that does not start by waiting.
STUCK: Final = frozenset(
    {
        *("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    }
)


def agents(seen: Seen, _: datetime) -> Iterator[Finding]:
    """The DaemonSet."""
    if seen.agents is None:
        if "the agents' DaemonSet" not in seen.missing:
            yield Finding("AGENTS_MISSING", f"namespace {seen.namespace} has no DaemonSet podsvid-agent")
        return
    status = seen.agents.status
    wanted = status.desired_number_scheduled
    away = {each.metadata.name for each in seen.nodes or () if not each.ready}
    excused = [each for each in live(seen, "agent") if not each.ready and each.spec.node_name in away]
    if excused:
        yield Finding("NODES_AWAY", some(sorted(each.spec.node_name for each in excused)))
    if not wanted and seen.nodes != ():
        yield Finding("AGENTS_NOT_READY", f"no node is to run an agent; {_described(seen, 'daemonset', 'agent')}")
    lacking = wanted - status.number_ready - len(excused)
    if lacking > 0:
        unready = [each for each in live(seen, "agent") if not each.ready and each not in excused]
        text = f"{status.number_ready} of {wanted} agents are ready"
        text += f" ({len(excused)} are on nodes that are not)" if excused else ""
        without = wanted - sum(1 for _ in live(seen, "agent"))
        if seen.pods is not None and without > 0:
            text += f"; {without} have no pod: {_described(seen, 'daemonset', 'agent')}"
        yield Finding("AGENTS_NOT_READY", text + _why(seen, unready), _names(unready))
    elif wanted:
        yield from _stuck(seen, "agent", away)
    updated = status.updated_number_scheduled
    if updated is not None and updated < wanted:
        yield Finding("UPGRADE_UNFINISHED", f"{updated} of {wanted} agents are as the DaemonSet is now")
    for container in seen.agents.spec.template.spec.containers:
        pods = [each for each in container.volume_mounts or () if each.mount_path.rstrip("/").endswith("/pods")]
        if container.name == "agent" and not any(each.mount_propagation == "Bidirectional" for each in pods):
            where = f"its mount of {pods[0].mount_path}" if pods else "it has no mount of kubelet's pods, which"
            said = pods[0].mount_propagation or "None" if pods else "None"
            yield Finding("MOUNT_NOT_SHARED", f"DaemonSet podsvid-agent: {where} has mountPropagation {said}")


def signers(seen: Seen, _: datetime) -> Iterator[Finding]:
    """The Deployment."""
    if seen.signers is None:
        if "the signers' Deployment" not in seen.missing:
            yield Finding("SIGNERS_MISSING", f"namespace {seen.namespace} has no Deployment podsvid-signer")
        return
    wanted = 1 if seen.signers.spec.replicas is None else seen.signers.spec.replicas
    ready = seen.signers.status.ready_replicas
    failing = _condition(seen.signers, "ReplicaFailure", "True")
    held = _condition(seen.signers, "Progressing", "False")
    if ready < max(wanted, 1):
        unready = [each for each in live(seen, "signer") if not each.ready]
        text = f"{ready} of {wanted} signers are ready{f'; {failing}' if failing else ''}{_why(seen, unready)}"
        yield Finding("SIGNERS_TOO_FEW" if ready else "SIGNERS_NOT_READY", text, _names(unready))
    elif failing or held:
        yield Finding("UPGRADE_STUCK", f"Deployment podsvid-signer: {failing or held}")
    else:
        yield from _stuck(seen, "signer", frozenset())


def versions(seen: Seen, _: datetime) -> Iterator[Finding]:
    """Images."""
    images: dict[str, list[str]] = defaultdict(list)
    for component in ("agent", "signer"):
        for pod in live(seen, component):
            for container in pod.spec.containers:
                if container.name == component:
                    images[container.image].append(pod.metadata.name)
    if len(images) > 1:
        each = (f"{image} ({some(pods)})" for image, pods in sorted(images.items()))
        yield Finding("VERSIONS_DIFFER", "; ".join(each))
    labelled = {each.metadata.version for each in (seen.agents, seen.signers) if each}
    installed = sorted(labelled - {"", VERSION})
    if installed:
        yield Finding("VERSION_OTHER", f"installed is {some(installed)}; this command is of {VERSION}")


def live(seen: Seen, component: str) -> Iterator[objects.Pod]:
    """Pods that are to run. Those that failed or were evicted are left lying for days, beside one in their place."""
    for pod in seen.pods or ():
        ended = pod.status.phase in ("Failed", "Succeeded") or pod.metadata.deletion_timestamp is not None
        if pod.component == component and not ended:
            yield pod


def _stuck(seen: Seen, component: str, away: "frozenset[str] | set[str]") -> Iterator[Finding]:
    """Of an upgrade that waits for its first pod: all that were there before are ready."""
    found = [
        each
        for each in live(seen, component)
        if not each.ready
        and each.spec.node_name not in away
        and any(
            status.state.waiting is not None and status.state.waiting.reason in STUCK
            for status in each.status.container_statuses or ()
        )
    ]
    if found:
        yield Finding("UPGRADE_STUCK", _why(seen, found).removeprefix("; "), _names(found))


def _condition(workload: objects.Workload, name: str, status: str) -> str:
    wrong = (each for each in workload.status.conditions or () if (each.type, each.status) == (name, status))
    return next((f"{each.reason} {each.message}".strip() for each in wrong), "")


def _described(seen: Seen, kind: str, component: str) -> str:
    return f"`kubectl -n {seen.namespace} describe {kind} podsvid-{component}` says why"


def _names(pods: list[objects.Pod]) -> frozenset[str]:
    return frozenset(each.metadata.name for each in pods)


def _why(seen: Seen, pods: list[objects.Pod]) -> str:
    """What Kubernetes says of the first of them."""
    if not pods:
        return ""
    pod = pods[0]
    said = [
        f"{state.reason} {state.message}".strip()
        for each in pod.status.container_statuses or ()
        for state in (each.state.waiting, each.state.terminated, each.last_state.terminated)
        if state is not None and state.reason
    ]
    said += [each.message for each in pod.status.conditions or () if each.status == "False" and each.message]
    if pod.mounting:
        ours = (each for each in seen.unmounted or () if each.involved_object.name == pod.metadata.name)
        newest = max(ours, key=_last_seen, default=None)
        said += [newest.message] if newest is not None else []
    on = f" on node {pod.spec.node_name}" if pod.spec.node_name else ""
    return f"; pod {pod.metadata.name}{on}: {'; '.join(dict.fromkeys(said)) or pod.status.phase or 'nothing is said'}"


def _last_seen(event: objects.Event) -> datetime:
    return utc(event.last_timestamp) if event.last_timestamp is not None else datetime.min.replace(tzinfo=UTC)
