"""A document on the web, read as whoever knows nothing but its URL: bounded, and without going where it sends to."""

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from runtime.bodies import TooLong, session, whole
from runtime.bounded import Bounded
from signer.naming import Names
from svid.readers import MAX_DOCUMENT, age_of, kept_for

# Seconds for a connection, and for one document.
CONNECT_SECONDS, DOCUMENT_SECONDS = 5.0, 10.0
_OK = 200
_MOVED = range(300, 400)


class Unread(Exception):
    """There is no such document now; the text says why, and what to look at."""


@dataclass(frozen=True, slots=True)
class Document:
    """What was answered. `kept`: for how many seconds readers may keep it, None where that is not said; `age`: for how
    many caches between had it already."""

    body: bytes
    kept: int | None
    age: int


class Stranger:
    """Belongs to one event loop. `at`: host and port to ask instead of a URL's own, whose name is proved still."""

    def __init__(self, context: ssl.SSLContext, at: tuple[str, int] | None = None) -> None:
        self._context = context
        self._at = at

    async def read(self, url: str) -> Document:
        """GET it. Raises Unread."""
        parts = urlsplit(url)
        asked = url
        if self._at is not None:
            host = f"[{self._at[0]}]" if ":" in self._at[0] else self._at[0]
            asked = parts._replace(netloc=f"{host}:{self._at[1]}").geturl()
        async with session(self._context, Names(Bounded(CONNECT_SECONDS)), CONNECT_SECONDS) as asking:
            try:
                async with (
                    asyncio.timeout(DOCUMENT_SECONDS),
                    asking.get(
                        asked,
                        allow_redirects=False,
                        server_hostname=parts.hostname,
                        headers={"Host": parts.netloc, "Accept": "application/json", "Accept-Encoding": "identity"},
                    ) as answer,
                ):
                    return await _document(answer)
            except TimeoutError:
                raise Unread(f"no whole answer within {DOCUMENT_SECONDS:g} s") from None
            except (aiohttp.ClientError, ValueError, OSError) as error:
                raise Unread(_why(error)) from None


async def _document(answer: aiohttp.ClientResponse) -> Document:
    if answer.status in _MOVED:
        raise Unread(f"it sends on to elsewhere ({answer.status}), where not every verifier follows: serve it there")
    if answer.status != _OK:
        raise Unread(f"it answers {answer.status}")
    try:
        data = bytes(await whole(answer, MAX_DOCUMENT))
    except TooLong:
        raise Unread(f"it answers with more than {MAX_DOCUMENT >> 10} KiB") from None
    control = ",".join(answer.headers.getall("Cache-Control", []))
    return Document(data, kept_for(control), age_of(answer.headers.get("Age", "")))


def _why(error: Exception) -> str:
    said = getattr(error, "certificate_error", None) or error
    if isinstance(said, ssl.SSLCertVerificationError):
        text = getattr(said, "verify_message", "") or str(said)
        return f"its certificate is not accepted ({text[:300]}); --ca-file names another CA than the system's"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"it cannot be reached (no connection within {CONNECT_SECONDS:g} s)"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it cannot be reached ({(error.strerror or type(error.os_error).__name__)[:200]})"
    return f"it gives no answer that can be read ({type(error).__name__})"
