"""A call that came to a worker, in the process that decides: it is handled as one of this process's own gRPC is."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio

from runtime.frames import BadFrame
from signer.front.server import MAX_ANSWER
from signer.workers import messages
from signer.workers.channel import Channel

_log = logging.getLogger("podsvid.api")
_Status = tuple[int, str, list[tuple[str, bytes]]]
_UNKNOWN: _Status = (grpc.StatusCode.UNKNOWN.value[0], "the signer failed; its log says more", [])
_GIVEN_UP: _Status = (grpc.StatusCode.CANCELLED.value[0], "", [])
_TOO_LARGE: _Status = (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "the answer is larger than answers may be", [])
# Characters of a status's text.
_DETAILS = 8 * 1024
# For whom the worker's gRPC would have refused by itself.
FULL: _Status = (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "this replica has its fill of calls", [])


class RemoteCall:
    """The half of a gRPC ServicerContext that handlers use, and what the caller says, of one call."""

    def __init__(self, begun: messages.Begun, channel: "Channel[messages.Report]") -> None:
        self._begun = begun
        self._channel = channel
        self._until = None if begun.left is None else asyncio.get_running_loop().time() + begun.left
        self._headers = messages.unpacked(begun.headers)
        self._status: _Status | None = None
        self._wanted: asyncio.Future[bytes | None] | None = None
        self._taking: asyncio.Future[None] | None = None

    def peer(self) -> str:
        """As gRPC calls it."""
        return self._begun.peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Its headers."""
        return self._headers

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, if it has one."""
        return None if self._until is None else max(self._until - asyncio.get_running_loop().time(), 0.0)

    async def abort_with_status(self, status: Any) -> NoReturn:
        """As gRPC does: end the call with it. Raises grpc.aio.AbortError."""
        self._status = status.code.value[0], status.details or "", messages.packed(status.trailing_metadata or ())
        raise grpc.aio.AbortError

    async def handled(self, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
        """Have it handled to its end, and say what came of it."""
        try:
            await self._answered(handler)
        except grpc.aio.AbortError:
            self._end(self._status or _UNKNOWN)
        except asyncio.CancelledError:
            # Its caller may be there still: an answer that it did not take in time ends it.
            self._end(_GIVEN_UP)
            raise
        except Exception as error:
            _log.error("bug: a call failed unexpectedly", exc_info=error)
            self._end(_UNKNOWN)

    def refuse(self, status: _Status) -> None:
        """End it so, unheard."""
        self._end(status)

    def said(self, message: bytes | None) -> None:
        """What was wanted has come. Raises BadFrame where nothing was."""
        wanted, self._wanted = self._wanted, None
        if wanted is None:
            raise BadFrame("a message that nobody wanted")
        if not wanted.done():
            wanted.set_result(message)

    def taken(self) -> None:
        """gRPC has the last answer. Raises BadFrame where there was none."""
        taking, self._taking = self._taking, None
        if taking is None:
            raise BadFrame("a word of an answer that was not given")
        if not taking.done():
            taking.set_result(None)

    async def _answered(self, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
        call, dumps = self._begun.call, partial(self._dumped, handler.response_serializer or bytes)
        said = self._messages()
        try:
            if handler.stream_unary is not None:
                answer: Any = await handler.stream_unary(said, self)  # type: ignore[arg-type]
                await self._channel.send(messages.Answer(call, dumps(answer), last=True))
                return
            assert handler.stream_stream is not None
            async with aclosing(handler.stream_stream(said, self)) as answers:  # type: ignore[type-var, arg-type]
                async for each in answers:  # type: ignore[attr-defined]
                    self._taking = taking = asyncio.get_running_loop().create_future()
                    await self._channel.send(messages.Answer(call, dumps(each), last=False))
                    await taking
            self._channel.post(messages.Over(call))
        finally:
            await said.aclose()

    def _dumped(self, dumps: Callable[[Any], bytes], answer: Any) -> bytes:
        """As gRPC would refuse it: its worker would not read it. Raises grpc.aio.AbortError."""
        found = dumps(answer)
        if len(found) > MAX_ANSWER:
            self._status = _TOO_LARGE
            raise grpc.aio.AbortError
        return found

    async def _messages(self) -> AsyncGenerator[bytes, None]:
        """One is read of the caller each time that one is asked for here."""
        while True:
            # One that nobody waited for to the end comes next.
            if self._wanted is None:
                self._wanted = asyncio.get_running_loop().create_future()
                self._channel.post(messages.Want(self._begun.call))
            message = await asyncio.shield(self._wanted)
            if message is None:
                return
            yield message

    def _end(self, status: _Status) -> None:
        code, details, trailing = status
        fitting = trailing if messages.fit(trailing) else []
        self._channel.post(messages.Refuse(self._begun.call, code, details[:_DETAILS], fitting))


Methods = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
