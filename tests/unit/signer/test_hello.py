"""When a peer has said all that its first answer needs."""

import itertools
import ssl
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.front.hello import Hello


def client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="signer").do_handshake()
    return sent.read()


def fed(*pieces: bytes) -> Hello:
    hello = Hello()
    for each in pieces:
        hello.feed(each)
    return hello


@given(st.lists(st.integers(0, 400), max_size=12))
def test_in_whatever_pieces_it_comes_it_is_whole_with_its_last_byte(cuts: list[int]) -> None:
    sent = client_hello()
    at = [0, *sorted(min(each, len(sent)) for each in cuts), len(sent)]
    hello = Hello()
    for begin, end in itertools.pairwise(at):
        hello.feed(sent[begin:end])
        assert hello.whole == (end == len(sent))
    hello.feed(b"more")
    assert hello.whole


def record(message: bytes, kind: int = 0x16) -> bytes:
    return bytes([kind, 3, 1]) + len(message).to_bytes(2) + message


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: signer\r\n\r\n" * 10,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        record(b"\x01\x00\x00\x04abcd", kind=0x17),
        record(b"\x02\x00\x00\x04abcd"),
        record(b"\x01\x00\x00\x05abcd") * 3,
        record(b"\x01\x00\x00") * 3,
        record(b"") * 9,
        record(b"\x01\x00\x00\x04abcd" + bytes(17_000)),
    ],
)
def test_what_is_no_client_hello_or_goes_on_in_another_record_is_never_whole(sent: bytes) -> None:
    """It says nothing of the replica that this is not answered: it may have nothing to answer."""
    assert not fed(sent).whole
    assert not fed(*(sent[at : at + 1] for at in range(len(sent)))).whole


def test_what_follows_in_its_record_belongs_to_it() -> None:
    assert fed(record(b"\x01\x00\x00\x04abcd")).whole
    sent = record(b"\x01\x00\x00\x04abcdef")
    assert not fed(sent[:-1]).whole
    assert fed(sent).whole


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_rubbish_breaks_nothing(first: bytes, second: bytes) -> None:
    assert fed(first, second).whole == fed(first + second).whole
