"""What becomes of an authority when another one signs: old or tainted, what it issued re-issued, until when trusted."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from signer.authority import recovery
from signer.authority.slots import JwtSlot, Slot, Stage, X509Slot
from signer.authority.state import AuthorityState, Directive
from signer.authority.timing import FORCED_GRACE, LifecyclePolicy


def activated(state: AuthorityState, kind: str, policy: LifecyclePolicy, now: datetime, svids: int) -> AuthorityState:
    """The prepared authority signs. Everything before it is tainted where a theft is what it was made for.

    `svids`: how many are held in all.
    """
    forced = state.forced(kind)
    goals = frozenset(goal for goal in state.goals if goal.kind != kind)
    active = state.find(kind, Stage.ACTIVE)
    assert active is not None
    end = svids_end(replace(active, stage=Stage.OLD), policy, now)
    known = recovery.signs_no_more(state, kind, active.id, end)
    if kind == "jwt":
        jwt = _activated_jwt(state.jwt, policy, now, end, forced)
        return recovery.left(replace(state, jwt=jwt, goals=goals, abandoned=known), kind, now)
    slots: list[X509Slot] = []
    directives = state.directives
    for slot in state.x509:
        if slot.stage is Stage.PREPARED:
            slots.append(replace(slot, stage=Stage.ACTIVE, activated_at=now, longest=policy.usual(kind)))
        elif forced and slot.stage in (Stage.ACTIVE, Stage.TAINTED):
            leaving = tainted(slot, policy, now, svids)
            slots.append(leaving)
            directives = directed(directives, re_issue(leaving, now))
        elif slot.stage is Stage.ACTIVE:
            slots.append(replace(slot, stage=Stage.OLD, ends_at=end))
            window = policy.spread(policy.reissue_window, svids, slot.longest)
            directives = directed(directives, Directive(slot.id, now, now + window))
        else:
            slots.append(slot)
    return replace(state, x509=tuple(slots), directives=directives, goals=goals, abandoned=known)


def _activated_jwt(
    slots: Sequence[JwtSlot], policy: LifecyclePolicy, now: datetime, end: datetime, forced: bool
) -> tuple[JwtSlot, ...]:
    after: list[JwtSlot] = []
    for slot in slots:
        if slot.stage is Stage.PREPARED:
            after.append(replace(slot, stage=Stage.ACTIVE, activated_at=now, longest=policy.usual("jwt")))
        elif forced and slot.stage in (Stage.ACTIVE, Stage.TAINTED):
            # Tokens are handed out by the minute: who stops trusting a compromised key need not wait for them.
            continue
        elif slot.stage is Stage.ACTIVE:
            after.append(replace(slot, stage=Stage.OLD, ends_at=end))
        else:
            after.append(slot)
    return tuple(after)


def svids_end(slot: Slot, policy: LifecyclePolicy, now: datetime) -> datetime:
    """When the last SVID must have ended of an authority that signs no more, from `now` on at the latest.

    By what it issued, not by today's settings, which may be lower or higher.
    """
    longest = slot.longest or policy.most("x509" if isinstance(slot, X509Slot) else "jwt")
    end = now + longest + policy.overlap
    return min(slot.ends_at, end) if slot.stage is Stage.OLD and slot.ends_at is not None else end


def tainted(slot: X509Slot, policy: LifecyclePolicy, now: datetime, svids: int) -> X509Slot:
    """It leaves the trust bundle as soon as that many can be renewed; one that is leaving gets no more time."""
    bound = now + policy.spread(policy.forced_window, svids, slot.longest) + FORCED_GRACE
    return replace(slot, stage=Stage.TAINTED, ends_at=min(bound, slot.ends_at or bound))


def re_issue(leaving: X509Slot, now: datetime) -> Directive:
    """All SVIDs of a tainted one in time before it leaves, which may be sooner than the whole window."""
    assert leaving.ends_at is not None
    return Directive(leaving.id, now, max(now, leaving.ends_at - FORCED_GRACE))


def directed(directives: Sequence[Directive], directive: Directive) -> tuple[Directive, ...]:
    """With another directive, in the place of one for the same authority."""
    return (*(each for each in directives if each.authority_id != directive.authority_id), directive)
