"""What a call asks, read as the message that it should be."""

from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from agent.socket.guard import AnyContext

_Request = TypeVar("_Request", bound=Message)


async def read(data: bytes, message: _Request, context: AnyContext) -> _Request:
    """`message`, made of what came; where that is none the call ends."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        await invalid(context, f"not a {message.DESCRIPTOR.name} message")
    return message


async def invalid(context: AnyContext, text: str) -> NoReturn:
    """End the call, which asks for what nobody can be given."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
    raise AssertionError("abort raises")
