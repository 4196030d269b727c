"""SPIFFE-ID.md sections 2.1 to 2.4, by the ids of the specification's requirements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svid.errors import InvalidSpiffeId
from svid.spiffeid import MAX_ID_BYTES, SpiffeId, TrustDomain

TRUST_DOMAIN_CHARACTERS = set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
PATH_CHARACTERS = TRUST_DOMAIN_CHARACTERS | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.mark.spec("ID-8", "C-89", "C-91")
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


SCHEME = "scheme is missing or is not spiffe"
MISSING = "trust domain is missing"
NAME = "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
EMPTY = "path cannot contain empty segments or end with a slash"
DOTS = "path cannot contain dot segments"
SEGMENT = "path segment characters are limited to letters, numbers, dots, dashes, and underscores"
REFUSED = [
    ("ID-1", "", "SPIFFE ID is empty"),
    ("ID-1", "td/a", SCHEME),
    ("ID-1", "http://td/a", SCHEME),
    ("ID-1 C-95", "SPIFFE://td/a", SCHEME),
    ("ID-1", "spiffe:/td/a", SCHEME),
    ("ID-1", "spiffe:td", SCHEME),
    ("C-94 leading blank", " spiffe://td/a", SCHEME),
    ("ID-2 C-92", "spiffe://", MISSING),
    ("ID-2 C-92", "spiffe:///a", MISSING),
    ("ID-3 query", "spiffe://td/a?x=1", SEGMENT),
    ("ID-3 query without path", "spiffe://td?x=1", NAME),
    ("ID-3 C-93 empty query", "spiffe://td/a?", SEGMENT),
    ("ID-3 C-93 empty fragment", "spiffe://td/a#", SEGMENT),
    ("ID-4 port", "spiffe://td:443/a", NAME),
    ("ID-4 empty port", "spiffe://td:/a", NAME),
    ("ID-4 user", "spiffe://u@td/a", NAME),
    ("ID-4 empty user", "spiffe://@td/a", NAME),
    ("ID-5 C-95", "spiffe://TD/a", NAME),
    ("ID-6 full width", "spiffe://t\uff24/a", NAME),
    ("ID-6 backslash", "spiffe://td\\a", NAME),
    ("ID-6 newline", "spiffe://td\n", NAME),
    ("ID-7", "spiffe://t%64/a", NAME),
    ("ID-8 IPv6", "spiffe://[::1]/a", NAME),
    ("ID-9 C-96", "spiffe://td/%61", SEGMENT),
    ("ID-10", "spiffe://td//a", EMPTY),
    ("ID-10", "spiffe://td/a//b", EMPTY),
    ("ID-10", "spiffe://td/./a", DOTS),
    ("ID-10", "spiffe://td/..", DOTS),
    ("ID-10", "spiffe://td/a/../b", DOTS),
    ("ID-11 C-90", "spiffe://td/", EMPTY),
    ("ID-11", "spiffe://td/a/", EMPTY),
    ("ID-12 umlaut", "spiffe://td/\u00e4", SEGMENT),
    ("ID-12 full width", "spiffe://td/\uff41", SEGMENT),
    ("ID-12 Arabic digit", "spiffe://td/\u0661", SEGMENT),
    ("ID-12 lone surrogate", "spiffe://td/\ud800", SEGMENT),
    ("ID-12 blank", "spiffe://td/a b", SEGMENT),
    ("ID-12 final newline", "spiffe://td/a\n", SEGMENT),
    ("C-94 tab", "spiffe://td/\ta", SEGMENT),
]


@pytest.mark.spec(
    "ID-1", "ID-2", "ID-3", "ID-4", "ID-5", "ID-6", "ID-7", "ID-9", "ID-10", "ID-11", "ID-12", "C-90", "C-92", "C-93",
    "C-94", "C-95", "C-96",
)  # fmt: skip
@pytest.mark.parametrize(
    ("text", "sentence"),
    [pytest.param(text, sentence, id=f"{rule} {text!a}") for rule, text, sentence in REFUSED],
)
def test_what_the_specification_refuses_is_refused_with_its_reason(text: str, sentence: str) -> None:
    with pytest.raises(InvalidSpiffeId) as refused:
        SpiffeId.parse(text)
    assert str(refused.value) == sentence
    assert refused.value.reason == "INVALID_SPIFFE_ID"


def accepted_bytes(template: str) -> set[str]:
    """Which of the 256 byte values `template` is an ID with."""
    accepted = set()
    for number in range(256):
        text = template.replace("*", chr(number))
        try:
            found = SpiffeId.parse(text)
        except InvalidSpiffeId:
            continue
        assert str(found) == text, "accepted but changed"
        accepted.add(chr(number))
    return accepted


@pytest.mark.spec("ID-4", "ID-5", "ID-6", "ID-7")
@pytest.mark.parametrize(
    "template",
    ["spiffe://*", "spiffe://*/x", "spiffe://*ab/x", "spiffe://a*b/x", "spiffe://ab*/x"],
)
def test_every_byte_at_each_place_of_a_trust_domain(template: str) -> None:
    # A slash after a name starts the path, which is another place.
    expected = TRUST_DOMAIN_CHARACTERS | ({"/"} if template == "spiffe://a*b/x" else set())
    assert accepted_bytes(template) == expected


@pytest.mark.spec("ID-9", "ID-12")
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # A slash between two letters makes two segments; a dot alone is a dot segment.
        ("spiffe://td/*", PATH_CHARACTERS - {"."}),
        ("spiffe://td/*ab", PATH_CHARACTERS),
        ("spiffe://td/a*b", PATH_CHARACTERS | {"/"}),
        ("spiffe://td/ab*", PATH_CHARACTERS),
        ("spiffe://td/x/*ab", PATH_CHARACTERS),
        ("spiffe://td/ab*/x", PATH_CHARACTERS),
    ],
)
def test_every_byte_at_each_place_of_a_segment(template: str, expected: set[str]) -> None:
    assert accepted_bytes(template) == expected


@pytest.mark.spec("ID-1")
def test_every_byte_of_the_scheme_counts() -> None:
    for place in range(len("spiffe://")):
        for number in range(256):
            text = "spiffe://"[:place] + chr(number) + "spiffe://"[place + 1 :] + "td/a"
            if text != "spiffe://td/a":
                with pytest.raises(InvalidSpiffeId, match=SCHEME):
                    SpiffeId.parse(text)


@pytest.mark.parametrize("path", ["a", "a/b", "/", "/a/", "//", "/.", "/a?"])
def test_the_constructor_checks_as_the_parser_does(path: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId(TrustDomain("td"), path)


@pytest.mark.spec("ID-13", "ID-15", "C-97", "C-98")
def test_lengths() -> None:
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


VALID_IDS = st.builds(
    lambda name, segments: "/".join([f"spiffe://{name}", *segments]),
    st.text(alphabet=sorted(TRUST_DOMAIN_CHARACTERS), min_size=1, max_size=255),
    st.lists(
        st.text(alphabet=sorted(PATH_CHARACTERS), min_size=1, max_size=40).filter(lambda part: part not in (".", "..")),
        max_size=8,
    ),
)


@pytest.mark.spec("ID-13", "ID-16")
@given(VALID_IDS)
def test_every_valid_id_round_trips(text: str) -> None:
    found = SpiffeId.parse(text)
    assert str(found) == text
    assert SpiffeId(found.trust_domain, found.path) == found


@pytest.mark.spec("ID-6", "ID-12")
@given(VALID_IDS, st.data())
def test_one_foreign_character_spoils_a_valid_id(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    character = data.draw(st.characters(exclude_characters=sorted(PATH_CHARACTERS | {"/"})))
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text[:place] + character + text[place:])
