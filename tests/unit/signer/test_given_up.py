"""An agent's call without a message: the agent's fault, or one that was given up."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from runtime.deadlines import Deadlines
from signer.errors import Reason, Refused
from signer.front.calls import GIVEN_UP, MESSAGE_SECONDS, only
from signer.front.limits import Place
from signer.pb import signer_pb2

FORM = signer_pb2.MintX509SVIDsRequest


async def nothing() -> AsyncIterator[bytes]:
    messages: tuple[bytes, ...] = ()
    for each in messages:
        yield each


def test_one_that_is_given_up_is_nobodys_fault() -> None:
    async def run() -> None:
        told = list[bool]()
        asked = only(
            signer_pb2.MintX509SVIDsRequest, nothing(), Deadlines(MESSAGE_SECONDS), given_up=lambda: told.append(True)
        )
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
        asyncio.run(
            only(
                signer_pb2.MintX509SVIDsRequest,
                nothing(),
                Deadlines(MESSAGE_SECONDS),
                given_up=lambda: told.append(True),
            )
        )
    # Once, where it is refused.
    assert told == []
    assert refused.value.reason is Reason.INVALID_REQUEST


def test_others_may_have_its_place_while_it_is_found_out() -> None:
    async def run() -> None:
        told, place = list[bool](), Place("a")
        asked = only(
            signer_pb2.MintX509SVIDsRequest,
            nothing(),
            Deadlines(MESSAGE_SECONDS),
            place,
            given_up=lambda: told.append(True),
        )
        reading = asyncio.ensure_future(asked)
        asyncio.get_running_loop().call_later(GIVEN_UP / 5, place.lose)
        with pytest.raises(Refused, match="others took the place") as refused:
            await reading
        assert refused.value.reason is Reason.BUSY
        # It is refused, and not given up.
        assert told == []

    asyncio.run(run())
