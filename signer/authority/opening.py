"""A replica that starts reads the authorities, or makes the first ones and waits while an older Secret is mended."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import hashes

from runtime.clock import Clock
from signer.authority.abandonments import Abandonments
from signer.authority.backoff import Backoff
from signer.authority.lifecycle import Life
from signer.authority.made import undone
from signer.authority.revoked import RevokedRoot
from signer.authority.rollback import Published
from signer.authority.state import AuthorityState
from signer.authority.store import StateStore, Stored
from signer.errors import CertificateRefused, Conflict, SignerError, StateDamaged
from signer.keystore.store import KeyStoreUnavailable, KeyUnfinished
from signer.upstream.certify import UpstreamUnusable

_log = logging.getLogger("podsvid.authority")
# Looks in which those that run put a newer Secret back, at once or at their next read, before one starts by an older.
HEALED_AFTER = 20
# How often the pause is doubled at most, each time for a key that was made in vain: to a quarter of an hour.
MOST_DOUBLED = 10


class First:
    """The first authorities ever, made at a start; a CA above that certifies none is asked again by who leads.

    The process stays meanwhile: each start of one would ask at once, and a token that holds the CA's key counts.
    """

    def __init__(self, life: Life, leading: Callable[[], bool], clock: Clock, rng: random.Random) -> None:
        self._life = life
        self._leading = leading
        self._clock = clock
        self._backoff = Backoff(clock, rng)
        # A key store made a key in vain: once a minute it would make, and be paid for, 1,400 a day.
        self._unfinished = False
        # What is waited for, for people, and since when; empty where nothing is.
        self.awaited = ""
        self.since: datetime | None = None

    async def made(self, revoked: tuple[RevokedRoot, ...]) -> AuthorityState | None:
        """A state with them, below none of the `revoked`; None where it is not time to try, or the CA above certifies
        none."""
        if self._backoff.failing and not (self._leading() and self._left() <= timedelta(0)):
            return None
        try:
            return await self._life.first(self._clock.now(), revoked)
        except (UpstreamUnusable, CertificateRefused, KeyStoreUnavailable) as error:
            self._unfinished = isinstance(error, KeyUnfinished)
            self._backoff.failed(for_good=isinstance(error, KeyUnfinished) and not error.again)
            self.since = self.since or self._clock.now()
            self.awaited = f"waits for the first authority: {error.reason}: {error}"
            if self._unfinished:
                again = self._clock.now() + self._left()
                self.awaited += f"; tried again at {again:%Y-%m-%dT%H:%M:%SZ}, or when the signer is started anew"
            _log.error(
                "no authority yet: its key is not made, or the CA above certifies none",
                extra={"reason": error.reason, "error": str(error)},
            )
            return None

    def _left(self) -> timedelta:
        return self._backoff.left(pressed=not self._unfinished)

    async def unused(self, made: AuthorityState, stored: Stored | None) -> None:
        """Another replica was faster: destroy what a key store made for these, unless they are what is stored."""
        await undone(self._life.keys, made, stored.state.key_refs if stored is not None else frozenset())


async def found(
    store: StateStore, abandonments: Abandonments, published: Published, first: First, look_seconds: float
) -> Stored | None:
    """What is stored, or was made for it as the first ever; None where that is gone again. Raises SignerError."""
    # Unknown blocks: without the record an older Secret looks like any other.
    await abandonments.read()
    try:
        await published.read()
    except SignerError as error:
        # What agents say shows it as well.
        _log.info("published trust bundle not read", extra={"reason": error.reason, "error": str(error)})
    while (stored := await store.load()) is None:
        made = await first.made(abandonments.record.roots)
        if made is None:
            await asyncio.sleep(look_seconds)
            continue
        try:
            stored = await store.create(made)
            roots = [each.fingerprint(hashes.SHA256()).hex() for each in stored.state.bundle.x509_authorities]
            _log.info("authorities created", extra={"sequence": stored.state.sequence, "roots": roots})
        except Conflict:
            stored = await store.load()
            await first.unused(made, stored)
        break
    first.awaited, first.since = "", None
    return stored


async def healed(stored: Stored | None, store: StateStore, published: Published, look_seconds: float) -> Stored:
    """What is stored, when signers that run had time to put the newest back. Raises StateDamaged, SignerError.

    Whatever was written on top of an older one would be the newest of all, and trust what was revoked since.
    """
    for look in range(HEALED_AFTER + 1):
        if stored is None:
            raise StateDamaged("the authorities' Secret was deleted while this signer started; start it again")
        if look == HEALED_AFTER or not published.newer_than(stored.state):
            break
        if look == 0:
            _log.warning(
                "the authorities' Secret is older than the published trust bundle; waiting for signers that know "
                "better",
                extra={"sequence": stored.state.sequence, "published": published.beside(stored.state)},
            )
        await asyncio.sleep(look_seconds)
        stored = await store.load()
    assert stored is not None
    return stored


async def patient(work: Callable[[], Awaitable[Stored]], look_seconds: float) -> Stored:
    """What `work` returns, for however long the key store is away: a process that ends and begins again would try its
    PIN anew each time. Raises SignerError."""
    made = 0
    while True:
        try:
            return await work()
        except KeyStoreUnavailable as error:
            _log.warning("waiting for the key store", extra={"reason": error.reason, "error": str(error)})
            # What it makes in vain is paid for.
            made += isinstance(error, KeyUnfinished)
            await asyncio.sleep(look_seconds * 2 ** min(made, MOST_DOUBLED))
