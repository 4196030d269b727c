"""By which rules drivers, and what nodes say of them and of the time, are wrong."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from podsvid.doctor import objects
from podsvid.doctor.finding import Finding, seconds, some, utc
from podsvid.doctor.looking import Seen
from podsvid.doctor.workloads import live

TAINT: Final = "podsvid.io/agent-not-ready"
# Kubelets renew their leases every ten seconds; what is later is a clock, or a kubelet that hangs. Of a clock that is
# ahead, two minutes cost nobody anything.
AHEAD, BEHIND = timedelta(seconds=60), timedelta(seconds=90)
# In which a new node gets its agent, image and all.
JOINING = timedelta(minutes=10)


def drivers(seen: Seen, _: datetime) -> Iterator[Finding]:
    """CSIDriver objects."""
    if seen.drivers is None:
        return
    if not _own(seen):
        yield Finding("DRIVER_MISSING", "no CSIDriver object has the label app.kubernetes.io/name=podsvid")
    wanted = _audiences(seen)
    for driver in _own(seen):
        spec = driver.spec
        audiences = {each.audience for each in spec.token_requests or ()}
        wrong = [
            text
            for text, good in (
                ("attachRequired is not false", not spec.attach_required),
                ("podInfoOnMount is not true", spec.pod_info_on_mount),
                ("requiresRepublish is not true", spec.requires_republish),
                ("tokenRequests is empty", bool(audiences)),
                (f"tokenRequests lacks the signer's audience {some(sorted(wanted))}",
                 not audiences or not wanted or bool(audiences & wanted)),
                ("volumeLifecycleModes is without Ephemeral", "Ephemeral" in (spec.volume_lifecycle_modes or ())),
            )
            if not good
        ]  # fmt: skip
        if wrong:
            yield Finding("DRIVER_WRONG", f"CSIDriver {driver.metadata.name}: {', '.join(wrong)}")


def registered(seen: Seen, now: datetime) -> Iterator[Finding]:
    """Whether kubelets know the drivers of agents that are ready, and nodes are free for pods then."""
    if seen.csi_nodes is None or seen.pods is None:
        return
    agents = {each.spec.node_name: each.ready for each in live(seen, "agent")}
    ready = {name for name, is_ready in agents.items() if is_ready}
    on = _drivers_by_node(seen)
    for driver in _own(seen):
        lacking = sorted(node for node in ready if driver.metadata.name not in on.get(node, frozenset()))
        if lacking:
            text = f"{driver.metadata.name} on {some(lacking)}, whose agent is ready"
            yield Finding("DRIVER_UNREGISTERED", text, frozenset(lacking))
    names = {each.metadata.name for each in _own(seen)}
    tainted = [
        each for each in seen.nodes or () if each.ready and any(one.key == TAINT for one in each.spec.taints or ())
    ]
    left = sorted(
        each.metadata.name
        for each in tainted
        if each.metadata.name in ready and names & on.get(each.metadata.name, frozenset())
    )
    if left:
        yield Finding("TAINT_LEFT", f"on {some(left)}", frozenset(left))
    alone = sorted(
        each.metadata.name
        for each in tainted
        if each.metadata.name not in agents
        and each.metadata.creation_timestamp is not None
        and now - utc(each.metadata.creation_timestamp) > JOINING
    )
    if alone and seen.agents is not None:
        yield Finding("TAINT_LEFT", f"on {some(alone)}, where no agent's pod is", frozenset(alone))


def clocks(seen: Seen, _: datetime) -> Iterator[Finding]:
    """Of nodes that are ready, by what their kubelets write."""
    if seen.heard is None:
        return
    ready = {each.metadata.name for each in seen.nodes or () if each.ready}
    for lease in seen.leases or ():
        node = lease.metadata.name
        if lease.spec.renew_time is None or node not in ready:
            continue
        renewed = utc(lease.spec.renew_time)
        if renewed - seen.heard > AHEAD:
            yield Finding("CLOCKS_DIFFER", f"node {node} is {seconds(renewed - seen.heard)} ahead of the API server")
        elif seen.heard - renewed > BEHIND:
            late = seconds(seen.heard - renewed)
            yield Finding("CLOCKS_DIFFER", f"node {node} is ready, and {late} behind the API server by its lease")


def _own(seen: Seen) -> tuple[objects.Driver, ...]:
    """Drivers of this installation: a cluster may have another podsvid beside it."""
    mine = seen.agents.metadata.instance if seen.agents else ""

    def is_own(each: objects.Labelled) -> bool:
        of = (each.annotations or {}).get("meta.helm.sh/release-namespace", "")
        return of in ("", seen.namespace) and (not mine or each.instance in ("", mine))

    return tuple(each for each in seen.drivers or () if is_own(each.metadata))


def _audiences(seen: Seen) -> frozenset[str]:
    """Of the token with which agents prove themselves to the signer; it takes no other audience of pods."""
    volumes = (seen.agents.spec.template.spec.volumes if seen.agents else None) or ()
    return frozenset(
        source.service_account_token.audience
        for volume in volumes
        if volume.name == "token" and volume.projected is not None
        for source in volume.projected.sources or ()
        if source.service_account_token is not None and source.service_account_token.audience
    )


def _drivers_by_node(seen: Seen) -> dict[str, frozenset[str]]:
    return {
        each.metadata.name: frozenset(driver.name for driver in each.spec.drivers or ())
        for each in seen.csi_nodes or ()
    }
