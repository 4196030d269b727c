"""All workloads of a node at once: what is reported of them, who is told of news, and a volume that goes meanwhile."""

import asyncio
import errno
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.authority.protocol import EarlyRenewal
from agent.errors import AuthorityUnavailable
from agent.socket.endpoint import Endpoint
from agent.workload.registry import MAX_PUBLISH_PROBLEMS, PATIENCE_AGAIN
from agent.workload.rotation import RETRY_WITHIN
from agent.workload.state import OVERDUE
from agent.workload.workload import Workload
from csi.errors import IdentityUnavailable
from csi.model import JwtFile, PodToken
from csi.node import NodeSettings
from csi.volume import VolumeDirectory
from svid.identity import Trust
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.renewal import RenewalWindow
from tests.fake_authority import HOUR, bundle_of, root
from tests.workload_rig import POD, TOKEN, Rig, on_rig

AWAY = AuthorityUnavailable("SIGNER_UNREACHABLE: away")


@pytest.fixture(autouse=True)
def reports_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.workload.registry.REPORT_SECONDS", 0)


def failing(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def newer(at: Rig, sequence: int) -> Trust:
    trust = Trust(bundle_of(at.authority.x509, at.authority.jwt_key, sequence=sequence))
    at.authority.trust.publish(trust)
    return trust


async def settled(at: Rig) -> None:
    """Whatever is to happen at once has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_svids_are_reported_by_authority_and_again_when_one_goes(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        async with at.looping(at.registry.report_holdings):
            first = await at.open(at.volume("a"))
            await at.open(at.volume("b"))
            assert first.feed.current is not None
            one = first.feed.current.default.authority_id
            trust = at.authority.trust.current
            await at.until(lambda: (trust, {one: 2}) in at.authority.held)
            await at.registry.close("csi-a")
            await at.until(lambda: at.authority.held[-1] == (trust, {one: 1}))

    on_rig(tmp_path, play)


def test_a_bundle_is_held_when_the_files_of_all_have_it_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(at: Rig) -> None:
        first, second = await at.open(at.volume("a")), await at.open(at.volume("b"))
        async with at.looping(at.registry.report_holdings, at.registry.follow_trust):
            await at.until(lambda: at.authority.held)
            write = VolumeDirectory.write

            def only_first(self: VolumeDirectory, *arguments: Any) -> None:
                if self is second.directory:
                    failing()
                write(self, *arguments)

            with monkeypatch.context() as broken:
                broken.setattr(VolumeDirectory, "write", only_first)
                trust = newer(at, 2)
                await at.until(lambda: first.directory.read().identity.trust == trust)
                await at.until(lambda: at.registry.scheduler.due("csi-b") == at.clock.at)
                await settled(at)
                assert trust not in [held for held, _ in at.authority.held]
                assert at.registry.state(second) == "unwritten"
                condition = at.registry.condition("csi-b")
                assert condition.abnormal
                assert "could not be written" in condition.message
            async with at.looping(at.registry.scheduler.run):
                await at.until(lambda: trust in [held for held, _ in at.authority.held])
            assert second.directory.read().identity.trust == trust
            assert len(at.authority.asked) == 2

    on_rig(tmp_path, play)


def test_a_volume_without_an_svid_holds_up_nobodys_bundle(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        await at.open(at.volume("a"))
        volume = at.volume("b")
        await at.registry.adopt(volume, at.directory(volume), None, None)
        async with at.looping(at.registry.report_holdings):
            await at.until(lambda: at.authority.held)
        assert sum(at.authority.held[-1][1].values()) == 1

    on_rig(tmp_path, play)


def test_a_volume_that_is_closed_while_it_is_minted_for_stays_closed(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        before = workload.directory.read().identity.default.serial
        at.clock.at += HOUR / 2
        at.authority.go_on.clear()
        async with at.looping(at.registry.scheduler.run):
            at.registry.scheduler.schedule("csi-spiffe", at.clock.at)
            await at.until(lambda: len(at.authority.asked) == 2)
            await at.registry.close("csi-spiffe")
            at.authority.go_on.set()
            await settled(at)
        assert not at.entries(), "the journal has it again"
        assert not at.registry.by_volume
        assert at.registry.scheduler.due("csi-spiffe") is None
        assert not workload.directory.has_socket()
        assert workload.directory.read().identity.default.serial == before

    on_rig(tmp_path, play)


def test_a_volume_that_is_closed_while_news_is_handed_out_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(at: Rig) -> None:
        await at.open(at.volume("a"))
        second = await at.open(at.volume("b"))
        take = Workload.take_trust

        async def closing(self: Workload, trust: Trust) -> bool:
            await at.registry.close("csi-b")
            return await take(self, trust)

        monkeypatch.setattr(Workload, "take_trust", closing)
        async with at.looping(at.registry.follow_trust):
            trust = newer(at, 2)
            await at.until(lambda: at.registry.by_volume["csi-a"].follows(trust))
            await settled(at)
        assert [each.volume.id for each in at.entries()] == ["csi-a"]
        assert second.directory.read().identity.bundle.sequence == 1
        assert at.registry.scheduler.due("csi-b") is None

    on_rig(tmp_path, play)


def test_closing_forgets_everything_and_may_be_repeated(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        assert len(at.entries()) == 1
        for _ in range(2):
            await at.registry.close("csi-spiffe")
            assert not at.entries()
            assert not workload.directory.has_socket()
        assert at.registry.condition("csi-spiffe").abnormal
        at.registry.republished("csi-spiffe", TOKEN)
        assert at.registry.scheduler.due("csi-spiffe") is None

    on_rig(tmp_path, play)


def test_an_early_renewal_brings_the_scheduler_forward(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        assert workload.feed.current is not None
        window = RenewalWindow(at.clock.at + timedelta(minutes=1), at.clock.at + timedelta(minutes=2))
        async with at.looping(at.registry.follow_early_renewals):
            renewal = EarlyRenewal(workload.feed.current.default.authority_id, window)
            at.authority.early_renewals.publish((renewal,))
            await at.until(lambda: workload.early == renewal)
            await settled(at)
        due = at.registry.scheduler.due("csi-spiffe")
        assert due == workload.renew_at
        assert due is not None
        assert window.start <= due <= window.end

    on_rig(tmp_path, play)


def test_kubelets_newest_token_is_for_the_next_renewal(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        planned = at.registry.scheduler.due("csi-spiffe")
        later = PodToken("a later token")
        at.registry.republished("csi-spiffe", later)
        assert at.registry.scheduler.due("csi-spiffe") == planned, "a token alone is no reason to mint"
        at.registry.republished("csi-spiffe", None)
        workload.ask_for_renewal()
        await workload.renew()
        assert at.authority.asked[-1].token == later

    on_rig(tmp_path, play)


def test_a_socket_that_is_gone_at_a_publish_is_made_again_at_once(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        workload.directory.prepare_socket()
        async with at.looping(at.registry.scheduler.run):
            at.registry.republished("csi-spiffe", TOKEN)
            await at.until(workload.directory.has_socket)
        assert len(at.authority.asked) == 1

    on_rig(tmp_path, play)


def test_whoever_asks_for_a_renewal_gets_one_though_it_is_not_due(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        before = workload.directory.read().identity.default.serial
        async with at.looping(at.registry.scheduler.run):
            await at.registry.renew_now("csi-spiffe")
            assert workload.directory.read().identity.default.serial != before
            assert at.registry.scheduler.failures("csi-spiffe") == 0
            at.authority.error = AWAY
            await at.registry.renew_now("csi-spiffe")
            assert at.registry.scheduler.failures("csi-spiffe") == 1
            assert at.registry.state(workload) == "retrying"
            condition = at.registry.condition("csi-spiffe")
            assert condition.abnormal
            assert "after 1 failed attempts" in condition.message
        await at.registry.renew_now("csi-unknown")

    on_rig(tmp_path, play)


def test_states_and_conditions_by_time(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        assert workload.renew_at is not None
        condition = at.registry.condition("csi-spiffe")
        assert not condition.abnormal
        assert condition.message.endswith("; noticed")
        assert at.registry.earliest_expiry() == (at.clock.at + HOUR).timestamp()
        at.clock.at = workload.renew_at + OVERDUE
        assert at.registry.state(workload) == "ok"
        at.clock.at += timedelta(microseconds=1)
        assert at.registry.state(workload) == "overdue"
        assert at.registry.condition("csi-spiffe").abnormal
        assert workload.feed.current is not None
        at.clock.at = workload.feed.current.expires_at
        assert at.registry.state(workload) == "expired"
        assert "expired at" in at.registry.condition("csi-spiffe").message
        at.metrics.refresh()
        sample = at.metrics.registry.get_sample_value
        assert sample("podsvid_volumes_by_state", {"state": "expired"}) == 1
        assert sample("podsvid_volumes_by_state", {"state": "ok"}) == 0
        assert sample("podsvid_volumes") == 1

    on_rig(tmp_path, play)


def test_what_was_refused_is_remembered_and_handed_to_the_volume_when_it_succeeds(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        at.registry.publish_refused("csi-spiffe", POD, "IDENTITY_DENIED", "POLICY_DENIED: no")
        at.registry.publish_refused("csi-other", POD, "IDENTITY_DENIED", "POLICY_DENIED: no")
        assert len(at.registry.publish_problems) == 2
        workload = await at.open(at.volume())
        at.registry.publish_accepted("csi-spiffe")
        assert [each.message for each in workload.problems] == ["POLICY_DENIED: no"]
        assert [each.volume_id for each in at.registry.publish_problems] == ["csi-other"]
        at.registry.publish_refused("csi-spiffe", POD, "VOLUME_FAILED", "later")
        assert [each.reason for each in workload.problems] == ["IDENTITY_DENIED", "VOLUME_FAILED"]
        for number in range(MAX_PUBLISH_PROBLEMS + 8):
            at.registry.publish_refused(f"csi-{number}", POD, "R", "m")
        assert len(at.registry.publish_problems) == MAX_PUBLISH_PROBLEMS

    on_rig(tmp_path, play)


def test_a_publish_that_failed_before_waits_longer_for_an_authority_that_is_away(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        volume, other = at.volume("a"), at.volume("b")
        key = await at.registry.key(volume)
        at.authority.error = AWAY
        with pytest.raises(IdentityUnavailable):
            await at.registry.issue(volume, TOKEN, key)
        at.registry.publish_refused(volume.id, volume.pod, "NODE_BUSY", "no turn")
        with pytest.raises(IdentityUnavailable):
            await at.registry.issue(volume, TOKEN, key)
        at.registry.publish_refused(volume.id, volume.pod, "IDENTITY_UNAVAILABLE", str(AWAY))
        at.authority.error = None
        await at.registry.issue(volume, TOKEN, key)
        await at.registry.issue(other, TOKEN, key)
        assert [each.patience for each in at.authority.asked] == [None, None, PATIENCE_AGAIN, None]
        # kubelet waits 120 s: for a turn, this and the rest.
        assert NodeSettings("node", "/root").mint_deadline > PATIENCE_AGAIN

    on_rig(tmp_path, play)


def test_what_failed_is_tried_again_as_soon_as_the_authority_is_back(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        for name in ("a", "b"):
            await at.open(at.volume(name))
        async with at.looping(at.registry.scheduler.run, at.registry.follow_returns):
            at.authority.error = AWAY
            await at.registry.renew_now("csi-a")
            assert at.registry.scheduler.failures("csi-a") == 1
            # As after a long outage: its next attempt is far away.
            at.registry.scheduler.schedule("csi-a", at.clock.now() + HOUR)
            planned, asked = at.registry.scheduler.due("csi-b"), len(at.authority.asked)
            at.authority.error = None
            await settled(at)
            assert len(at.authority.asked) == asked
            at.authority.returns.publish(None)
            await at.until(lambda: at.registry.scheduler.due("csi-a") != at.clock.now() + HOUR)
            due = at.registry.scheduler.due("csi-a")
            assert due is not None
            assert due <= at.clock.now() + RETRY_WITHIN
            assert at.registry.scheduler.due("csi-b") == planned, "nothing was wrong with it"

    on_rig(tmp_path, play)


def test_what_was_not_granted_and_what_was_renewed_is_in_the_log_and_no_secret_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(at: Rig) -> None:
        caplog.set_level(logging.INFO)
        workload = await at.open(at.volume("spiffe", JwtFile("api.jwt", ("api",))))
        workload.ask_for_renewal()
        await workload.renew()
        found = {each.message: vars(each) for each in caplog.records}
        assert found["the author of a pod should look at its volume"]["notice"] == "noticed"
        rotated = found["SVID rotated"]
        assert workload.feed.current is not None
        assert rotated["serial"] == workload.feed.current.default.serial
        assert rotated["not_after"] == workload.feed.current.expires_at.isoformat()
        assert (rotated["pod"], rotated["volume_id"]) == ("default/web-1", "csi-spiffe")
        told = repr([vars(each) for each in caplog.records])
        assert TOKEN.text not in told
        assert workload.jwt_files["api.jwt"].svid.token not in told
        assert "PRIVATE" not in told

    on_rig(tmp_path, play)


def test_an_authority_that_went_takes_the_svids_that_it_alone_verifies(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        serial = workload.directory.read().identity.default.serial
        async with at.looping(at.registry.follow_trust, at.registry.scheduler.run):
            at.authority.x509 = root(at.clock.at)
            trust = newer(at, 2)
            await at.until(lambda: workload.directory.read().identity.trust == trust)
        assert workload.directory.read().identity.default.serial != serial

    on_rig(tmp_path, play)


@pytest.mark.parametrize("what", ["bundle", "key", "authority"])
def test_trust_that_changes_while_a_volume_is_begun_reaches_it_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def play(at: Rig) -> None:
        opening, news = Endpoint.open, []

        async def slowly(self: Endpoint, address: str) -> None:
            if what == "authority":
                at.authority.x509 = root(at.clock.at)
            if what == "key":
                at.authority.jwt_key = JwtSigningKey.create(JwtAlgorithm.ES256)
            news.append(newer(at, 2))
            await settled(at)
            await opening(self, address)

        monkeypatch.setattr(Endpoint, "open", slowly)
        async with at.looping(at.registry.follow_trust, at.registry.report_holdings, at.registry.scheduler.run):
            workload = await at.open(at.volume())
            await at.until(lambda: workload.directory.read().identity.trust == news[0])
            assert workload.feed.current is not None
            await at.until(lambda: at.authority.held[-1] == (news[0], {workload.feed.current.default.authority_id: 1}))  # type: ignore[union-attr]
        assert len(at.authority.asked) == (2 if what == "authority" else 1)

    on_rig(tmp_path, play)
