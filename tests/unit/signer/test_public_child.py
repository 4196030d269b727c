"""Who comes too often is not let in, and so takes nobody's place; who is let in has so long."""

import asyncio
import socket
from collections import Counter
from typing import Any

import pytest

from runtime.http import parse
from signer.public import child
from signer.public.child import _Child, _Connection, _Door
from signer.public.limits import BY_ADDRESS, DEADLINE, LEAVE
from signer.public.shown import Listener, Page, Pair
from tests.unit.runtime.test_stopping import on_fake_time
from tests.unit.signer.test_public_talk import ANSWERS, ASK, PAIR, Client


class Transport(asyncio.Transport):
    """Takes all that is written."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 1)})
        self.written = b""
        self.gone = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def write_eof(self) -> None: ...

    def abort(self) -> None:
        self.gone = True

    def is_closing(self) -> bool:
        return self.gone

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0


class Strangers:
    """A door, and who comes to it."""

    def __init__(self, *, shown: bool = True) -> None:
        self.counts: Counter[str] = Counter()
        self.door = _Door("bundle", self.counts)
        if shown:
            self.door.show(PAIR, ANSWERS)

    def comes(self, address: str) -> tuple[_Connection, Transport]:
        made, transport = _Connection(self.door), Transport(address)
        made.connection_made(transport)
        return made, transport


def test_who_comes_too_often_pushes_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "RATE", 4.0)
    monkeypatch.setattr(child, "BURST", 40.0)

    async def main() -> None:
        here = Strangers()
        _, honest = here.comes("192.0.2.1")
        hostile = [here.comes("192.0.2.66")[1] for _ in range(50)]
        assert [each.gone for each in hostile] == [False] * 10 + [True] * 40
        assert not honest.gone
        assert here.counts == {"bundle refused rate": 40}
        assert len(here.door.crowd.guests) == 11
        # A quarter of four a second is one.
        await asyncio.sleep(1.001)
        assert [here.comes("192.0.2.66")[1].gone for _ in range(2)] == [False, True]

    on_fake_time(main)


def test_one_address_has_so_many_places_and_its_own_oldest_goes() -> None:
    async def main() -> None:
        here = Strangers()
        _, honest = here.comes("192.0.2.1")
        hostile = [here.comes("192.0.2.66")[1] for _ in range(BY_ADDRESS + 2)]
        assert [each.gone for each in hostile] == [True] * 2 + [False] * BY_ADDRESS
        assert not honest.gone
        assert here.counts == {"bundle refused address": 2}

    on_fake_time(main)


def test_who_is_silent_has_so_long_and_who_was_answered_a_moment() -> None:
    async def main() -> None:
        here = Strangers()
        silent = here.comes("192.0.2.1")[1]
        connection, answered = here.comes("192.0.2.2")
        client = Client()

        def deliver(data: bytes) -> bytes:
            connection._buffer[: len(data)] = data
            connection.buffer_updated(len(data))
            found, answered.written = answered.written, b""
            return found

        client.talk.receive = deliver  # type: ignore[method-assign]
        client.agree()
        assert client.say(ASK).startswith(b"HTTP/1.1 200")
        assert here.counts == {"bundle answered 200": 1}
        await asyncio.sleep(LEAVE + 0.01)
        assert (answered.gone, silent.gone) == (True, False)
        await asyncio.sleep(DEADLINE)
        assert silent.gone
        assert here.counts == {"bundle answered 200": 1, "bundle refused deadline": 1}
        assert here.door.crowd.guests == []

    on_fake_time(main)


def test_without_a_certificate_nobody_is_let_in() -> None:
    async def main() -> None:
        here = Strangers(shown=False)
        assert here.comes("192.0.2.1")[1].gone
        assert here.counts == {"bundle refused certificate": 1}

    on_fake_time(main)


def test_a_pair_that_is_none_leaves_the_one_before_and_takes_no_other_listener_along() -> None:
    async def main() -> None:
        with socket.socket() as one, socket.socket() as other:
            here = _Child({"bundle": [one], "oidc": [other]}, ())
            broken = Pair(b"-----BEGIN CERTIFICATE-----\n", PAIR.key)
            here._show({"bundle": Listener(broken, {}), "oidc": Listener(PAIR, {"/": None})})
            assert here._doors["bundle"].talk() is None
            assert here._doors["oidc"].talk() is not None
            newer = {"/keys": Page(b"{}", 60)}
            here._show({"oidc": Listener(broken, newer)})
            talk = here._doors["oidc"].talk()
            assert talk is not None
            assert talk._answers.to(parse(b"GET /keys HTTP/1.0")).status == 200

    on_fake_time(main)
