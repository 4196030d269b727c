"""Federated bundles once a node: in no volume's state, and served after a start while the authority is away."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from agent.workload.kept import KeptBundles
from csi import state
from svid.bundle import TrustBundle
from svid.identity import Trust
from svid.spiffeid import TrustDomain
from tests.fake_authority import TRUST_DOMAIN, StepClock, bundle_of, root
from tests.workload_rig import PARTNER, Rig, on_rig, rig

KEPT = "federated.json"


def partner(at: StepClock, domain: TrustDomain = PARTNER) -> TrustBundle:
    return bundle_of(root(at.now(), domain))


async def federated(at: Rig, *bundles: TrustBundle) -> Trust:
    """Have the authority say so, and all volumes written with it."""
    trust = at.authority.trust.current
    assert trust is not None
    found = Trust(trust.bundle, bundles)
    at.authority.trust.publish(found)
    async with at.looping(at.registry.follow_trust, at.registry.scheduler.run):
        volumes = at.registry.by_volume.values()
        await at.until(lambda: all(each.written and each.written.identity.trust == found for each in volumes))
    return found


def away(at: Rig) -> None:
    """As at a start without a signer: there is a bundle file, and nobody has said anything."""
    at.authority.trust.publish(Trust(bundle_of(at.authority.x509, sequence=None), proven=False))


def test_no_volume_has_a_copy_and_a_start_without_the_authority_serves_what_was_served(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            for name in ("a", "b"):
                workload = await first.open(first.volume(name))
            bundle = partner(first.clock)
            await federated(first, bundle)
            kept = (Path(workload.volume.target) / "..data" / state.NAME).read_text()
            assert PARTNER.name not in kept
            assert "x5c" in kept, "the own bundle is what proves the SVID"
        async with rig(tmp_path, before=first) as second:
            away(second)
            async with second.looping(second.registry.follow_trust):
                adopted = [await second.adopt(second.volume(name)) for name in ("a", "b")]
                for workload in adopted:
                    identity = workload.feed.current
                    assert identity is not None
                    assert identity.federated == (bundle,)
                    assert workload.written == workload.contents, "its files are as they should be"
                one, two = (each.feed.current for each in adopted)
                assert one is not None
                assert two is not None
                assert one.federated[0] is two.federated[0], "each has its own in memory"
            assert len(second.authority.asked) == 2

    asyncio.run(main())


def test_who_may_have_some_gets_these_and_no_others(tmp_path: Path) -> None:
    async def main() -> None:
        others = TrustDomain("others.test")
        async with rig(tmp_path) as first:
            bundle = partner(first.clock)
            trust = first.authority.trust.current
            assert trust is not None
            first.authority.trust.publish(Trust(trust.bundle, (partner(first.clock, others), bundle)))
            first.authority.bend = lambda _, minted: replace(minted, federates_with=(PARTNER,))
            await first.open(first.volume())
            async with first.looping(first.registry.follow_trust):
                await first.until((tmp_path / KEPT).exists)
        async with rig(tmp_path, before=first) as second:
            away(second)
            identity = (await second.adopt(second.volume())).feed.current
            assert identity is not None
            assert identity.federated == (bundle,)

    asyncio.run(main())


def test_the_authority_alone_says_what_is_kept(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        await at.open(at.volume())
        await federated(at, partner(at.clock))
        before = (tmp_path / KEPT).read_bytes()
        away(at)
        async with at.looping(at.registry.follow_trust):
            for _ in range(50):
                await asyncio.sleep(0)
        assert (tmp_path / KEPT).read_bytes() == before, "a bundle file took it away"
        await federated(at)
        assert not (tmp_path / KEPT).exists()

    on_rig(tmp_path, play)


def test_what_cannot_be_written_is_said_and_keeps_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        monkeypatch.setattr(KeptBundles, "keep", full)
        trust = await federated(at, partner(at.clock))
        assert workload.feed.current is not None
        assert workload.feed.current.trust == trust
        assert [each.__dict__["error"] for each in caplog.records if "cannot be kept" in each.getMessage()] == [
            "No space left on device"
        ]

    on_rig(tmp_path, play)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"version": 2, "bundles": {}}',
        b'{"version": 1}',
        b'{"version": 1, "bundles": []}',
        b'{"version": 1, "bundles": {"partner.test": "{"}}',
        b'{"version": 1, "bundles": {"Not a name": "{}"}}',
        b'{"version": 1, "bundles": {"partner.test": 7}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_said_once_and_counts_as_none(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / KEPT
    path.write_bytes(damage)
    found = KeptBundles(path)
    with caplog.at_level(logging.ERROR):
        assert found.read() == ()
        assert found.read() == ()
    (line,) = caplog.records
    assert "cannot be read" in line.getMessage()
    # Nor is it in the way of the next.
    bundle = partner(StepClock())
    found.keep((bundle,))
    assert KeptBundles(path).read() == (bundle,)


def test_what_an_older_agent_wrote_has_its_own_copy_and_what_is_of_this_trust_domain_is_not_foreign(
    tmp_path: Path,
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        found, bundle = workload.directory.read(), partner(at.clock)
        document = json.loads(state.dump(state.State(found, "")))
        assert document["federated"] == {}
        document["federated"] = {PARTNER.name: bundle.to_jwks().decode()}
        old = state.load(json.dumps(document).encode()).contents.identity
        kept = KeptBundles(tmp_path / KEPT)
        kept.keep((partner(at.clock, TrustDomain("others.test")),))
        assert kept.complete(old).federated == (bundle,)
        kept.keep((bundle_of(root(at.clock.at, TRUST_DOMAIN)),))
        assert kept.complete(found.identity) == found.identity

    on_rig(tmp_path, play)
