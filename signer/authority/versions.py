"""Which version of the stored state a signer has to know to read one, and what is said of one that cannot be used."""

from typing import Any

from signer.errors import StateDamaged

# A state that leaves keys out or has abandoned authorities would be misread by who knows version 1 only, one with a
# request by who knows no such stage, one with roots that no authority leads to by who publishes but authorities' own,
# one with keys in a key store by who knows none, one with revoked roots by who would trust them again; any other is
# written as before, so that a signer of before goes on from it.
PLAIN, LEAN, REQUEST, ROOTS, KEYS, REVOKED = 1, 2, 3, 4, 5, 6
NEWEST = REVOKED
_ADVICE = (
    "restore the Secret from a backup; or, if there is none, delete it and restart all signer pods: every workload "
    "must then get new SVIDs, and none trusts the old ones"
)


def damaged(why: str) -> StateDamaged:
    """With what a person can do."""
    return StateDamaged(f"the stored authorities cannot be used: {why}; {_ADVICE}")


def version_of(found: object) -> int:
    """That of a state that says `found`. Raises StateDamaged."""
    if not isinstance(found, int) or isinstance(found, bool) or found < PLAIN:
        raise damaged(f"it is of version {found!r}, this signer knows up to {NEWEST}")
    if found > NEWEST:
        raise StateDamaged(
            f"the stored authorities are of version {found}, which a newer signer wrote, and this one knows up to "
            f"{NEWEST}: run the newer signer again"
        )
    return found


def asks(document: dict[str, Any], version: int) -> bool:
    """Whether a state of that version has a request."""
    return version == REQUEST or (version > REQUEST and "request" in document)
