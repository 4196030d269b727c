"""The workloads with an authority that a test can switch off: what an outage looks like from inside."""

import asyncio
import os
import random
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.authority.local import IssuePolicy, Kept, LocalAuthority
from agent.authority.protocol import EarlyRenewal, JwtRequest, Minted, MintedJwt, MintRequest
from agent.errors import AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload.kept import KeptBundles
from agent.workload.registry import WorkloadRegistry
from csi.journal import Journal
from csi.model import PodRef, Volume
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.bounded import Bounded
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.identity import Trust
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.here_sockets import HereSockets
from tests.workload_rig import issue, slow_work

UID = "0b6a9a4e-6a8e-4c1c-9f3c-111111111111"


class StepClock:
    def __init__(self) -> None:
        self.at = datetime.now(UTC).replace(microsecond=0)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


class Switchable:
    """A real authority behind a switch."""

    def __init__(self, authority: LocalAuthority) -> None:
        self._authority = authority
        self.away = False
        self.held: list[tuple[Trust, dict[str, int]]] = []

    @property
    def trust(self) -> Feed[Trust]:
        return self._authority.trust

    @property
    def issues_jwt(self) -> bool:
        return self._authority.issues_jwt

    @property
    def early_renewals(self) -> Feed[tuple[EarlyRenewal, ...]]:
        return self._authority.early_renewals

    @property
    def returns(self) -> Feed[None]:
        return self._authority.returns

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        self.held.append((trust, dict(svids)))

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        if self.away:
            raise AuthorityUnavailable("the signer does not answer")
        return await self._authority.mint_jwt(request)

    async def mint_x509(self, request: MintRequest) -> Minted:
        if self.away:
            raise AuthorityUnavailable("the signer does not answer")
        return await self._authority.mint_x509(request)


async def settled(failures: Callable[[], int], wanted: int) -> None:
    async with asyncio.timeout(30):
        while failures() != wanted:
            await asyncio.sleep(0.01)


@pytest.mark.spec("C-12")
def test_an_outage_keeps_the_valid_svid_and_turns_the_condition_abnormal_before_anything_expires() -> None:
    async def run(base: Path) -> None:
        clock = StepClock()
        issuer = X509Authority.create(
            TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=clock.at
        )
        target = f"{base}/pods/{UID}/volumes/kubernetes.io~csi/spiffe/mount"
        os.makedirs(target)
        below = tuple(Path(target).relative_to(base / "pods").parts)
        volume = Volume("csi-1", target, below, PodRef("default", "web", UID, "web"), None)
        journal = Journal(base / "journal", str(base))
        with ThreadPoolExecutor(1) as executor:
            hour = timedelta(hours=1)
            blocking = Blocking(executor)
            authority = Switchable(LocalAuthority(Kept(issuer), IssuePolicy(hour, hour, hour), clock, Bounded()))
            sockets = HereSockets(clock, metrics := Metrics())
            kept = KeptBundles(base / "federated.json")
            registry = WorkloadRegistry(
                authority, journal, blocking, clock, random.Random(1), metrics, slow_work(blocking), sockets, kept
            )
            directory = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), volume)
            issued = await issue(registry, volume, None)
            await registry.open(volume, directory, issued)
            loop = asyncio.ensure_future(registry.scheduler.run())
            try:
                assert not registry.condition(volume.id).abnormal
                authority.away = True
                clock.at = issued.renew_at
                registry.scheduler.schedule(volume.id, issued.renew_at)
                await settled(lambda: registry.scheduler.failures(volume.id), 1)
                condition = registry.condition(volume.id)
                assert condition.abnormal
                assert "past its renewal window after 1 failed attempts; valid until" in condition.message
                assert directory.read().identity.default.serial == issued.identity.default.serial
                authority.away = False
                registry.scheduler.schedule(volume.id, clock.at)
                await settled(lambda: registry.scheduler.failures(volume.id), 0)
                assert directory.read().identity.default.serial != issued.identity.default.serial
                assert not registry.condition(volume.id).abnormal
                # Nothing failed, but nothing happened either: a scheduler that hangs has to show as well.
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
                clock.at += timedelta(minutes=31)
                assert registry.condition(volume.id).abnormal
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
                await registry.stop()
                directory.close()

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
        asyncio.run(run(Path(base)))


def test_a_clock_that_was_set_back_has_svids_of_the_future_replaced() -> None:
    async def run(base: Path) -> None:
        clock = StepClock()
        true_time = clock.at
        issuer = X509Authority.create(
            TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=9), now=clock.at
        )
        clock.at = true_time + timedelta(days=2)
        target = f"{base}/pods/{UID}/volumes/kubernetes.io~csi/spiffe/mount"
        os.makedirs(target)
        below = tuple(Path(target).relative_to(base / "pods").parts)
        volume = Volume("csi-1", target, below, PodRef("default", "web", UID, "web"), None)
        with ThreadPoolExecutor(1) as executor:
            hour, blocking = timedelta(hours=1), Blocking(executor)
            authority = Switchable(LocalAuthority(Kept(issuer), IssuePolicy(hour, hour, hour), clock, Bounded()))
            journal = Journal(base / "journal", str(base))
            sockets = HereSockets(clock, metrics := Metrics())
            kept = KeptBundles(base / "federated.json")
            registry = WorkloadRegistry(
                authority, journal, blocking, clock, random.Random(1), metrics, slow_work(blocking), sockets, kept
            )
            directory = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), volume)
            issued = await issue(registry, volume, None)
            await registry.open(volume, directory, issued)
            loop = asyncio.ensure_future(registry.scheduler.run())
            try:
                clock.at = true_time
                # As the scheduler itself does when it sees the clock go back.
                registry.scheduler.schedule(volume.id, clock.at)
                async with asyncio.timeout(30):
                    while directory.read().identity.default.serial == issued.identity.default.serial:
                        await asyncio.sleep(0.01)
                found = directory.read().identity
                found.check(clock.at)
                assert true_time < (registry.scheduler.due(volume.id) or true_time) < found.expires_at
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
                await registry.stop()
                directory.close()

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
        asyncio.run(run(Path(base)))
