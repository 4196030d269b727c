"""The roots of the CA above as a feed of their own: a new one is trusted before anything signs below it.

They are read again and again while this replica leads, and nobody waits for that. One that the CA names no more stays
for as long as what was issued below it may live, and while an authority leads to it: that has it as its own.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from runtime.clock import Clock
from signer.authority.anchors import UpstreamRoot
from signer.authority.backoff import Backoff
from signer.authority.lifecycle import Step
from signer.authority.requests import place
from signer.authority.seat import Load, Seat, Swap
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.errors import RootsRefused, SignerError
from signer.upstream.roots import RootSet, RootSource
from svid.acceptance import check_root, leads_to
from svid.bundle import TrustBundle
from svid.certificates import check_readable, extension
from svid.errors import SvidError
from svid.keys import public_key_of
from svid.x509svid import issued_by

_log = logging.getLogger("podsvid.authority")
# Of one call.
DEADLINE_SECONDS = 30.0
# Nobody trusts that many CAs on purpose; every pod gets all of them, and the authorities' Secret has to hold them.
MAX_ROOTS, MAX_BYTES = 64, 128 * 1024
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
    _check_number(found.certificates)
    named, odd = _sorted_out(state, found.certificates, now)
    fresh = Fed(state, frozenset(named), "; ".join(odd[:_NAMED]))
    fit = _has_the_active_ones(state, named)
    if not fit and found.complete:
        raise RootsRefused(
            "no root of the active authority is among them; is the file whole, and of this CA? After a change to "
            f"another CA, `podsvid authority rotate` takes it{'; ' + fresh.left_out if odd else ''}"
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
    _check_number([each.certificate for each in after])
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
    if _is_stolen(state, root.certificate):
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


def _is_stolen(state: AuthorityState, certificate: x509.Certificate) -> bool:
    """Whether it is that of an authority that was declared stolen; by its key, as its extension is its maker's."""
    named = extension(certificate, x509.SubjectKeyIdentifier)
    own = x509.SubjectKeyIdentifier.from_public_key(public_key_of(certificate))
    ids = {own.digest.hex(), named.value.digest.hex() if named is not None else ""}
    return not ids.isdisjoint(state.abandoned_ids("x509"))


def _check_number(certificates: Sequence[x509.Certificate]) -> None:
    size = sum(len(each.public_bytes(Encoding.DER)) for each in certificates)
    if len(certificates) > MAX_ROOTS or size > MAX_BYTES:
        raise RootsRefused(
            f"{len(certificates)} certificates of {size} bytes, with those that are to leave, are more than the "
            f"{MAX_ROOTS} of {MAX_BYTES} that are trusted at once"
        )


def _has_the_active_ones(state: AuthorityState, named: Sequence[x509.Certificate]) -> bool:
    active = state.active_x509
    if not named:
        # There is no CA above, and none was.
        return issued_by(active.chain[0], active.chain[0])
    return leads_to(active, named)


def _sorted_out(
    state: AuthorityState, certificates: Iterable[x509.Certificate], now: datetime
) -> tuple[list[x509.Certificate], list[str]]:
    """Those that can be trusted now, and why others cannot; one that is not valid yet, or no more, is not missed."""
    named: list[x509.Certificate] = []
    odd: list[str] = []
    trusted = set(state.bundle.x509_authorities)
    for each in dict.fromkeys(certificates):
        try:
            check_readable(each)
            if _is_stolen(state, each):
                raise ValueError("its key was declared stolen")
            if each not in trusted:
                _check_root(state, each)
        except (SvidError, ValueError) as error:
            odd.append(f"{_subject(each)} is left out: {str(error)[:_MAX_TEXT]}")
        else:
            if each.not_valid_before_utc <= now <= each.not_valid_after_utc:
                named.append(each)
    return named, odd


def _check_root(state: AuthorityState, certificate: x509.Certificate) -> None:
    TrustBundle(state.trust_domain, (certificate,))
    usage = extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.value.key_cert_sign:
        raise ValueError("it must not sign certificates, so it is no CA's")
    check_root(certificate, [slot.authority for slot in state.x509])


def _subject(certificate: x509.Certificate) -> str:
    try:
        return f"certificate {certificate.subject.rfc4514_string()[:256] or 'without a subject'}"
    except (ValueError, TypeError):
        return "a certificate"


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
        self._read_at: float | None = None
        # What was read and is not stored yet, and what could be trusted of the set before.
        self._kept: RootSet | None = None
        self._before: frozenset[x509.Certificate] | None = None
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
        self._read_at = self._kept = self._before = None
        self._why = ""

    async def look(self, state: AuthorityState, load: Load, swap: Swap, leading: Callable[[], bool]) -> None:
        """Read them where it is time, and store what comes of them. Raises SignerError where it was not stored."""
        if self._source is None or self._doubt():
            return
        if self._due:
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
            self._refuse(f"{error.reason}: {error}"[:_MAX_TEXT])
            return
        self._before = done.named
        self._kept = None
        self._refuse(done.left_out)

    @property
    def _due(self) -> bool:
        if self._read_at is None:
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


def _not_stored(error: SignerError) -> None:
    _log.warning("the roots of the CA above are not stored yet", extra={"reason": error.reason, "error": str(error)})


def _told(state: AuthorityState) -> str:
    leaving = sum(each.ends_at is not None for each in state.roots)
    return f"the CA above names {len(state.roots) - leaving}" + (f"; {leaving} are to leave" if leaving else "")
