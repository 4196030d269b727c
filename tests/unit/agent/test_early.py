"""What a client may say before it has acknowledged the settings, byte by byte and whole."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.socket import early
from agent.socket.early import PREFACE, Budget, Early, HeaderSizes, Verdict
from bench.attacks import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    FETCH,
    HEADERS,
    PING,
    SETTINGS,
    WINDOW_UPDATE,
    call,
    frame,
    headers,
    large,
    split,
)

ACK = frame(SETTINGS, 1, 0)
BEGUN = PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0")
PADDED, PRIORITY = 8, 0x20


def verdict(said: bytes, *, part: int = 16_384) -> Verdict:
    """As it comes in parts of so many bytes."""
    at = Early()
    for start in range(0, len(said), part):
        found = at.feed(said[start : start + part])
        if found is not Verdict.MORE:
            return found
    return Verdict.MORE


def field(name: bytes, value: bytes, *, added: bool = False) -> bytes:
    """A literal, and whether later ones may refer to it."""
    return (b"\x40" if added else b"\0") + string(name) + string(value)


def string(text: bytes) -> bytes:
    return number(len(text), 7) + text


def number(value: int, bits: int, first: int = 0) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    found, value = [first | most], value - most
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


HONEST = {
    "who waits for the settings": BEGUN,
    "who asks at once": BEGUN + frame(WINDOW_UPDATE, 0, 0, b"\0\1\0\0") + call(1),
    "a hundred calls at once": BEGUN + b"".join(call(number) for number in range(1, 201, 2)),
    "as much metadata as one call may have": BEGUN + call(1, *large(16_000)),
    "a first request as large as its window": BEGUN + call(1) + 4 * frame(DATA, 0, 1, b"n" * 16_000),
    "pings": BEGUN + 8 * frame(PING, 0, 0, b"12345678"),
    "a kind that nobody knows": BEGUN + frame(0xEB, 7, 5, b"grease"),
    "with a priority": BEGUN + frame(HEADERS, END_HEADERS | PRIORITY, 1, b"\0\0\0\0\x10" + headers(FETCH)),
    "in small parts": BEGUN + split(1, headers(FETCH, *large(8_000)), 100),
}
REFUSED = {
    "no HTTP/2": b"GET / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\3\1\2\0\1",
    "an acknowledgement before anything": PREFACE + ACK,
    "a call before anything": PREFACE + call(1),
    "headers of 15 MB": BEGUN + split(1, headers(FETCH, *large(15_000_000)))[: early.BYTES * 2],
    "headers of one call that are longer than any may be": BEGUN + split(1, headers(FETCH, *large(40_000))),
    "and that are never whole": BEGUN + split(1, headers(FETCH, *large(80_000)))[:50_000],
    "as much in many calls": BEGUN + b"".join(call(number, *large(16_000)) for number in range(1, 41, 2)),
    "a frame that is too long": BEGUN + frame(HEADERS, END_HEADERS, 1, b"\0" * 16_385),
    "another frame within headers": BEGUN + frame(HEADERS, 0, 1, headers(FETCH)) + frame(PING, 0, 0, b"12345678"),
    "headers that are continued elsewhere": BEGUN + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 3, b""),
    "what continues nothing": BEGUN + frame(CONTINUATION, END_HEADERS, 1, b""),
    "padding": BEGUN + frame(HEADERS, END_HEADERS | PADDED, 1, b"\0" + headers(FETCH)),
    "frames without end": BEGUN + (early.FRAMES + 1) * frame(PING, 0, 0, b""),
    "calls without end": BEGUN + (early.STREAMS + 1) * frame(HEADERS, END_HEADERS, 1, b""),
    "as many short headers as there is room for": BEGUN
    + frame(HEADERS, END_HEADERS, 1, b"\x83" * (early.BLOCK_FIELDS + 1)),
    "and in many calls": BEGUN + 10 * frame(HEADERS, END_HEADERS, 1, b"\x83" * early.BLOCK_FIELDS),
    "an acknowledgement of a stream": BEGUN + frame(SETTINGS, 1, 1),
    "an acknowledgement with something in it": BEGUN + frame(SETTINGS, 1, 0, b"123456"),
    "settings with a flag that nobody knows": BEGUN + frame(SETTINGS, 3, 0),
    "more than two windows": BEGUN + 14 * frame(DATA, 0, 1, b"n" * 16_000),
    "a priority that is cut off": BEGUN
    + frame(HEADERS, PRIORITY, 1, b"\0\0")
    + frame(CONTINUATION, END_HEADERS, 1, b"\0\0\x10" + headers(FETCH)),
    "tables made smaller without end": BEGUN + frame(HEADERS, END_HEADERS, 1, b"\x20" * (early.DECODED // 32 + 1)),
    "references to what is not there": BEGUN + frame(HEADERS, END_HEADERS, 1, b"\xbe"),
    "a string that goes on": BEGUN + frame(HEADERS, END_HEADERS, 1, b"\0\x05ab"),
    "a number without end": BEGUN + frame(HEADERS, END_HEADERS, 1, b"\xff" + b"\xff" * 9),
}


@pytest.mark.parametrize("what", HONEST)
def test_what_honest_clients_say_early_is_waited_with_and_then_taken(what: str) -> None:
    assert verdict(HONEST[what]) is Verdict.MORE
    assert verdict(HONEST[what] + ACK) is Verdict.ACKNOWLEDGED
    assert verdict(HONEST[what] + ACK + b"whatever follows" * 100) is Verdict.ACKNOWLEDGED


@pytest.mark.parametrize("what", REFUSED)
def test_what_nobody_needs_to_say_early_is_refused(what: str) -> None:
    assert verdict(REFUSED[what]) is Verdict.REFUSED
    assert verdict(REFUSED[what] + ACK) is Verdict.REFUSED


def test_what_one_costs_is_what_grpc_may_come_to_keep() -> None:
    at = Early()
    at.feed(BEGUN)
    assert at.cost == len(BEGUN)
    at.feed(frame(HEADERS, END_HEADERS, 1, field(b"x", b"y" * 100, added=True) + b"\xbe"))
    assert at.cost > len(BEGUN) + 2 * (101 + 32) + 1024


def test_a_first_call_is_possible_whatever_others_say_and_more_is_within_a_pods_and_all_bounds() -> None:
    budget = Budget(pod=1000, most=1500)
    free = early.FREE
    assert budget.charge("one", 0, free + 600)
    assert budget.charge("one", free + 600, free + 1000)
    assert not budget.charge("one", 0, free + 1)
    # It is charged, until it has gone.
    assert budget.charge("one", free + 1, 0)
    assert budget.charge("two", 0, free + 500)
    assert not budget.charge("three", 0, free + 1)
    assert budget.charge("three", free + 1, free)
    assert budget.charge("four", 0, free)
    assert budget.charge("one", free + 1000, 0)
    assert budget.charge("three", free, free + 1000)
    at = Early()
    assert at.feed(BEGUN + call(1)) is Verdict.MORE
    assert at.cost <= free


def test_who_sends_byte_by_byte_is_refused_in_the_end() -> None:
    assert verdict(BEGUN + ACK, part=1) is Verdict.ACKNOWLEDGED
    assert verdict(BEGUN + call(1, *large(8_000)) + ACK, part=1) is Verdict.REFUSED


@given(
    st.sampled_from(sorted(HONEST)),
    st.lists(st.integers(1, 5_000), min_size=1, max_size=40),
)
def test_it_does_not_matter_in_which_parts_it_comes(what: str, parts: list[int]) -> None:
    said, at, found = HONEST[what] + ACK, Early(), Verdict.MORE
    for size in parts:
        found, said = at.feed(said[:size]) if said else found, said[size:]
        if found is not Verdict.MORE:
            break
    if found is Verdict.MORE and said:
        found = at.feed(said)
    assert found is Verdict.ACKNOWLEDGED


@given(st.binary(max_size=300), st.sampled_from([b"", PREFACE, BEGUN, BEGUN + frame(HEADERS, END_HEADERS, 1, b"")]))
def test_whatever_is_said_is_answered(said: bytes, before: bytes) -> None:
    assert verdict(before + said) in Verdict


texts = st.binary(max_size=40)


@given(st.lists(st.tuples(texts, texts, st.booleans(), st.integers(0, 5)), max_size=30))
def test_headers_count_as_long_as_they_become(fields: list[tuple[bytes, bytes, bool, int]]) -> None:
    """Literals, and references to those that were added."""
    table: list[int] = []
    block, size = b"", 0
    for name, value, added, again in fields:
        block += field(name, value, added=added)
        length = len(name) + len(value) + 32
        size += length
        if added:
            table.insert(0, length)
        if again < len(table):
            block += number(62 + again, 7, 0x80)
            size += table[again]
    assert HeaderSizes(size).take(block)
    assert size == 0 or not HeaderSizes(size - 1).take(block)


def test_a_reference_counts_as_often_as_it_is_made() -> None:
    """4,000 bytes, and then one byte for each 4,000 more."""
    bomb = field(b"x", b"y" * 4_000, added=True) + b"\xbe" * 100
    assert len(bomb) < 5_000
    assert not HeaderSizes(early.DECODED).take(bomb)
    sizes = HeaderSizes(early.DECODED)
    assert sizes.take(field(b"x", b"y" * 4_000, added=True))
    assert [sizes.take(b"\xbe" * 10) for _ in range(4)] == [True, True, True, False]
    assert verdict(BEGUN + frame(HEADERS, END_HEADERS, 1, bomb) + ACK) is Verdict.REFUSED


def test_huffmans_code_counts_as_the_most_that_it_can_be() -> None:
    most: Callable[[int], int] = lambda length: (8 * length + 4) // 5  # noqa: E731
    huffman = b"\0" + b"\x81a" + number(100, 7, 0x80) + b"\0" * 100
    size = most(1) + most(100) + 32
    assert HeaderSizes(size).take(huffman)
    assert not HeaderSizes(size - 1).take(huffman)


def test_a_table_that_is_made_smaller_counts_as_the_least_header() -> None:
    assert HeaderSizes(64).take(b"\x20\x3f\xe1\x1f")
    assert not HeaderSizes(63).take(b"\x20\x3f\xe1\x1f")


def cleared(said: bytes, part: int) -> tuple[bytes, Verdict]:
    """What gRPC gets of it as it comes in parts of so many bytes, and the last verdict."""
    at, clear, found = Early(), b"", Verdict.MORE
    for start in range(0, len(said), part):
        found = at.feed(said[start : start + part])
        if found is Verdict.REFUSED:
            break
        clear += at.clear
        if found is Verdict.ACKNOWLEDGED:
            return clear + said[start + part :], found
    return clear, found


@pytest.mark.parametrize("what", HONEST)
@given(part=st.integers(64, 20_000))
def test_grpc_gets_all_of_it_in_its_order(what: str, part: int) -> None:
    said = HONEST[what]
    if len(said) / part > early.PARTS - 2:
        part = len(said) // 100
    assert cleared(said, part) == (said, Verdict.MORE)
    assert cleared(said + ACK + b"and whatever comes then", part)[0] == said + ACK + b"and whatever comes then"


def test_of_headers_that_are_not_whole_grpc_gets_nothing() -> None:
    # A name that is added once and referred to again and again: each byte stands for four thousand.
    block = field(b"n" * 3_900, b"v", added=True) + b"\xbe" * 3_600
    whole = frame(HEADERS, END_HEADERS, 1, block)
    for said, clear in (
        (whole[:-1], b""),
        (whole[:2_000], b""),
        (frame(HEADERS, 0, 1, block), b""),
        (frame(HEADERS, 0, 1, block[:3_950]) + frame(CONTINUATION, 0, 1, b"\xbe" * 3_000), b""),
        (frame(PING, 0, 0, b"12345678") + whole[:-1], frame(PING, 0, 0, b"12345678")),
    ):
        for part in (64, 1_000, 20_000):
            assert cleared(BEGUN + said, part) == (BEGUN + clear, Verdict.MORE)
    # The last byte shows what it becomes.
    assert cleared(BEGUN + whole, 20_000) == (b"", Verdict.REFUSED)
    assert cleared(BEGUN + frame(HEADERS, 0, 1, block) + frame(CONTINUATION, END_HEADERS, 1, b""), 64)[1] is (
        Verdict.REFUSED
    )
