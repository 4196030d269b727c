"""A call for several X.509-SVIDs: one message, whose items are each minted and answered by themselves."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from typing import Generic, TypeVar

from runtime.deadlines import Deadlines
from runtime.stopping import end
from signer.errors import Reason, Refused
from signer.front.budget import BATCH, BATCH_AT_ONCE
from signer.front.callers import Callers
from signer.front.calls import (
    MESSAGE_SECONDS,
    MINT_DEADLINE,
    Context,
    Messages,
    Silence,
    abort,
    headers_of,
    only,
    refused_by,
    status_of,
    still_wanted,
)
from signer.front.limits import NodeLimits, Place, Slots
from signer.front.mints import Asked, Mints
from signer.model import SOON, Agent
from signer.pb import signer_pb2

_Found = TypeVar("_Found")


class Batches:
    """Calls of MintX509SVIDs. One has a place among all mints' messages (`places`), and one among the batches.

    What is minted counts item by item.
    """

    def __init__(self, callers: Callers, mints: Mints, limits: NodeLimits, places: Slots, batches: Slots) -> None:
        self._callers = callers
        self._mints = mints
        self._limits = limits
        self._places = places
        self._batches = batches
        self._patience = Deadlines(MINT_DEADLINE + MESSAGE_SECONDS)

    async def mint(self, messages: Messages, context: Context) -> AsyncIterator[signer_pb2.MintX509SVIDsResponse]:
        """The handler of the call: outcomes in the order in which they come about.

        It has its places until its last answer is taken: what agents do not read is held here. So while one is not
        taken it gives way to others, as a call does whose message does not come.
        """
        started = time.perf_counter()
        agent: Agent | None = None
        with ExitStack() as held:
            try:
                still_wanted(context)
                async with asyncio.timeout(MINT_DEADLINE):
                    agent = await self._callers.proven(context, headers_of(context))
                    held.enter_context(self._limits.batch(agent.node_uid))
                    places = [
                        held.enter_context(self._callers.place(self._places, "mints", agent.node_uid)),
                        held.enter_context(self._callers.place(self._batches, "batches", agent.node_uid)),
                    ]
                    form = signer_pb2.MintX509SVIDsRequest
                    told = self._callers.given_up
                    request = await only(form, messages, self._callers.patience, *places, given_up=told)
                    items = _items(request)
                # Each that is refused costs what a refused call does.
                self._callers.count(context, agent, len(items) - 1)
            except Exception as error:
                try:
                    self._mints.refuse("x509", agent, None, error, started)
                except Refused as refusal:
                    await abort(context, refusal)
                raise
            work = (self._one(index, each, agent, places[0], context) for index, each in enumerate(items))
            underway = _Underway(work, BATCH_AT_ONCE)
            # Who does not read has no more than one mint may take, and a little to be told of that one.
            patience = self._patience.one()
            try:
                with patience:
                    while outcomes := await underway.some():
                        with Silence(places, patience):
                            yield signer_pb2.MintX509SVIDsResponse(outcomes=outcomes)
            except TimeoutError:
                await abort(context, _late(places))
            finally:
                await underway.end()
                if patience.expired:
                    # Said here: while an answer is not taken it is gRPC that is ended, and nothing is raised above.
                    with suppress(Refused):
                        self._mints.refuse("x509", agent, None, _late(places), started)

    async def _one(
        self, index: int, item: signer_pb2.MintX509SVIDItem, agent: Agent, place: Place, context: Context
    ) -> signer_pb2.MintX509SVIDOutcome:
        async def proven() -> Agent:
            return agent

        async def request(_: Place) -> signer_pb2.MintX509SVIDRequest:
            return item.request

        headers = (("traceparent", item.traceparent),) if item.traceparent else ()
        asked = Asked(context, time.perf_counter(), proven, lambda _: nullcontext(place), request, headers)
        try:
            return signer_pb2.MintX509SVIDOutcome(item=index, answer=await self._mints.x509(asked))
        except Exception as error:
            # Whatever it is, it is about this one and ends no other.
            refusal = status_of(refused_by(error)).SerializeToString()
            # Its frames hold it: see `aborted`.
            error.__traceback__ = error.__context__ = None
            return signer_pb2.MintX509SVIDOutcome(item=index, refusal=refusal)


class _Underway(Generic[_Found]):
    """Work of which so many are held at once, under way or found; none is begun until what was found is taken."""

    def __init__(self, work: "Iterable[Awaitable[_Found]]", at_once: int) -> None:
        self._work = iter(work)
        self._at_once = at_once
        self._running: set[asyncio.Future[_Found]] = set()
        self._done: list[asyncio.Future[_Found]] = []
        self._changed = asyncio.Event()

    async def some(self) -> "Sequence[_Found]":
        """What has come about since the last time, one at least; nothing once all has."""
        self._begin()
        if self._running and not self._done:
            await self._changed.wait()
        self._changed.clear()
        found, self._done = self._done, []
        return [each.result() for each in found]

    def _begin(self) -> None:
        while len(self._running) + len(self._done) < self._at_once:
            following = next(self._work, None)
            if following is None:
                return
            task = asyncio.ensure_future(following)
            self._running.add(task)
            task.add_done_callback(self._finished)

    async def end(self) -> None:
        """Nothing runs, and nothing more is begun, when this returns."""
        self._at_once = 0
        await end(self._running)

    def _finished(self, task: "asyncio.Future[_Found]") -> None:
        self._running.discard(task)
        self._done.append(task)
        self._changed.set()


def _late(places: "Iterable[Place]") -> Refused:
    if any(each.lost for each in places):
        return Refused(Reason.BUSY, "others took the place of this batch, which did not take its answers", SOON)
    return Refused(Reason.BUSY, "not all of the batch was minted and taken in time", SOON)


def _items(request: signer_pb2.MintX509SVIDsRequest) -> "Sequence[signer_pb2.MintX509SVIDItem]":
    if not 1 <= len(request.items) <= BATCH:
        raise Refused(Reason.INVALID_REQUEST, f"a batch has 1 to {BATCH} items, this one has {len(request.items)}")
    return request.items
