"""What an authority's clock says is good and this node's does not: waited for where that is soon, else put into words.

Who asks again gets another SVID, whose times may fit; so none of this is final.
"""

import asyncio
from datetime import datetime, timedelta

from agent.errors import AuthorityUnavailable
from runtime.clock import Clock
from svid.identity import WorkloadIdentity

# How long an SVID that is not valid yet is waited for. kubelet waits 120 s for all of a publish.
PATIENCE = timedelta(seconds=60)
# Between looks at a clock that may be set meanwhile. Seconds.
_LOOK = 1.0


def begins_at(identity: WorkloadIdentity, now: datetime) -> datetime | None:
    """From when on it verifies, where it does not yet and nothing but time is missing; else None."""
    starts = {each.not_valid_before_utc for svid in identity.svids for each in svid.chain}
    starts |= {each.not_valid_before_utc for each in identity.bundle.x509_authorities}
    return next((start for start in sorted(starts) if start > now and identity.is_valid(start)), None)


async def wait_for(begins: datetime, clock: Clock, signed_at: datetime | None) -> None:
    """Wait until `clock` says that it `begins`. Raises AuthorityUnavailable where that is not soon."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE.total_seconds()
    while (left := begins - clock.now()) > timedelta(0):
        if left > PATIENCE or loop.time() >= end:
            raise differ(f"the SVID is not valid before {_text(begins)}", clock.now(), signed_at)
        await asyncio.sleep(min(left.total_seconds(), _LOOK))


def differ(what: str, now: datetime, signed_at: datetime | None) -> AuthorityUnavailable:
    """What is to be raised when `what` is so by this node's clock only; both times and the difference are in it."""
    other = ""
    if signed_at is not None:
        ahead = (signed_at - now).total_seconds()
        other = f", the authority's said {_text(signed_at)}: {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
    return AuthorityUnavailable(
        f"CLOCKS_DIFFER: {what}; this node's clock says {_text(now)}{other}. Both hosts must keep time (NTP); it is "
        "tried again"
    )


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
