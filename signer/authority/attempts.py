"""The step that is due, of the kind of which it can be done: what one waits for holds up no other."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from runtime.clock import Clock
from signer.authority.backoff import Backoff
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life, Step
from signer.authority.slots import KINDS
from signer.authority.state import AuthorityState
from signer.errors import CertificateRefused, SignerError
from signer.keystore.store import KeyUnfinished


class Attempts:
    """Does steps of `life`, and knows which could not be done: a CA above is not asked again at every look."""

    def __init__(self, life: Life, clock: Clock, rng: random.Random) -> None:
        self._life = life
        # Whether no new request is to be made of a CA elsewhere yet: it did not want the one before.
        self.held: Callable[[AuthorityState, datetime], bool] = lambda state, now: False
        self._failed: dict[str, str] = {}
        self._backoffs = {kind: Backoff(clock, rng) for kind in KINDS}
        # What was wanted when it failed: what a person asks for afterwards is tried at once.
        self._wanted: dict[str, object] = {}
        # Of which kinds a key store made a key in vain, as it would the next time.
        self._unfinished: set[str] = set()
        # Since when a new X.509 authority is wanted in vain.
        self.waiting_since: datetime | None = None

    @property
    def notes(self) -> list[str]:
        """For people: why the last attempt at a kind's step failed."""
        return [f"{kind}: {why}" for kind, why in self._failed.items()]

    def rest(self) -> None:
        """Nothing is due, or another replica leads: what failed before is over."""
        self._failed.clear()
        self._unfinished.clear()
        for backoff in self._backoffs.values():
            backoff.forget()
        self.waiting_since = None

    async def next(self, state: AuthorityState, acks: Acks, now: datetime) -> tuple[Step, AuthorityState] | None:
        """The first step that is due and can be done, and the state after it: where a CA above certifies nothing, JWT
        keys are replaced all the same. None where none is due, or it is too early for another attempt. Raises
        SignerError where one failed and no other was due.
        """
        failed: SignerError | None = None
        for kind in KINDS:
            step = self._life.due(state, acks, now, (kind,))
            if step is not None and self._rests(step, state, now):
                continue
            try:
                found = None if step is None else (step, await self._life.do(state, step, now))
            except SignerError as error:
                self._missed(kind, step, error, state, now)
                failed = failed or error
                continue
            self._failed.pop(kind, None)
            self._unfinished.discard(kind)
            self._backoffs[kind].forget()
            if kind == "x509":
                self.waiting_since = None
            if found is not None:
                return found
        if failed is not None:
            raise failed
        return None

    def _rests(self, step: Step, state: AuthorityState, now: datetime) -> bool:
        """Whether that step failed a moment ago."""
        kind = step.kind
        if step.action != "prepare":
            return False
        if kind == "x509" and self.held(state, now):
            return True
        # Of JWT keys only those count that were made in vain.
        if kind not in self._failed or (kind != "x509" and kind not in self._unfinished):
            return False
        return self._wanted[kind] == wanted(state, kind) and self._left(kind, state, now) > timedelta(0)

    def _missed(self, kind: str, step: Step | None, error: SignerError, state: AuthorityState, now: datetime) -> None:
        told = f"it failed to {step.action if step else 'go on'}: {error.reason}: {error}"
        made = isinstance(error, KeyUnfinished)
        (self._unfinished.add if made else self._unfinished.discard)(kind)
        if kind == "x509" or made:
            backoff, goal = self._backoffs[kind], wanted(state, kind)
            if self._wanted.get(kind) != goal:
                backoff.forget()
            self._wanted[kind] = goal
            for_good = isinstance(error, CertificateRefused) or (isinstance(error, KeyUnfinished) and not error.again)
            backoff.failed(for_good=for_good)
            if kind == "x509":
                self.waiting_since = self.waiting_since or now
                told += f"; wanted since {self.waiting_since:%Y-%m-%dT%H:%M:%SZ}, tried again at"
            else:
                told += "; tried again at"
            told += f" {now + self._left(kind, state, now):%Y-%m-%dT%H:%M:%SZ}"
        self._failed[kind] = told

    def _left(self, kind: str, state: AuthorityState, now: datetime) -> timedelta:
        """For how long it rests. Keys that are made in vain are paid for: nothing presses for more of them."""
        return self._backoffs[kind].left(pressed=kind not in self._unfinished and pressed(state, now))


def wanted(state: AuthorityState, kind: str = "x509") -> object:
    """What an attempt is for: where it is another one, what failed before says nothing of it."""
    goals = frozenset(goal for goal in state.goals if goal.kind == kind)
    return goals, state.forced(kind), [slot.id for slot in state.slots(kind) if slot.signs]


def pressed(state: AuthorityState, now: datetime) -> bool:
    """Whether the active authority or its root was stolen, or less than a quarter of its life is left."""
    if state.forced("x509"):
        return True
    authority = state.active_x509
    begun = authority.chain[0].not_valid_before_utc
    return authority.not_after - now < (authority.not_after - begun) / 4
