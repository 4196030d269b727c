"""The way back from a theft: what was in the Secret is abandoned, and only keys made afterwards are put in service.

When a person says that everything is stolen, the state records which authorities there are. Those that are prepared are
dropped, those that are old are tainted, and the active one signs until its successor is known to all agents, or a bound
has passed: running pods must get SVIDs of the new one. Then it is tainted, too, and all leave as soon as no agent holds
an SVID of them, or a second bound has passed. Nothing here waits, and nothing counts the state's changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from signer.authority.slots import KINDS, JwtSlot, Slot, Stage, X509Slot
from signer.authority.state import Abandoned, AuthorityState, Goal

# Of what has left the trust bundle so many are remembered, for people.
MAX_REMEMBERED = 32


def declared(
    state: AuthorityState, kinds: Sequence[str], ends: Callable[[Slot], datetime], now: datetime
) -> tuple[AuthorityState, tuple[Abandoned, ...]]:
    """Everything of these kinds is stolen: the state that says so, and what is abandoned by that.

    None is, and the state is the same, while a recovery runs and nothing was made since. `ends` says when the last SVID
    of an authority that signs no more must have ended.
    """
    abandoned: list[Abandoned] = []
    goals = set(state.goals)
    after: dict[str, tuple[Slot, ...]] = {kind: state.slots(kind) for kind in KINDS}
    for kind in kinds:
        known = state.abandoned_ids(kind)
        fresh = [slot for slot in state.slots(kind) if slot.id not in known]
        if not fresh:
            continue
        abandoned += [_abandoned(kind, slot, ends, now) for slot in fresh]
        after[kind] = tuple(
            replace(slot, stage=Stage.TAINTED) if slot.stage is Stage.OLD else slot
            for slot in state.slots(kind)
            if slot.stage is not Stage.PREPARED
        )
        goals = {goal for goal in goals if goal.kind != kind} | {Goal(kind, True)}
    if not abandoned:
        return state, ()
    return (
        replace(
            state,
            x509=tuple(slot for slot in after["x509"] if isinstance(slot, X509Slot)),
            jwt=tuple(slot for slot in after["jwt"] if isinstance(slot, JwtSlot)),
            goals=frozenset(goals),
            abandoned=_remembered((*state.abandoned, *abandoned), after),
        ),
        tuple(abandoned),
    )


def signs_no_more(state: AuthorityState, kind: str, authority_id: str, svids_end: datetime) -> tuple[Abandoned, ...]:
    """The record, when an authority that was abandoned, if it was, has issued its last SVID."""
    return tuple(
        replace(each, svids_end=svids_end) if (each.kind, each.authority_id) == (kind, authority_id) else each
        for each in state.abandoned
    )


def left(state: AuthorityState, kind: str, now: datetime, *, replaced: bool = False) -> AuthorityState:
    """The same, with those of the kind that are trusted no more recorded as such."""
    present = {slot.id for slot in state.slots(kind)}
    return replace(
        state,
        abandoned=tuple(
            replace(each, left_at=now, replaced=replaced)
            if each.kind == kind and each.left_at is None and each.authority_id not in present
            else each
            for each in state.abandoned
        ),
    )


def _abandoned(kind: str, slot: Slot, ends: Callable[[Slot], datetime], now: datetime) -> Abandoned:
    signed = slot.stage in (Stage.OLD, Stage.TAINTED)
    certified = None
    if isinstance(slot, X509Slot) and slot.authority.chain[0] not in slot.authority.bundle.x509_authorities:
        certified = slot.authority.not_after
    return Abandoned(
        kind,
        slot.id,
        now,
        svids_end=ends(slot) if signed else None,
        left_at=now if slot.stage is Stage.PREPARED else None,
        certified_until=certified,
    )


def _remembered(abandoned: Sequence[Abandoned], slots: dict[str, tuple[Slot, ...]]) -> tuple[Abandoned, ...]:
    present = {(kind, slot.id) for kind in KINDS for slot in slots[kind]}
    gone = [each for each in abandoned if (each.kind, each.authority_id) not in present]
    forgotten = set(gone[: max(len(gone) - MAX_REMEMBERED, 0)])
    return tuple(each for each in abandoned if each not in forgotten)
