"""The words about a workload's state: one word, CSI's condition of its volume, and what all of them hold."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from agent.workload.workload import Workload
from csi.model import Condition
from svid.identity import Trust

# A renewal that is this late is worth a person's look.
OVERDUE = timedelta(seconds=60)


def state(workload: Workload, failures: int, now: datetime) -> str:
    """One word of agent.metrics.STATES; the worst that is true. `failures`: renewals that failed in a row."""
    identity = workload.feed.current
    if identity is None:
        return "waiting"
    if identity.expires_at <= now:
        return "expired"
    if identity.withheld is not None and not failures:
        return "waiting"
    if _closed(workload):
        return "closed"
    if _unwritten(workload):
        return "unwritten"
    if failures:
        return "retrying"
    return "overdue" if _overdue(workload, now) else "ok"


def condition(workload: Workload | None, failures: int, now: datetime) -> Condition:
    """Whether the volume's SVID is as fresh as it should be; None is a workload that is not known."""
    identity = workload.feed.current if workload else None
    if workload is None or identity is None:
        return Condition(True, "the SVID could not be picked up after a restart; a new one is being minted")
    left = f"valid until {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}"
    held = identity.withheld
    if identity.expires_at <= now:
        why = f": {held.why}" if held is not None and held.refused else ""
        return Condition(True, f"the SVID expired at {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}{why}")
    if held is not None:
        what = "the authority refuses the pod another SVID" if held.refused else "the SVID is not handed out"
        return Condition(True, f"{what}: {held.why}; the files hold one {left}")
    kept = workload.kept_apart
    if kept is not None and kept.closed:
        return Condition(True, f"{kept.reason}: {kept.message}; the files hold an SVID {left}")
    if _unwritten(workload):
        return Condition(True, f"the newest SVID could not be written; the files hold an older one, {left}")
    if failures or _overdue(workload, now):
        return Condition(True, f"the SVID is past its renewal window after {failures} failed attempts; {left}")
    notice = f"; {workload.notice}" if workload.notice else ""
    if kept is not None:
        notice += f"; {kept.reason}: {kept.message}"
    return Condition(False, f"SVID {identity.default.serial} {left}{notice}")


def holdings(workloads: Iterable[Workload], trust: Trust) -> Counter[str] | None:
    """How many SVIDs there are by X.509 authority; None while files of one of them do not hold `trust` yet.

    Nobody waits for files that their own pod keeps from being written.
    """
    svids: Counter[str] = Counter()
    for workload in workloads:
        identity = workload.feed.current
        if identity is None:
            continue
        behind = workload.written is None or workload.written.identity.trust != identity.part_of(trust)
        if behind and not workload.directory.is_kept_full():
            return None
        svids[identity.default.authority_id] += 1
    return svids


def _closed(workload: Workload) -> bool:
    kept = workload.kept_apart
    return kept is not None and kept.closed


def _unwritten(workload: Workload) -> bool:
    return workload.written is None or workload.written.identity != workload.feed.current


def _overdue(workload: Workload, now: datetime) -> bool:
    return workload.renew_at is not None and now > workload.renew_at + OVERDUE
