"""The connection to the signer: which roots it is verified by, the agent's token, and a channel made anew with them."""

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio

from agent.authority.contact import Contact
from agent.authority.held import HeldTrust
from agent.authority.pacing import Pacing
from agent.authority.proven import CONNECT_SECONDS, ProvenSigner, certificates
from agent.errors import AuthorityUnavailable
from runtime.federation import read_bundle
from runtime.stopping import end
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.errors import InvalidBundle, SvidError
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.authority")
# Seconds that calls in flight get on a channel that is given up: as long as one may take.
CLOSE_SECONDS = 20.0
# Between two times that grpc asks for a connection.
ASK_MILLISECONDS = 1000
# Between looks whether a connection has come about.
LOOK_SECONDS = 0.25
# Seconds that a channel serves at least before another one takes its place for its age.
LEAST_AGE = 300.0
# Seconds for which a signer takes little at once from a connection: until its settings must have been acknowledged.
YOUNG_SECONDS = 4.0
MAX_MESSAGE = 8 * 1024 * 1024
# Seconds within which streams end whose connection an authority proved that is trusted no more: all agents hear of that
# at once, and must not come anew at once.
LEAVE_SECONDS = 90.0
# How long no signer answers under the present trust until the bundle file's authorities are tried as well.
FILE_AFTER = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class SignerSettings:
    """How to reach and trust the signer. `bundle_file`: trust bundle (PEM or SPIFFE JWKS) for the first contact.

    `run_dir` is where the socket is that grpc reaches the signer through.
    """

    address: str
    bundle_file: Path
    token_file: Path
    audience: str
    trust_domain: TrustDomain
    agent_version: str = ""
    run_dir: Path = field(kw_only=True)


