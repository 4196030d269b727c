"""A replica that starts reads the authorities, or makes the first ones and waits while an older Secret is mended."""

import asyncio
import logging

from runtime.clock import Clock
from signer.authority.abandonments import Abandonments
from signer.authority.lifecycle import Life
from signer.authority.rollback import Published
from signer.authority.store import StateStore, Stored
from signer.errors import Conflict, SignerError, StateDamaged

_log = logging.getLogger("podsvid.authority")
# Looks in which those that run put a newer Secret back, at once or at their next read, before one starts by an older.
HEALED_AFTER = 20


async def found(
    store: StateStore, abandonments: Abandonments, published: Published, life: Life, clock: Clock
) -> Stored | None:
    """What is stored, or was made for it as the first ever; None where that is gone again. Raises SignerError."""
    # Unknown blocks: without the record an older Secret looks like any other.
    await abandonments.read()
    try:
        await published.read()
    except SignerError as error:
        # What agents say shows it as well.
        _log.info("published trust bundle not read", extra={"reason": error.reason, "error": str(error)})
    stored = await store.load()
    if stored is None:
        try:
            stored = await store.create(await life.first(clock.now()))
            _log.info("authorities created", extra={"sequence": stored.state.sequence})
        except Conflict:
            stored = await store.load()
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
