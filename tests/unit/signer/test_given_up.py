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
        told = list[bool]()
        asked = only(signer_pb2.MintX509SVIDsRequest, nothing(), given_up=lambda: told.append(True))
        reading = asyncio.ensure_future(asked)
        # As gRPC does: the messages are at their end first.
        asyncio.get_running_loop().call_later(GIVEN_UP / 2, reading.cancel)
        with pytest.raises(asyncio.CancelledError):
            await reading
        # It is counted all the same: a token that was stolen can do nothing else, as often as it likes.
        assert told == [True]

    asyncio.run(run())


def test_one_that_has_none_is_refused() -> None:
    told = list[bool]()
    with pytest.raises(Refused, match="no message") as refused:
        asyncio.run(only(signer_pb2.MintX509SVIDsRequest, nothing(), given_up=lambda: told.append(True)))
    # Once, where it is refused.
    assert told == []
    assert refused.value.reason is Reason.INVALID_REQUEST
