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


class Attempts:
    """Does steps of `life`, and knows which could not be done: a CA above is not asked again at every look."""

    def __init__(self, life: Life, clock: Clock, rng: random.Random) -> None:
        self._life = life
        # Whether no new request is to be made of a CA elsewhere yet: it did not want the one before.
        self.held: Callable[[AuthorityState, datetime], bool] = lambda state, now: False
        self._failed: dict[str, str] = {}
        self._backoff = Backoff(clock, rng)
        # What was wanted when it failed: what a person asks for afterwards is tried at once.
        self._wanted: object = None
        # Since when a new X.509 authority is wanted in vain.
        self.waiting_since: datetime | None = None

    @property
    def notes(self) -> list[str]:
        """For people: why the last attempt at a kind's step failed."""
        return [f"{kind}: {why}" for kind, why in self._failed.items()]

    def rest(self) -> None:
        """Nothing is due, or another replica leads: what failed before is over."""
        self._failed.clear()
        self._backoff.forget()
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
            if kind == "x509":
                self._backoff.forget()
                self.waiting_since = None
            if found is not None:
                return found
        if failed is not None:
            raise failed
        return None

    def _rests(self, step: Step, state: AuthorityState, now: datetime) -> bool:
        """Whether that step failed a moment ago."""
        if step.action != "prepare" or step.kind != "x509":
            return False
        if self.held(state, now):
            return True
        if step.kind not in self._failed:
            return False
        return self._wanted == wanted(state) and self._backoff.left(pressed=pressed(state, now)) > timedelta(0)

    def _missed(self, kind: str, step: Step | None, error: SignerError, state: AuthorityState, now: datetime) -> None:
        told = f"it failed to {step.action if step else 'go on'}: {error.reason}: {error}"
        if kind == "x509":
            if self._wanted != wanted(state):
                self._backoff.forget()
            self._wanted = wanted(state)
            self._backoff.failed(for_good=isinstance(error, CertificateRefused))
            self.waiting_since = self.waiting_since or now
            again = now + self._backoff.left(pressed=pressed(state, now))
            told += f"; wanted since {self.waiting_since:%Y-%m-%dT%H:%M:%SZ}, tried again at {again:%Y-%m-%dT%H:%M:%SZ}"
        self._failed[kind] = told


def wanted(state: AuthorityState) -> object:
    """What an attempt is for: where it is another one, what failed before says nothing of it."""
    goals = frozenset(goal for goal in state.goals if goal.kind == "x509")
    return goals, state.forced("x509"), [slot.id for slot in state.x509 if slot.signs]


def pressed(state: AuthorityState, now: datetime) -> bool:
    """Whether the active authority or its root was stolen, or less than a quarter of its life is left."""
    if state.forced("x509"):
        return True
    authority = state.active_x509
    begun = authority.chain[0].not_valid_before_utc
    return authority.not_after - now < (authority.not_after - begun) / 4
