"""The roots of the CA above as a feed of their own: a new one is trusted before anything signs below it.

They are read again and again while this replica leads, and nobody waits for that. One that the CA names no more stays
for as long as what was issued below it may live, and while an authority leads to it: that has it as its own.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from runtime.clock import Clock
from signer.authority.anchors import UpstreamRoot
from signer.authority.backoff import Backoff
from signer.authority.fit_roots import check_number, is_stolen, sorted_out
from signer.authority.lifecycle import Step
from signer.authority.requests import place
from signer.authority.seat import Load, Seat, Swap
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.errors import RootsRefused, SignerError
from signer.upstream.roots import RootSet, RootSource
from svid.acceptance import leads_to
from svid.x509svid import issued_by

_log = logging.getLogger("podsvid.authority")
# Of one call.
DEADLINE_SECONDS = 30.0
_MAX_TEXT, _NAMED = 500, 3


@dataclass(frozen=True, slots=True)
class Fed:
    """The state that trusts what was named, the same where it does already. `named`: what of it can be trusted.

    `left_out`: why others cannot, for people.
    """

    state: AuthorityState
    named: frozenset[x509.Certificate]
    left_out: str = ""


def fed(
    state: AuthorityState,
    found: RootSet,
    before: frozenset[x509.Certificate] | None,
    policy: LifecyclePolicy,
    now: datetime,
) -> Fed:
    """What comes of the roots that the CA above names. Raises RootsRefused, and then nothing changes.

    `before`: what could be trusted of the set that was read last. What is in neither leaves; where the CA does not name
    all of them only what no authority leads to.
    """
    check_number(found.certificates)
    named, odd = sorted_out(state, found.certificates, state.bundle.x509_authorities, now)
    fresh = Fed(state, frozenset(named), "; ".join(odd[:_NAMED]))
    # What the CA above names beside a root that was revoked is what the next authority leads to.
    fit = state.condemned or _has_the_active_ones(state, named)
    if not fit and found.complete:
        raise RootsRefused(
            "no root of the active authority is among them"
            f"{'; is the file whole, and of this CA?' if found.certificates else ', as none is named.'} After a change "
            f"to another CA, or to none, `podsvid authority rotate` takes it{'; ' + fresh.left_out if odd else ''}"
        )

    def gone(certificate: x509.Certificate) -> bool:
        # Not in two reads in a row: of a file that is being written the rest is missing.
        if before is None or certificate in before or certificate in fresh.named:
            return False
        return found.complete or not any(leads_to(slot.authority, [certificate]) for slot in state.x509)

    leaves_at = now + policy.most("x509") + policy.overlap
    after = [each for each in (_after(state, root, fresh.named, gone, leaves_at, now) for root in state.roots) if each]
    if not fit:
        # Of a CA that was replaced it is the other one's: trusted with what that certifies.
        named = []
    known = {each.certificate for each in after}
    after += [UpstreamRoot(each, now) for each in named if each not in known]
    check_number([each.certificate for each in after])
    if tuple(after) == state.roots:
        return fresh
    return replace(fresh, state=replace(state, sequence=state.sequence + 1, roots=tuple(after)))


def _after(
    state: AuthorityState,
    root: UpstreamRoot,
    named: frozenset[x509.Certificate],
    gone: Callable[[x509.Certificate], bool],
    leaves_at: datetime,
    now: datetime,
) -> UpstreamRoot | None:
    if is_stolen(state, root.certificate):
        return None
    if root.certificate in named:
        return replace(root, ends_at=None)
    if root.certificate.not_valid_after_utc < now:
        return None
    if not gone(root.certificate):
        return root
    stolen = state.abandoned_ids("x509")
    if stolen and not any(leads_to(each.authority, [root.certificate]) for each in state.x509 if each.id not in stolen):
        # What was issued below it and is not stolen has a slot: after a theft nothing else is waited for.
        return None
    if root.ends_at is None:
        return replace(root, ends_at=leaves_at)
    return root if now < root.ends_at else None


def _has_the_active_ones(state: AuthorityState, named: Sequence[x509.Certificate]) -> bool:
    active = state.active_x509
    if not named:
        # There is no CA above, and none was.
        return issued_by(active.chain[0], active.chain[0])
    return leads_to(active, named)


class RootFeed:
    """Reads them by `source`. `refused` is told, for people, of each reason why some are not trusted, once.

    `doubt`: why nobody can say how late it is; nothing changes then.
    """

    def __init__(
        self,
        source: RootSource | None,
        policy: LifecyclePolicy,
        doubt: Callable[[], str],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._source = source
        self._policy = policy
        self._doubt = doubt
        self._clock = clock
        self._backoff = Backoff(clock, rng)
        self.refused: Callable[[str], None] = lambda text: None
        # Is told, for people, of a root that was revoked at this replica, and where that was taken back.
        self.said: Callable[[str], None] = lambda text: None
        self._read_at: float | None = None
        # What was read and is not stored yet, and what could be trusted of the set before.
        self._kept: RootSet | None = None
        self._before: frozenset[x509.Certificate] | None = None
        # Beside which authority and roots a set was refused: beside others it may be right.
        self._refused_beside: object = None
        self._why = ""

    @property
    def refuses(self) -> bool:
        """Whether some of those that are named are not trusted, or they cannot be read."""
        return bool(self._why)

    @property
    def notes(self) -> list[str]:
        """For people: why."""
        return [f"x509: roots of the CA above: {self._why}"] if self._why else []

    async def run(self, seat: Seat) -> None:
        """Look again and again while this replica leads, for ever."""
        await seat.hold(self.look, self.rest, _not_stored)

    def rest(self) -> None:
        """Another replica leads: what this one knows is over."""
        self._backoff.forget()
        self._read_at = self._kept = self._before = self._refused_beside = None
        self._why = ""

    async def look(self, state: AuthorityState, load: Load, swap: Swap, leading: Callable[[], bool]) -> None:
        """Read them where it is time, and store what comes of them. Raises SignerError where it was not stored."""
        if self._source is None or self._doubt():
            return
        if self._due(state):
            self._read_at = self._clock.monotonic()
            self._kept = await self._asked(self._source)
        if self._kept is None or self._doubt():
            return
        try:
            done = self._fed(state, self._kept)
            if done.state is not state:
                # Decided on what this replica has seen, done on what is stored.
                stored = await load()
                done = self._fed(stored.state, self._kept)
                if not leading() or not await swap(stored, done.state, Step("trust roots", "x509", _told(done.state))):
                    return
        except RootsRefused as error:
            self._kept = self._before = None
            self._refused_beside = _judged_by(state)
            self._refuse(f"{error.reason}: {error}"[:_MAX_TEXT])
            return
        self._before = done.named
        self._kept = self._refused_beside = None
        self._refuse(done.left_out)

    def _due(self, state: AuthorityState) -> bool:
        if self._read_at is None:
            return True
        # Nothing of a refused set counts as read, so that this is never the second of two reads in a row.
        if self._refused_beside not in (None, _judged_by(state)):
            return True
        interval = self._policy.root_interval
        waited = timedelta(seconds=self._clock.monotonic() - self._read_at)
        return waited >= interval or (self._backoff.failing and self._backoff.left() <= timedelta(0))

    def _fed(self, state: AuthorityState, found: RootSet) -> Fed:
        return fed(state, found, self._before, self._policy, self._clock.now())

    async def _asked(self, source: RootSource) -> RootSet | None:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                found = await source()
        except SignerError as error:
            why = f"{error.reason}: {error}"
        except TimeoutError:
            why = f"UPSTREAM_AWAY: it did not say them within {DEADLINE_SECONDS:g} s"
        except Exception as error:
            # What it answers is anybody's, as with requests: nothing of it is repeated, and this replica goes on.
            why = f"{type(error).__name__} at {place(error)}, a bug: please report it"
        else:
            self._backoff.forget()
            return found
        self._backoff.failed()
        self._refuse(f"not read: {why}"[:_MAX_TEXT])
        return None

    def _refuse(self, why: str) -> None:
        """Those that are trusted stay; people are told, of each reason once."""
        if why and why != self._why:
            told = f"roots that the CA above names are not taken; those of before stay trusted: {why}"
            _log.warning("the roots of the CA above were not taken; the ones before stay", extra={"error": why})
            self.refused(told)
        self._why = why


def _judged_by(state: AuthorityState) -> tuple[str, bool, tuple[UpstreamRoot, ...]]:
    return state.active_x509_id, state.condemned, state.roots


def _not_stored(error: SignerError) -> None:
    _log.warning("the roots of the CA above are not stored yet", extra={"reason": error.reason, "error": str(error)})


def _told(state: AuthorityState) -> str:
    leaving = sum(each.ends_at is not None for each in state.roots)
    return f"the CA above names {len(state.roots) - leaving}" + (f"; {leaving} are to leave" if leaving else "")
