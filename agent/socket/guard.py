"""What stands before every method of a socket: the security header, limits, one request in time, a status at its end.

Handlers begin when a call's headers are there and read what is asked by themselves: a call counts before anything else
of it has come, and one that is refused is answered without.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import grpc
import grpc.aio

from agent.socket.accounts import Account

_log = logging.getLogger("podsvid.endpoint")
WORKLOAD_API = "SpiffeWorkloadAPI"
HEADER = ("workload.spiffe.io", "true")
# The words that clients know a denial by (rust-spiffe looks for them).
DENIED = "no identity issued"
# These are no part of the Workload API: Envoy, probes and grpcurl send no SPIFFE header.
WITHOUT_HEADER = ("/envoy.service.secret.v3.SecretDiscoveryService/", "/grpc.health.v1.Health/", "/grpc.reflection.")
# Bytes of one call's metadata, names and values; the header above and what tracing adds are some hundred.
MAX_METADATA = 16 * 1024
# Seconds from a call's headers until its request has come, the first one where there are many.
REQUEST = 10.0
# Seconds that a call without a request, or without any more, may take to turn out as one whose client is gone.
GONE = 0.05
# And that a refusal waits: what is opened and reset in one breath gets no status, which would fail and keep its memory.
REFUSAL = 0.01
# Why a call is refused where the pod lets answers lie.
UNREAD = "unread answers"
# What calls are told that end with the socket.
CLOSED = "this socket is being closed; try again"
AnyContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = Any  # grpc.RpcMethodHandler's fields are not typed


class CallMetrics(Protocol):
    """What the endpoints count."""

    def call_started(self, method: str) -> None: ...

    def call_ended(self, method: str) -> None: ...

    def call_refused(self, why: str) -> None: ...


@dataclass(eq=False, slots=True)
class _Call:
    """One that was taken. `task`: its handler's, while that runs; `told`: whether it was told to end."""

    method: str
    began: float
    task: "asyncio.Task[Any] | None"
    told: bool = False
    writing: bool = False

    def end(self) -> None:
        if self.task is not None and not self.told:
            self.told = True
            # gRPC sends no status beside an answer: one that is being written is waited for.
            if not self.writing:
                self.task.cancel()


class _Context:
    """A call's context, for its handler."""

    def __init__(self, context: AnyContext, call: _Call) -> None:
        self._context = context
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, answer: Any) -> None:
        self._call.writing = True
        try:
            await self._context.write(answer)
        finally:
            self._call.writing = False
        if self._call.told:
            raise asyncio.CancelledError


