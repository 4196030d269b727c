"""Calls to the signer: how long, how often again, and what an error means."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from agent.authority.batches import Alone, Batches
from agent.authority.connection import Connection
from agent.authority.contact import Contact
from agent.authority.endings import SERVICE, Failed, is_cancelled
from agent.authority.protocol import RENEWALS_AT_ONCE
from agent.errors import AuthorityDenied, AuthorityRefused, AuthorityUnavailable
from runtime.tracing import Tracing
from runtime.turns import Crowded, Seen, Turns, Who
from signer.pb import signer_pb2

# Seconds. The workloads give a mint 30; this one must be over before, to say why.
CALL_SECONDS = 20.0
# A call that the signer puts off is repeated when it said; under lasting pressure these grow beyond that.
LEAST_WAIT, MOST_LEAST_WAIT = 0.05, 1.0
# What can wait for others is asked again more rarely: the node's rate at the signer is for both.
LEAST_WAIT_LATER = 0.2
# So are renewals, of which more come at once than of anything else: together they ask no more often than 16 of others.
RENEWAL_WAIT, MOST_RENEWAL_WAIT = 0.5, 3.0
# At once: the signer takes 16 calls on a connection, the trust streams among them, and refuses what is beyond. One
# namespace has so many of them at most.
AT_ONCE, OF_ONE = 12, 8
# The same of those that are asked for in batches, which have two calls beside.
ITEMS, ITEMS_OF_ONE = RENEWALS_AT_ONCE, 42
# Statuses at which waiting helps. UNAUTHENTICATED is about the agent's own token, which is read anew at each call.
_TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
# Reasons of the signer that are about the identity itself, and not about how it was asked for.
DENIALS = frozenset({"POLICY_DENIED"})
# Kubelet brings another token: signers of before said it with the status of a denial.
_SOON = frozenset({"POD_TOKEN_EXPIRED"})
_Answer = TypeVar("_Answer")


class Calls:
    """Unary calls over the connection, in turn. Belongs to one event loop."""

    def __init__(
        self,
        address: str,
        connection: Connection,
        contact: Contact,
        rng: random.Random,
        tracing: Tracing,
        seen: Seen | None = None,
    ) -> None:
        self._address = address
        self._connection = connection
        self._contact = contact
        self._rng = rng
        self._tracing = tracing
        self._turns = Turns(AT_ONCE, of_group=OF_ONE, seen=seen)
        self._items = Turns(ITEMS, of_group=ITEMS_OF_ONE, seen=seen)
        self._batches = Batches(connection)

    @property
    def waiting(self) -> int:
        """How many wait to be made."""
        return self._turns.waiting + self._items.waiting + self._batches.waiting

    async def mint_x509(
        self,
        request: signer_pb2.MintX509SVIDRequest,
        who: Who,
        *,
        renewal: bool = False,
        while_away: float | None = None,
    ) -> signer_pb2.MintX509SVIDResponse:
        """As `call`; a `renewal` can wait for what is none, and some milliseconds to be asked for with others.

        What a batch leaves without an answer is asked for by a call of its own, and in no other batch.
        """
        parse = signer_pb2.MintX509SVIDResponse.FromString
        alone = not renewal

        async def once(left: float, deadline: float) -> signer_pb2.MintX509SVIDResponse:
            nonlocal alone
            if not alone and self._connection.takes_batches:
                with suppress(Alone):
                    async with self._items.turn(who, patience=left):
                        traceparent = dict(self._tracing.headers()).get("traceparent", "")
                        return await self._batches.ask(request, traceparent, deadline)
                alone, left = True, max(deadline - asyncio.get_running_loop().time(), 0.0)
            async with self._turns.turn(who, patience=left, later=renewal):
                return await self._ask("MintX509SVID", request, parse, deadline)

        waits = (RENEWAL_WAIT, MOST_RENEWAL_WAIT) if renewal else (LEAST_WAIT, MOST_LEAST_WAIT)
        return await self._repeated(once, *waits, while_away)

    async def call(
        self,
        method: str,
        message: Any,
        parse: Callable[[bytes], _Answer],
        who: Who,
        *,
        later: bool = False,
        while_away: float | None = None,
    ) -> _Answer:
        """The answer, in the turn of `who`; what comes `later` can wait for what does not.

        `while_away`: for how many seconds a signer is waited for that does not answer anybody at present. Raises
        AuthorityUnavailable (try again) or AuthorityRefused (do not).
        """

        async def once(left: float, deadline: float) -> _Answer:
            async with self._turns.turn(who, patience=left, later=later):
                return await self._ask(method, message, parse, deadline)

        return await self._repeated(once, LEAST_WAIT_LATER if later else LEAST_WAIT, MOST_LEAST_WAIT, while_away)

    async def _repeated(
        self, once: Callable[[float, float], Awaitable[_Answer]], least: float, most: float, while_away: float | None
    ) -> _Answer:
        """What `once` answers, asked again for as long as that helps: it has so many seconds, until that time.

        Between two times are `least` seconds, twice as many each time, up to `most`; and what the signer said.
        """
        self._contact.wanted()
        # One that is there and puts calls off is asked by all in turn, and nobody holds a turn for longer than others.
        patience = CALL_SECONDS if self._contact.connected or while_away is None else while_away
        deadline = asyncio.get_running_loop().time() + patience
        put_off: AuthorityUnavailable | AuthorityRefused | None = None
        while True:
            try:
                return await once(max(deadline - asyncio.get_running_loop().time(), 0.0), deadline)
            except Crowded as crowded:
                raise put_off or self._late(crowded, patience) from None
            except (grpc.aio.AioRpcError, Failed) as error:
                if is_cancelled():
                    raise asyncio.CancelledError from None
                how = error if isinstance(error, Failed) else Failed.of(error)
                code, reason, text, retry = how.code, how.reason, how.text, how.retry
                if put_off is not None and code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
                    raise put_off from None
                failed = self._failed(code, reason, text, patience)
                if not reason and code is grpc.StatusCode.CANCELLED:
                    # A signer with a new certificate takes no more on older connections: what comes there is dropped.
                    # It says nothing of why there is no answer later.
                    retry = 0.0 if retry is None else retry
                else:
                    put_off = failed
                wait = max(retry or 0.0, least) * self._rng.uniform(1.0, 2.0)
                if retry is None or wait >= deadline - asyncio.get_running_loop().time():
                    raise failed from None
                least = min(least * 2, most)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                wait = 0.0  # the old connection was closed
            await asyncio.sleep(wait)

    async def _ask(self, method: str, message: Any, parse: Callable[[bytes], _Answer], deadline: float) -> _Answer:
        call = self._connection.channel().unary_unary(SERVICE + method, type(message).SerializeToString, parse)
        # Waits for the connection: a signer that restarts costs a pod's start a moment and not a failure.
        answering: Awaitable[_Answer] = call(
            message,
            metadata=(*self._connection.credentials(), *self._tracing.headers()),
            timeout=max(deadline - asyncio.get_running_loop().time(), 0.0),
            wait_for_ready=True,
        )
        return await answering

    def _late(self, crowded: Crowded, patience: float) -> AuthorityUnavailable:
        return AuthorityUnavailable(
            f"SIGNER_UNREACHABLE: no turn to ask the signer at {self._address} within {patience:g} s: "
            f"{crowded.waiting} other calls of this node wait"
            + (f" ({self._contact.last_error})" if not self._contact.connected else "")
        )

    def _failed(
        self, code: grpc.StatusCode, reason: str, text: str, patience: float
    ) -> AuthorityUnavailable | AuthorityRefused:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
            return AuthorityUnavailable(
                f"SIGNER_UNREACHABLE: the signer at {self._address} did not answer within {patience:g} s"
                + (f" ({self._contact.last_error})" if not self._contact.connected else "")
            )
        found = f"{reason or code.name}: {text}"
        if code in _TRY_AGAIN or reason in _SOON:
            return AuthorityUnavailable(found)
        return AuthorityDenied(found) if reason in DENIALS else AuthorityRefused(found)
