"""Workloads of an agent whose authority is a signer: acknowledgements, early renewals, outages."""

import argparse
import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from agent import config
from agent.authority import calls
from agent.metrics import Metrics
from agent.workload.kept import KeptBundles
from agent.workload.registry import WorkloadRegistry
from agent.workload.state import holdings
from agent.workload.workload import Workload
from csi.journal import Journal
from csi.model import Volume
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.settings import InvalidSetting
from signer.pb import signer_pb2
from svid.identity import Trust
from tests.fake_signer import authority, key_identifier
from tests.here_sockets import HereSockets
from tests.unit.agent.signer_scene import AUDIENCE, POD, UID, Scene, on_stage
from tests.workload_rig import issue, slow_work


@asynccontextmanager
async def registry(at: Scene) -> AsyncIterator[tuple[WorkloadRegistry, Volume, VolumeDirectory]]:
    """The workloads over that authority, and a volume to be opened."""
    target = at.base / "pods" / UID / "volumes" / "kubernetes.io~csi" / "spiffe" / "mount"
    target.mkdir(parents=True)
    volume = Volume("csi-1", str(target), target.relative_to(at.base / "pods").parts, POD, None)
    directory = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), volume)
    with ThreadPoolExecutor(1) as executor:
        journal = Journal(at.base / "journal", str(at.base))
        metrics, blocking = Metrics(), Blocking(executor)
        sockets = HereSockets(at.clock, metrics)
        kept = KeptBundles(at.base / "federated.json")
        found = WorkloadRegistry(
            at.authority, journal, blocking, at.clock, random.Random(1), metrics, slow_work(blocking), sockets, kept
        )
        found.complete()
        loops = [
            asyncio.create_task(each())
            for each in (
                found.scheduler.run,
                found.follow_trust,
                found.follow_early_renewals,
                found.report_holdings,
            )
        ]
        try:
            yield found, volume, directory
            assert not [each for each in loops if each.done()]
        finally:
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await found.stop()
            directory.close()


def test_a_bundle_is_acknowledged_when_the_files_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.workload.registry.REPORT_SECONDS", 0.01)

    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            await workloads.open(volume, directory, await issue(workloads, volume, at.token()))
            first = at.signer.authority
            await at.until(lambda: acknowledged(at) == (100, {key_identifier(first): 1}))
            second = authority(at.clock.now())
            broken = True
            write = VolumeDirectory.write

            def writing(self: VolumeDirectory, *arguments: object) -> None:
                if broken:
                    raise OSError(28, "No space left on device")
                write(self, *arguments)  # type: ignore[arg-type]

            looks, told, hold = [], [], at.authority.hold

            def looking(of: Iterable[Workload], trust: Trust) -> object:
                looks.append(trust.bundle.sequence)
                return holdings(of, trust)

            def telling(trust: Trust, svids: Mapping[str, int]) -> None:
                told.append((trust.bundle.sequence, broken))
                hold(trust, svids)

            monkeypatch.setattr(VolumeDirectory, "write", writing)
            monkeypatch.setattr("agent.workload.state.holdings", looking)
            monkeypatch.setattr(at.authority, "hold", telling)
            at.signer.publish(at.signer.bundle(101, first, second))
            await at.until(lambda: workloads.scheduler.failures(volume.id) > 0)
            # A report that leaves takes its time to arrive: what counts is that none left, though there was occasion.
            looked = len(looks)
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: len(looks) > looked)
            assert looks[-1] == 101
            assert (101, True) not in told, "acknowledged although the files do not hold it"
            broken = False
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: acknowledged(at) == (101, {key_identifier(first): 1}))
            assert directory.read().identity.bundle == at.signer.bundle(101, first, second)
            assert (101, True) not in told

    def acknowledged(at: Scene) -> tuple[int, dict[str, int]]:
        report = at.signer.reports.current or signer_pb2.WatchTrustRequest()
        return report.acknowledged_sequence, {each.authority_id: each.svids for each in report.in_use}

    on_stage(tmp_path, play)


def test_an_early_renewal_is_drawn_once_in_its_window_and_done(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await issue(workloads, volume, at.token())
            await workloads.open(volume, directory, issued)
            workloads.republished(volume.id, at.token())
            old, new = at.signer.authority, authority(at.clock.now())
            at.signer.authority = new
            bundle = at.signer.bundle(101, old, new)
            now = at.clock.now()
            window = (now + timedelta(minutes=2), now + timedelta(minutes=4))
            # Another authority's directive is nothing to this SVID.
            at.signer.publish(bundle, {"ab" * 20: window})
            await at.until(lambda: at.authority.early_renewals.current)
            await at.until(lambda: workloads.scheduler.due(volume.id) == issued.renew_at)
            name = key_identifier(old)
            at.signer.publish(bundle, {name: window})
            await at.until(lambda: (workloads.scheduler.due(volume.id) or issued.renew_at) < issued.renew_at)
            drawn = workloads.scheduler.due(volume.id)
            assert drawn is not None
            assert window[0] - timedelta(seconds=1) <= drawn <= window[1]
            # Sent again beside others, as each answer has all directives that are in force.
            for count in range(1, 16):
                at.signer.publish(bundle, {name: window, f"{count:040x}": window})
                await at.until(lambda count=count: early(at) == {name, f"{count:040x}"})  # type: ignore[misc]
                await asyncio.sleep(0)
            await at.until(lambda: workloads.scheduler.due(volume.id) is not None)
            assert workloads.scheduler.due(volume.id) == drawn
            at.clock.step = timedelta(minutes=4)
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: directory.read().identity.default.authority_id == key_identifier(new))
            assert len(at.signer.mints) == 2

    def early(at: Scene) -> set[str]:
        return {each.authority_id for each in at.authority.early_renewals.current or ()}

    on_stage(tmp_path, play)


