"""Owns where the documentation has what was said: the page of troubles, by the anchor of a reason or an event."""

import re
from typing import Final

_PAGE: Final = "troubleshooting"
# Events are cut after about a thousand bytes, and have more to say than where they are explained.
MOST_URL: Final = 200
HELP: Final = "where the site of `make docs` is served, to which events lead (default: they name the page in docs/)"
# As the chart's schema has it. It is shown in events, and stands in the annotations of alerts, which are templates:
# it has no password and no brace.
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9\[][A-Za-z0-9\[\]._~:/%+,=&;-]*", re.ASCII)
_CODE: Final = re.compile(r"([A-Z][A-Z0-9_]{2,63}): ", re.ASCII)
# Where one of gRPC's stands in a reason's place, nobody gave a reason; the one before it is explained.
_STATUSES: Final = frozenset(
    {
        *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "ABORTED"),
        *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"),
        *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
    }
)


def address(text: str) -> str:
    """The setting `docs_url`: where the site is served, without a slash at its end. Raises ValueError."""
    if not text:
        return ""
    if not _ADDRESS.fullmatch(text) or len(text) > MOST_URL:
        raise ValueError(f"a URL such as https://docs.example.org/podsvid of at most {MOST_URL} characters")
    return text.rstrip("/")


def link(code: str, docs_url: str = "") -> str:
    """Where `code` is explained: on the site, or in a checkout where no `docs_url` is known."""
    page = f"{docs_url}/{_PAGE}.html" if docs_url else f"docs/{_PAGE}.md"
    return f"{page}#{code.lower()}"


def explained(text: str, code: str, docs_url: str, longest: int) -> str:
    """`text` with where to read about it, in `longest` bytes; of a text that is too long the end is left out."""
    where = f" (see {link(code, docs_url)})"
    # The API server counts bytes, and strangers' words may be in the text.
    room = max(longest - len(where.encode()), 0)
    return text.encode(errors="replace")[:room].decode(errors="ignore") + where


def exact(reason: str, text: str) -> str:
    """The most exact reason of an error of `reason`: the last of those that its text begins with."""
    while found := _CODE.match(text):
        if found[1] not in _STATUSES:
            reason = found[1]
        text = text[found.end() :]
    return reason
