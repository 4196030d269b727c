"""The node's workloads: each one's identity as a feed, and how it is minted, written, served and renewed."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import grpc

from agent.authority.jwt_svids import JwtSvids, KeptJwt
from agent.authority.protocol import Authority, EarlyRenewal, JwtRequest, MintedJwt, MintRequest
from agent.errors import AgentError, AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.socket.endpoint import Endpoint, Limits
from agent.socket.health import Health
from agent.socket.sds import SdsNames, SecretDiscovery
from agent.socket.workload_api import WorkloadApi
from agent.workload.problems import Problem, Problems
from agent.workload.rotation import RotationScheduler
from csi.errors import IdentityDenied, IdentityUnavailable
from csi.journal import Entry, Journal
from csi.model import Condition, Contents, Issued, PodRef, PodToken, Volume
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.tracing import NO_TRACING, Tracing
from svid.errors import InvalidSvid, SvidError
from svid.identity import Trust, WorkloadIdentity
from svid.jwtsvid import check_jwt_svid
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId
from svid.x509svid import X509Svid

_log = logging.getLogger("podsvid.workloads")
MINT_DEADLINE = 30.0
# A renewal that is this late is worth a person's look.
OVERDUE = timedelta(seconds=60)
# Seconds from one report of what workloads hold to the next.
REPORT_SECONDS = 1.0
LATE_RENEWAL = timedelta(seconds=5)
# How many problems are remembered, of a volume and of pods without one.
MAX_PROBLEMS, MAX_PUBLISH_PROBLEMS = 8, 256
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Serving:
    """How the volumes' sockets are served: limits, Envoy's names, and handlers that are the same for all of them."""

    limits: Limits = Limits()
    sds: SdsNames = SdsNames()
    shared: tuple[grpc.GenericRpcHandler, ...] = ()


@dataclass(frozen=True, slots=True)
class _Fresh:
    """An identity as it was just minted, and when it is to be renewed: the instant, and the window it was drawn in."""

    identity: WorkloadIdentity
    window: RenewalWindow
    renew_at: datetime
    notice: str


class Workload:
    """One volume's workload. Its feed is the only place where its identity lives; files and streams follow it."""

    def __init__(self, volume: Volume, directory: VolumeDirectory, token: PodToken | None = None) -> None:
        self.volume = volume
        self.directory = directory
        self.token = token
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.renew_at: datetime | None = None
        # What `renew_at` was drawn in; unknown after a restart.
        self.window: RenewalWindow | None = None
        # The JWT-SVIDs that the volume holds as files, by file name.
        self.jwt_files: dict[str, KeptJwt] = {}
        # What is in the files; a write that failed is repeated without minting again.
        self.written: Contents | None = None
        self.written_at: datetime | None = None
        # The early renewal that an instant was drawn for already: it is drawn once.
        self.early: EarlyRenewal | None = None
        self.notice = ""
        self.problems = Problems(MAX_PROBLEMS)
        # Somebody asked for the renewal that is due, or was tried last.
        self.asked_for = False

    @property
    def contents(self) -> Contents | None:
        """What the files should hold; None before the first identity."""
        identity = self.feed.current
        return Contents(identity, {name: kept.svid for name, kept in self.jwt_files.items()}) if identity else None

    def is_early(self, now: datetime) -> bool:
        """Whether its SVID is not valid yet: it was minted by a clock that has been set back since."""
        identity = self.feed.current
        return identity is not None and identity.default.not_before > now

    def next_due(self, now: datetime) -> datetime:
        """When the first of its SVIDs is to be renewed."""
        if self.is_early(now):
            return now
        missing = len(self.jwt_files) < len(self.volume.options.jwt_files)
        if self.renew_at is None or missing:
            return now
        return min([self.renew_at, *(kept.renew_at for kept in self.jwt_files.values())])


@dataclass(frozen=True, slots=True)
class Served:
    """A workload and what answers for it on its socket."""

    workload: Workload
    jwt_svids: JwtSvids
    endpoint: Endpoint


