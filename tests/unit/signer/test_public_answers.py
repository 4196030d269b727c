"""What the public listeners answer: made before anybody asks, and chosen by method, path and ETag alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.http import parse
from signer.public.answers import ABSENT, NOT_YET, OTHER_METHOD, REFUSED, Answer, Answers
from signer.public.shown import Listener, Page, Pair, decode, encode, framed

PAGE = Page(b'{"keys": []}\n', 60)
ANSWERS = Answers({"/": PAGE, "/x/keys": None})


def asked(line: str, *fields: str) -> Answer:
    head = "\r\n".join([line, "Host: a", *fields]).encode("latin-1")
    return ANSWERS.to(parse(head))


def test_a_document_is_whole_with_what_caches_need() -> None:
    found = asked("GET / HTTP/1.1").at("Sat, 28 Nov 2026 20:00:00 GMT")
    head, _, body = found.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert {
        "Content-Type: application/json",
        f"Content-Length: {len(PAGE.body)}",
        f"ETag: {PAGE.etag}",
        "Cache-Control: public, max-age=60",
        "Connection: close",
        "Date: Sat, 28 Nov 2026 20:00:00 GMT",
    } <= set(lines)
    assert body == PAGE.body


def test_the_etag_is_strong_and_of_the_bytes() -> None:
    assert PAGE.etag == Page(PAGE.body, 5).etag != Page(PAGE.body + b" ", 60).etag
    assert PAGE.etag.startswith('"')
    assert PAGE.etag.endswith('"')


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        ("GET / HTTP/1.1", (), 200),
        ("GET / HTTP/1.0", (), 200),
        ("GET /?a=b HTTP/1.1", (), 200),
        ("GET https://evil.example/ HTTP/1.1", (), 200),
        ("GET https://evil.example HTTP/1.1", (), 200),
        ("HEAD / HTTP/1.1", (), 200),
        ("POST / HTTP/1.1", (), 405),
        ("DELETE / HTTP/1.1", (), 405),
        ("OPTIONS / HTTP/1.1", (), 405),
        ("get / HTTP/1.1", (), 405),
        ("GET // HTTP/1.1", (), 404),
        ("GET /. HTTP/1.1", (), 404),
        ("GET /%2e HTTP/1.1", (), 404),
        ("GET /x HTTP/1.1", (), 404),
        ("POST /x HTTP/1.1", (), 404),
        ("GET * HTTP/1.1", (), 404),
        ("GET /x/keys HTTP/1.1", (), 503),
        ("HEAD /x/keys HTTP/1.1", (), 503),
        ("GET / HTTP/1.1", ("Host: b",), 400),
        ("GET / HTTP/2.0", (), 400),
        ("GET /", (), 400),
        ("GET / HTTP/1.1", ("If-None-Match: *",), 304),
        ("GET / HTTP/1.1", (f"If-None-Match: {PAGE.etag}",), 304),
        ("GET / HTTP/1.1", (f'If-None-Match: "a", W/{PAGE.etag}',), 304),
        ("HEAD / HTTP/1.1", (f"If-None-Match: {PAGE.etag}",), 304),
        ("GET / HTTP/1.1", ('If-None-Match: "a"',), 200),
        ("GET /x/keys HTTP/1.1", ("If-None-Match: *",), 503),
    ],
)
def test_which(line: str, fields: tuple[str, ...], status: int) -> None:
    assert asked(line, *fields).status == status


def test_no_host_is_needed_before_it_was_invented_and_else_exactly_one() -> None:
    assert ANSWERS.to(parse(b"GET / HTTP/1.0")).status == 200
    assert ANSWERS.to(parse(b"GET / HTTP/1.1")) is REFUSED


def test_what_changed_nothing_has_no_body_and_its_etag() -> None:
    found = asked("GET / HTTP/1.1", "If-None-Match: *")
    assert found.body == b""
    assert f"ETag: {PAGE.etag}".encode() in found.head


def test_a_document_that_there_is_not_yet_is_no_document_and_is_not_kept() -> None:
    assert b"keys" not in NOT_YET.body
    for each in (NOT_YET, ABSENT, OTHER_METHOD, REFUSED):
        assert b"Cache-Control: no-store" in each.head
    assert b"Allow: GET, HEAD" in OTHER_METHOD.head


@given(st.text(max_size=40), st.lists(st.tuples(st.text(max_size=12), st.text(max_size=30)), max_size=4))
def test_nothing_of_a_request_is_in_an_answer(line: str, fields: list[tuple[str, str]]) -> None:
    made = {asked(f"{method} {path} HTTP/1.1") for method in ("GET", "HEAD", "POST") for path in ("/", "/x/keys", "/y")}
    made |= {REFUSED, asked("GET / HTTP/1.1", "If-None-Match: *")}
    head = "\r\n".join([line, *(f"{name}: {value}" for name, value in fields)])
    assert ANSWERS.to(parse(head.encode("utf-8", "replace"))) in made


def test_what_is_shown_goes_through_the_channel_whole_and_shows_no_key_in_a_log() -> None:
    shown = {"a": Listener(Pair(b"chain\xff", b"secret"), {"/": PAGE, "/k": None}), "b": Listener(None, {})}
    assert decode(encode(shown)) == shown
    assert "secret" not in repr(shown)
    with pytest.raises(ValueError, match="too much"):
        framed(b"x" * (4 * 1024 * 1024 + 1))
