"""What was abandoned and came back with an older Secret is taken out again, and something else signs in its place."""

from dataclasses import replace
from datetime import datetime
from functools import partial

from signer.authority import recovery, succession
from signer.authority.abandonments import Record
from signer.authority.made import Maker
from signer.authority.request import X509Request
from signer.authority.slots import JwtSlot, Slot, Stage, X509Slot
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.authority.trial import Cause


async def without(
    state: AuthorityState,
    kind: str,
    ids: frozenset[str],
    record: Record,
    make: Maker,
    policy: LifecyclePolicy,
    now: datetime,
) -> AuthorityState:
    """The state without these of a kind. Raises SignerError."""
    ends = partial(succession.svids_end, policy=policy, now=now)
    kept = [slot for slot in state.slots(kind) if slot.id not in ids]
    goals, request = state.goals, state.request
    if request is not None and kind == "x509" and request.authority_id in ids:
        request = None
    if not any(slot.stage is Stage.ACTIVE for slot in kept):
        # One that agents have is better than one that they have not; but it must not be stolen itself.
        waiting = [slot for slot in kept if slot.stage is Stage.PREPARED and slot.id not in record.ids(kind)]
        successor: Slot | X509Request | None = waiting[0] if waiting else None
        if successor is None and kind == "x509":
            successor = request or await make.x509(state, Cause.THEFT, now)
        elif successor is None and policy.jwt_algorithm is not None:
            successor = await make.jwt(state, now)
        kept = [slot for slot in kept if slot.stage is not Stage.PREPARED]
        if successor is None:
            kept = []
        elif isinstance(successor, X509Request):
            # Nobody signs until the CA elsewhere has answered: the keys that there were are stolen.
            kept, request = [], successor
        else:
            kept.append(replace(successor, stage=Stage.ACTIVE, activated_at=now, longest=policy.usual(kind)))
        goals = frozenset(goal for goal in goals if goal.kind != kind)
    return replace(
        state,
        x509=tuple(slot for slot in kept if isinstance(slot, X509Slot)) if kind == "x509" else state.x509,
        jwt=tuple(slot for slot in kept if isinstance(slot, JwtSlot)) if kind == "jwt" else state.jwt,
        directives=tuple(each for each in state.directives if each.authority_id not in ids),
        goals=goals,
        request=request,
        abandoned=recovery.dropped(state, kind, ids, record, ends, now),
    )
