"""What the leader does: one step of the authorities' life after another, each by compare and swap."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from runtime import durations
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.pace import Pace
from runtime.stopping import side_by_side
from signer.authority import opening, recovery, revocation
from signer.authority.abandonments import Abandonments
from signer.authority.acknowledgements import Agents
from signer.authority.asked import OF_ROOTS, Asked, answered
from signer.authority.attempts import Attempts
from signer.authority.knowledge import Acks, Knowledge, Sources
from signer.authority.lifecycle import Life, Step
from signer.authority.requests import Requests
from signer.authority.rollback import Published, Rollbacks, Shown, say
from signer.authority.roots import RootFeed
from signer.authority.seat import Seat
from signer.authority.settling import Wait, waits
from signer.authority.slots import BOTH
from signer.authority.state import AuthorityState
from signer.authority.store import StateStore, Stored
from signer.cluster.leader import Leader
from signer.errors import Conflict, SignerError, StateDamaged, TransitionRefused
from signer.metrics import Metrics
from signer.upstream.remote import RemoteUpstream
from signer.upstream.roots import RootSource

_log = logging.getLogger("podsvid.authority")
# Seconds between looks at the clock and at who has acknowledged; at most, where one takes long.
LOOK_SECONDS, MOST_SECONDS = 1.0, 3.0
# A step that another replica did at the same moment is looked at again, this often.
ATTEMPTS = 5


class Rotation:
    """Holds this replica's view of the state and moves the stored one on.

    Every replica has one; only the leader's `run` takes steps by itself. A step that a person asks for is taken by
    whichever replica was asked: the store's compare and swap keeps them in order.
    """

    def __init__(
        self,
        store: StateStore,
        abandonments: Abandonments,
        life: Life,
        leader: Leader,
        agents: Agents,
        sources: Sources,
        metrics: Metrics,
        clock: Clock,
        rng: random.Random,
        remote: RemoteUpstream | None = None,
        roots: RootSource | None = None,
    ) -> None:
        self._store = store
        self._abandonments = abandonments
        self._life = life
        self._attempts = Attempts(life, clock, rng)
        self.requests = Requests(remote, life, metrics, clock, rng)
        self._attempts.held = self.requests.rests
        self.roots = RootFeed(roots, life.policy, sources.untimely, clock, rng)
        self._leader = leader
        self._leads: Callable[[], bool] = lambda: leader.leading
        self.awaited: Callable[[AuthorityState], Iterable[Wait]] = partial(waits, policy=life.policy)
        self.first = opening.First(life, self._leads, clock, rng)
        self._agents = agents
        self._knowledge = Knowledge(agents, sources, life.policy.ack_bound, clock)
        self._rollbacks = Rollbacks(clock)
        self._published = Published(sources.published, clock)
        self._metrics = metrics
        self._clock = clock
        self.states: Feed[AuthorityState] = Feed()
        # Is told of each change that this replica made or saw: the state before it and after it. One whose answer was
        # lost it saw, and one whose writer died the others did.
        self.heard: Callable[[AuthorityState, AuthorityState], None] = lambda before, after: None
        self.seat = Seat(lambda: self.state, self._to_change, self._swap, self._leads, LOOK_SECONDS)
        # When the stored state was last read, or seen to change, by the monotonic clock.
        self.confirmed_at: float | None = None

    @property
    def state(self) -> AuthorityState | None:
        """The newest state that this replica has seen."""
        return self.states.current

    def confirmed_within(self, limit: timedelta) -> bool:
        """Whether the state was seen to be the stored one not longer ago than that."""
        at = self.confirmed_at
        return at is not None and self._clock.monotonic() - at <= limit.total_seconds()

    @property
    def leader_name(self) -> str:
        """Who leads, as far as this replica knows; may be empty."""
        return self._leader.holder

    def see(self, state: AuthorityState, before: AuthorityState | None = None) -> None:
        """Take over a state that was read; the present one is no news, and an older one confirms nothing.

        `before`: what it came from, where none was seen yet. One with what was abandoned is mended by its next reader.
        """
        present = self.states.current
        if state.unborn or (present is not None and state.sequence < present.sequence):
            return
        if recovery.returned(state, self._abandonments.record, present).drop:
            _log.error(
                "what was abandoned is in the authorities' Secret again; not taken", extra={"sequence": state.sequence}
            )
            return
        self.confirmed_at = self._clock.monotonic()
        if present is None or state.sequence > present.sequence:
            self._knowledge.know(state)
            self.states.publish(state)
            known = present or before
            if known is not None:
                self.heard(known, state)

    @property
    def waiting_since(self) -> datetime | None:
        """Since when this replica, which leads, wants a new X.509 authority in vain."""
        if not self._leader.leading:
            return None
        state = self.state or self.requests.unborn
        if state is None:
            return self.first.since
        return self._attempts.waiting_since or self.requests.waiting_since(state)

    def live_nodes(self) -> frozenset[str]:
        """Nodes with a living agent, as far as pods were read."""
        return self._knowledge.live_nodes

    @property
    def lacking(self) -> int:
        """How many live agents lacked the newest trust at the last look; 0 while another replica leads."""
        return self._knowledge.lacking if self._leader.leading else 0

    def acks(self, state: AuthorityState) -> Acks:
        """Who lacks the state's trust, and how many SVIDs of each authority are held; or why that is not known."""
        return self._knowledge.acks(state)

    def next_steps(self, state: AuthorityState) -> list[str]:
        """For people: what happens next and what it waits for."""
        failed = [*self._attempts.notes, *self.requests.notes(state), *self.roots.notes] if self._leads() else []
        notes = [*filter(None, [self._rollbacks.note]), *self._abandonments.notes, *failed]
        return [*notes, *self._life.outlook(state, self.acks(state), self._clock.now())]

    async def open(self) -> None:
        """Read the state, or as the first replica ever make it, without what was abandoned: what to sign, serve and
        publish by. Raises StateDamaged, SignerError."""
        stored = await opening.found(self._store, self._abandonments, self._published, self.first, LOOK_SECONDS)
        healed = await opening.healed(stored, self._store, self._published, LOOK_SECONDS)
        stored = await opening.patient(partial(self._freed, healed), LOOK_SECONDS)
        stored = await self.requests.born(stored, self._store, self._swap, self._leads, LOOK_SECONDS)
        self.see(stored.state)

    async def follow(self, state: AuthorityState) -> None:
        """Take over what was seen of the Secret; where that is an older one, put the newer one back at once.

        Whoever puts an older one back again and again is answered once a look.
        """
        self.see(state)
        known = self.state
        if known is None or state.sequence >= known.sequence:
            return
        try:
            await self._loaded()
        except SignerError as error:
            _log.warning(
                "an older Secret could not be replaced yet; trying again",
                extra={"reason": error.reason, "error": str(error)},
            )
        await asyncio.sleep(LOOK_SECONDS)

    async def run(self) -> None:
        """Take what steps are due while this replica leads, for ever."""
        pace = Pace(self._clock.monotonic, MOST_SECONDS)
        while True:
            state = self.state
            self._agents.wanted = state is not None and self._life.waits_for_agents(state, self._clock.now())
            self._knowledge.leads(self._leader.leading)
            if state is not None and self._leader.leading:
                try:
                    await self._go_above()
                    await self._advance()
                except SignerError as error:
                    _log.warning("step failed; trying again", extra={"reason": error.reason, "error": str(error)})
            else:
                self._attempts.rest()
            await pace.rest(LOOK_SECONDS)

    async def ask_above(self) -> None:
        """Ask the CA above for what is requested, and for its roots, while this replica leads; no step waits for it."""
        await side_by_side(self.requests.run(self.seat), self.roots.run(self.seat))

    async def confirm(self, every: timedelta) -> None:
        """Read the stored state again and again, for ever: a watch that hangs is silent just as one with no news."""
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                await self._abandonments.read()
                stored = await self._loaded()
                if self._leader.leading:
                    await self._abandonments.keep(stored.state)
                if not self._published.known:
                    await self._published.read()
            except SignerError as error:
                _log.warning(
                    "the authorities' state could not be confirmed",
                    extra={"reason": error.reason, "error": str(error)},
                )

    async def step(self, action: str, kind: str, authority_id: str, *, forced: bool) -> str:
        """Do what a person asked for; what was done, as text. Raises SignerError."""
        asked = Asked(action, kind, authority_id, forced)
        for _ in range(ATTEMPTS):
            stored = await self._to_change()
            acks = self.acks(stored.state)
            after, message = await answered(asked, stored.state, self._life, acks, self._clock.now())
            if await self._swap(stored, after, Step(action, kind, message)):
                if action in OF_ROOTS and after is not stored.state:
                    self.roots.said(message)
                return message
        raise TransitionRefused("other steps were taken at the same time; look at the state and try again")

    async def promise(self, kind: str, ttl: timedelta) -> None:
        """Record, before one does, that SVIDs of the active authority live as long as `ttl`. Raises SignerError."""
        for _ in range(ATTEMPTS):
            stored = await self._to_change()
            after = self._life.promised(stored.state, kind, ttl)
            if await self._swap(stored, after, Step("promise", kind, f"an SVID is to live {durations.text(ttl)}")):
                return
        raise TransitionRefused("other steps were taken at the same time; try again")

    async def _advance(self) -> None:
        # Decided on what this replica has seen, done on what is stored: usually nothing is due and nothing is read.
        state = self.state
        assert state is not None
        if self._life.due(state, await self._knowledge.look(state), self._clock.now()) is None:
            self._attempts.rest()
            return
        stored = await self._to_change()
        now = self._clock.now()
        # A leader that was held up (stopped, or away from the API server) must not act on what it once knew.
        taken = await self._attempts.next(stored.state, self.acks(stored.state), now) if self._leader.leading else None
        if taken is not None:
            await self._swap(stored, taken[1], taken[0])

    async def _go_above(self) -> None:
        """Publish anew, above a number that the cluster knows from a state that is not in the Secret any more."""
        state = self.state
        assert state is not None
        published, live = self._published.beside(state), self.live_nodes()
        ahead = await self._agents.ahead(live)
        known = max([published, *ahead.values()])
        if known <= state.sequence:
            self._rollbacks.nobody()
            return
        shown = Shown(frozenset(ahead), in_the_cluster=published > state.sequence)
        if not self._rollbacks.due or self._rollbacks.waits(shown, live):
            return
        # Usually it is this replica that is late.
        stored = await self._loaded()
        if known <= stored.state.sequence or not self._leader.leading:
            return
        say(stored.state.sequence, known, shown)
        after = self._rollbacks.above(stored.state, known, proven=shown.proven)
        why = "an older Secret was restored" if shown.proven else "one agent named a higher number"
        if await self._swap(stored, after, Step("publish again", "all", why)):
            if shown.proven:
                self._metrics.rolled_back("restored")
            self._rollbacks.done(stored.state.sequence, known, after.sequence, shown)

    async def _to_change(self) -> Stored:
        """What is stored, to be changed by a step. Raises TransitionRefused, SignerError.

        Of an older Secret the first step is the leader's, who looks at what else has to be doubted then.
        """
        stored = await self._loaded()
        if self._published.newer_than(stored.state):
            # It may have been a number that somebody made up and that is undone by now.
            await self._published.read()
            if self._published.newer_than(stored.state):
                raise TransitionRefused(
                    "the authorities' Secret is older than the published trust bundle; the signer that leads publishes "
                    "it anew in a few seconds, then try again"
                )
        return stored

    async def _loaded(self) -> Stored:
        for _ in range(ATTEMPTS):
            stored = await self._store.load()
            if stored is None:
                raise StateDamaged(
                    "the authorities' Secret is gone; restore it from a backup, or delete all signer pods to start "
                    "with new authorities that no running workload trusts"
                )
            if self.state is not None and stored.state.sequence < self.state.sequence:
                try:
                    stored = await self._put_back(stored, self.state)
                except Conflict:
                    continue
            stored = await self._freed(stored)
            self.requests.bereft = stored.state.unborn
            if stored.state.unborn:
                raise StateDamaged(
                    "the authorities' Secret is new and has none yet: the CA above is asked for the first; restore the "
                    "Secret from a backup, or wait; what is known here signs on for as long as outage_limit"
                )
            self.see(stored.state)
            return stored
        raise StateDamaged("the authorities' Secret is changed all the time by somebody else")

    async def _freed(self, stored: Stored) -> Stored:
        """What is stored, without what was abandoned and is in service again. Raises SignerError.

        Any replica that starts does it, as it may not go on before; one that runs takes it for a leader's work to have
        abandoned what is still trusted.
        """
        for _ in range(ATTEMPTS):
            state, record = stored.state, self._abandonments.record
            found = recovery.returned(state, record, self.state)
            acts = self.state is None or self._leader.leading
            if not found.drop and not (acts and found):
                return stored
            told = ", ".join(
                [f"{kind} {each}" for kind, ids in found.drop.items() for each in sorted(ids)]
                + [f"{kind} authorities" for kind in found.declare]
                + [f"the revoked root {each.id}" for each in found.revoked]
            )
            _log.error(
                "the authorities' Secret has in service what was abandoned; abandoned again before anything is signed",
                extra={"sequence": state.sequence, "authorities": told},
            )
            begun = state if self.state is not None else self._rollbacks.above(state, record.floor, proven=True)
            after = await self._life.freed(begun, found, record, self._clock.now())
            written = await self._written(stored, after, Step("abandon again", BOTH, f"the Secret had {told}"))
            if written is not None:
                self._metrics.rolled_back("abandoned")
                self._rollbacks.abandoned_again(told)
                return written
            again = await self._store.load()
            if again is None:
                raise StateDamaged("the authorities' Secret was deleted while it was mended; start again")
            stored = again
        raise StateDamaged("the authorities' Secret is changed all the time by somebody else")

    async def _put_back(self, older: Stored, known: AuthorityState) -> Stored:
        """Write what this replica knows in the place of an older copy. Raises SignerError.

        The copy may trust what was revoked since. Every replica does so, by what it knows: in the end it is the newest.
        """
        written = await self._store.replace(older, known)
        _log.error(
            "the authorities' Secret was replaced by an older one; the newer one was put back",
            extra={"sequence": known.sequence, "found": older.state.sequence},
        )
        self._metrics.rolled_back("replaced")
        self._rollbacks.written_back(older.state.sequence, known.sequence)
        return written

    async def _swap(self, stored: Stored, after: AuthorityState, step: Step) -> bool:
        return after is stored.state or await self._written(stored, after, step) is not None

    async def _written(self, stored: Stored, after: AuthorityState, step: Step) -> Stored | None:
        """What is stored now; None when another replica was faster. Raises SignerError."""
        now = self._clock.now()
        # Whatever the step was for: another root, or another authority, may be there now to do without a revoked one.
        after = revocation.carried_out(after, self._life.policy, now, self._life.svids())
        dated = after.noting(stored.state, now).dated(now)
        if dated.abandoned or dated.revoked:
            # First there: what a leader that dies between the two has begun, the next one ends.
            await self._abandonments.keep(dated)
        dated = replace(dated, sequence=max(dated.sequence, self._abandonments.record.floor))
        try:
            written = await self._store.replace(stored, dated)
        except Conflict:
            _log.info("another replica changed the authorities first", extra={"step": step.action, "kind": step.kind})
            return None
        _log.info(
            "authorities changed",
            extra={
                "step": step.action,
                "kind": step.kind,
                "why": step.reason,
                "sequence": written.state.sequence,
                "x509": {slot.id: slot.stage.value for slot in written.state.x509},
                "jwt": {slot.id: slot.stage.value for slot in written.state.jwt},
            },
        )
        self._metrics.stepped(step.kind, step.action)
        self.see(written.state, stored.state)
        return written
