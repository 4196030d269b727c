"""The steps of an authority's life, as functions from state to state.

prepare: a new authority is published and signs nothing. activate: once every live agent has acknowledged that
publishing, or a bound has passed, it signs; the one before is old, its SVIDs are re-issued, spread over a window.
retire: when its last SVID has ended, it leaves the trust bundle. A forced rotation, after a theft, is the same in
minutes, of everything that was there when it was asked for (recovery.py): those are tainted and leave as soon as no
agent holds an SVID of them, or a bound has passed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from signer.authority import recovery, revocation, settling, succession
from signer.authority.abandonments import Record
from signer.authority.knowledge import Acks
from signer.authority.made import Maker
from signer.authority.mending import without
from signer.authority.request import X509Request
from signer.authority.revoked import RevokedRoot, joined
from signer.authority.slots import KINDS, JwtSlot, Slot, Stage, X509Slot
from signer.authority.state import AuthorityState, Goal, sequence_at
from signer.authority.timing import LifecyclePolicy
from signer.authority.trial import Cause, cause_of
from signer.errors import TransitionRefused
from signer.keystore.keys import Keys
from signer.upstream.certify import Upstream
from signer.upstream.remote import Elsewhere
from svid.spiffeid import TrustDomain

_Slot = TypeVar("_Slot", X509Slot, JwtSlot)


@dataclass(frozen=True, slots=True)
class Step:
    """prepare, activate, retire, remove, withdraw or rewrite; `authority_id` for retire; `reason` for people."""

    action: str
    kind: str
    reason: str
    authority_id: str = ""


class Life:
    """Applies one policy; the only part that waits is `above`, and a CA elsewhere is not waited for: it is asked by
    others (requests.py). `svids`: about how many are held in the cluster."""

    def __init__(
        self,
        policy: LifecyclePolicy,
        above: Upstream | Elsewhere,
        trust_domain: TrustDomain,
        svids: Callable[[], int] = lambda: 0,
        keys: Keys | None = None,
    ) -> None:
        self.policy = policy
        self.keys = keys or Keys()
        self._make = Maker(policy, above, trust_domain, self.keys)
        self._trust_domain = trust_domain
        self.svids = svids

    async def first(self, now: datetime, revoked: tuple[RevokedRoot, ...] = ()) -> AuthorityState:
        """The state of a cluster without any. The sequence starts with the time: above that of one that was lost."""
        usual = self.policy.usual
        made, key = await self._make.first(now)
        x509, request = self._serving(made, now)
        jwt: tuple[JwtSlot, ...] = ()
        if key is not None:
            jwt = (replace(key, stage=Stage.ACTIVE, activated_at=now, longest=usual("jwt")),)
        state = AuthorityState(self._trust_domain, sequence_at(now), x509, jwt, request=request, revoked=revoked)
        return await self._make.fit(state, None, now)

    async def again(self, state: AuthorityState, now: datetime) -> AuthorityState:
        """An unborn state with another key: the CA above is another, or did not want that one. Raises SignerError."""
        x509, request = self._serving(await self._make.x509(None, Cause.FIRST, now), now)
        return await self._make.fit(_changed(state, x509=x509, request=request), state, now)

    def asks(self, request: X509Request) -> bool:
        """Whether that is a request to the CA above."""
        return self._make.is_asked(request)

    def due(self, state: AuthorityState, acks: Acks, now: datetime, kinds: Sequence[str] = KINDS) -> Step | None:
        """The first step of these kinds that is due; None while there is but to wait, or nobody knows for how long.

        A clock that was set ahead would end trust in what is in use, one that was set back would record an end that
        has passed once it is right: where it is doubted no step is taken, whatever it is decided by.
        """
        if acks.untimely:
            return None
        if state.outdated:
            return Step("rewrite", "x509", "an earlier version wrote the state")
        for kind in kinds:
            step = self._due(state, kind, acks, now)
            if step is not None:
                return step
        return None

    async def do(self, state: AuthorityState, step: Step, now: datetime) -> AuthorityState:
        """The state after `step`. Raises SignerError."""
        if step.action == "prepare":
            return (await self.prepare(state, step.kind, now, by_time=True))[0]
        if step.action == "activate":
            return _changed(succession.activated(state, step.kind, self.policy, now, self.svids()))
        if step.action == "withdraw":
            return _changed(state, request=None)
        if step.action == "rewrite":
            return self._rewritten(state, now)
        if step.action == "remove":
            goals = frozenset(goal for goal in state.goals if goal.kind != step.kind)
            return _changed(recovery.left(replace(state, jwt=(), goals=goals), step.kind, now))
        bounds = [slot.ends_at for slot in state.slots(step.kind) if slot.id == step.authority_id]
        # It leaves before its bound only because nobody holds an SVID of it.
        early = bool(bounds) and bounds[0] is not None and now < bounds[0]
        return _without(state, step.kind, step.authority_id, now, replaced=early)

    async def prepare(
        self, state: AuthorityState, kind: str, now: datetime, *, by_time: bool = False
    ) -> tuple[AuthorityState, str]:
        """Publish a new authority; `by_time`: nobody wants it now. Raises TransitionRefused, SignerError."""
        if state.find(kind, Stage.PREPARED) is not None:
            raise TransitionRefused(f"a new {kind} authority is prepared already; activate or revoke it first")
        if kind == "x509":
            if state.request is not None:
                raise TransitionRefused(f"a new x509 authority is requested of {state.request.at} already; wait for it")
            made = await self._make.x509(state, cause_of(state, by_time=by_time), now, by_person=not by_time)
            if isinstance(made, X509Request):
                return _changed(state, request=made), f"requested an x509 authority of {made.at}; see authority show"
            after = await self._make.fit(_changed(state, x509=(*state.x509, made)), state, now)
            return after, f"prepared x509 authority {made.id}"
        if self.policy.jwt_algorithm is None:
            raise TransitionRefused("this signer issues no JWT-SVIDs; start it with --jwt-svids")
        key = await self._make.jwt(state, now)
        if not state.jwt:
            first = replace(key, stage=Stage.ACTIVE, activated_at=now, longest=self.policy.usual(kind))
            return _changed(state, jwt=(first,)), f"made the first jwt authority {key.id}"
        return _changed(state, jwt=(*state.jwt, key)), f"prepared jwt authority {key.id}"

    def activate(
        self, state: AuthorityState, kind: str, acks: Acks, now: datetime, *, forced: bool
    ) -> tuple[AuthorityState, str]:
        """Sign with the prepared authority. Raises TransitionRefused, unless `forced` while agents lack it."""
        prepared = state.find(kind, Stage.PREPARED)
        if prepared is None:
            raise TransitionRefused(f"no {kind} authority is prepared; prepare one first")
        if _over(prepared, now):
            raise TransitionRefused(f"{prepared.id} has ended; revoke it and prepare another")
        if acks.waiting and not forced:
            raise TransitionRefused(
                f"{acks.lacking} would refuse its SVIDs: not acknowledged yet; wait, or use --forced"
            )
        if acks.unknown and not forced:
            raise TransitionRefused(f"nobody knows yet who would refuse its SVIDs: {acks.unknown}; or use --forced")
        if not forced:
            settling.check(state, kind, self.policy, now)
        return _changed(
            succession.activated(state, kind, self.policy, now, self.svids())
        ), f"activated {kind} authority {prepared.id}"

    def revoke(
        self, state: AuthorityState, kind: str, authority_id: str, now: datetime, *, forced: bool
    ) -> tuple[AuthorityState, str]:
        """Stop trusting an authority that does not sign. Raises TransitionRefused."""
        slot = next((slot for slot in state.slots(kind) if slot.id == authority_id), None)
        if slot is None:
            raise TransitionRefused(f"there is no {kind} authority {authority_id[:80]!r}; see authority show")
        if slot.stage is Stage.ACTIVE:
            raise TransitionRefused("the active authority cannot be revoked; use: authority rotate --forced")
        if forced or slot.stage is Stage.PREPARED or kind == "jwt":
            return _without(state, kind, slot.id, now), f"{kind} authority {slot.id} is no longer trusted"
        if slot.stage is Stage.TAINTED:
            return state, f"{kind} authority {slot.id} is being revoked already"
        assert isinstance(slot, X509Slot)
        tainted = succession.tainted(slot, self.policy, now, self.svids())
        return (
            _changed(
                state,
                x509=tuple(tainted if each.id == slot.id else each for each in state.x509),
                directives=succession.directed(state.directives, succession.re_issue(tainted, now)),
            ),
            f"{kind} authority {slot.id} leaves the trust bundle when its SVIDs are re-issued",
        )

    def asked(self, state: AuthorityState, kind: str, *, forced: bool, now: datetime) -> tuple[AuthorityState, str]:
        """Note that a person wants a rotation; the leader carries it out. Raises TransitionRefused."""
        if forced:
            return self.compromised(state, (kind,), now)
        if not state.slots(kind):
            raise TransitionRefused("this signer issues no JWT-SVIDs; start it with --jwt-svids")
        if any(goal.kind == kind for goal in state.goals):
            return state, f"a rotation of the {kind} authority is under way already"
        return _changed(state, goals=state.goals | {Goal(kind)}), f"rotation of the {kind} authority started"

    def compromised(self, state: AuthorityState, kinds: Sequence[str], now: datetime) -> tuple[AuthorityState, str]:
        """Abandon all that is there of these kinds; the leader replaces it. Raises TransitionRefused."""
        named = " and ".join(kind for kind in kinds if state.slots(kind))
        if not named:
            raise TransitionRefused("this signer issues no JWT-SVIDs; start it with --jwt-svids")
        ends = partial(succession.svids_end, policy=self.policy, now=now)
        after, abandoned = recovery.declared(state, kinds, ends, now)
        if not abandoned:
            return state, f"a forced rotation of the {named} authorities is under way already; nothing was made since"
        told = ", ".join(f"{each.kind} {each.authority_id}" for each in abandoned)
        outside = settling.still_accepted(self.policy) if any(each.kind == "jwt" for each in abandoned) else ""
        return _changed(after), f"forced rotation of the {named} authorities started; abandoned: {told}{outside}"

    async def freed(
        self, state: AuthorityState, found: recovery.Returned, record: Record, now: datetime
    ) -> AuthorityState:
        """The state without what was abandoned and came back; what signs instead is new. Raises SignerError."""
        before, known = state, joined(state.revoked, found.revoked)
        state = revocation.carried_out(replace(state, revoked=known), self.policy, now, self.svids())
        for kind, ids in found.drop.items():
            state = await without(state, kind, ids, record, self._make, self.policy, now)
        if "x509" in found.declare and state.unborn:
            # The key for which the first one is requested came back as well.
            state = await self.again(state, now)
        kinds = tuple(kind for kind in found.declare if state.slots(kind))
        if kinds:
            state, _ = self.compromised(state, kinds, now)
        return await self._make.fit(_changed(state), before, now)

    def promised(self, state: AuthorityState, kind: str, ttl: timedelta) -> AuthorityState:
        """The state that says that SVIDs of the active authority live as long as `ttl`; the same when it says so."""
        recorded = state.longest(kind)
        if recorded is None or ttl <= recorded:
            return state
        longest = self.policy.rounded(kind, ttl)
        if kind == "x509":
            return _changed(state, x509=tuple(_raised(slot, longest) for slot in state.x509))
        return _changed(state, jwt=tuple(_raised(slot, longest) for slot in state.jwt))

    def waits_for_agents(self, state: AuthorityState, now: datetime) -> bool:
        """Whether what agents acknowledge or hold matters to the next steps."""
        return settling.agents_matter(state, self.policy, now)

    def outlook(self, state: AuthorityState, acks: Acks, now: datetime) -> list[str]:
        """What happens next, for people."""
        lines = [f"held: {acks.untimely}"] if acks.untimely else []
        lines += [f"unknown: {acks.unknown}"] if acks.unknown else []
        for kind in KINDS:
            if not state.slots(kind):
                continue
            due = self._due(state, kind, acks, now)
            prepared = state.find(kind, Stage.PREPARED)
            request = state.request if kind == "x509" else None
            if due is not None:
                lines.append(f"{kind}: {due.action} now, {due.reason}")
            elif prepared is not None:
                when = settling.awaited(state, prepared, acks, self.policy, now)
                lines.append(f"{kind}: activate {prepared.id} {when}")
            elif request is not None:
                asked = f"{request.asked_at:%Y-%m-%dT%H:%M:%SZ}"
                lines.append(f"{kind}: waits for a certificate of {request.at}, wanted since {asked}")
            for slot in state.slots(kind):
                if slot.ends_at is not None:
                    what = (
                        "when no agent holds its SVIDs" if slot.stage is Stage.TAINTED else "when its last SVID ended"
                    )
                    lines.append(f"{kind}: stop trusting {slot.id} {what}, at {slot.ends_at:%Y-%m-%dT%H:%M:%SZ}")
            if prepared is None and due is None and request is None:
                lines.append(f"{kind}: prepare a new authority at {self._prepare_at(state, kind):%Y-%m-%dT%H:%M:%SZ}")
        return [*lines, *settling.outlook(state, self.policy, now), *revocation.outlook(state)]

    def _due(self, state: AuthorityState, kind: str, acks: Acks, now: datetime) -> Step | None:
        slots = state.slots(kind)
        if kind == "jwt" and self.policy.jwt_algorithm is None:
            return Step("remove", kind, "JWT-SVIDs are switched off") if slots else None
        if not slots:
            return Step("prepare", kind, "there is none")
        for slot in slots:
            if slot.ends_at is not None and slot.ends_at + self._patience(slot, acks) <= now:
                why = (
                    "it is revoked and its time is over"
                    if slot.stage is Stage.TAINTED
                    else "all that it signed has ended"
                )
                return Step("retire", kind, why, slot.id)
            # Nobody says which JWT-SVIDs are held.
            if slot.stage is Stage.TAINTED and kind == "x509" and acks.unused(slot.id):
                return Step("retire", kind, "it is revoked and no agent holds an SVID of it", slot.id)
        if kind == "x509" and state.request is not None:
            if self.asks(state.request):
                return None
            return Step("withdraw", kind, f"it was asked of {state.request.at}, which is not the CA above any more")
        prepared = state.find(kind, Stage.PREPARED)
        if prepared is not None:
            return self._activation_due(state, kind, prepared, acks, now)
        if state.wanted(kind):
            revoked = kind == "x509" and state.condemned
            return Step("prepare", kind, "the root above was revoked" if revoked else "a rotation was asked for")
        if now >= self._prepare_at(state, kind):
            return Step("prepare", kind, "the active one is due for replacement")
        return None

    def _activation_due(
        self, state: AuthorityState, kind: str, prepared: Slot, acks: Acks, now: datetime
    ) -> Step | None:
        if _over(prepared, now):
            return Step("retire", kind, "it ended before it signed", prepared.id)
        active = state.find(kind, Stage.ACTIVE)
        if active is not None and _over(active, now):
            return Step("activate", kind, "the active one has ended")
        # A bound is for agents that are known not to answer, not for a leader that knows nobody yet. Where that lasts,
        # the API server is away and nothing could be written; or a person sees why, and may force it.
        if not acks.unknown and now >= settling.bound(state, prepared, self.policy):
            why = f"although {acks.lacking} did not acknowledge" if acks.waiting else "its time has come"
            return Step("activate", kind, why)
        if acks.all_have_it and now >= settling.ready_at(state, prepared, self.policy):
            return Step("activate", kind, "all live agents have acknowledged it")
        return None

    def _patience(self, slot: Slot, acks: Acks) -> timedelta:
        """How much longer than its bound a revoked authority stays trusted while nobody knows who holds its SVIDs.

        After an outage of all signers the bound has passed and no SVID is renewed yet; and a stolen one must go.
        """
        return self.policy.ack_bound if slot.stage is Stage.TAINTED and acks.unknown else timedelta(0)

    def _prepare_at(self, state: AuthorityState, kind: str) -> datetime:
        active = state.find(kind, Stage.ACTIVE)
        assert active is not None
        if isinstance(active, X509Slot):
            if self.keys.misplaced(active.private_key):
                return active.prepared_at
            start = active.activated_at or active.prepared_at
            end = self.policy.serves_until(start, active.authority.not_after)
            return start + max((end - start) / 2 - settling.settle(state, kind, self.policy), timedelta(0))
        signing = state.active_jwt
        if signing is not None and (
            signing.algorithm is not self.policy.jwt_algorithm or self.keys.misplaced(signing.private_key)
        ):
            return active.prepared_at
        lead = settling.lead(kind, self.policy)
        return (active.activated_at or active.prepared_at) + max(self.policy.jwt_period - lead, timedelta(0))

    def _rewritten(self, state: AuthorityState, now: datetime) -> AuthorityState:
        """As today's signer would have written it: keys of what signs no more are gone by then."""
        vague = [
            kind
            for kind in KINDS
            if Goal(kind, True) in state.goals and not state.abandoned_ids(kind) >= {_active_id(state, kind)}
        ]
        ends = partial(succession.svids_end, policy=self.policy, now=now)
        declared, _ = recovery.declared(state, vague, ends, now)
        most = self.policy.most
        x509 = tuple(_recorded(slot, most("x509")) for slot in declared.x509)
        jwt = tuple(_recorded(slot, most("jwt")) for slot in declared.jwt)
        return _changed(replace(declared, x509=x509, jwt=jwt, outdated=False))

    def _serving(self, made: X509Slot | X509Request, now: datetime) -> tuple[tuple[X509Slot, ...], X509Request | None]:
        if isinstance(made, X509Request):
            return (), made
        return (replace(made, stage=Stage.ACTIVE, activated_at=now, longest=self.policy.usual("x509")),), None


def _over(slot: Slot, now: datetime) -> bool:
    return isinstance(slot, X509Slot) and slot.authority.not_after <= now


def _raised(slot: _Slot, longest: timedelta) -> _Slot:
    return replace(slot, longest=longest) if slot.stage is Stage.ACTIVE else slot


def _recorded(slot: _Slot, longest: timedelta) -> _Slot:
    return _raised(slot, longest) if slot.longest is None else slot


def _active_id(state: AuthorityState, kind: str) -> str:
    active = state.find(kind, Stage.ACTIVE)
    return active.id if active is not None else ""


def _changed(state: AuthorityState, **changes: Any) -> AuthorityState:
    return replace(state, sequence=state.sequence + 1, **changes)


def _without(
    state: AuthorityState, kind: str, authority_id: str, now: datetime, *, replaced: bool = False
) -> AuthorityState:
    if kind == "jwt":
        after = replace(state, jwt=tuple(slot for slot in state.jwt if slot.id != authority_id))
    else:
        x509 = tuple(slot for slot in state.x509 if slot.id != authority_id)
        directives = tuple(each for each in state.directives if each.authority_id != authority_id)
        after = replace(state, x509=x509, directives=directives)
    return _changed(recovery.left(after, kind, now, replaced=replaced))
