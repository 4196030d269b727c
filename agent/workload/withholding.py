"""What becomes of an identity whose SVID could not be renewed: its SVIDs may be withheld, its bundles never are."""

from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from agent.errors import AgentError, AuthorityDenied, AuthorityRefused
from svid.errors import InvalidSvid
from svid.identity import Trust, Withheld, WorkloadIdentity

# Characters of why an SVID is refused that its pod is told.
MOST_TOLD = 512


def not_renewed(identity: WorkloadIdentity, error: AgentError, trust: Trust, now: datetime) -> WorkloadIdentity:
    """`identity` as it is held after a renewal failed by `error` at `now`, while `trust` was the newest.

    What is refused is not handed out once it has ended, what is denied no more from now on. That stands until there is
    an SVID again, whatever else fails meanwhile.
    """
    # Its turn to be handed that trust may not have come yet: only what does not verify under it is kept back.
    identity = identity.under(trust, now)
    held, why = identity.withheld, str(error)[:MOST_TOLD]
    denied = isinstance(error, AuthorityDenied)
    if denied or (isinstance(error, AuthorityRefused) and not (held and held.refused and held.at_once)):
        held = Withheld(why, refused=True, at_once=denied or bool(held and held.at_once))
    if not identity.follows(trust):
        # The renewal was to bring SVIDs that fit. Nobody is handed those that do not, and nobody waits for the bundles.
        held = replace(held or Withheld(why, refused=False, at_once=True), at_once=True)
        with suppress(InvalidSvid):
            identity = identity.with_trust(trust)
    return replace(identity, withheld=held)


def left(identity: WorkloadIdentity) -> WorkloadIdentity:
    """One that an earlier process left, with SVIDs that are no good any more."""
    why = "the SVID that was there at the agent's start is not valid"
    return replace(identity, withheld=Withheld(why, refused=False, at_once=True))
