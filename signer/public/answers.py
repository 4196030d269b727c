"""What is answered: made whole when what is shown changes, so that a request only chooses."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from runtime.http import TEXT, Asked
from signer.public.shown import Page

METHODS = ("GET", "HEAD")
_ALLOW = f"Allow: {', '.join(METHODS)}\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """`head` ends before its Date and the empty line."""

    status: int
    head: bytes
    body: bytes = b""

    def at(self, date: str) -> bytes:
        """All of it, `date` as HTTP writes it."""
        return b"%bDate: %b\r\n\r\n%b" % (self.head, date.encode("ascii"), self.body)


@dataclass(frozen=True, slots=True)
class _Prepared:
    etag: str
    whole: Answer
    unchanged: Answer

    @classmethod
    def of(cls, page: Page) -> "_Prepared":
        kept = f"ETag: {page.etag}\r\nCache-Control: public, max-age={page.max_age}\r\n"
        whole = _answer(HTTPStatus.OK, page.body, page.content_type, kept)
        return cls(page.etag, whole, Answer(304, _head(HTTPStatus.NOT_MODIFIED, kept)))


class Answers:
    """Of one listener."""

    def __init__(self, pages: Mapping[str, Page | None]) -> None:
        self._pages = {path: None if page is None else _Prepared.of(page) for path, page in pages.items()}

    def to(self, asked: Asked | None) -> Answer:
        """What that request gets, or would by GET; None is none. What it says decides which, no more."""
        # RFC 9112 3.2: exactly one, and never looked into.
        hosts = 0 if asked is None else sum(name == "host" for name, _ in asked.fields)
        if asked is None or hosts > 1 or (asked.version == "HTTP/1.1" and hosts != 1):
            return REFUSED
        path = _path(asked.target)
        if path not in self._pages:
            return ABSENT
        if asked.method not in METHODS:
            return OTHER_METHOD
        page = self._pages[path]
        if page is None:
            return NOT_YET
        if _has(asked.field("if-none-match"), page.etag):
            return page.unchanged
        return page.whole


def _path(target: str) -> str:
    if target.startswith("https://"):
        # RFC 9112 3.2.2: taken from whoever takes this for a proxy.
        target = "/" + target.removeprefix("https://").partition("/")[2]
    return target.partition("?")[0]


def _has(wanted: str, etag: str) -> bool:
    """RFC 9110 13.1.2: weakly compared."""
    return wanted == "*" or etag in (each.strip().removeprefix("W/") for each in wanted.split(","))


def _head(status: HTTPStatus, fields: str) -> bytes:
    return f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n{fields}".encode("ascii")


def _answer(status: HTTPStatus, body: bytes, content_type: str = TEXT, fields: str = "") -> Answer:
    fields += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
    return Answer(status.value, _head(status, fields), body)


def _said(status: HTTPStatus, fields: str = "") -> Answer:
    return _answer(status, f"{status.phrase}\n".encode(), fields=f"Cache-Control: no-store\r\n{fields}")


REFUSED = _said(HTTPStatus.BAD_REQUEST)
ABSENT = _said(HTTPStatus.NOT_FOUND)
OTHER_METHOD = _said(HTTPStatus.METHOD_NOT_ALLOWED, _ALLOW)
TOO_LARGE = _said(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
# Never a document without keys: that would be obeyed.
NOT_YET = _said(HTTPStatus.SERVICE_UNAVAILABLE, "Retry-After: 5\r\n")
