"""One workload's life, from the SVID that its pod starts with to the end of its volume."""

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agent.authority.held import numbered
from agent.authority.protocol import EarlyRenewal
from agent.errors import AgentError, AuthorityRefused, AuthorityUnavailable, KeysBusy, SocketUnavailable
from agent.metrics import Metrics
from agent.servers.protocol import Kept, PodSockets, Use
from agent.workload.issuer import Issuer
from agent.workload.jwt_svids import JwtSvids, KeptJwt
from agent.workload.problems import Problem, Problems
from agent.workload.rotation import RotationScheduler
from agent.workload.slow import SlowWork
from agent.workload.withholding import left, not_renewed
from csi.journal import Entry, Journal
from csi.model import Contents, Issued, PodToken, Volume
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.stopping import end
from runtime.tracing import Tracing
from svid.identity import Trust, WorkloadIdentity
from svid.keys import PrivateKey
from svid.renewal import RenewalWindow

_log = logging.getLogger("podsvid.workloads")
LATE_RENEWAL = timedelta(seconds=5)
# How long files stay that were replaced: for who began to read them, and no longer, since they hold a private key, and
# who watches a file of theirs hears of the new one when it goes.
SUPERSEDED = timedelta(seconds=3)
# How many problems are remembered of a volume.
MAX_PROBLEMS = 8


@dataclass(frozen=True, slots=True)
class Means:
    """What all workloads of a node live by."""

    issuer: Issuer
    journal: Journal
    blocking: Blocking
    slow: SlowWork
    clock: Clock
    rng: random.Random
    metrics: Metrics
    sockets: PodSockets
    tracing: Tracing
    # When whose replaced files go.
    sweeps: RotationScheduler


