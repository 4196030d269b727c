"""What the listeners show, as it goes to their process: names, certificates, pages. Both ends load this."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
# Bytes of all of it.
MAX_FRAME = 4 * 1024 * 1024
HEAD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Page:
    """A document. `max_age`: seconds for which caches keep it."""

    body: bytes
    max_age: int
    content_type: str = JSON

    @property
    def etag(self) -> str:
        """Strong: of these bytes, whichever replica serves them."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate's chain and its key, as PEM."""

    chain: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Listener:
    """`pair`: None while there is none: nobody is answered. `pages`: by path; None while there is no such document."""

    pair: Pair | None
    pages: Mapping[str, Page | None]


Shown = Mapping[str, Listener]


def encode(shown: Shown) -> bytes:
    """For the process; with the listeners' keys."""
    return json.dumps({name: _listener(each) for name, each in shown.items()}).encode()


def decode(data: bytes) -> Shown:
    """What `encode` wrote."""
    return {name: _read(each) for name, each in json.loads(data).items()}


def _listener(each: Listener) -> dict[str, Any]:
    pair = each.pair
    return {
        "pair": None if pair is None else [_text(pair.chain), _text(pair.key)],
        "pages": {
            path: page and [_text(page.body), page.max_age, page.content_type] for path, page in each.pages.items()
        },
    }


def _read(each: dict[str, Any]) -> Listener:
    pair = each["pair"]
    pages = {
        path: page and Page(base64.b64decode(page[0]), int(page[1]), str(page[2]))
        for path, page in each["pages"].items()
    }
    return Listener(pair and Pair(base64.b64decode(pair[0]), base64.b64decode(pair[1])), pages)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def framed(data: bytes) -> bytes:
    """Behind its length. Raises ValueError."""
    if len(data) > MAX_FRAME:
        raise ValueError("too much to be shown")
    return len(data).to_bytes(HEAD_BYTES, "big") + data
