"""SPIFFE-ID.md sections 2.1 to 2.4, by the ids of the specification's requirements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svid.errors import InvalidSpiffeId
from svid.spiffeid import MAX_ID_BYTES, SpiffeId, TrustDomain

TRUST_DOMAIN_CHARACTERS = set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
PATH_CHARACTERS = TRUST_DOMAIN_CHARACTERS | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://td",
        "spiffe://td/a",
        "spiffe://td/...",
        "spiffe://td/.a",
        "spiffe://1.2.3.4/a",
        "spiffe://a_b/c",
        "spiffe://-x/a",
        "spiffe://a..b/A.B-C_d",
        "spiffe://./a",
    ],
)
def test_valid_ids_come_back_as_they_were(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "td/a",
        "http://td/a",
        "SPIFFE://td/a",
        "spiffe:/td/a",
        "spiffe://",
        "spiffe:///a",
        "spiffe://TD/a",
        "spiffe://td/",
        "spiffe://td//a",
        "spiffe://td/a//b",
        "spiffe://td/a/",
        "spiffe://td/./a",
        "spiffe://td/..",
        "spiffe://td:443/a",
        "spiffe://td:/a",
        "spiffe://u@td/a",
        "spiffe://@td/a",
        "spiffe://[::1]/a",
        "spiffe://td/a?",
        "spiffe://td/a#",
        "spiffe://td?x=1",
        "spiffe://td/a?x=1",
        "spiffe://td/%61",
        "spiffe://t%64/a",
        "spiffe://td/ä",
        "spiffe://td/ａ",
        "spiffe://tｄ/a",
        "spiffe://td/a b",
        "spiffe://td/a\n",
        "spiffe://td\n",
        " spiffe://td/a",
        "spiffe://td/\ta",
        "spiffe://td\\a",
    ],
)
def test_what_the_specification_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


def test_every_byte_in_a_trust_domain() -> None:  # ID-5, ID-6, ID-7
    accepted = set()
    for number in range(256):
        try:
            TrustDomain.parse(f"a{chr(number)}b")
        except InvalidSpiffeId:
            continue
        accepted.add(chr(number))
    assert accepted == TRUST_DOMAIN_CHARACTERS


def test_every_byte_in_a_path_segment() -> None:  # ID-9, ID-12; the slash makes two segments
    accepted = set()
    for number in range(256):
        try:
            SpiffeId.parse(f"spiffe://td/a{chr(number)}b")
        except InvalidSpiffeId:
            continue
        accepted.add(chr(number))
    assert accepted == PATH_CHARACTERS | {"/"}


def test_lengths() -> None:  # ID-13, ID-15
    longest = "spiffe://td/" + "a" * (MAX_ID_BYTES - len("spiffe://td/"))
    assert len(str(SpiffeId.parse(longest))) == 2048
    with pytest.raises(InvalidSpiffeId, match="longer than 2048"):
        SpiffeId.parse(longest + "a")
    assert TrustDomain.parse("a" * 255)
    with pytest.raises(InvalidSpiffeId, match="longer than 255"):
        TrustDomain.parse("a" * 256)


def test_segments_cannot_smuggle_a_slash() -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.from_segments(TrustDomain("td"), "ns", "a/sa/root")


@given(st.text())
def test_the_parser_raises_only_its_own_error(text: str) -> None:
    for candidate in (text, f"spiffe://{text}", f"spiffe://td/{text}"):
        try:
            found = SpiffeId.parse(candidate)
        except InvalidSpiffeId:
            continue
        assert str(found) == candidate


@given(st.lists(st.text(alphabet=sorted(PATH_CHARACTERS), min_size=1, max_size=20), min_size=1, max_size=8))
def test_segments_round_trip(segments: list[str]) -> None:
    if any(segment in (".", "..") for segment in segments):
        return
    made = SpiffeId.from_segments(TrustDomain("example.org"), *segments)
    assert SpiffeId.parse(str(made)) == made
