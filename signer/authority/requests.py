"""Asks a CA elsewhere for what the state requests: one call at a time, none of which anybody else waits for.

What comes back is tried before it is stored. How often it failed, and until when it is left alone, is known to this
process only: each write of the state is a number that all agents acknowledge.
"""

import asyncio
import logging
import random
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from runtime.clock import Clock
from signer.authority.attempts import pressed, wanted
from signer.authority.backoff import Backoff
from signer.authority.granting import granted
from signer.authority.lifecycle import Life, Step
from signer.authority.request import X509Request
from signer.authority.seat import Load, Seat, Swap
from signer.authority.state import AuthorityState
from signer.authority.store import StateStore, Stored
from signer.errors import ApiUnavailable, CertificateRefused, SignerError, StateDamaged
from signer.keystore.signing import PATIENCE_SECONDS
from signer.keystore.store import KeyStoreUnavailable
from signer.metrics import Metrics
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.remote import NO_HANDLE, Answer, Denied, Issued, Pending, RemoteUpstream, UpstreamAway

_log = logging.getLogger("podsvid.authority")
_Found = TypeVar("_Found")
# A replica that asks for the first authority in vain lets another one lead for so long of each round.
ROUND_SECONDS, TURN_SECONDS = 90.0, 30.0
# Of one call; and until a CA that was not to be told that a request is wanted no more is told again.
DEADLINE_SECONDS, TELL_AGAIN_SECONDS = 30.0, 60.0
# A CA that says when to look again is believed within these.
_SOONEST, _LATEST = timedelta(seconds=1), timedelta(minutes=15)
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of the CA, to the request `id`; the state is to be changed by it. `outcome`: a handle, or what it decided."""

    id: str
    outcome: str | Issued | Denied


class Requests:
    """Asks one CA. `refused` is told, for people, of each request that was given up."""

    def __init__(
        self, remote: RemoteUpstream | None, life: Life, metrics: Metrics, clock: Clock, rng: random.Random
    ) -> None:
        self._remote = remote
        self._life = life
        self._metrics = metrics
        self._clock = clock
        self._backoff = Backoff(clock, rng)
        self.refused: Callable[[str], None] = lambda text: None
        # What was wanted when it failed: what a person asks for afterwards is tried at once.
        self._wanted: object = None
        # By the monotonic clock: a CA that thinks about it is left alone until then.
        self._look_at = 0.0
        self._last = ""
        self._gave_up_at: datetime | None = None
        # The request that people were told of to be given up, however often that cannot be stored.
        self._told = ""
        # An answer that could not be stored yet: it is not asked for again.
        self._kept: _Answer | None = None
        # Since when the first authority is asked for in vain; and whether the Secret is new though there was one.
        self._vain_since: float | None = None
        self.bereft = False
        # Whether a person decides of what was asked last: another replica would withdraw it, and ask that person anew.
        self._by_person = False
        # The request that was sent, or sent in vain, last.
        self._tried = ""
        # What was issued without roots, by its request: where they cannot be had it is not asked for again.
        self._rootless: dict[str, Issued] = {}
        # What is stored while there is no authority yet.
        self.unborn: AuthorityState | None = None
        # The request that was seen last; and those that nobody wants any more, until the CA was told, and when to try.
        self._seen: X509Request | None = None
        self._left_there: deque[X509Request] = deque(maxlen=8)
        self._told_again_at = 0.0

    def notes(self, state: AuthorityState) -> list[str]:
        """For people: what the CA said last."""
        if not self._last or (state.request is None and self._gave_up_at is None):
            return []
        return [f"x509: {self._last}; asked again at {self._clock.now() + self._left(state):%Y-%m-%dT%H:%M:%SZ}"]

    def waiting_since(self, state: AuthorityState) -> datetime | None:
        """Since when a new X.509 authority is wanted of it."""
        found = [at for at in (self._gave_up_at, state.request.asked_at if state.request else None) if at is not None]
        return min(found, default=None)

    def rests(self, state: AuthorityState, now: datetime) -> bool:
        """Whether a request was given up a while ago, and no new one is to be made yet."""
        return self._gave_up_at is not None and self._left(state) > timedelta(0)

    def rest(self) -> None:
        """Another replica leads: what this one knows is over."""
        self._backoff.forget()
        self._look_at, self._last, self._gave_up_at = 0.0, "", None
        self._kept = self._seen = None
        self._rootless = {}

    async def run(self, seat: Seat) -> None:
        """Look again and again while this replica leads, for ever."""
        await seat.hold(self.look, self.rest, _not_stored)

    async def born(
        self, stored: Stored, store: StateStore, swap: Swap, leading: Callable[[], bool], pause: float
    ) -> Stored:
        """What is stored once there is an authority, for however long the CA takes. Raises StateDamaged."""

        async def load() -> Stored:
            found = await store.load()
            if found is None:
                raise StateDamaged("the authorities' Secret was deleted while this signer started; start it again")
            return found

        if stored.state.unborn:
            _log.warning("no authority yet: waiting for the CA above", extra={"at": _at(stored.state)})
        while stored.state.unborn:
            self.unborn = stored.state
            try:
                # Who does not lead keeps what it knows: it gave way for a moment, and asks no more often for that.
                if leading():
                    await self._bear(stored, load, swap, leading)
                await asyncio.sleep(pause)
                stored = await load()
            except (ApiUnavailable, KeyStoreUnavailable) as error:
                _not_stored(error)
                await asyncio.sleep(pause)
        self.unborn = self._vain_since = None
        return stored

    @property
    def gives_way(self) -> bool:
        """Whether another replica is to lead that can, for a while of each round.

        One that has another configuration may get the first authority where this one asks in vain: while a wrong one is
        mended replicas of both are there, and none of them becomes ready. And one that has an authority asks for no
        first one where the Secret is new.
        """
        if self.bereft or self._vain_since is None:
            return self.bereft
        return (self._clock.monotonic() - self._vain_since) % ROUND_SECONDS < TURN_SECONDS

    @property
    def first_awaited(self) -> str:
        """What this replica, which has no authority yet, waits for; empty where it has one, or has not looked."""
        state = self.unborn
        if state is None:
            return ""
        asked = f"waits for the first certificate of {_at(state)}"
        return "; ".join([asked, *(note.removeprefix("x509: ") for note in self.notes(state))])

    async def _bear(self, stored: Stored, load: Load, swap: Swap, leading: Callable[[], bool]) -> None:
        request, now = stored.state.request, self._clock.now()
        assert request is not None
        if not self._life.asks(request):
            why = f"it was asked of {request.at}, which is not the CA above any more"
            await swap(stored, await self._life.again(stored.state, now), Step("withdraw", "x509", why))
        else:
            await self.look(stored.state, load, swap, leading)
            if self._by_person:
                self._vain_since = None
            elif self._last and self._vain_since is None:
                self._vain_since = self._clock.monotonic()

    async def look(self, state: AuthorityState, load: Load, swap: Swap, leading: Callable[[], bool]) -> None:
        """Go one step on with what the state requests, where it is time. Raises SignerError where it was not stored."""
        request = state.request
        await self._clean_up(request)
        if request is None or self._remote is None or not self._life.asks(request):
            self._ended(state)
            return
        if self._kept is None or self._kept.id != request.id:
            if self._left(state) > timedelta(0):
                return
            self._kept = await self._asked(self._remote, request, state)
        if self._kept is None or not leading():
            return
        await self._store(self._kept, load, swap)

    def _ended(self, state: AuthorityState) -> None:
        """There is no request: what is left of one that was given up is when there may be another."""
        if self._gave_up_at is not None and wanted(state) != self._wanted:
            self._gave_up_at = None
        if self._gave_up_at is None:
            self._backoff.forget()
            self._last = ""
        self._look_at, self._kept, self._rootless = 0.0, None, {}

    def _left(self, state: AuthorityState) -> timedelta:
        new_wish = state.request is not None and state.request.wished and state.request.id != self._tried
        if wanted(state) != self._wanted or new_wish:
            return timedelta(0)
        thinking = timedelta(seconds=max(self._look_at - self._clock.monotonic(), 0.0))
        # After one that was given up another is another key, certificate and state: never a matter of a minute.
        hurry = self._gave_up_at is None and not state.unborn and pressed(state, self._clock.now())
        return max(thinking, self._backoff.left(pressed=hurry))

    async def _store(self, answer: _Answer, load: Load, swap: Swap) -> None:
        stored = await load()
        state, now = stored.state, self._clock.now()
        if state.request is None or state.request.id != answer.id:
            self._kept = None
            return
        step, after = await self._after(state, state.request, answer, now)
        if await swap(stored, after, step):
            self._kept = None

    async def _after(
        self, state: AuthorityState, request: X509Request, answer: _Answer, now: datetime
    ) -> tuple[Step, AuthorityState]:
        outcome = answer.outcome
        if isinstance(outcome, str):
            after = replace(state, sequence=state.sequence + 1, request=request.sent(outcome))
            return Step("request", "x509", f"{request.at} has the request"), after
        if isinstance(outcome, Issued):
            try:
                grant = partial(granted, state, outcome, self._life.policy, now)
                after, slot = await self._life.keys.do(request.key, grant, seconds=PATIENCE_SECONDS)
            except CertificateRefused as error:
                note = f" ({outcome.note})" if outcome.note else ""
                outcome = Denied(f"{error.reason}: {error}{note}", permanent=True)
                self._kept = _Answer(answer.id, outcome)
                self._metrics.upstream_answered("unfit")
            else:
                self._metrics.upstream_answered("issued")
                self._backoff.forget()
                self._last, self._gave_up_at = "", None
                _log.info(
                    "the CA above certified an authority",
                    extra={
                        "at": request.at,
                        "request": request.id,
                        "authority": slot.id,
                        "serial": f"{slot.authority.chain[0].serial_number:x}",
                        "not_after": slot.authority.not_after.isoformat(),
                        "note": outcome.note,
                    },
                )
                return Step("prepare" if not state.unborn else "begin", "x509", f"{request.at} certified it"), after
        self._given_up(state, request, outcome, now)
        given_up = Step("give up", "x509", outcome.reason[:_MAX_TEXT])
        if state.unborn:
            return given_up, await self._life.again(state, now)
        return given_up, replace(state, sequence=state.sequence + 1, request=None)

    def _given_up(self, state: AuthorityState, request: X509Request, denied: Denied, now: datetime) -> None:
        if self._told == request.id:
            return
        self._told = request.id
        self._wanted = wanted(state)
        self._backoff.failed(for_good=True)
        self._look_at = 0.0
        self._gave_up_at = self._gave_up_at or request.asked_at
        told = f"{request.at} was asked in vain: {denied.reason[:_MAX_TEXT]}"
        self._last = told
        self.refused(told)
        _log.warning(
            "a request to the CA above was given up", extra={"at": request.at, "request": request.id, "error": told}
        )

    async def _asked(self, remote: RemoteUpstream, request: X509Request, state: AuthorityState) -> _Answer | None:
        """What it says that the state is to be changed by; None where it says nothing of the kind."""
        to_ca = request.to_ca(state.trust_domain)
        if request.wished and request.id != self._tried:
            self._backoff.forget()
        self._tried, self._by_person = request.id, False
        try:
            handle = request.handle
            if handle is None:
                handle = await _in_time(remote.submit(to_ca), request.at)
                if handle != NO_HANDLE:
                    return _Answer(request.id, _checked(request, handle))
            found: Answer | None = self._rootless.get(request.id)
            if found is None:
                found = await _in_time(remote.poll(to_ca, handle), request.at)
            if isinstance(found, Issued) and not found.roots:
                self._rootless = {request.id: found}
                found = replace(found, roots=(await _in_time(remote.roots(), request.at)).certificates)
        except (UpstreamAway, UpstreamUnusable) as error:
            result = "away" if isinstance(error, UpstreamAway) else "unusable"
            self._failed(state, request, result, f"{error.reason}: {error}")
            return None
        except Exception as error:
            # What a CA answers is anybody's: one answer that nobody foresaw must not end one replica after the other.
            # Not its words: they may have what was sent.
            self._failed(
                state, request, "unusable", f"{type(error).__name__} at {place(error)}, a bug: please report it"
            )
            return None
        if isinstance(found, Pending):
            self._by_person = found.by_person
            self._metrics.upstream_answered("pending")
            self._wanted, self._last = wanted(state), f"{request.at} has not decided: {found.reason[:_MAX_TEXT]}"
            self._backoff.forget()
            pause = min(max(found.retry_after, _SOONEST), _LATEST)
            self._look_at = self._clock.monotonic() + pause.total_seconds()
            return None
        if isinstance(found, Denied) and not found.permanent:
            self._failed(state, request, "denied", found.reason)
            return None
        if isinstance(found, Denied):
            self._metrics.upstream_answered("denied")
        return _Answer(request.id, found)

    def _failed(self, state: AuthorityState, request: X509Request, result: str, why: str) -> None:
        self._metrics.upstream_answered(result)
        if wanted(state) != self._wanted:
            self._backoff.forget()
        self._wanted, self._look_at = wanted(state), 0.0
        self._backoff.failed()
        self._last = f"{request.at} did not certify: {why[:_MAX_TEXT]}"
        _log.warning(
            "the CA above did not certify; trying again",
            extra={
                "at": request.at,
                "request": request.id,
                "error": why,
                "retry_at": (self._clock.now() + self._left(state)).isoformat(),
            },
        )

    async def _clean_up(self, request: X509Request | None) -> None:
        """Tell the CA that nobody waits any more for what was requested before; else it may be issued years later."""
        seen, self._seen = self._seen, request
        if seen is not None:
            self._left_there.append(seen)
        if request is not None:
            # It is wanted, or is again: an older Secret was put back.
            left_there = [each for each in self._left_there if each.id != request.id]
            self._left_there = deque(left_there, self._left_there.maxlen)
        if not self._left_there or self._remote is None or self._clock.monotonic() < self._told_again_at:
            return
        left = self._left_there[0]
        try:
            # One without a handle may have been sent all the same.
            await _in_time(self._remote.forget(left.id, left.handle or NO_HANDLE), left.at)
        except SignerError as error:
            self._told_again_at = self._clock.monotonic() + TELL_AGAIN_SECONDS
            self._left_there.rotate(-1)
            _log.info("a request to the CA above was not cleaned up", extra={"request": left.id, "error": str(error)})
        else:
            self._left_there.popleft()


def _checked(request: X509Request, handle: str) -> str:
    try:
        request.sent(handle)
    except ValueError:
        raise UpstreamUnusable("it names the request by what cannot be kept") from None
    return handle


def _not_stored(error: SignerError) -> None:
    _log.warning("the CA's answer is not stored yet", extra={"reason": error.reason, "error": str(error)})


def place(error: Exception) -> str:
    """Where it was raised: of an error that nobody foresaw more cannot be told, as its words may hold anything."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{Path(last.filename).name}:{last.lineno}"


def _at(state: AuthorityState) -> str:
    return state.request.at if state.request is not None else ""


async def _in_time(call: Awaitable[_Found], at: str) -> _Found:
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await call
    except TimeoutError:
        raise UpstreamAway(f"{at} did not answer within {DEADLINE_SECONDS:g} s") from None