class Guard(grpc.aio.ServerInterceptor):
    """One socket's."""

    def __init__(self, account: Account, metrics: CallMetrics) -> None:
        self._account = account
        self._metrics = metrics
        self._open: dict[_Call, None] = {}
        # Calls whose answer is not taken yet, those that were refused too; `_idle` is set while there is none, and is
        # made when somebody waits for it.
        self._under_way = 0
        self._idle: asyncio.Event | None = None
        self._closing = False
        self._guarded: dict[str, _Handler] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata or ()
        if sum(len(key) + len(value) for key, value in metadata) > MAX_METADATA:
            # grpc's own limit holds for clients that acknowledge it; a call of others keeps megabytes while it is open.
            text = f"metadata of more than {MAX_METADATA} bytes"
            return self._refusal(handler, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        name, wanted = HEADER
        if not method.startswith(WITHOUT_HEADER):
            values = [value for key, value in metadata if key == name]
            if values != [wanted]:
                # Before the method is known: a call without it is refused whatever it asks for.
                text = f"security header missing: {name}: {wanted}"
                return self._refusal(handler, grpc.StatusCode.INVALID_ARGUMENT, text)
        if handler is None:
            return self._refusal(handler, grpc.StatusCode.UNIMPLEMENTED, "no such method here")
        if self._closing:
            return self._refusal(handler, grpc.StatusCode.UNAVAILABLE, CLOSED)
        why = self._account.pod.excess()
        if why:
            self._metrics.call_refused(why)
            text = f"too many {why} on this pod's sockets; try again later"
            return self._refusal(handler, grpc.StatusCode.UNAVAILABLE, text)
        found = self._guarded.get(method)
        if found is None:
            found = self._guarded[method] = self._guard(method, handler)
        return found

    def calls(self) -> list[tuple[str, float]]:
        """The calls under way: method, and for how many seconds; the oldest first."""
        now = asyncio.get_running_loop().time()
        return [(call.method, now - call.began) for call in self._open]

    async def end(self, seconds: float) -> None:
        """Answer every call with UNAVAILABLE, those that come from now on too; back when all are gone, or in `seconds`.

        A server that is stopped first takes the connections away from them: clients are told INTERNAL or UNKNOWN then.
        """
        self._closing = True
        for call in self._open:
            call.end()
        # One for all who wait.
        self._idle = self._idle or asyncio.Event()
        if not self._under_way:
            self._idle.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _guard(self, method: str, handler: _Handler) -> _Handler:
        behaviour = _behaviour(handler)
        streams = inspect.isasyncgenfunction(inspect.unwrap(behaviour))

        async def call(_: Any, context: AnyContext) -> Any:
            async with self._call(method, context) as answering:
                return await behaviour(await self._asked(handler, context), answering)

        async def stream(_: Any, context: AnyContext) -> None:
            # Written here and not by grpc: what is cancelled while it waits for a reader ends here, at once.
            async with self._call(method, context) as answering:
                answers = behaviour(await self._asked(handler, context), answering)
                async with aclosing(answers):
                    async for answer in answers:
                        await answering.write(answer)

        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else _stream_unary
        return make(stream if streams else call, handler.request_deserializer, handler.response_serializer)

    def _refusal(self, handler: _Handler, code: grpc.StatusCode, text: str) -> _Handler:
        """A method that only says no, whatever is asked."""

        def answered(_: object) -> None:
            self._account.answered()
            self._ended()

        async def refuse(_: Any, context: AnyContext) -> None:
            taken = self._account.refuse()
            self._began()
            context.add_done_callback(cast(Any, answered))
            if not taken:
                self._metrics.call_refused(UNREAD)
            await asyncio.sleep(REFUSAL)
            await context.abort(code, text)

        streams = handler is not None and handler.response_streaming
        return (grpc.stream_stream_rpc_method_handler if streams else _stream_unary)(refuse)

    async def _asked(self, handler: _Handler, context: AnyContext) -> Any:
        """The call's request, or an iterator of them where a client may stream some.

        A call whose client has gone reads as if all had been said, and is cancelled in the loop's next turn. Who goes
        between a request and its end is answered all the same: a turn for each call is too much for that.
        """
        if handler.request_streaming:
            return self._requests(context)
        with self._in_time(context):
            request = await context.read()
            if request is not grpc.aio.EOF and await context.read() is grpc.aio.EOF:
                return request
        await asyncio.sleep(GONE)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this method takes one request, no less and no more")
        raise AssertionError("abort raises")

    async def _requests(self, context: AnyContext) -> AsyncIterator[Any]:
        """What a client streams, as fast as its pod may ask."""
        with self._in_time(context):
            request = await context.read()
        while request is not grpc.aio.EOF:
            await self._account.pod.turn()
            yield request
            request = await context.read()
        await asyncio.sleep(GONE)

    @contextmanager
    def _in_time(self, context: AnyContext) -> Iterator[None]:
        """What is read meanwhile comes in time, or the call ends with a status."""
        overdue = asyncio.get_running_loop().call_later(REQUEST, self._end, context)
        try:
            yield
        finally:
            overdue.cancel()

    def _end(self, context: AnyContext) -> None:
        task = asyncio.get_running_loop().create_task(_abort(context), name="end a call that asks nothing")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _began(self) -> None:
        self._under_way += 1
        if self._idle is not None:
            self._idle.clear()

    def _ended(self) -> None:
        self._under_way -= 1
        if self._idle is not None and not self._under_way:
            self._idle.set()

    @asynccontextmanager
    async def _call(self, method: str, context: AnyContext) -> AsyncIterator[AnyContext]:
        this = _Call(method, asyncio.get_running_loop().time(), asyncio.current_task())

        def ended(_: object) -> None:
            del self._open[this]
            self._account.ended()
            self._metrics.call_ended(method)
            self._ended()

        self._open[this] = None
        self._began()
        self._account.take()
        self._metrics.call_started(method)
        # Not when the handler is done: what it answered last may wait for a reader for ever.
        context.add_done_callback(cast(Any, ended))
        try:
            try:
                yield cast(AnyContext, _Context(context, this))
            finally:
                # What it answered is on its way, and is not cut short.
                task, this.task = this.task, None
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            # It has its status; or nothing more can be sent to its client.
            raise
        except asyncio.CancelledError:
            if task is None or task.cancelling() > this.told:
                # Else only grpc cancels a handler's task: the client has gone, or the server ends all calls itself. A
                # status for such a call fails, and each that fails keeps some hundred bytes for ever (grpc/grpc#43360).
                raise
            if this.told:
                task.uncancel()
                await context.abort(grpc.StatusCode.UNAVAILABLE, CLOSED)
            # What the handler waited for was cancelled by us. Without a status the client would wait for ever.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the agent ended this call; try again")
        except Exception as error:
            # Its text could hold anything, and a client could do nothing with it.
            _log.exception("call failed", extra={"method": method, "error": type(error).__name__})
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the agent's log says more")


async def _abort(context: AnyContext) -> None:
    # Beside the handler, whose read ends with it: one that is cancelled instead keeps some bytes (grpc/grpc#43360).
    with suppress(grpc.aio.AbortError, grpc.aio.InternalError):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {REQUEST:g} s")


def _behaviour(handler: _Handler) -> Callable[[Any, AnyContext], Any]:
    found: Callable[[Any, AnyContext], Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


_stream_unary = grpc.stream_unary_rpc_method_handler
