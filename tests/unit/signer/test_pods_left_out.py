"""A namespace with more pods than count: the oldest do, the others get nothing and take next to nothing."""

import argparse
import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

from signer import config, daemon
from signer.attestation.pods import Pods
from signer.errors import Reason
from signer.front.admin import AdminService
from signer.front.mints import _TELL_POD
from signer.model import PodClaim
from signer.pb import admin_pb2
from tests.fake_kube import FakeKube
from tests.signer_rig import DRIVER, Site, StepClock
from tests.unit.signer.test_attestation import Rig, rigged
from tests.unit.signer.test_pods import told

LABELS = {"app": "web"}


def made(site: Site, name: str, minute: int, namespace: str = "default", **more: Any) -> PodClaim:
    """A pod that was made in that minute, with a label."""
    claim = site.pod(name, namespace=namespace, labels=LABELS, **more)
    path = f"/api/v1/namespaces/{namespace}/pods/{name}"
    body = site.kube.objects[path]
    body["metadata"]["creationTimestamp"] = f"2026-06-01T12:{minute:02}:00Z"
    site.kube.put(path, body)
    return claim


def left_out(pods: Pods) -> list[str]:
    return sorted(each.name for each in pods.all() if each.left_out)


async def listed(kube: FakeKube, most: int) -> Pods:
    """By a signer that starts."""
    pods = Pods(kube, StepClock(), ("podsvid", "podsvid-agent"), most)
    await pods._mirror._list()
    return pods


def test_the_oldest_count_in_whatever_order_they_come() -> None:
    """What is older than all is called `zz`, and what is newer `aa`: names are their authors' choice."""
    names = ["zz", "old", "new", "aa"]

    async def run() -> None:
        for order in itertools.permutations(names):
            site = Site()
            pods = await listed(site.kube, 2)
            following = asyncio.create_task(pods.run())
            await pods.wait_synced()
            for name in order:
                made(site, name, names.index(name))
                await told()
            assert left_out(pods) == ["aa", "new"], order
            assert pods.left_out == 2
            # One that starts, or restarts, says the same.
            assert left_out(await listed(site.kube, 2)) == ["aa", "new"]
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


def test_one_that_is_left_out_gets_nothing() -> None:
    async def test(rig: Rig) -> None:
        old, new = made(rig.site, "old", 1), made(rig.site, "new", 2)
        await told()
        assert (await rig.attest(old, rig.site.token(old))).pod.labels == LABELS
        reads = len(rig.site.kube.reads)
        for _ in range(3):
            assert await rig.refused(new, rig.site.token(new)) is Reason.NAMESPACE_FULL
        # Whoever comes again and again costs the API server nothing.
        assert len(rig.site.kube.reads) == reads
        outline = rig.pods.known(new.uid)
        assert outline is not None
        assert (outline.labels, outline.drivers) == ({}, frozenset())
        # Nor does one that is looked at before it is watched.
        await told()
        later = made(rig.site, "later", 3)
        assert (await rig.pods.look(later)).left_out
        assert Reason.NAMESPACE_FULL in _TELL_POD

    rigged(test, most=1)


def test_one_that_was_left_out_is_served_once_an_older_one_has_gone() -> None:
    async def test(rig: Rig) -> None:
        old, new, newest = (made(rig.site, name, minute) for minute, name in enumerate(("old", "new", "newest")))
        await told()
        assert await rig.refused(new, rig.site.token(new)) is Reason.NAMESPACE_FULL
        rig.site.remove(old)
        await told()
        assert await rig.refused(newest, rig.site.token(newest)) is Reason.NAMESPACE_FULL
        attested = await rig.attest(new, rig.site.token(new))
        assert (attested.pod.labels, attested.pod.left_out) == (LABELS, False)
        # It is kept whole from then on.
        known = rig.pods.known(new.uid)
        assert known is not None
        assert known.labels == LABELS
        assert rig.pods.left_out == 1
        for each in (new, newest):
            rig.site.remove(each)
        await told()
        assert (rig.pods.left_out, rig.pods._places) == (0, {})

    rigged(test, most=1)


def test_namespaces_take_no_places_of_each_other_and_agents_none_at_all() -> None:
    async def test(rig: Rig) -> None:
        for number in range(5):
            made(rig.site, f"p{number}", number, namespace="evil")
            made(rig.site, f"agent-{number}", number, namespace="podsvid", account="podsvid-agent")
        beside = made(rig.site, "beside", 0, namespace="podsvid")
        made(rig.site, "other", 9, namespace="other")
        await told()
        assert left_out(rig.pods) == ["p1", "p2", "p3", "p4"]
        assert beside.uid in rig.pods._mirror.values
        assert len(rig.pods.of_namespace("podsvid")) == 6

    rigged(test, most=1)


def test_a_change_of_one_that_counts_or_not_changes_nothing_of_that() -> None:
    async def test(rig: Rig) -> None:
        for minute, name in enumerate(("old", "new")):
            made(rig.site, name, minute)
        await told()
        for minute, name in enumerate(("old", "new")):
            made(rig.site, name, minute, phase="Succeeded")
        await told()
        assert left_out(rig.pods) == ["new"]
        assert rig.pods.left_out == 1
        assert [each.finished for each in rig.pods.all()] == [True, True]

    rigged(test, most=1)


def test_who_asks_what_such_a_pod_gets_is_told_why_it_is_nothing() -> None:
    async def test(rig: Rig) -> None:
        for minute, name in enumerate(("old", "new")):
            made(rig.site, name, minute)
        await told()
        nothing: Any = None
        service = AdminService(
            nothing, nothing, rig.pods, frozenset({DRIVER}), rig.site.clock, nothing, namespace="podsvid"
        )
        said = await service.explain(admin_pb2.ExplainRequest(namespace="default", pod="new"), nothing)
        assert said.outcome.startswith("refused: NAMESPACE_FULL: namespace default has more pods than count")
        assert "pod default/new is none of them: delete others" in said.outcome

    rigged(test, most=1)


def test_the_setting_is_what_counts_and_those_that_do_not_are_a_metric(tmp_path: Path) -> None:
    async def run() -> None:
        site = Site()
        for minute in range(3):
            made(site, f"p{minute}", minute)
        parser = argparse.ArgumentParser()
        config.add_arguments(parser)
        flags = ["--trust-domain", "example.org", "--namespace", "podsvid", "--identity", "signer-1"]
        flags += ["--pods-per-namespace", "1", "--admin-socket", str(tmp_path / "a.sock")]
        loaded = config.load(parser.parse_args(flags), {})
        replica = daemon.Replica(loaded, site.kube, site.clock, random.Random(1))
        await replica._pods._mirror._list()
        replica.metrics.refresh()
        assert replica.metrics.registry.get_sample_value("podsvid_signer_pods_left_out") == 2

    asyncio.run(run())
