"""JWT-SVIDs for exposed processes: within the bounds of the pod that one says it is for, and for that pod's own ID."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from agent.channel import messages
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.servers import asked
from agent.servers.link import Link, LinkLost
from agent.servers.protocol import JwtSource
from agent.servers.reports import Allowance
from runtime.feed import Feed
from svid.errors import InvalidSpiffeId
from svid.identity import WorkloadIdentity
from svid.spiffeid import SpiffeId

_log = logging.getLogger("podsvid.servers")
# JWT-SVIDs that all pods together may wait for.
MOST_ANSWERS = 16 * 1024


class Asking(Protocol):
    """A socket, for what is asked on it. `forgotten`: how often what was given was to be forgotten."""

    @property
    def feed(self) -> Feed[WorkloadIdentity]: ...

    @property
    def jwt_svids(self) -> JwtSource | None: ...

    @property
    def allowance(self) -> Allowance: ...

    @property
    def asked(self) -> asked.Asked: ...

    @property
    def forgotten(self) -> int: ...


class Answers:
    """Belongs to one event loop."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._whole = asked.Asked(MOST_ANSWERS, asked.MOST)
        self._answering: set[asyncio.Task[None]] = set()

    def bounds(self) -> asked.Asked:
        """For the questions of one more socket."""
        return asked.Asked(self._calls, asked.MOST_EACH, self._whole)

    def wanted(self, link: Link, wanted: messages.Wanted, served: Mapping[int, Asking]) -> None:
        """The process behind `link`, which serves these sockets, asks for one."""
        if len(self._answering) >= MOST_ANSWERS:
            # Each costs memory here until it is taken there.
            link.lose("it asked for too many JWT-SVIDs")
            return
        socket, taken = served.get(wanted.volume), asked.size(wanted)
        if socket is None or not socket.allowance.take() or not socket.asked.take(taken):
            # It keeps nothing of what came while it waits.
            why = "too many JWT-SVIDs are asked for on this socket; try again later" if socket else "it is not served"
            task = asyncio.create_task(_send(link, messages.NoToken(wanted.request, False, why)), name="no JWT-SVID")
        else:
            task = asyncio.create_task(_answer(link, wanted, socket), name="JWT-SVID")
            given = socket.asked
            task.add_done_callback(lambda _: given.give(taken))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)


async def _answer(link: Link, wanted: messages.Wanted, socket: Asking) -> None:
    try:
        answer: messages.Token | messages.NoToken = await _token(wanted, socket)
    except (AuthorityRefused, AuthorityUnavailable) as error:
        answer = messages.NoToken(wanted.request, isinstance(error, AuthorityRefused), str(error))
    except Exception as error:
        # A call of a pod waits for this answer.
        _log.exception("bug: a JWT-SVID could not be asked for", extra={"error": type(error).__name__})
        answer = messages.NoToken(wanted.request, False, "internal error; the agent's log says more")
    await _send(link, answer)


async def _send(link: Link, answer: messages.Token | messages.NoToken) -> None:
    with suppress(LinkLost):
        await link.send(answer)


async def _token(wanted: messages.Wanted, socket: Asking) -> messages.Token:
    identity = socket.feed.current
    if identity is None or socket.jwt_svids is None:
        raise AuthorityUnavailable("the volume is not served")
    try:
        spiffe_id = SpiffeId.parse(wanted.spiffe_id)
    except InvalidSpiffeId:
        raise AuthorityRefused("that is no SPIFFE ID") from None
    if spiffe_id not in [svid.spiffe_id for svid in identity.svids]:
        raise AuthorityRefused("the workload does not have that SPIFFE ID")
    forgotten = socket.forgotten
    kept = await socket.jwt_svids.get(spiffe_id, wanted.audiences)
    again = kept.reusable and forgotten == socket.forgotten
    return messages.Token(wanted.request, kept.svid.token, kept.renew_at.timestamp() if again else 0.0)
