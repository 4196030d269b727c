"""The node's workloads: each one's identity as a feed, and how it is minted, written, served and renewed."""

import asyncio
import logging
import random
from datetime import datetime, timedelta

from agent.authorities import Authority, MintRequest
from agent.clock import Clock
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.feed import Feed
from agent.metrics import Metrics
from agent.rotation import RotationScheduler
from agent.workload_api import WorkloadApi
from csi.blocking import Blocking
from csi.errors import IdentityDenied, IdentityUnavailable
from csi.journal import Entry, Journal
from csi.model import Condition, Contents, Issued, PodToken, Volume
from csi.volume import VolumeDirectory
from svid.errors import InvalidSvid, SvidError
from svid.identity import WorkloadIdentity
from svid.renewal import RenewalWindow
from svid.x509svid import X509Svid

_log = logging.getLogger("podsvid.workloads")
MINT_DEADLINE = 30.0
# A renewal that is this late is worth a person's look.
OVERDUE = timedelta(seconds=60)


class Workload:
    """One volume's workload. Its feed is the only place where its identity lives; files and streams follow it."""

    def __init__(self, volume: Volume, directory: VolumeDirectory, clock: Clock, metrics: Metrics) -> None:
        self.volume = volume
        self.directory = directory
        self.token: PodToken | None = None
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.api = WorkloadApi(self.feed, clock, metrics)
        self.renew_at: datetime | None = None
        # The feed's version that is in the files; a write that failed is repeated without minting again.
        self.written = 0


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
    ) -> None:
        self._authority = authority
        self._journal = journal
        self._blocking = blocking
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._workloads: dict[str, Workload] = {}
        self.scheduler = RotationScheduler(self._rotate, clock, rng)
        metrics.watch(lambda: len(self._workloads), self.earliest_expiry)

    def earliest_expiry(self) -> float:
        """Unix time at which the first SVID ends; 0 without any."""
        ends = [w.feed.current.expires_at.timestamp() for w in list(self._workloads.values()) if w.feed.current]
        return min(ends, default=0.0)

    async def issue(self, volume: Volume, token: PodToken | None) -> Issued:
        try:
            return await self._mint(volume, token)
        except AuthorityRefused as error:
            raise IdentityDenied(str(error)) from None
        except AuthorityUnavailable as error:
            raise IdentityUnavailable(str(error)) from None

    async def open(self, volume: Volume, directory: VolumeDirectory, issued: Issued) -> None:
        workload = Workload(volume, directory, self._clock, self._metrics)
        workload.renew_at = issued.renew_at
        workload.feed.publish(issued.identity)
        try:
            self._write(workload)
            await self._serve(workload)
        except BaseException:
            await workload.api.close()
            await self._blocking(lambda: self._journal.forget(volume.id))
            raise
        self._workloads[volume.id] = workload
        self.scheduler.schedule(volume.id, issued.renew_at)

    async def adopt(
        self,
        volume: Volume,
        directory: VolumeDirectory,
        contents: Contents | None,
        renew_at: datetime | None,
    ) -> None:
        workload = Workload(volume, directory, self._clock, self._metrics)
        now = self._clock.now()
        due = now
        identity = contents.identity if contents else None
        if identity is not None and _usable(identity, now):
            due = renew_at or RenewalWindow.of(identity.default.not_before, identity.expires_at).draw(self._rng)
            workload.feed.publish(identity)
            workload.written = workload.feed.version
            workload.renew_at = due
        try:
            await self._serve(workload)
        except BaseException:
            await workload.api.close()
            raise
        self._workloads[volume.id] = workload
        self.scheduler.schedule(volume.id, due)
        _log.info(
            "volume picked up",
            extra={"volume_id": volume.id, "pod": str(volume.pod), "renew_at": due.isoformat()},
        )

    async def close(self, volume_id: str) -> None:
        await self.scheduler.forget(volume_id)
        workload = self._workloads.pop(volume_id, None)
        if workload is not None:
            await workload.api.close()
        await self._blocking(lambda: self._journal.forget(volume_id))

    def renew_token(self, volume_id: str, token: PodToken | None) -> None:
        workload = self._workloads.get(volume_id)
        if workload is not None and token is not None:
            workload.token = token

    def condition(self, volume_id: str) -> Condition:
        workload = self._workloads.get(volume_id)
        identity = workload.feed.current if workload else None
        if workload is None or identity is None:
            return Condition(True, "the SVID could not be picked up after a restart; a new one is being minted")
        now = self._clock.now()
        failures = self.scheduler.failures(volume_id)
        left = f"valid until {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        if identity.expires_at <= now:
            return Condition(True, f"the SVID expired at {identity.expires_at:%Y-%m-%dT%H:%M:%SZ}")
        if workload.written < workload.feed.version:
            return Condition(True, f"the newest SVID could not be written; the files hold an older one, {left}")
        late = workload.renew_at is not None and now > workload.renew_at + OVERDUE
        if late or failures:
            return Condition(True, f"the SVID is past its renewal window after {failures} failed attempts; {left}")
        return Condition(False, f"SVID {identity.default.serial} {left}")

    async def stop(self) -> None:
        """Close every socket; files stay as they are and the journal too."""
        await asyncio.gather(*(workload.api.close() for workload in self._workloads.values()))
        self._workloads.clear()

    async def _rotate(self, volume_id: str) -> datetime:
        """Level-triggered: bring the workload to a fresh SVID in feed and files; answer when it is due next."""
        workload = self._workloads[volume_id]
        result = "error"
        try:
            if workload.renew_at is None or workload.renew_at <= self._clock.now():
                async with asyncio.timeout(MINT_DEADLINE):
                    issued = await self._mint(workload.volume, workload.token)
                workload.renew_at = issued.renew_at
                workload.feed.publish(issued.identity)
            if workload.written < workload.feed.version:
                self._write(workload)
            if not workload.directory.has_socket():
                await self._reopen(workload)
            result = "ok"
        except (AuthorityRefused, AuthorityUnavailable) as error:
            result = error.reason.lower()
            raise
        except TimeoutError:
            result = AuthorityUnavailable.reason.lower()
            raise AuthorityUnavailable(f"no SVID within {MINT_DEADLINE:g} s") from None
        except OSError:
            result = "write_failed"
            raise
        finally:
            self._metrics.rotated(result)
        identity = workload.feed.current
        if identity is not None:
            _log.info(
                "SVID rotated",
                extra={
                    "volume_id": volume_id,
                    "pod": str(workload.volume.pod),
                    "serial": identity.default.serial,
                    "not_after": identity.expires_at.isoformat(),
                    "renew_at": workload.renew_at.isoformat(),
                },
            )
        return workload.renew_at

    async def _mint(self, volume: Volume, token: PodToken | None) -> Issued:
        algorithm = volume.options.key_algorithm
        key = await self._blocking(algorithm.generate) if algorithm.slow else algorithm.generate()
        minted = await self._authority.mint_x509(MintRequest(volume.pod, token, key.public_key()))
        try:
            identity = WorkloadIdentity(
                (X509Svid(minted.spiffe_id, minted.chain, key),), minted.bundle, minted.federated
            )
            identity.check(self._clock.now())
        except SvidError as error:
            raise AuthorityRefused(f"the authority answered with an unusable SVID: {error}") from None
        return Issued(Contents(identity), minted.renewal.draw(self._rng))

    def _write(self, workload: Workload) -> None:
        version, identity, renew_at = workload.feed.version, workload.feed.current, workload.renew_at
        if identity is None or renew_at is None:
            return
        entry = Entry(workload.volume, identity.default.serial, renew_at)
        # On the loop: a few small files on a tmpfs take less time than contending with a thread for the interpreter
        # does (500 due at once: 1.6 s, with threads 2.1 s), and nothing can be cancelled half-way.
        workload.directory.write(Contents(identity), self._clock.now())
        self._journal.record(entry)
        workload.written = version

    async def _serve(self, workload: Workload) -> None:
        # A few microseconds on a tmpfs: less than a trip to another thread.
        workload.directory.prepare_socket()
        await workload.api.open(workload.directory.socket_path)
        workload.directory.open_socket()

    async def _reopen(self, workload: Workload) -> None:
        _log.warning("volume's socket disappeared; making it again", extra={"volume_id": workload.volume.id})
        await workload.api.close()
        await self._serve(workload)


def _usable(identity: WorkloadIdentity, now: datetime) -> bool:
    try:
        identity.check(now)
    except InvalidSvid:
        return False
    return True