class Connection:
    """One channel at a time, to a server that proves to be the signer under the authorities that are trusted now.

    These are what the signer sent. The bundle file is what it is for at a start: until the signer has answered once.
    Later it only helps an agent that was cut off for longer than the authorities it knew were in use.
    """

    def __init__(self, settings: SignerSettings, held: HeldTrust, contact: Contact, rng: random.Random) -> None:
        self._settings = settings
        self._trust = held
        self._contact = contact
        self._rng = rng
        # The loop's clock stands still with the machine; what was paused over that is tried a little late.
        pacing = Pacing(rng, lambda: contact.waited_for, lambda: asyncio.get_running_loop().time())
        self._signer = ProvenSigner(
            settings.address,
            settings.trust_domain,
            settings.run_dir,
            self.newest_roots,
            pacing,
            young=YOUNG_SECONDS,
        )
        self._channel: grpc.aio.Channel | None = None
        # Those that streams hold on to: they outlive a newer channel until their stream ends.
        self._held: set[grpc.aio.Channel] = set()
        # Of those that a newer one has replaced: the roots that may have proved them.
        self._proved: dict[grpc.aio.Channel, frozenset[bytes]] = {}
        # What it was made with, and when.
        self._roots = b""
        self._made_at = 0.0
        # The one that takes its place once it is connected, and how many connections had been proven before it.
        self._next: grpc.aio.Channel | None = None
        self._proven_before = 0
        self._file_roots: tuple[tuple[int, int], TrustBundle] | None = None
        self._by_file = False
        self._leaving: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._closed = False
        # The connection at whose other end no batches were known.
        self._without_batches = 0

    @property
    def number(self) -> int:
        """Which of the proven connections is the newest; 0 before the first."""
        return self._signer.proven

    @property
    def takes_batches(self) -> bool:
        """Whether the signer may be asked for several SVIDs at once: it has not said that it knows no such call."""
        age = asyncio.get_running_loop().time() - self._signer.proven_at
        known = self.number not in (0, self._without_batches) and age >= YOUNG_SECONDS
        return known and self._state() is grpc.ChannelConnectivity.READY

    def lacks_batches(self, number: int) -> None:
        """The signer at the other end of that connection is older than batches; the next one may be newer."""
        self._without_batches = number

    def channel(self) -> grpc.aio.Channel:
        """The channel, made anew where a server that is trusted no more may be at its other end.

        That there are more authorities than before changes nothing for a connection that is there: in a rotation all
        agents would come anew at once. Raises AuthorityUnavailable once it was closed.
        """
        if self._closed:
            raise AuthorityUnavailable("SIGNER_UNREACHABLE: this agent is stopping")
        roots, proved = self.newest_roots(), self._signer.proven_by
        if self._channel is not None and self._is_good(self._channel, roots):
            if self._next is None or self._next.get_state() is not grpc.ChannelConnectivity.READY:
                return self._channel
            made, self._next = self._next, None
            self._signer.forget(self._proven_before)
        else:
            made = self._make()
            if self._next is not None:
                self._close(self._next)
                self._next = None
            self._signer.forget(self._signer.proven)
        if self._channel is not None and self._channel in self._held:
            self._proved[self._channel] = proved
        elif self._channel is not None:
            self._close(self._channel)
        self._channel, self._roots, self._made_at = made, roots, time.monotonic()
        return made

    def renew(self) -> None:
        """Go over to a new connection once there is one: to a signer with a newer certificate, or another replica.

        What was made a short while ago is new enough.
        """
        young = time.monotonic() - self._made_at < LEAST_AGE
        if self._closed or self._channel is None or self._next is not None or young:
            return
        with suppress(AuthorityUnavailable):  # the next stream's end comes to it again
            self._next = self._make()
            self._proven_before = self._signer.proven
            self._next.get_state(try_to_connect=True)

    def _make(self) -> grpc.aio.Channel:
        options = (
            ("grpc.default_authority", SIGNER_NAME),
            # Else a new channel goes on with the connection of the one before.
            ("grpc.use_local_subchannel_pool", 1),
            # What it asks for is a socket of this process, which knows when the signer may be tried.
            ("grpc.initial_reconnect_backoff_ms", ASK_MILLISECONDS),
            ("grpc.max_reconnect_backoff_ms", ASK_MILLISECONDS),
            # How long an attempt may take: where all nodes come back at once it waits its turn, and one that is given
            # up was work for nothing.
            ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.enable_retries", 0),
        )
        try:
            target = self._signer.open()
        except OSError as error:
            raise AuthorityUnavailable(
                f"SIGNER_UNREACHABLE: no socket can be made in {self._settings.run_dir}: {error.strerror or error}"
            ) from None
        # Not insecure: what is behind that socket has proved itself over TLS.
        return grpc.aio.insecure_channel(target, options=options)

    def _is_good(self, channel: grpc.aio.Channel, roots: bytes) -> bool:
        if not self._signer.proven_by <= certificates(roots):
            return False
        # One that does not come about is tried anew with what is trusted newly, at once and not in grpc's own time.
        return roots == self._roots or channel.get_state() is grpc.ChannelConnectivity.READY

    @contextmanager
    def held(self) -> Iterator[grpc.aio.Channel]:
        """The channel, kept open until this is left, though a newer one be made."""
        channel = self.channel()
        self._held.add(channel)
        try:
            yield channel
        finally:
            self._held.discard(channel)
            self._proved.pop(channel, None)
            if channel is not self._channel:
                self._close(channel)

    def leave_in(self, channel: grpc.aio.Channel) -> float | None:
        """Seconds after which a stream that holds that channel is to be ended: what proved it is trusted no more.

        None while it is. Whoever has the key of an abandoned authority may be at its other end, and would be asked what
        to trust for as long as it likes.
        """
        proved = self._signer.proven_by if channel is self._channel else self._proved.get(channel, frozenset())
        return None if proved <= certificates(self.newest_roots()) else self._rng.uniform(0.0, LEAVE_SECONDS)

    async def pause(self, seconds: float) -> None:
        """Sleep so long; less where grpc, which tries again in its own time, has meanwhile reached a signer.

        Else an agent would wait on though the signer is back; and asking between grpc's attempts tells nothing.
        """
        loop = asyncio.get_running_loop()
        end, cut_off = loop.time() + seconds, self._state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        while True:
            left = max(end - loop.time(), 0.0)
            # However short it is, others have their turn.
            await asyncio.sleep(min(left, LOOK_SECONDS) if cut_off else left)
            if loop.time() >= end or (cut_off and self._state() is grpc.ChannelConnectivity.READY):
                return

    async def close(self) -> None:
        """Nothing is open when this returns, and nothing is opened any more."""
        self._closed = True
        left = [*self._leaving.values(), *(each for each in (self._channel, self._next) if each is not None)]
        await end(self._leaving)
        for channel in left:
            await channel.close()
        await self._signer.close()

    def why(self, text: str) -> str:
        """Why no signer was reached, beginning with a reason code; `text`, which is grpc's, where that is not known."""
        return self._signer.failure or text

    def newest_roots(self) -> bytes:
        """What the signer's certificate is verified against: PEM."""
        trust = self._trust.feed.current
        assert trust is not None
        bundle, away = trust.bundle, self._contact.away_since
        if away is None or (self._contact.answered_once and self._contact.away_for < FILE_AFTER.total_seconds()):
            self._by_file = False
            return bundle.to_pem()
        try:
            file = self.read_bundle_file()
        except (OSError, SvidError):
            return bundle.to_pem()
        if not trust.proven:
            return file.to_pem()
        if not self._trust.is_news(file):
            return bundle.to_pem()
        if not self._contact.answered_once:
            return file.to_pem()
        # Beside those that are trusted, not in their place: a false file cuts nobody off.
        added = tuple(each for each in file.x509_authorities if each not in bundle.x509_authorities)
        if added and not self._by_file:
            self._by_file = True
            _log.error(
                "no signer answers under the trust that the last one sent; the bundle file's authorities are tried too",
                extra={"file": str(self._settings.bundle_file), "since": away.isoformat(), "sequence": file.sequence},
            )
        return replace(bundle, x509_authorities=(*bundle.x509_authorities, *added)).to_pem()

    def read_bundle_file(self) -> TrustBundle:
        """The bundle for the first contact, read again when it changed. Raises OSError, SvidError."""
        path = self._settings.bundle_file
        found = path.stat()
        seen = (found.st_ino, found.st_mtime_ns)
        if self._file_roots is None or self._file_roots[0] != seen:
            self._file_roots = (seen, read_bundle(self._settings.trust_domain, path))
        bundle = self._file_roots[1]
        if not bundle.x509_authorities:
            # Where there is nothing to verify with, nobody is verified.
            raise InvalidBundle("it has no X.509 authority that can be used")
        return bundle

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

    def _state(self) -> grpc.ChannelConnectivity | None:
        return self._channel.get_state() if self._channel is not None and not self._closed else None

    def _close(self, channel: grpc.aio.Channel) -> None:
        """Mints in flight are finished on it."""
        leaving = asyncio.get_running_loop().create_task(channel.close(CLOSE_SECONDS))
        self._leaving[leaving] = channel
        leaving.add_done_callback(self._leaving.pop)


def is_token(text: str) -> bool:
    """Whether `text` can stand in a header: visible ASCII, something of it."""
    return text.isascii() and text.isprintable() and text != "" and " " not in text
