"""The roots of a CA above as a feed of their own: new ones are trusted before anything signs below them.

They are kept with the authorities that are prepared or active, so a root stays as long as one that leads to it. What an
old one leads to leaves with it, when its last SVID has ended.
"""

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509

from runtime.clock import Clock
from signer.authority.lifecycle import Life
from signer.authority.slots import SIGNING, X509Slot
from signer.authority.state import AuthorityState
from signer.errors import RootsRefused, SignerError
from signer.upstream.roots import RootSet
from svid.acceptance import accept, leads_to
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import extension
from svid.errors import SvidError

_log = logging.getLogger("podsvid.authority")
DEADLINE_SECONDS = 30.0
# Nobody trusts that many CAs on purpose, and every pod gets all of them.
MAX_ROOTS = 64


def fed(state: AuthorityState, found: RootSet, now: datetime) -> AuthorityState:
    """The state that trusts them; the same where it does already. Raises RootsRefused, and then nothing changes."""
    if not found.certificates:
        return state
    roots = tuple(each for each in dict.fromkeys(found.certificates) if now < each.not_valid_after_utc)
    if len(roots) > MAX_ROOTS:
        raise RootsRefused(f"{len(roots)} certificates are more than the {MAX_ROOTS} that are trusted at once")
    for each in roots:
        _check_ca(each)
    if not leads_to(state.active_x509, roots):
        if not found.complete:
            return state
        raise RootsRefused(
            "no root of the active authority is among them; is the file whole, and of this CA? After a change to "
            "another CA, `podsvid authority rotate` takes it"
        )
    try:
        x509_slots = tuple(_fed(slot, roots, found.complete, now) for slot in state.x509)
    except SvidError as error:
        raise RootsRefused(f"under them nothing would verify: {error.reason}: {error}") from None
    if all(slot.authority.bundle == known.authority.bundle for slot, known in zip(x509_slots, state.x509, strict=True)):
        return state
    return replace(state, sequence=state.sequence + 1, x509=x509_slots)


def _fed(slot: X509Slot, roots: tuple[x509.Certificate, ...], complete: bool, now: datetime) -> X509Slot:
    authority = slot.authority
    if slot.stage not in SIGNING or not isinstance(authority, X509Authority):
        return slot
    known = authority.bundle.x509_authorities
    # A prepared one may be of another CA: it keeps what it leads to.
    kept = () if complete and leads_to(authority, roots) else known
    after = TrustBundle(
        authority.trust_domain, tuple(dict.fromkeys((*kept, *roots))), sequence=authority.bundle.sequence
    )
    if set(after.x509_authorities) == set(known):
        return slot
    changed = replace(authority, bundle=after)
    accept(changed, now)
    return replace(slot, authority=changed)


def _check_ca(certificate: x509.Certificate) -> None:
    named = f"certificate {certificate.subject.rfc4514_string()[:256] or 'without a subject'}"
    try:
        constraints = extension(certificate, x509.BasicConstraints)
        usage = extension(certificate, x509.KeyUsage)
    except ValueError:
        raise RootsRefused(f"{named} cannot be read") from None
    if constraints is None or not constraints.value.ca or (usage is not None and not usage.value.key_cert_sign):
        raise RootsRefused(f"{named} is not a CA's")


class Roots:
    """Asks the CA above for its roots every `interval`, beside the loop of the leader, which waits for nothing."""

    def __init__(self, life: Life, interval: timedelta, clock: Clock) -> None:
        self._life = life
        self._interval = interval.total_seconds()
        self._clock = clock
        self._asked_at: float | None = None
        self._task: asyncio.Task[RootSet] | None = None
        self.refused = ""

    @property
    def notes(self) -> list[str]:
        """For people: why those that are named are not trusted."""
        return [f"x509: roots of the CA above are not taken: {self.refused}"] if self.refused else []

    def look(self) -> RootSet | None:
        """Ask, where it is time; an answer that has come, once."""
        if self._task is None:
            if self._asked_at is None or self._clock.monotonic() - self._asked_at >= self._interval:
                self._asked_at = self._clock.monotonic()
                self._task = asyncio.create_task(self._ask())
            return None
        if not self._task.done():
            return None
        task, self._task = self._task, None
        try:
            return task.result()
        except SignerError as error:
            self.refuse(error)
        except TimeoutError:
            self.refuse(RootsRefused(f"the CA above did not say within {DEADLINE_SECONDS:g} s which roots there are"))
        return None

    async def _ask(self) -> RootSet:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._life.upstream.roots()

    def refuse(self, error: SignerError) -> None:
        """Those that are trusted stay; people are told, of each reason once."""
        told = f"{error.reason}: {error}"
        if told != self.refused:
            _log.warning("the roots of the CA above were not taken; the ones before stay", extra={"error": told})
        self.refused = told

    def taken(self) -> None:
        """They are trusted."""
        self.refused = ""

    def stop(self) -> None:
        """Nobody waits for an answer any more; who begins anew asks at once."""
        self._asked_at, self.refused = None, ""
        if self._task is not None:
            self._task.cancel()
            self._task = None
