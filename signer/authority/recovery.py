"""The way back from a theft: what was in the Secret is abandoned, and only keys made afterwards are put in service.

When a person says that everything is stolen, the state records which authorities there are. Those that are prepared are
dropped, those that are old are tainted, and the active one signs until its successor is known to all agents, or a bound
has passed: running pods must get SVIDs of the new one. Then it is tainted, too, and all leave as soon as no agent holds
an SVID of them, or a second bound has passed. Nothing here waits, and nothing counts the state's changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from signer.authority.abandonments import Record
from signer.authority.revoked import EVER, RevokedRoot
from signer.authority.slots import KINDS, JwtSlot, Slot, Stage, X509Slot
from signer.authority.state import Abandoned, AuthorityState, Goal

# Of what has left the trust bundle so many are remembered, for people.
MAX_REMEMBERED = 32


@dataclass(frozen=True, slots=True)
class Returned:
    """What a state has in service although it was abandoned, as an older Secret has it.

    `drop`: by kind, what nobody trusts any more: it is never trusted again, not for a moment. `declare`: kinds of which
    something is still trusted, so that SVIDs of it have to be replaced first. `revoked`: roots of the CA above that
    were declared stolen, which the state does not know of.
    """

    drop: Mapping[str, frozenset[str]]
    declare: tuple[str, ...]
    revoked: tuple[RevokedRoot, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.drop or self.declare or self.revoked)


def returned(state: AuthorityState, record: Record, known: AuthorityState | None) -> Returned:
    """What of a stored state the record says was abandoned, and the state does not say so, or has not done yet.

    `known` is what this replica goes by already: what is trusted there does not come back, whatever the record says.
    None where it has just started: then it knows of nothing that is newer than the record.
    """
    drop: dict[str, frozenset[str]] = {}
    declare: list[str] = []
    for kind in KINDS:
        ids = {slot.id for slot in state.slots(kind)} | requested(state, kind)
        trusted = {slot.id for slot in known.slots(kind)} if known is not None else set()
        earlier = known is None and record.before_the_theft(state, kind)
        gone = frozenset(ids if earlier and record.over(kind) else (ids - trusted) & record.left(kind))
        if gone:
            drop[kind] = gone
        rest = ids - gone - state.abandoned_ids(kind)
        if (rest and earlier) or rest & record.ids(kind):
            declare.append(kind)
    said = {each.key: each.said_at for each in state.revoked}
    # Nothing but a state says that one may be trusted again: the record has fewer that may write it.
    unknown = (each for each in record.roots if each.in_force and each.said_at > said.get(each.key, EVER))
    return Returned(drop, tuple(declare), tuple(unknown))


def dropped(
    state: AuthorityState,
    kind: str,
    ids: frozenset[str],
    record: Record,
    ends: Callable[[Slot], datetime],
    now: datetime,
) -> tuple[Abandoned, ...]:
    """What is to be remembered of authorities of a kind that leave at once."""
    abandoned: list[Abandoned] = []
    for slot in state.slots(kind):
        if slot.id in ids:
            known = record.named(kind, slot.id)
            unknown = replace(_abandoned(kind, slot, ends, now), svids_end=ends(slot))
            found = known or unknown
            abandoned.append(replace(found, left_at=found.left_at or now, certified_until=unknown.certified_until))
    others = [each for each in state.abandoned if each.kind != kind or each.authority_id not in ids]
    after = {each: tuple(slot for slot in state.slots(each) if each != kind or slot.id not in ids) for each in KINDS}
    return _remembered((*others, *abandoned), after)


def declared(
    state: AuthorityState, kinds: Sequence[str], ends: Callable[[Slot], datetime], now: datetime
) -> tuple[AuthorityState, tuple[Abandoned, ...]]:
    """Everything of these kinds is stolen: the state that says so, and what is abandoned by that.

    None is, and the state is the same, while a recovery runs and nothing was made since. `ends` says when the last SVID
    of an authority that signs no more must have ended.
    """
    abandoned: list[Abandoned] = []
    goals, request = set(state.goals), state.request
    after: dict[str, tuple[Slot, ...]] = {kind: state.slots(kind) for kind in KINDS}
    for kind in kinds:
        known = state.abandoned_ids(kind)
        fresh = [slot for slot in state.slots(kind) if slot.id not in known]
        if not fresh and not requested(state, kind):
            continue
        abandoned += [_abandoned(kind, slot, ends, now) for slot in fresh]
        if kind == "x509" and request is not None:
            # Its key was here, and the CA may certify it all the same.
            until = now + request.lifetime
            abandoned.append(Abandoned(kind, request.authority_id, now, left_at=now, certified_until=until))
            request = None
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
            request=request,
            abandoned=_remembered((*state.abandoned, *abandoned), after),
        ),
        tuple(abandoned),
    )


def requested(state: AuthorityState, kind: str) -> frozenset[str]:
    """The id that an authority of the kind will have, of which there is but a key and a request."""
    return frozenset() if kind != "x509" or state.request is None else frozenset({state.request.authority_id})


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
