"""One gRPC call at a time to whom a CA elsewhere is asked through: bounded, on a connection of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message

from runtime.words import line
from signer.upstream.certify import UpstreamUnusable

CALL_SECONDS = 10.0
MAX_ANSWER = 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER),
    # Else a channel goes on with the connection of one before.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
_AnswerT = TypeVar("_AnswerT", bound=Message)


class CallFailed(Exception):
    """It was not answered: with which status, and what was said, in one line."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        super().__init__(f"{self.code.name}: {line(error.details() or '') or 'without words'}")


@asynccontextmanager
async def channel(target: str) -> AsyncIterator[grpc.aio.Channel]:
    """To a socket of this host."""
    # No proxy of the environment: such a target has none.
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as made:
        yield made


async def call(over: grpc.aio.Channel, method: str, request: Message, answer: _AnswerT) -> _AnswerT:
    """The answer, filled in. Raises CallFailed, UpstreamUnusable."""
    ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = over.unary_unary(method)
    try:
        return _read(await ask(request.SerializeToString(), timeout=CALL_SECONDS), answer)
    except grpc.aio.AioRpcError as error:
        raise CallFailed(error) from None


async def first(
    over: grpc.aio.Channel, method: str, request: Message, answer: _AnswerT, metadata: tuple[tuple[str, str], ...]
) -> _AnswerT | None:
    """The first of many answers, filled in; None where there is none. Raises CallFailed, UpstreamUnusable."""
    ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = over.unary_stream(method)
    stream = ask(request.SerializeToString(), timeout=CALL_SECONDS, metadata=metadata)
    try:
        found = await stream.read()
        return _read(found, answer) if isinstance(found, bytes) else None
    except grpc.aio.AioRpcError as error:
        raise CallFailed(error) from None
    finally:
        stream.cancel()


def _read(data: bytes, into: _AnswerT) -> _AnswerT:
    try:
        into.ParseFromString(data)
    except DecodeError:
        raise UpstreamUnusable(f"what answered is no SPIRE: its answer is no {into.DESCRIPTOR.name}") from None
    return into