def test_files_hold_a_trust_bundle_at_once_though_directives_came_with_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await issue(workloads, volume, at.token())
            await workloads.open(volume, directory, issued)
            old, new = at.signer.authority, authority(at.clock.now())
            bundle = at.signer.bundle(101, old, new)
            now = at.clock.now()
            at.signer.publish(bundle, {key_identifier(old): (now + timedelta(minutes=2), now + timedelta(minutes=4))})
            await at.until(lambda: (workloads.scheduler.due(volume.id) or issued.renew_at) < issued.renew_at)
            await at.until(lambda: directory.read().identity.bundle == bundle)
            assert len(at.signer.mints) == 1

    on_stage(tmp_path, play)


def test_files_hold_a_trust_bundle_at_once_though_a_mint_is_under_way(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await issue(workloads, volume, at.token())
            await workloads.open(volume, directory, issued)
            at.signer.mint.gate = asyncio.Event()
            at.clock.step = issued.renew_at - at.clock.now() + timedelta(seconds=1)
            workloads.republished(volume.id, at.token())
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: len(at.signer.mints) == 2)
            bundle = at.signer.bundle(101, at.signer.authority, authority(at.clock.now()))
            at.signer.publish(bundle)
            await at.until(lambda: directory.read().identity.bundle == bundle)
            assert workloads.scheduler.failures(volume.id) == 0, "the mint's end was waited for"
            at.signer.mint.gate.set()

    on_stage(tmp_path, play)


def test_a_renewal_that_failed_for_want_of_a_token_is_tried_again_when_kubelet_brings_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await issue(workloads, volume, at.token())
            await workloads.open(volume, directory, issued)
            at.clock.step = timedelta(minutes=31)
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: workloads.scheduler.failures(volume.id) >= 1)
            # Far beyond this test's patience; nothing but the token brings it forward.
            workloads.scheduler.schedule(volume.id, at.clock.now() + timedelta(hours=1))
            workloads.republished(volume.id, at.token())
            await at.until(lambda: directory.read().identity.default.serial != issued.identity.default.serial)
            await at.until(lambda: workloads.scheduler.failures(volume.id) == 0)

    on_stage(tmp_path, play)


def test_running_pods_keep_what_they_have_while_the_signer_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(at: Scene) -> None:
        async with registry(at) as (workloads, volume, directory):
            issued = await issue(workloads, volume, at.token())
            await workloads.open(volume, directory, issued)
            await at.signer.stop()
            monkeypatch.setattr(calls, "CALL_SECONDS", 0.2)
            at.clock.step = timedelta(minutes=31)
            workloads.republished(volume.id, at.token())
            workloads.scheduler.schedule(volume.id, at.clock.now())
            await at.until(lambda: workloads.scheduler.failures(volume.id) > 0)
            assert directory.read().identity.default.serial == issued.identity.default.serial
            assert workloads.condition(volume.id).abnormal
            ends = workloads.earliest_expiry()
            assert ends == issued.identity.expires_at.timestamp() > time.time()

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"signer_address": None}, "is 'signer' and signer_address is not set: this authority needs it"),
        ({"signer_bundle": None}, "is 'signer' and signer_bundle is not set: this authority needs it"),
        ({"agent_token_file": None}, "is 'signer' and agent_token_file is not set: this authority needs it"),
        ({"signer_address": "signer"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_address": ":8443"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_address": "signer:0"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_address": "signer:65536"}, "signer_address .*accepted: HOST:PORT"),
        ({"signer_bundle": "bundle.json"}, "signer_bundle .*accepted: an absolute path"),
        ({"signer_audience": "two words"}, "signer_audience .*accepted: printable characters"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, str | None], sentence: str) -> None:
    given = {
        "authority": "signer",
        "signer_address": "podsvid-signer.podsvid.svc:8443",
        "signer_bundle": "/bundle/bundle.json",
        "agent_token_file": "/token/token",
        "trust_domain": "example.org",
    }

    def load(values: dict[str, str | None]) -> config.AgentConfig:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
        parser = argparse.ArgumentParser()
        config.add_arguments(parser)
        return config.load(parser.parse_args(flags), {})

    assert load(dict(given)).signer_audience == AUDIENCE
    with pytest.raises(InvalidSetting, match=sentence):
        load({**given, **changed})
