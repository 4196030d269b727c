"""Ends a call with a status and leaves nothing of it to Python's collector.

gRPC keeps the exception by which a call was aborted with the call, and its traceback's frames hold the call: a ring,
with all headers that a client chose to send. Of a flood of refused calls that is most of the garbage, which the
collector finds late and goes through all at once, while the event loop waits.
"""

import asyncio
from collections.abc import Awaitable
from typing import NoReturn

import grpc.aio


async def aborted(abort: Awaitable[None], why: BaseException) -> NoReturn:
    """Await a call's abort, which is for what `why` says. Raises grpc.aio.AbortError, as that does."""
    try:
        await abort
    except grpc.aio.AbortError as error:
        # Once it has come to gRPC, which takes no turn of the loop.
        asyncio.get_running_loop().call_soon(_loosen, error, why)
        raise
    raise AssertionError("abort raises")


def _loosen(*errors: BaseException) -> None:
    for each in errors:
        each.__traceback__ = each.__context__ = None
