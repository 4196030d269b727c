"""An agent's call without a message: the agent's fault, or one that was given up."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from signer.errors import Reason, Refused
from signer.front.calls import GIVEN_UP, only
from signer.pb import signer_pb2


async def nothing() -> AsyncIterator[bytes]:
    messages: tuple[bytes, ...] = ()
    for each in messages:
        yield each


def test_one_that_is_given_up_is_nobodys_fault() -> None:
    async def run() -> None:
        reading = asyncio.ensure_future(only(signer_pb2.MintX509SVIDsRequest, nothing()))
        # As gRPC does: the messages are at their end first.
        asyncio.get_running_loop().call_later(GIVEN_UP / 2, reading.cancel)
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(run())


def test_one_that_has_none_is_refused() -> None:
    with pytest.raises(Refused, match="no message") as refused:
        asyncio.run(only(signer_pb2.MintX509SVIDsRequest, nothing()))
    assert refused.value.reason is Reason.INVALID_REQUEST
