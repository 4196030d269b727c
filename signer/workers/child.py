"""`python -m signer.workers.child CHANNEL FOLDER BYTES FORMAT LEVEL`: gRPC for agents, until its channel ends.

It has the signer's own certificate, the sockets below a folder, and nothing else: each call goes to the process that
decides, which says what is read of it and how it ends.
"""

import asyncio
import itertools
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
import msgspec

from runtime import log
from runtime.child import harden
from runtime.frames import Frames
from runtime.stopping import end
from signer.front import budget
from signer.front.aborting import aborted
from signer.workers import messages
from signer.workers.channel import Channel
from signer.workers.confinement import confine, ends_first

# Bytes that wait to be sent before calls wait in gRPC, which knows which of them their callers gave up meanwhile.
_HIGH = 64 * 1024
_CODES = {each.value[0]: each for each in grpc.StatusCode}


class _Refused(Exception):
    """The call ends with a status."""


class Child:
    """Serves as it is told on the channel."""

    def __init__(self, lacking: tuple[str, ...]) -> None:
        self._lacking = lacking
        self._numbers = itertools.count(1)
        self._orders: dict[int, asyncio.Queue[messages.Order]] = {}
        # Calls of which an answer waits for its caller to take it, each with gRPC's task.
        self._sending: dict[int, asyncio.Task[Any]] = {}
        self._servers: dict[int, grpc.aio.Server] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        frames = Frames(msgspec.msgpack.Decoder(messages.Order), messages.MAX_ORDER)
        ended = self._over.set
        self._channel: Channel[messages.Order] = Channel(frames, self._heard, lambda _: ended(), high=_HIGH)

    async def run(self, channel: socket.socket) -> None:
        """Until the other end is gone."""
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        if self._lacking:
            self._channel.post(messages.Lacking(list(self._lacking)))
        await self._over.wait()

    def _heard(self, order: messages.Order) -> None:
        match order:
            case messages.Serve():
                self._begin(self._serve(order))
            case messages.Stop():
                self._begin(self._stop(order))
            case messages.Ping():
                self._channel.post(messages.Pong())
            case messages.Refuse() if order.call in self._sending:
                self._sending[order.call].cancel()
            case _:
                orders = self._orders.get(order.call)
                if orders is not None:
                    orders.put_nowait(order)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _serve(self, order: messages.Serve) -> None:
        server = grpc.aio.server(options=order.options)
        server.add_generic_rpc_handlers((_Methods(self, frozenset(order.methods)),))
        try:
            credentials = grpc.ssl_server_credentials([(order.key, order.chain)])
            server.add_secure_port(f"unix:{order.path}", credentials)
            await server.start()
        except (RuntimeError, OSError, ValueError) as error:
            await server.stop(None)
            self._channel.post(messages.Serves(order.server, str(error)[:200] or type(error).__name__))
            return
        self._servers[order.server] = server
        self._channel.post(messages.Serves(order.server, ""))

    async def _stop(self, order: messages.Stop) -> None:
        server = self._servers.get(order.server)
        if server is None:
            # It has just ended, and that was said.
            return
        await server.stop(order.grace)
        # Who waits by an earlier word says nothing more.
        if self._servers.pop(order.server, None) is not None:
            self._channel.post(messages.Stopped(order.server))

    async def call(self, method: str, said: Any, context: Any) -> AsyncIterator[bytes]:
        """The handler of every call: it does what is ordered."""
        headers = messages.packed(context.invocation_metadata() or ())
        if not messages.fit(headers):
            await aborted(context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "its headers are too large"), _Refused())
        await self._channel.room()
        call = next(self._numbers)
        orders: asyncio.Queue[messages.Order] = asyncio.Queue()
        self._orders[call] = orders
        self._channel.post(messages.Begun(call, method, context.peer(), headers, context.time_remaining()))
        asked = aiter(said)
        reading: asyncio.Task[None] | None = None
        over = False
        try:
            while not over:
                match await orders.get():
                    case messages.Want():
                        reading = asyncio.get_running_loop().create_task(self._read(call, asked))
                    case messages.Answer(_, message, last):
                        over = last
                        task = asyncio.current_task()
                        assert task is not None
                        self._sending[call] = task
                        yield message
                        del self._sending[call]
                        if not last:
                            self._channel.post(messages.Taken(call))
                    case messages.Refuse(_, code, details, trailing):
                        over = True
                        found = _CODES.get(code, grpc.StatusCode.UNKNOWN)
                        await aborted(context.abort(found, details, messages.unpacked(trailing)), _Refused())
                    case _:
                        over = True
        finally:
            del self._orders[call]
            self._sending.pop(call, None)
            if not over:
                self._channel.post(messages.Left(call))
            if reading is not None:
                await end((reading,))
            # gRPC's iterator holds itself and the call for as long as it is not closed.
            with suppress(RuntimeError):
                await asked.aclose()

    async def _read(self, call: int, asked: Any) -> None:
        message: bytes | None = None
        with suppress(StopAsyncIteration, grpc.RpcError, asyncio.CancelledError):
            message = await anext(asked)
        if message is not None and len(message) > budget.MAX_MINT:
            # No message that gRPC lets through.
            message = None
        await self._channel.send(messages.Said(call, message))


class _Methods(grpc.GenericRpcHandler):
    """Every method that there is, with messages as they are."""

    def __init__(self, child: Child, methods: frozenset[str]) -> None:
        self._child = child
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        if details.method not in self._methods:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._child.call, details.method), None, None)


def main() -> None:
    """Serve until the other end is gone."""
    channel, folder, memory, log_format, level = sys.argv[1:]
    ends_first()
    harden()
    log.configure(log_format, level)
    own = socket.socket(fileno=int(channel))
    lacking = confine(folder, int(memory))

    asyncio.run(Child(lacking).run(own))


if __name__ == "__main__":
    main()
