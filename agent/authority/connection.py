"""The connection to the signer: what proves either side to the other, and a channel that is made anew with it."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from agent.authority.contact import MAX_RETRY, Contact
from agent.errors import AuthorityUnavailable
from runtime.federation import read_bundle
from runtime.feed import Feed
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.errors import InvalidBundle, SvidError
from svid.identity import Trust
from svid.spiffeid import TrustDomain

# Seconds that calls in flight get on a channel that is given up: as long as one may take.
CLOSE_SECONDS = 20.0
MAX_MESSAGE = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SignerSettings:
    """How to reach and trust the signer. `bundle_file`: trust bundle (PEM or SPIFFE JWKS) for the first contact."""

    address: str
    bundle_file: Path
    token_file: Path
    audience: str
    trust_domain: TrustDomain
    agent_version: str = ""


class Connection:
    """One channel at a time. The roots that it trusts are the newest of the bundle file and of what the signer sent."""

    def __init__(self, settings: SignerSettings, trust: Feed[Trust], contact: Contact, rng: random.Random) -> None:
        self._settings = settings
        self._trust = trust
        self._contact = contact
        self._rng = rng
        self._channel: grpc.aio.Channel | None = None
        # Those that streams hold on to: they outlive a newer channel until their stream ends.
        self._held: set[grpc.aio.Channel] = set()
        self._roots = b""
        self._file_roots: tuple[tuple[int, int], TrustBundle] | None = None
        self._leaving: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._closed = False

    def channel(self) -> grpc.aio.Channel:
        """The channel, made anew when what it is to trust has changed.

        The signer's next certificate may be of an authority that the old connection's roots do not have. Agents come to
        this at their next mint, each in its own time. Raises AuthorityUnavailable once it was closed.
        """
        if self._closed:
            raise AuthorityUnavailable("SIGNER_UNREACHABLE: this agent is stopping")
        roots = self.newest_roots()
        if self._channel is not None and roots == self._roots:
            return self._channel
        if self._channel is not None and self._channel not in self._held:
            self._close(self._channel)
        first = int(self._rng.uniform(0.5, 3.0) * 1000)
        options = (
            ("grpc.ssl_target_name_override", SIGNER_NAME),
            ("grpc.default_authority", SIGNER_NAME),
            ("grpc.initial_reconnect_backoff_ms", first),
            ("grpc.min_reconnect_backoff_ms", first),
            ("grpc.max_reconnect_backoff_ms", int(MAX_RETRY * 1000)),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.enable_retries", 0),
        )
        self._channel = grpc.aio.secure_channel(
            self._settings.address, grpc.ssl_channel_credentials(roots), options=options
        )
        self._roots = roots
        return self._channel

    @contextmanager
    def held(self) -> Iterator[grpc.aio.Channel]:
        """The channel, kept open until this is left, though a newer one be made."""
        channel = self.channel()
        self._held.add(channel)
        try:
            yield channel
        finally:
            self._held.discard(channel)
            if channel is not self._channel:
                self._close(channel)

    async def close(self) -> None:
        """Nothing is open when this returns, and nothing is opened any more."""
        self._closed = True
        left = [*self._leaving.values(), *([self._channel] if self._channel else [])]
        for leaving in list(self._leaving):
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for channel in left:
            await channel.close()

    def newest_roots(self) -> bytes:
        """What the signer's certificate is verified against: PEM."""
        trust = self._trust.current
        assert trust is not None
        bundle = trust.bundle
        try:
            file = self.read_bundle_file()
        except (OSError, SvidError):
            file = bundle
        mine, theirs = bundle.sequence, file.sequence
        # The file is what helps an agent that was cut off for longer than the authorities it knew were trusted.
        newer = theirs is not None and (mine is None or theirs > mine)
        if newer or (theirs is None and not self._contact.connected and self._contact.failures > 2):
            bundle = file
        return bundle.to_pem()

    def read_bundle_file(self) -> TrustBundle:
        """The bundle for the first contact, read again when it changed. Raises OSError, SvidError."""
        path = self._settings.bundle_file
        found = path.stat()
        seen = (found.st_ino, found.st_mtime_ns)
        if self._file_roots is None or self._file_roots[0] != seen:
            bundle = read_bundle(self._settings.trust_domain, path)
            if not bundle.x509_authorities:
                # grpc trusts the host's own roots where it is given none.
                raise InvalidBundle("it has no X.509 authority")
            self._file_roots = (seen, bundle)
        return self._file_roots[1]

    def credentials(self) -> tuple[tuple[str, str], ...]:
        """The metadata that proves this agent, read anew for each call. Raises AuthorityUnavailable."""
        path = self._settings.token_file
        try:
            token = path.read_text(encoding="ascii").strip()
            if not is_token(token):
                raise ValueError("not one token")
        except (OSError, ValueError):
            raise AuthorityUnavailable(
                f"AGENT_TOKEN_MISSING: agent_token_file {path} has no token; project a service account token of "
                f"audience {self._settings.audience} there"
            ) from None
        return (("authorization", f"Bearer {token}"),)

    def _close(self, channel: grpc.aio.Channel) -> None:
        """Mints in flight are finished on it."""
        leaving = asyncio.get_running_loop().create_task(channel.close(CLOSE_SECONDS))
        self._leaving[leaving] = channel
        leaving.add_done_callback(self._leaving.pop)


def is_token(text: str) -> bool:
    """Whether `text` can stand in a header: visible ASCII, something of it."""
    return text.isascii() and text.isprintable() and text != "" and " " not in text
