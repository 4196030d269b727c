"""Renewals that are due together, asked for by one call: each has its own answer, error and patience."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from agent.authority.endings import SERVICE, Failed, is_cancelled
from signer.pb import signer_pb2

# Seconds for which the first of a batch waits for others, and after which whoever waits for one of the calls below asks
# by a call of its own: a batch that takes long has an item that does, and keeps nobody.
GATHER, LONG = 0.004, 0.25
# Seconds after which what a batch has not answered is asked for by calls of its own: since its last answer, and in all.
QUIET, WHOLE = 1.0, 5.0
# Of one batch: the signer takes 48 KiB and 32 items, each with its length before it. Calls at once: of each the signer
# mints 8 at once, which with the 12 single calls is below the least that a profile gives a node, 32.
MOST_BYTES, MOST, CALLS = 44 * 1024, 28, 2
_ITEM_BYTES = 8


class Alone(Exception):
    """It is to be asked for by a call of its own: it fits into no batch, or its batch did not answer it."""


class Way(Protocol):
    """The connection, as far as a batch needs it."""

    def channel(self) -> grpc.aio.Channel: ...

    def credentials(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def number(self) -> int:
        """Which of the proven connections is the newest."""
        ...

    def lacks_batches(self, number: int) -> None:
        """The signer at the other end of that one knows no batches."""


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    item: signer_pb2.MintX509SVIDItem
    size: int
    deadline: float
    answer: "asyncio.Future[signer_pb2.MintX509SVIDResponse]"


class Batches:
    """Collects what is asked for within some milliseconds. Belongs to one event loop."""

    def __init__(self, connection: Way) -> None:
        self._connection = connection
        self._waiting: dict[_Item, None] = {}
        self._gathered: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._calls: dict[asyncio.Task[None], Sequence[_Item]] = {}

    @property
    def waiting(self) -> int:
        """How many are in no call yet."""
        return len(self._waiting)

    async def ask(
        self, request: signer_pb2.MintX509SVIDRequest, traceparent: str, deadline: float
    ) -> signer_pb2.MintX509SVIDResponse:
        """The answer to that item, by `deadline` of the loop's clock. Whoever is cancelled takes only its own with it.

        Raises Failed, Alone, AuthorityUnavailable.
        """
        item = signer_pb2.MintX509SVIDItem(request=request, traceparent=traceparent)
        loop = asyncio.get_running_loop()
        asked = _Item(item, item.ByteSize() + _ITEM_BYTES, deadline, loop.create_future())
        if asked.size > MOST_BYTES:
            raise Alone
        if sum(each.size for each in self._waiting) + asked.size > MOST_BYTES:
            self._send()
        self._waiting[asked] = None
        if len(self._waiting) >= MOST:
            self._send()
        elif self._gathered is None and self._late is None:
            self._gathered = loop.call_later(GATHER, self._send)
        try:
            async with asyncio.timeout_at(deadline):
                return await asked.answer
        except TimeoutError:
            raise Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "", "no answer in time") from None
        finally:
            self._leave(asked)

    def _leave(self, item: _Item) -> None:
        self._waiting.pop(item, None)
        if not item.answer.cancel() and not item.answer.cancelled():
            item.answer.exception()  # seen, though it came when nobody waited any more
        for call, items in self._calls.items():
            # What is for nobody any more takes none of the few calls; one that is answered ends by itself.
            answers = [each.answer for each in items] if item in items else []
            if any(each.cancelled() for each in answers) and all(each.done() for each in answers):
                call.cancel()

    def _send(self) -> None:
        """All that wait, as far as there are calls for them."""
        self._gathered = _stop(self._gathered)
        while self._waiting and len(self._calls) < CALLS:
            items = self._take()
            if len(items) == 1:
                _end(items, Alone)
                continue
            call = asyncio.ensure_future(self._call(items))
            self._calls[call] = items
            call.add_done_callback(self._called)
        if not self._waiting:
            self._late = _stop(self._late)
        elif self._late is None:
            self._late = asyncio.get_running_loop().call_later(LONG, self._send_alone)

    def _take(self) -> "list[_Item]":
        found: list[_Item] = []
        size = 0
        for each in self._waiting:
            size += each.size
            if len(found) == MOST or size > MOST_BYTES:
                break
            found.append(each)
        for each in found:
            del self._waiting[each]
        return found

    def _send_alone(self) -> None:
        self._late = None
        items, self._waiting = list(self._waiting), {}
        _end(items, Alone)

    def _called(self, call: "asyncio.Task[None]") -> None:
        items = self._calls.pop(call)
        if not call.cancelled():
            call.exception()  # seen: whoever waited has it
        # Whatever became of the call, nobody waits for it any more.
        _end(items, Alone)
        if self._waiting:
            self._send()

    async def _call(self, items: "Sequence[_Item]") -> None:
        loop, number = asyncio.get_running_loop(), self._connection.number
        try:
            method = self._connection.channel().unary_stream(
                f"{SERVICE}MintX509SVIDs",
                signer_pb2.MintX509SVIDsRequest.SerializeToString,
                signer_pb2.MintX509SVIDsResponse.FromString,
            )
            answers = method(
                signer_pb2.MintX509SVIDsRequest(items=[each.item for each in items]),
                metadata=self._connection.credentials(),
                timeout=max(max(each.deadline for each in items) - loop.time(), 0.0),
                wait_for_ready=True,
            )
            last = loop.time() + WHOLE
            async with asyncio.timeout(QUIET) as patience:
                async for response in answers:
                    for outcome in response.outcomes:
                        _answer(items, outcome)
                    # One that is answered ends by itself now; one that does not takes none of the few calls for it.
                    more = LONG if all(each.answer.done() for each in items) else QUIET
                    patience.reschedule(min(loop.time() + more, last))
        except grpc.aio.AioRpcError as error:
            # Why it failed counts for nobody: what is wrong with an item, or with the agent, its own call says.
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and not Failed.of(error).reason:
                self._connection.lacks_batches(number)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        except Exception as error:
            why = error
            _end(items, lambda: why)
            raise


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


def _answer(items: "Sequence[_Item]", outcome: signer_pb2.MintX509SVIDOutcome) -> None:
    # What is said of an item that there is not, or a second time, is no answer to anybody.
    if outcome.item >= len(items) or items[outcome.item].answer.done():
        return
    answer = items[outcome.item].answer
    match outcome.WhichOneof("outcome"):
        case "answer":
            answer.set_result(outcome.answer)
        case "refusal":
            answer.set_exception(Failed.of_item(outcome.refusal))


def _end(items: "Sequence[_Item]", how: Callable[[], Exception]) -> None:
    """Of those that have no answer."""
    for each in items:
        if not each.answer.done():
            each.answer.set_exception(how())
