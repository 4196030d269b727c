"""All workloads of this node: which there are, when each is renewed, and the loops that hand news to all of them."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from agent.authority.protocol import RENEWALS_AT_ONCE, Authority
from agent.errors import AuthorityRefused, AuthorityUnavailable, KeysBusy, SocketUnavailable
from agent.metrics import Metrics
from agent.servers.protocol import PodSockets
from agent.workload import state
from agent.workload.issuer import Issuer
from agent.workload.kept import KeptBundles
from agent.workload.problems import Problem, Problems
from agent.workload.rotation import RotationScheduler
from agent.workload.slow import SlowWork
from agent.workload.workload import SUPERSEDED, Means, Workload
from csi.errors import IdentityDenied, IdentityUnavailable, NodeBusy
from csi.journal import Journal
from csi.model import Condition, Contents, Issued, PodRef, PodToken, Volume
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.clock import Clock
from runtime.tracing import NO_TRACING, Tracing
from svid.identity import Trust
from svid.keys import PrivateKey

_log = logging.getLogger("podsvid.workloads")
# Seconds from one report of what workloads hold to the next.
REPORT_SECONDS = 1.0
# Seconds that a publish which failed before waits for an authority that is away. kubelet comes again ever more rarely,
# and its event says already why the pod waits: now it is to start as soon as it can. kubelet waits for 120.
PATIENCE_AGAIN = 75.0
# How many problems of pods without a volume are remembered.
MAX_PUBLISH_PROBLEMS = 256


class WorkloadRegistry:
    """Implements csi.ports.Workloads: the node's workloads by their volume's id, renewed by one scheduler."""

    def __init__(
        self,
        authority: Authority,
        journal: Journal,
        blocking: Blocking,
        clock: Clock,
        rng: random.Random,
        metrics: Metrics,
        slow: SlowWork,
        sockets: PodSockets,
        kept: KeptBundles,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._authority = authority
        self._kept = kept
        self._journal = journal
        self._blocking = blocking
        self._clock = clock
        self._issuer = Issuer(authority, slow, clock, rng, metrics)
        # Files that were replaced go by a scheduler of their own: no mint that takes its time keeps them.
        self.sweeps = RotationScheduler(self._sweep, clock, rng, sweeps=True)
        self._means = Means(self._issuer, journal, blocking, slow, clock, rng, metrics, sockets, tracing, self.sweeps)
        self._workloads: dict[str, Workload] = {}
        # Set when what workloads hold may have changed.
        self._held = asyncio.Event()
        # Set when those of an earlier process are among them.
        self._complete = asyncio.Event()
        # Of volumes that could not be published: there is no workload to keep them.
        self.publish_problems = Problems(MAX_PUBLISH_PROBLEMS)
        self.scheduler = RotationScheduler(self._renew, clock, rng, prepare=self._prepare, at_once=RENEWALS_AT_ONCE)
        metrics.watch(lambda: len(self._workloads), self.earliest_expiry, self._states)

    @property
    def by_volume(self) -> Mapping[str, Workload]:
        """Every workload by its volume's id."""
        return self._workloads

    def now(self) -> datetime:
        """The time by which renewals are due."""
        return self._clock.now()

    def earliest_expiry(self) -> float:
        """Unix time at which the first SVID ends; 0 without any."""
        identities = [workload.feed.current for workload in list(self._workloads.values())]
        return min((each.expires_at.timestamp() for each in identities if each), default=0.0)

    async def key(self, volume: Volume) -> PrivateKey:
        try:
            return await self._issuer.key(volume, renewal=False)
        except KeysBusy as error:
            raise NodeBusy(str(error)) from None

    async def issue(self, volume: Volume, token: PodToken | None, key: PrivateKey) -> Issued:
        try:
            again = self.publish_problems.has(volume.id, IdentityUnavailable.reason)
            return await self._issuer.mint_all(volume, token, key, PATIENCE_AGAIN if again else None)
        except (AuthorityRefused, AuthorityUnavailable) as error:
            kind = IdentityDenied if isinstance(error, AuthorityRefused) else IdentityUnavailable
            raise kind(str(error)) from None

    async def open(self, volume: Volume, directory: VolumeDirectory, issued: Issued) -> None:
        workload = Workload(volume, directory, self._means)
        try:
            await workload.begin(issued)
        except SocketUnavailable as error:
            raise IdentityUnavailable(f"{error.reason}: {error}") from None
        self._hold(workload, workload.next_due())
        # What changed while it was begun was handed to those that were held already.
        await self._hand_trust(workload)
        if issued.notice:
            _log.warning(
                "the author of a pod should look at its volume",
                extra={"volume_id": volume.id, "pod": str(volume.pod), "notice": issued.notice},
            )

    async def adopt(
        self,
        volume: Volume,
        directory: VolumeDirectory,
        contents: Contents | None,
        renew_at: datetime | None,
    ) -> None:
        if contents is not None:
            identity = contents.identity
            contents = replace(contents, identity=await self._blocking(lambda: self._kept.complete(identity)))
        workload = Workload(volume, directory, self._means)
        due = await workload.resume(contents, renew_at)
        self._hold(workload, due)
        # The loops that hand these on run already.
        await self._hand_trust(workload)
        if workload.renew_early():
            self.scheduler.hasten(volume.id, workload.next_due())
        _log.info(
            "volume picked up",
            extra={"volume_id": volume.id, "pod": str(volume.pod), "renew_at": due.isoformat()},
        )

    def complete(self) -> None:
        self._complete.set()
        self._held.set()

    async def close(self, volume_id: str) -> None:
        await self.scheduler.forget(volume_id)
        await self.sweeps.forget(volume_id)
        workload = self._workloads.pop(volume_id, None)
        self._held.set()
        if workload is not None:
            await workload.end()
        await self._blocking(lambda: self._journal.forget(volume_id))

    def republished(self, volume_id: str, token: PodToken | None) -> None:
        workload = self._workloads.get(volume_id)
        if workload is None:
            return
        # A restarted agent has no tokens: what failed for want of one need not wait for its next attempt.
        awaited = token is not None and workload.token is None and self.scheduler.failures(volume_id) > 0
        workload.take_token(token)
        if awaited or workload.lacks_socket:
            self.scheduler.schedule(volume_id, self._clock.now())

    def condition(self, volume_id: str) -> Condition:
        return state.condition(self._workloads.get(volume_id), self.scheduler.failures(volume_id), self._clock.now())

    def state(self, workload: Workload) -> str:
        """One word of agent.metrics.STATES."""
        return state.state(workload, self.scheduler.failures(workload.volume.id), self._clock.now())

    async def renew_now(self, volume_id: str) -> None:
        """Have the volume's X.509-SVID renewed as when it is due; returns when that was tried, files included.

        Afterwards `scheduler.failures` tells whether it failed.
        """
        workload = self._workloads.get(volume_id)
        if workload is not None:
            workload.ask_for_renewal()
            await self.scheduler.rotate_now(volume_id)

    def publish_refused(self, volume_id: str, pod: PodRef, reason: str, message: str) -> None:
        """Remember why kubelet's publish was refused, for whoever asks."""
        workload = self._workloads.get(volume_id)
        kept = workload.problems if workload else self.publish_problems
        now = self._clock.now()
        kept.add(Problem(now, pod, volume_id, reason, message, now))

    def publish_accepted(self, volume_id: str) -> None:
        """What was wrong with a volume before it was published is its past now."""
        workload = self._workloads.get(volume_id)
        if workload is not None:
            for each in self.publish_problems.take(volume_id):
                workload.problems.add(each)

    async def follow_trust(self) -> None:
        """Hand every change of the authority's trust to every workload, for ever."""
        version = 0
        while True:
            version = await self._authority.trust.wait_beyond(version)
            await self._keep(self._issuer.trust)
            for workload in list(self._workloads.values()):
                await self._hand_trust(workload)
                # Each is checked under the new trust: together that takes long enough to be felt by their callers.
                await asyncio.sleep(0)
            self._held.set()

    async def follow_early_renewals(self) -> None:
        """Bring renewals forward as the authority says, for ever."""
        version = 0
        while True:
            version = await self._authority.early_renewals.wait_beyond(version)
            for volume_id, workload in list(self._workloads.items()):
                if workload.renew_early():
                    # Files may be due at once, for a trust bundle that came with the same answer.
                    self.scheduler.hasten(volume_id, workload.next_due())

    async def follow_returns(self) -> None:
        """Have what failed tried again as soon as the authority is back, for ever."""
        version = self._authority.returns.version
        while True:
            version = await self._authority.returns.wait_beyond(version)
            self.scheduler.retry()

    async def report_holdings(self) -> None:
        """Tell the authority what all workloads have, files included, after each change, for ever.

        What is not picked up yet is held all the same: to leave it out would say that an old authority is not needed.
        """
        await self._complete.wait()
        while True:
            await self._held.wait()
            self._held.clear()
            trust = self._issuer.trust
            svids = state.holdings(self._workloads.values(), trust) if trust.proven else None
            if svids is not None:
                self._authority.hold(trust, svids)
            # A storm of renewals is one report, not one each.
            await asyncio.sleep(REPORT_SECONDS)

    async def stop(self) -> None:
        """Close every socket; files stay as they are and the journal too."""
        await asyncio.gather(*(workload.end() for workload in self._workloads.values()))
        self._workloads.clear()

    def _hold(self, workload: Workload, due: datetime) -> None:
        self._workloads[workload.volume.id] = workload
        self.scheduler.schedule(workload.volume.id, due)
        # Also what a process left that ended between a switch and its sweep.
        self.sweeps.schedule(workload.volume.id, self._clock.now() + SUPERSEDED)
        self._held.set()

    async def _keep(self, trust: Trust) -> None:
        if not trust.proven or self._kept.has(trust.federated):
            return
        try:
            await self._blocking(lambda: self._kept.keep(trust.federated))
        except OSError as error:
            _log.error(
                "federated bundles cannot be kept; an agent that starts without its authority will lack them",
                extra={"error": error.strerror or type(error).__name__},
            )

    async def _hand_trust(self, workload: Workload) -> None:
        volume_id, trust = workload.volume.id, self._issuer.trust
        if self._workloads.get(volume_id) is workload and not workload.follows(trust):
            if await workload.take_trust(trust):
                self.scheduler.hasten(volume_id, workload.next_due())
            else:
                self.scheduler.schedule(volume_id, self._clock.now())

    async def _prepare(self, volume_id: str) -> None:
        await self._workloads[volume_id].prepare()

    async def _renew(self, volume_id: str) -> datetime:
        workload = self._workloads[volume_id]
        try:
            return await workload.renew()
        finally:
            self._held.set()

    async def _sweep(self, volume_id: str) -> datetime | None:
        workload = self._workloads.get(volume_id)
        return workload.sweep() if workload is not None else None

    def _states(self) -> Mapping[str, int]:
        return Counter(self.state(workload) for workload in list(self._workloads.values()))
