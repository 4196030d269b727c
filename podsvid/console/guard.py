"""Who may ask the console: only who has its URL, and no other page that the same browser has open."""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# What every answer tells the browser: what pods' authors write is all over the page, and even were it markup, it could
# run nothing, load nothing and send nothing away.
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_SCHEME: Final = "Bearer "
# As Kubernetes names both. What else came here would be another path of its API, or an option of a command.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status, with a reason and a text for whoever sees it."""

    status: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request decides. Each header with all its values: two hosts are none."""

    method: str
    hosts: tuple[str, ...]
    authorizations: tuple[str, ...] = ()


class Guard:
    """Refuses what does not come from the page that was opened by the URL with `token`, served at `port`.

    The token is sent in a header, and is no cookie: those are sent to every port of 127.0.0.1 (RFC 6265, 8.5), and
    another user of this machine may listen at one.
    """

    def __init__(self, token: str, port: int) -> None:
        self._token = token
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    def refuses(self, asked: Asked) -> Refusal | None:
        """Why nothing is answered, not even the page; None: it is."""
        if asked.method != "GET":
            return Refusal(405, "READ_ONLY", "the console only shows: GET is all that it takes")
        # A name of somebody else's that leads here makes their page one of the console's own to the browser.
        if len(asked.hosts) != 1 or asked.hosts[0].lower() not in self._hosts:
            return Refusal(421, "WRONG_HOST", f"the console is at {self._hosts[0]}; open the URL that it printed")
        return None

    def refuses_data(self, asked: Asked) -> Refusal | None:
        """The same, of what only who has the token may see."""
        given = asked.authorizations[0] if len(asked.authorizations) == 1 else ""
        wanted = f"{_SCHEME}{self._token}".encode()
        if not hmac.compare_digest(given.encode("utf-8", "replace"), wanted):
            return Refusal(401, "NO_TOKEN", "open the URL that podsvid console printed, with all that follows the #")
        return None


def is_name(text: str) -> bool:
    """Whether a namespace or a pod can be called so."""
    return _NAME.fullmatch(text) is not None