class WorkloadRegistry:
    """Implements csi.ports.Workloads: all workloads of this node, renewed by one scheduler."""

    def __init__(
        self,
        authority: Authority,
        journal: Journal,
        blocking: Blocking,
        clock: Clock,
        rng: random.Random,
        metrics: Metrics,
        serving: Serving = Serving(),
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._authority = authority
        self._journal = journal
        self._blocking = blocking
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._serving = serving
        self._tracing = tracing
        self._served: dict[str, Served] = {}
        self._held = asyncio.Event()
        # Of volumes that could not be published: there is no workload to keep them.
        self.publish_problems = Problems(MAX_PUBLISH_PROBLEMS)
        self.scheduler = RotationScheduler(self._rotate, clock, rng)
        metrics.watch(lambda: len(self._served), self.earliest_expiry, self._states)

    def earliest_expiry(self) -> float:
        """Unix time at which the first SVID ends; 0 without any."""
        identities = [served.workload.feed.current for served in list(self._served.values())]
        return min((each.expires_at.timestamp() for each in identities if each), default=0.0)

    def now(self) -> datetime:
        """The time by which renewals are due."""
        return self._clock.now()

    @property
    def served(self) -> Mapping[str, Served]:
        """Every workload by its volume's id."""
        return self._served

    async def issue(self, volume: Volume, token: PodToken | None) -> Issued:
        try:
            fresh = await self._mint_x509(volume, token)
            jwt_svids = {}
            for file in volume.options.jwt_files:
                minted = await self._mint_jwt(volume, token, fresh.identity.default.spiffe_id, (file.audience,))
                jwt_svids[file.name] = minted.svid
        except (AuthorityRefused, AuthorityUnavailable) as error:
            kind = IdentityDenied if isinstance(error, AuthorityRefused) else IdentityUnavailable
            raise kind(str(error)) from None
        return Issued(Contents(fresh.identity, jwt_svids), fresh.renew_at, fresh.notice, fresh.window)

    async def open(self, volume: Volume, directory: VolumeDirectory, issued: Issued) -> None:
        served = self._serve_for(Workload(volume, directory))
        workload = served.workload
        workload.renew_at, workload.window = issued.renew_at, issued.window
        workload.notice = issued.notice
        self._keep_files(served, issued.contents)
        workload.feed.publish(self._under_current_trust(issued.identity))
        try:
            await self._write(workload)
            await self._open_socket(served)
        except BaseException:
            await served.endpoint.close()
            await self._blocking(lambda: self._journal.forget(volume.id))
            raise
        self._served[volume.id] = served
        self._renew_early(served)
        self.scheduler.schedule(volume.id, workload.next_due(self._clock.now()))
        self._held.set()
        if issued.notice:
            _log.warning(
                "not all that the volume asked for was granted",
                extra={"volume_id": volume.id, "pod": str(volume.pod), "notice": issued.notice},
            )

    async def adopt(
        self,
        volume: Volume,
        directory: VolumeDirectory,
        contents: Contents | None,
        renew_at: datetime | None,
    ) -> None:
        served = self._serve_for(Workload(volume, directory))
        workload = served.workload
        now = self._clock.now()
        identity = self._under_current_trust(contents.identity) if contents else None
        if contents is not None and identity is not None and _usable(identity, now):
            workload.renew_at = renew_at or RenewalWindow.of(identity.default.not_before, identity.expires_at).draw(
                self._rng
            )
            self._keep_files(served, contents)
            workload.feed.publish(identity)
            # Files that are damaged, or hold another trust than the present one, are written again.
            workload.written = contents if directory.holds(contents) else None
            workload.written_at = directory.written_at()
        due = workload.next_due(now) if workload.contents == workload.written else now
        try:
            await self._open_socket(served)
        except BaseException:
            await served.endpoint.close()
            raise
        self._served[volume.id] = served
        self.scheduler.schedule(volume.id, due)
        self._held.set()
        _log.info(
            "volume picked up",
            extra={"volume_id": volume.id, "pod": str(volume.pod), "renew_at": due.isoformat()},
        )

    async def close(self, volume_id: str) -> None:
        await self.scheduler.forget(volume_id)
        served = self._served.pop(volume_id, None)
        self._held.set()
        if served is not None:
            await served.endpoint.close()
            await served.jwt_svids.close()
        await self._blocking(lambda: self._journal.forget(volume_id))

    def republished(self, volume_id: str, token: PodToken | None) -> None:
        served = self._served.get(volume_id)
        if served is None:
            return
        workload = served.workload
        # A restarted agent has no tokens: what failed for want of one need not wait for its next attempt.
        awaited = token is not None and workload.token is None and self.scheduler.failures(volume_id) > 0
        workload.token = token or workload.token
        if awaited or not workload.directory.has_socket():
            self.scheduler.schedule(volume_id, self._clock.now())

    def state(self, served: Served) -> str:
        """One word of agent.metrics.STATES; the worst that is true of the volume."""
        workload, now = served.workload, self._clock.now()
        identity = workload.feed.current
        if identity is None:
            return "waiting"
        if identity.expires_at <= now:
            return "expired"
        if workload.written is None or workload.written.identity != identity:
            return "unwritten"
        if self.scheduler.failures(workload.volume.id):
            return "retrying"
        return "overdue" if workload.renew_at is not None and now > workload.renew_at + OVERDUE else "ok"

    def _states(self) -> Mapping[str, int]:
        return Counter(self.state(served) for served in list(self._served.values()))

    async def renew_now(self, volume_id: str) -> None:
        """Have the volume's X.509-SVID renewed as when it is due; returns when that was tried, files included.

        Afterwards `scheduler.failures` tells whether it failed.
        """
        served = self._served.get(volume_id)
        if served is not None:
            served.workload.renew_at, served.workload.asked_for = self._clock.now(), True
            await self.scheduler.rotate_now(volume_id)

    def publish_refused(self, volume_id: str, pod: PodRef, reason: str, message: str) -> None:
        """Remember why kubelet's publish was refused, for whoever asks."""
        served = self._served.get(volume_id)
        kept = served.workload.problems if served else self.publish_problems
        now = self._clock.now()
        kept.add(Problem(now, pod, volume_id, reason, message, now))

    def publish_accepted(self, volume_id: str) -> None:
        """What was wrong with a volume before it was published is its past now."""
        served = self._served.get(volume_id)
        if served is not None:
            for each in self.publish_problems.take(volume_id):
                served.workload.problems.add(each)

    def condition(self, volume_id: str) -> Condition:
        served = self._served.get(volume_id)
        identity = served.workload.feed.current if served else None
        if served is None or identity is None:
            return Condition(True, "the SVID could not be picked up after a restart; a new one is being minted")
        workload = served.workload
        now = self._clock.now()
        failures = self.scheduler.failures(volume_id)
        left = f"valid until {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        if identity.expires_at <= now:
            return Condition(True, f"the SVID expired at {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}")
        if workload.written is None or workload.written.identity != identity:
            return Condition(True, f"the newest SVID could not be written; the files hold an older one, {left}")
        late = workload.renew_at is not None and now > workload.renew_at + OVERDUE
        if late or failures:
            return Condition(True, f"the SVID is past its renewal window after {failures} failed attempts; {left}")
        notice = f"; {workload.notice}" if workload.notice else ""
        return Condition(False, f"SVID {identity.default.serial} {left}{notice}")

    async def stop(self) -> None:
        """Close every socket; files stay as they are and the journal too."""
        await asyncio.gather(*(served.endpoint.close() for served in self._served.values()))
        await asyncio.gather(*(served.jwt_svids.close() for served in self._served.values()))
        self._served.clear()

    async def follow_trust(self) -> None:
        """Hand every change of the authority's trust to every workload, for ever."""
        version = 0
        while True:
            version = await self._authority.trust.wait_beyond(version)
            for volume_id, served in list(self._served.items()):
                if self._served.get(volume_id) is served:
                    await self._trust_changed(volume_id, served)
                # Each is checked under the new trust: together that takes long enough to be felt by their callers.
                await asyncio.sleep(0)
            self._held.set()

    async def follow_early_renewals(self) -> None:
        """Bring renewals forward as the authority says, for ever."""
        version = 0
        while True:
            version = await self._authority.early_renewals.wait_beyond(version)
            for volume_id, served in list(self._served.items()):
                if self._renew_early(served):
                    # Files may be due at once, for a trust bundle that came with the same answer.
                    self.scheduler.hasten(volume_id, served.workload.next_due(self._clock.now()))

    async def report_holdings(self) -> None:
        """Tell the authority what all workloads have, files included, after each change, for ever."""
        while True:
            await self._held.wait()
            self._held.clear()
            trust, behind, svids = self._trust(), False, Counter[str]()
            for served in self._served.values():
                workload = served.workload
                identity = workload.feed.current
                if identity is None:
                    continue
                svids[identity.default.authority_id] += 1
                written = workload.written
                behind = behind or written is None or written.identity.trust != identity.part_of(trust)
            if not behind:
                self._authority.hold(trust, svids)
            # A storm of renewals is one report, not one each.
            await asyncio.sleep(REPORT_SECONDS)

    def _renew_early(self, served: Served) -> bool:
        """Draw an instant for the early renewal that concerns this workload, once; whether it is due earlier now."""
        workload = served.workload
        identity = workload.feed.current
        early = next(
            (
                each
                for each in self._authority.early_renewals.current or ()
                if identity is not None and each.authority_id == identity.default.authority_id
            ),
            None,
        )
        if early is None or early == workload.early:
            return False
        workload.early = early
        now = self._clock.now()
        if early.window.end > now:
            drawn = RenewalWindow(max(early.window.start, now), early.window.end).draw(self._rng)
        else:
            # Minted by a signer that had not heard yet: not renewed in the same breath.
            drawn = now + LATE_RENEWAL
        if workload.renew_at is not None and workload.renew_at <= drawn:
            return False
        workload.renew_at, workload.window = drawn, early.window
        return True

    async def _trust_changed(self, volume_id: str, served: Served) -> None:
        workload, trust = served.workload, self._trust()
        identity = workload.feed.current
        if identity is None or identity.trust == identity.part_of(trust) or self._is_older(trust, identity):
            return
        now = self._clock.now()
        if any(authority not in trust.bundle.jwt_authorities for authority in identity.bundle.jwt_authorities):
            served.jwt_svids.forget()
            workload.jwt_files = {name: KeptJwt(kept.svid, now) for name, kept in workload.jwt_files.items()}
        renewed = self._under_current_trust(identity)
        if renewed is identity:
            workload.renew_at = now
            _log.warning("SVID is not valid under the new trust bundle; renewing", extra={"volume_id": volume_id})
        else:
            workload.feed.publish(renewed)
            if await self._wrote_now(workload):
                self.scheduler.hasten(volume_id, workload.next_due(now))
                return
        self.scheduler.schedule(volume_id, now)

    async def _wrote_now(self, workload: Workload) -> bool:
        """Write the files beside a renewal that may run: a mint can take its whole deadline, and the cluster waits."""
        if workload.volume.options.has_keystores:
            return False  # written in a thread, where two could meet
        try:
            await self._write(workload)
        except OSError:
            return False
        return True

    async def _rotate(self, volume_id: str) -> datetime:
        """Level-triggered: bring the workload to fresh SVIDs in feed and files; answer when it is due next."""
        served = self._served[volume_id]
        workload = served.workload
        failure: AgentError | None = None
        # One authority down, or one kind of SVID refused, keeps neither the other nor the files from being renewed.
        for kind, renew in (("x509", self._renew_x509), ("jwt", self._renew_jwt_files)):
            try:
                if await renew(served):
                    self._metrics.rotated(kind, "ok")
            except (AuthorityRefused, AuthorityUnavailable) as error:
                self._metrics.rotated(kind, error.reason.lower())
                self._remember(workload, error.reason, str(error))
                failure = failure or error
        try:
            if workload.written != workload.contents:
                await self._write(workload)
            if not workload.directory.has_socket():
                await self._reopen(served)
        except OSError as error:
            self._metrics.rotated("x509", "write_failed")
            self._remember(workload, "WRITE_FAILED", f"the volume's files: {error.strerror or type(error).__name__}")
            raise
        if failure is not None:
            raise failure
        return workload.next_due(self._clock.now())

    async def _renew_x509(self, served: Served) -> bool:
        workload = served.workload
        now = self._clock.now()
        if workload.renew_at is not None and workload.renew_at > now and not workload.is_early(now):
            return False
        with self._tracing.span("renew X.509-SVID", workload.volume.pod.trace_facts) as span:
            fresh = await self._mint_x509(workload.volume, workload.token)
            span.note({"podsvid.serial": fresh.identity.default.serial})
        identity, workload.renew_at, workload.window = fresh.identity, fresh.renew_at, fresh.window
        workload.notice, workload.asked_for = fresh.notice, False
        workload.feed.publish(self._under_current_trust(identity))
        self._renew_early(served)
        _log.info(
            "SVID rotated",
            extra={
                "volume_id": workload.volume.id,
                "pod": str(workload.volume.pod),
                "serial": identity.default.serial,
                "not_after": identity.expires_at.isoformat(),
                "renew_at": workload.renew_at.isoformat(),
            },
        )
        return True

    async def _renew_jwt_files(self, served: Served) -> bool:
        workload = served.workload
        identity = workload.feed.current
        renewed = False
        for file in workload.volume.options.jwt_files if identity else ():
            assert identity is not None
            kept = workload.jwt_files.get(file.name)
            subject = identity.default.spiffe_id
            if kept is None or kept.renew_at <= self._clock.now() or kept.svid.spiffe_id != subject:
                workload.jwt_files[file.name] = await served.jwt_svids.get(subject, (file.audience,))
                renewed = True
        return renewed

    def _remember(self, workload: Workload, reason: str, message: str) -> None:
        now = self._clock.now()
        workload.problems.add(Problem(now, workload.volume.pod, workload.volume.id, reason, message, now))

    async def _mint_x509(self, volume: Volume, token: PodToken | None) -> _Fresh:
        options = volume.options
        algorithm = options.key_algorithm
        key = await self._blocking(algorithm.generate) if algorithm.slow else algorithm.generate()
        request = MintRequest(volume.pod, token, key, options.ttl, options.dns_names)
        minted = await _in_time(self._authority.mint_x509(request))
        try:
            svid = X509Svid(minted.spiffe_id, minted.chain, key, minted.hint)
            identity = WorkloadIdentity((svid,), minted.trust.bundle, (), minted.federates_with)
            identity = identity.with_trust(minted.trust)
            identity.check(self._clock.now())
        except SvidError as error:
            raise AuthorityRefused(f"the authority answered with an unusable SVID: {error}") from None
        return _Fresh(identity, minted.renewal, minted.renewal.draw(self._rng), minted.notice)

    async def _mint_jwt(
        self, volume: Volume, token: PodToken | None, spiffe_id: SpiffeId, audiences: tuple[str, ...]
    ) -> MintedJwt:
        minted = await _in_time(self._authority.mint_jwt(JwtRequest(volume.pod, token, spiffe_id, audiences)))
        bundle = self._trust().bundle
        try:
            found = check_jwt_svid(minted.svid.token, {bundle.trust_domain: bundle}, audiences[0], self._clock.now())
        except SvidError as error:
            raise AuthorityRefused(f"the authority answered with an unusable JWT-SVID: {error}") from None
        if found.spiffe_id != spiffe_id or set(found.audiences) != set(audiences):
            raise AuthorityRefused(f"the authority answered with a JWT-SVID for {found.spiffe_id}, or other audiences")
        self._metrics.jwt_minted()
        return minted

    async def _write(self, workload: Workload) -> None:
        contents, renew_at = workload.contents, workload.renew_at
        if contents is None or renew_at is None:
            return
        entry = Entry(workload.volume, contents.identity.default.serial, renew_at)
        # On the loop: a few small files on a tmpfs take less time than contending with a thread for the interpreter
        # does (500 due at once: 1.6 s, with threads 2.1 s), and nothing can be cancelled half-way.
        if workload.volume.options.has_keystores:
            await self._blocking(lambda: workload.directory.write(contents, self._clock.now()))
        else:
            workload.directory.write(contents, self._clock.now())
        self._journal.record(entry)
        workload.written, workload.written_at = contents, self._clock.now()
        self._held.set()

    def _serve_for(self, workload: Workload) -> Served:
        volume = workload.volume
        jwt_svids = JwtSvids(
            lambda spiffe_id, audiences: self._mint_jwt(volume, workload.token, spiffe_id, audiences),
            self._clock,
            self._rng,
        )
        api = WorkloadApi(workload.feed, jwt_svids if self._authority.issues_jwt else None, self._clock)
        sds = SecretDiscovery(workload.feed, self._serving.sds, self._clock, self._metrics, str(volume.pod))
        health = Health(workload.feed, self._clock)
        handlers = (api.handlers(), sds.handlers(), health.handlers(), *self._serving.shared)
        return Served(workload, jwt_svids, Endpoint(handlers, self._serving.limits, self._metrics))

    async def _open_socket(self, served: Served) -> None:
        # A few microseconds on a tmpfs: less than a trip to another thread.
        directory = served.workload.directory
        directory.prepare_socket()
        await served.endpoint.open(directory.socket_path)
        directory.open_socket()

    async def _reopen(self, served: Served) -> None:
        _log.warning("volume's socket disappeared; making it again", extra={"volume_id": served.workload.volume.id})
        await served.endpoint.close()
        await self._open_socket(served)

    def _keep_files(self, served: Served, contents: Contents) -> None:
        """Take over JWT-SVIDs that are still good for the files the volume has."""
        workload, trust, now = served.workload, self._trust(), self._clock.now()
        for file in workload.volume.options.jwt_files:
            svid = contents.jwt_svids.get(file.name)
            if svid is None:
                continue
            try:
                svid = check_jwt_svid(svid.token, {trust.bundle.trust_domain: trust.bundle}, file.audience, now)
            except SvidError:
                continue
            kept = KeptJwt(svid, RenewalWindow.of(svid.issued_at or now, svid.expires_at).draw(self._rng))
            workload.jwt_files[file.name] = kept
            served.jwt_svids.adopt(svid.spiffe_id, svid.audiences, kept)

    def _under_current_trust(self, identity: WorkloadIdentity) -> WorkloadIdentity:
        """`identity` with the newest bundles, or as it is when these do not verify it."""
        trust = self._trust()
        if identity.part_of(trust) == identity.trust or self._is_older(trust, identity):
            return identity
        try:
            renewed = identity.with_trust(trust)
        except InvalidSvid:
            return identity
        return renewed if _usable(renewed, self._clock.now()) else identity

    @staticmethod
    def _is_older(trust: Trust, identity: WorkloadIdentity) -> bool:
        """After a start, before the signer answered, a volume may hold a newer trust bundle than the agent does."""
        mine, held = trust.bundle.sequence, identity.bundle.sequence
        return mine is not None and held is not None and mine < held

    def _trust(self) -> Trust:
        trust = self._authority.trust.current
        assert trust is not None
        return trust


async def _in_time(minting: Awaitable[_Answer]) -> _Answer:
    try:
        async with asyncio.timeout(MINT_DEADLINE):
            return await minting
    except TimeoutError:
        raise AuthorityUnavailable(f"no SVID within {MINT_DEADLINE:g} s") from None


def _usable(identity: WorkloadIdentity, now: datetime) -> bool:
    try:
        identity.check(now)
    except InvalidSvid:
        return False
    return True