class Workload:
    """A volume's workload. Its feed is the only place where its identity lives; files and streams follow it.

    Belongs to one event loop. Nobody but the methods here changes what it holds.
    """

    def __init__(self, volume: Volume, directory: VolumeDirectory, means: Means) -> None:
        self.volume = volume
        self.directory = directory
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.token: PodToken | None = None
        self.renew_at: datetime | None = None
        # What `renew_at` was drawn in; unknown after a restart.
        self.window: RenewalWindow | None = None
        # The early renewal that an instant was drawn for already: it is drawn once.
        self.early: EarlyRenewal | None = None
        # The JWT-SVIDs that the volume holds as files, by file name.
        self.jwt_files: dict[str, KeptJwt] = {}
        # What is in the files; a write that failed is repeated without minting again.
        self.written: Contents | None = None
        self.written_at: datetime | None = None
        self.notice = self.policy = ""
        self.problems = Problems(MAX_PROBLEMS)
        # Somebody asked for the renewal that is due, or was tried last.
        self.asked_for = False
        # For the renewal that is due: made, or why it was not. It is kept until there is an SVID for it.
        self._key: PrivateKey | KeysBusy | None = None
        self._means = means
        self._issuer = means.issuer
        self._jwt_svids = JwtSvids(
            lambda spiffe_id, audiences, for_file: self._issuer.mint_jwt(
                volume, self.token, spiffe_id, audiences, for_file=for_file
            ),
            means.clock,
            means.rng,
        )
        jwt_svids = self._jwt_svids if self._issuer.issues_jwt else None
        self._socket = means.sockets.socket(self.feed, jwt_svids, volume.pod, directory, self.remember)

    @property
    def contents(self) -> Contents | None:
        """What the files should hold; None before the first identity."""
        identity = self.feed.current
        return Contents(identity, {name: kept.svid for name, kept in self.jwt_files.items()}) if identity else None

    @property
    def kept_apart(self) -> Kept | None:
        """Why its socket is not served as those of others are, where that is so."""
        return self._socket.kept_apart()

    @property
    def lacks_socket(self) -> bool:
        """Whether its socket is not there and is to be."""
        kept = self.kept_apart
        return not self.directory.has_socket() and not (kept and kept.closed)

    async def use(self, *, peers: bool) -> Use:
        """The calls under way on its socket, and who is connected where `peers` are asked for."""
        return await self._socket.use(peers=peers)

    def next_due(self) -> datetime:
        """When the first of its SVIDs is to be renewed, or what is missing to be made."""
        now = self._means.clock.now()
        missing = len(self.jwt_files) < len(self.volume.options.jwt_files)
        if self.renew_at is None or missing or self._is_early(now):
            return now
        return min([self.renew_at, *(kept.renew_at for kept in self.jwt_files.values())])

    async def begin(self, issued: Issued) -> None:
        """Write what was issued, journal it and serve it. On any error nothing is left running or journalled."""
        self._take(issued)
        self._take_jwt_files(issued.contents)
        self._publish(issued.identity)
        # Bound while the files are written, and in the volume after them: the loop is busy with them until then.
        opening = asyncio.ensure_future(self._socket.open())
        try:
            await asyncio.sleep(0)
            await self._write()
            await opening
        except BaseException:
            await end([opening])
            await self._socket.close()
            await self._means.blocking(lambda: self._means.journal.forget(self.volume.id))
            raise
        self.renew_early()

    async def resume(self, contents: Contents | None, renew_at: datetime | None) -> datetime:
        """Go on with what an earlier process wrote, if it is still good; answers when something is due."""
        now = self._means.clock.now()
        trust = self._issuer.trust
        identity = _numbered(contents.identity, now).under(trust, now) if contents else None
        if identity is not None and trust.proven and identity.trust == identity.part_of(trust):
            identity = identity.with_trust(trust)
        if contents is not None and identity is not None:
            if identity.is_valid(now):
                usual = RenewalWindow.of(identity.default.not_before, identity.expires_at)
                self.renew_at = renew_at or usual.draw(self._means.rng)
            else:
                # Who verifies others by its bundles is not to wait for an SVID.
                self.renew_at, identity = now, left(identity)
            self._take_jwt_files(contents)
            self.feed.publish(identity.lean())
            # Files that are damaged, or hold another trust than the present one, are written again.
            self.written = contents if self.directory.holds(contents) else None
            if self.written == self.contents:
                # One copy of what is equal: a start needs no more memory than the run before.
                self.written = self.contents
            self.written_at = self.directory.written_at()
        due = self.next_due() if self.contents == self.written else now
        # A restart waits for no socket: it is there as soon as it is served.
        await self._socket.reopen()
        return due

    def take_token(self, token: PodToken | None) -> None:
        """The newest one is for the next renewal."""
        self.token = token or self.token

    def ask_for_renewal(self) -> None:
        """Have its X.509-SVID renewed at the next `renew`."""
        self.renew_at, self.asked_for = self._means.clock.now(), True

    def renew_early(self) -> bool:
        """Draw an instant for the early renewal that concerns this workload, once; whether it is due earlier now."""
        identity = self.feed.current
        early = self._issuer.early_renewal(identity) if identity else None
        if early is None or early == self.early:
            return False
        self.early = early
        now = self._means.clock.now()
        if early.window.end > now:
            drawn = RenewalWindow(max(early.window.start, now), early.window.end).draw(self._means.rng)
        else:
            # Minted by a signer that had not heard yet: not renewed in the same breath.
            drawn = now + LATE_RENEWAL
        if self.renew_at is not None and self.renew_at <= drawn:
            return False
        self.renew_at, self.window = drawn, early.window
        return True

    def follows(self, trust: Trust) -> bool:
        """Whether there is nothing in `trust` for it: it has these bundles, or newer ones, or no identity yet."""
        identity = self.feed.current
        return identity is None or identity.follows(trust)

    async def take_trust(self, trust: Trust) -> bool:
        """Hand `trust` on to whoever reads the feed, and write it; False when a renewal has to bring it, at once.

        Only for trust that it does not follow yet.
        """
        identity = self.feed.current
        assert identity is not None
        now = self._means.clock.now()
        if any(authority not in trust.bundle.jwt_authorities for authority in identity.bundle.jwt_authorities):
            self._jwt_svids.forget()
            self._socket.forget_tokens()
            self.jwt_files = {name: KeptJwt(kept.svid, now) for name, kept in self.jwt_files.items()}
        renewed = identity.under(trust, now)
        if renewed is identity:
            self.renew_at = now
            _log.warning("SVID is not valid under the new trust bundle; renewing", extra={"volume_id": self.volume.id})
            return False
        self.feed.publish(renewed)
        return await self._wrote_now()

    async def prepare(self) -> None:
        """Have the key of a renewal that is due made, where that takes long: others are renewed meanwhile."""
        slow = self.volume.options.key_algorithm.slow
        if slow and self._is_due() and not isinstance(self._key, PrivateKey):
            try:
                self._key = await self._issuer.key(self.volume, renewal=True)
            except KeysBusy as error:
                self._key = error

    async def renew(self) -> datetime:
        """Level-triggered: bring feed and files to fresh SVIDs, and the socket back; answers when it is due next.

        Raises AuthorityRefused, AuthorityUnavailable, KeysBusy, OSError; what could be done is done then.
        """
        metrics = self._means.metrics
        failure: AgentError | None = None
        # One authority down, or one kind of SVID refused, keeps neither the other nor the files from being renewed.
        for kind, renew in (("x509", self._renew_x509), ("jwt", self._renew_jwt_files)):
            try:
                if await renew():
                    metrics.rotated(kind, "ok")
            except (AuthorityRefused, AuthorityUnavailable, KeysBusy) as error:
                metrics.rotated(kind, error.reason.lower())
                self.remember(error.reason, str(error))
                failure = failure or error
                if kind == "x509":
                    self._not_renewed(error)
        try:
            if self.written != self.contents:
                await self._write()
            if self.lacks_socket:
                await self._reopen()
        except OSError as error:
            metrics.rotated("x509", "write_failed")
            self.remember("WRITE_FAILED", f"the volume's files: {error.strerror or type(error).__name__}")
            raise
        if failure is not None:
            raise failure
        return self.next_due()

    def sweep(self) -> datetime | None:
        """Take away the files that were replaced; answers when to come back, for another write is under way.

        Raises OSError where they cannot go.
        """
        return None if self.directory.prune() else self._means.clock.now() + SUPERSEDED

    def remember(self, reason: str, message: str) -> None:
        """Keep what went wrong for whoever asks."""
        now = self._means.clock.now()
        self.problems.add(Problem(now, self.volume.pod, self.volume.id, reason, message, now))

    async def end(self) -> None:
        """Close its socket and end what runs for it. Its files stay as they are."""
        await self._socket.close()
        await self._jwt_svids.close()

    def _is_early(self, now: datetime) -> bool:
        """Whether its SVID is not valid yet: it was minted by a clock that has been set back since."""
        identity = self.feed.current
        return identity is not None and identity.default.not_before > now

    def _is_due(self) -> bool:
        """Whether its X.509-SVID is."""
        now = self._means.clock.now()
        return self.renew_at is None or self.renew_at <= now or self._is_early(now)

    def _take(self, issued: Issued) -> None:
        self.renew_at, self.window = issued.renew_at, issued.window
        self.notice, self.policy = issued.notice, issued.policy

    def _publish(self, identity: WorkloadIdentity) -> None:
        self.feed.publish(identity.under(self._issuer.trust, self._means.clock.now()))

    def _take_jwt_files(self, contents: Contents) -> None:
        """Take over JWT-SVIDs that are still good for the files the volume has."""
        for file in self.volume.options.jwt_files:
            held = contents.jwt_svids.get(file.name)
            svid = self._issuer.still_good(held, file, contents.identity.bundle) if held else None
            if svid is not None:
                issued_at = svid.issued_at or self._means.clock.now()
                kept = KeptJwt(svid, RenewalWindow.of(issued_at, svid.expires_at).draw(self._means.rng))
                self.jwt_files[file.name] = kept
                self._jwt_svids.adopt(svid.spiffe_id, svid.audiences, kept)

    async def _renew_x509(self) -> bool:
        if not self._is_due():
            return False
        if self._key is None:
            if self.volume.options.key_algorithm.slow:
                return False  # due since it was prepared: it is prepared again at once
            self._key = await self._issuer.key(self.volume, renewal=True)
        if isinstance(self._key, KeysBusy):
            busy, self._key = self._key, None
            raise busy
        with self._means.tracing.span("renew X.509-SVID", self.volume.pod.trace_facts) as span:
            issued = await self._issuer.mint_x509(self.volume, self.token, self._key, renewal=True)
            span.note({"podsvid.serial": issued.identity.default.serial})
        self._key = None
        self._take(issued)
        self.asked_for = False
        self._publish(issued.identity)
        self.renew_early()
        _log.info(
            "SVID rotated",
            extra={
                "volume_id": self.volume.id,
                "pod": str(self.volume.pod),
                "serial": issued.identity.default.serial,
                "not_after": issued.identity.expires_at.isoformat(),
                "renew_at": self.renew_at.isoformat() if self.renew_at else None,
            },
        )
        return True

    def _not_renewed(self, error: AgentError) -> None:
        identity = self.feed.current
        if identity is None:
            return
        found = not_renewed(identity, error, self._issuer.trust, self._means.clock.now())
        if found != identity or found.withheld != identity.withheld:
            self.feed.publish(found)

    async def _renew_jwt_files(self) -> bool:
        identity = self.feed.current
        renewed = False
        for file in self.volume.options.jwt_files if identity else ():
            assert identity is not None
            kept = self.jwt_files.get(file.name)
            subject = identity.default.spiffe_id
            if kept is None or kept.renew_at <= self._means.clock.now() or kept.svid.spiffe_id != subject:
                self.jwt_files[file.name] = await self._jwt_svids.get(subject, file.audiences, for_file=True)
                renewed = True
        return renewed

    async def _write(self) -> None:
        contents, renew_at, clock = self.contents, self.renew_at, self._means.clock
        if contents is None or renew_at is None:
            return
        entry = Entry(self.volume, contents.identity.default.serial, renew_at)
        # On the loop: a few small files on a tmpfs take less time than contending with a thread for the interpreter
        # does (500 due at once: 1.6 s, with threads 2.1 s), and nothing can be cancelled half-way.
        if self.volume.options.has_keystores:
            await self._means.slow.keystore(
                self.volume.pod,
                lambda: self.directory.write(contents, clock.now()),
                renewal=self.written is not None,
            )
        else:
            self.directory.write(contents, clock.now())
        # Whatever becomes of the journal.
        self._means.sweeps.schedule(self.volume.id, clock.now() + SUPERSEDED)
        self._means.journal.record(entry)
        self.written, self.written_at = contents, clock.now()

    async def _wrote_now(self) -> bool:
        """Write the files beside a renewal that may run: a mint can take its whole deadline, and the cluster waits."""
        if self.volume.options.has_keystores:
            return False  # written in a thread, where two could meet
        try:
            await self._write()
        except OSError:
            return False
        return True

    async def _reopen(self) -> None:
        _log.warning("volume's socket disappeared; making it again", extra={"volume_id": self.volume.id})
        await self._socket.close()
        try:
            await self._socket.open()
        except SocketUnavailable as error:
            # It will be opened when it can be; nothing of the SVID has to be done again for that.
            self.remember(error.reason, str(error))


def _numbered(identity: WorkloadIdentity, now: datetime) -> WorkloadIdentity:
    """Files outlive clocks and versions: a number that cannot be never keeps out what the authority says."""
    return replace(identity, bundle=numbered(identity.bundle, now))
