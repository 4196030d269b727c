"""What a change of trust does to a workload: nothing that the newest bundle does not verify is kept, none goes back."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.authority.protocol import EarlyRenewal
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.workload.state import holdings
from agent.workload.workload import Workload
from csi.model import Contents, JwtFile, VolumeOptions
from csi.volume import VolumeDirectory
from svid.identity import Trust
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.jwtsvid import check_jwt_svid
from svid.renewal import RenewalWindow
from tests.fake_authority import HOUR, TRUST_DOMAIN, bundle_of, root
from tests.unit.agent.test_issuer import read_extensions
from tests.workload_rig import PARTNER, TOKEN, Rig, fetch_jwt, on_rig, rig

API = JwtFile("api.jwt", ("api",))


def withdraw_jwt_key(at: Rig) -> Trust:
    """From now on the authority signs with a new key, and the old one is in no bundle."""
    at.authority.jwt_key = JwtSigningKey.create(JwtAlgorithm.ES256)
    return publish(at, bundle_sequence=2)


def publish(at: Rig, *more: JwtSigningKey, bundle_sequence: int) -> Trust:
    trust = Trust(bundle_of(at.authority.x509, at.authority.jwt_key, *more, sequence=bundle_sequence))
    at.authority.trust.publish(trust)
    return trust


def verifies(at: Rig, token: str) -> None:
    trust = at.authority.trust.current
    assert trust is not None
    check_jwt_svid(token, {TRUST_DOMAIN: trust.bundle}, "api", at.clock.at)


def test_tokens_of_a_withdrawn_key_are_handed_out_no_more(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        before = await fetch_jwt(workload, "api")
        assert await fetch_jwt(workload, "api") == before
        async with at.looping(at.registry.follow_trust):
            trust = withdraw_jwt_key(at)
            await at.until(lambda: workload.follows(trust))
        after = await fetch_jwt(workload, "api")
        assert after != before
        verifies(at, after)
        assert len(at.authority.asked_jwt) == 2
        assert [each.forgot for each in at.sockets.made] == [1], "whoever serves the socket hands the old one out"

    on_rig(tmp_path, play)


def test_nor_during_an_outage_though_their_time_is_not_over(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        await fetch_jwt(workload, "api")
        assert await workload.take_trust(withdraw_jwt_key(at))
        at.authority.jwt_error = AuthorityUnavailable("the signer is away")
        with pytest.raises(Exception, match="the signer is away"):
            await fetch_jwt(workload, "api")

    on_rig(tmp_path, play)


def test_nor_when_the_same_change_takes_the_x509_authority_too(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume("spiffe", API))
        before = workload.contents
        assert before is not None
        at.authority.x509 = root(at.clock.at)
        assert not await workload.take_trust(withdraw_jwt_key(at)), "an SVID that nobody verifies is good enough"
        assert workload.next_due() == at.clock.at
        await workload.renew()
        after = workload.directory.read()
        assert after.identity.default.serial != before.identity.default.serial
        verifies(at, after.jwt_svids["api.jwt"].token)
        verifies(at, await fetch_jwt(workload, "api"))

    on_rig(tmp_path, play)


def test_a_tokens_file_is_written_anew_at_once_when_its_key_is_withdrawn(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume("spiffe", API))
        before = workload.directory.read()
        serial, token = before.identity.default.serial, before.jwt_svids["api.jwt"].token
        async with at.looping(at.registry.follow_trust, at.registry.scheduler.run):
            withdraw_jwt_key(at)
            await at.until(lambda: workload.directory.read().jwt_svids["api.jwt"].token != token)
        found = workload.directory.read()
        verifies(at, found.jwt_svids["api.jwt"].token)
        assert found.identity.default.serial == serial
        assert found.identity.bundle.sequence == 2

    on_rig(tmp_path, play)


def test_a_token_that_was_asked_for_before_the_key_was_withdrawn_is_refused_when_it_arrives_after(
    tmp_path: Path,
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        old = at.authority.jwt_key
        at.authority.go_on.clear()
        asking = asyncio.create_task(fetch_jwt(workload, "api"))
        await at.until(lambda: at.authority.asked_jwt)
        assert await workload.take_trust(withdraw_jwt_key(at))
        new, at.authority.jwt_key = at.authority.jwt_key, old
        at.authority.go_on.set()
        with pytest.raises(Exception, match="unusable JWT-SVID"):
            await asking
        at.authority.jwt_key = new
        verifies(at, await fetch_jwt(workload, "api"))

    on_rig(tmp_path, play)


def test_a_key_that_is_added_costs_no_token(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume("spiffe", API))
        token = await fetch_jwt(workload, "api")
        minted = len(at.authority.asked_jwt)
        assert await workload.take_trust(publish(at, JwtSigningKey.create(JwtAlgorithm.ES256), bundle_sequence=2))
        await workload.renew()
        assert await fetch_jwt(workload, "api") == token
        assert len(at.authority.asked_jwt) == minted
        assert [each.forgot for each in at.sockets.made] == [0]

    on_rig(tmp_path, play)


def test_new_bundles_are_in_files_and_feed_without_a_mint(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume(options=VolumeOptions(layout="grpc")))
        partner = bundle_of(root(at.clock.at, PARTNER))
        async with at.looping(at.registry.follow_trust):
            trust = Trust(bundle_of(at.authority.x509, at.authority.jwt_key, sequence=2), (partner,))
            at.authority.trust.publish(trust)
            await at.until(lambda: workload.directory.read().identity.bundle == trust.bundle)
        assert PARTNER.name in (Path(workload.volume.target) / "trust_bundles.json").read_text()
        assert workload.feed.current is not None
        assert workload.feed.current.trust == trust
        assert len(at.authority.asked) == 1

    on_rig(tmp_path, play)


@pytest.mark.parametrize("stores", ["none", "pkcs12"])
def test_a_pod_that_is_refused_until_its_svid_ends_has_nobody_wait_for_its_files(tmp_path: Path, stores: str) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume(options=VolumeOptions(keystores=stores)))
        # As by an account or a Service that the pod's author takes away.
        at.authority.error = AuthorityRefused("SERVICE_ACCOUNT_GONE: make it again")
        at.clock.at += 2 * HOUR
        at.authority.x509 = root(at.clock.at)
        async with at.looping(at.registry.follow_trust), at.looping(at.registry.scheduler.run):
            trust = publish(at, at.authority.jwt_key, bundle_sequence=2)
            await at.until(lambda: workload.directory.read().identity.trust == trust)
            await at.until(lambda: holdings([workload], trust) is not None)

    on_rig(tmp_path, play)


@pytest.mark.parametrize("kept_full", [True, False])
def test_nobody_waits_for_files_that_their_own_pod_keeps_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_full: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        monkeypatch.setattr(VolumeDirectory, "write", full)
        monkeypatch.setattr(VolumeDirectory, "is_kept_full", lambda _: kept_full)
        trust = publish(at, at.authority.jwt_key, bundle_sequence=2)
        assert not await workload.take_trust(trust)
        assert (holdings([workload], trust) is not None) is kept_full

    on_rig(tmp_path, play)


def test_after_a_restart_a_volume_keeps_the_newer_bundle_that_its_files_hold(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            older = first.authority.trust.current
            assert older is not None
            newer = publish(first, bundle_sequence=7)
            await first.open(first.volume())
        # The new process knows no more than the bundle file, until the signer answers.
        first.authority.trust.publish(older)
        async with rig(tmp_path, first) as second:
            workload = await second.adopt(second.volume())
            assert workload.feed.current is not None
            assert workload.feed.current.trust == newer
            assert workload.directory.read().identity.bundle.sequence == 7
            async with second.looping(second.registry.follow_trust, second.registry.scheduler.run):
                second.authority.trust.publish(replace(older, bundle=replace(older.bundle, sequence=6)))
                newest = replace(older, bundle=replace(older.bundle, sequence=8))
                for _ in range(20):
                    await asyncio.sleep(0)
                assert workload.feed.current.bundle.sequence == 7
                second.authority.trust.publish(newest)
                await second.until(lambda: workload.directory.read().identity.bundle.sequence == 8)
            assert len(second.authority.asked) == 1

    asyncio.run(main())


def test_after_a_restart_a_newer_bundle_is_in_feed_and_files_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume())
        async with rig(tmp_path, first) as second:
            newer = publish(second, bundle_sequence=9)
            workload = await second.adopt(second.volume())
            assert workload.feed.current is not None
            assert workload.feed.current.trust == newer
            assert second.registry.scheduler.due("csi-spiffe") == second.clock.at, "old files are left as they are"
            await workload.renew()
            assert workload.directory.read().identity.trust == newer
            assert len(second.authority.asked) == 1

    asyncio.run(main())


class Overtaken(VolumeDirectory):
    """A volume that is picked up while something changes."""

    meanwhile: Callable[[], object]

    def holds(self, contents: Contents) -> bool:
        self.meanwhile()
        return super().holds(contents)


async def adopted_while(at: Rig, meanwhile: Callable[[], object]) -> Workload:
    volume = at.volume()
    directory = Overtaken(os.open(volume.target, os.O_RDONLY | os.O_DIRECTORY), volume)
    directory.meanwhile = meanwhile
    await at.registry.adopt(volume, directory, directory.read(), at.entries()[0].renew_at)
    return at.registry.by_volume[volume.id]


def test_what_changes_while_a_volume_is_picked_up_reaches_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume())
        async with rig(tmp_path, first) as second:
            workload = await adopted_while(second, lambda: publish(second, bundle_sequence=9))
            assert workload.feed.current is not None
            assert workload.feed.current.trust == second.authority.trust.current
            assert workload.directory.read().identity.bundle.sequence == 9

    asyncio.run(main())


def test_nothing_is_said_of_what_is_held_before_all_is_picked_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume())
        async with rig(tmp_path, first) as second:
            second.authority.held.clear()
            reporting = asyncio.create_task(second.registry.report_holdings())
            await second.adopt(second.volume())
            for _ in range(50):
                await asyncio.sleep(0)
            assert second.authority.held == []
            second.registry.complete()
            await second.until(lambda: second.authority.held)
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    asyncio.run(main())


def test_a_volume_that_is_picked_up_later_is_renewed_as_early_as_all_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume())
        async with rig(tmp_path, first) as second:
            (entry,) = second.entries()
            with_svid = second.directory(entry.volume).read().identity.default
            window = RenewalWindow(second.clock.at, second.clock.at + timedelta(seconds=1))
            second.authority.early_renewals.publish((EarlyRenewal(with_svid.authority_id, window),))
            await second.adopt(second.volume())
            due = second.registry.scheduler.due("csi-spiffe")
            assert due is not None
            assert due <= window.end

    asyncio.run(main())


def test_what_is_equal_is_in_memory_once_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume("spiffe", API))
        async with rig(tmp_path, first) as second:
            workload = await second.adopt(second.volume("spiffe", API))
            assert workload.written is not None
            assert workload.written.identity is workload.feed.current
            assert second.authority.trust.current is not None
            assert workload.written.identity.bundle is second.authority.trust.current.bundle

    asyncio.run(main())


@pytest.mark.parametrize("how", ["withdrawn", "ended", "of another audience"])
def test_after_a_restart_a_token_that_is_no_good_is_minted_anew(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume("spiffe", API))
        wanted = JwtFile("api.jwt", ("db",)) if how == "of another audience" else API
        async with rig(tmp_path, first) as second:
            if how == "withdrawn":
                withdraw_jwt_key(second)
            if how == "ended":
                second.clock.at += HOUR
                second.authority.bend = lambda _, minted: minted
            workload = await second.adopt(second.volume("spiffe", wanted))
            assert not workload.jwt_files, "it is handed out again"
            workload.take_token(TOKEN)
            await workload.renew()
            found = workload.directory.read().jwt_svids["api.jwt"]
            assert found.audiences == wanted.audiences
            assert found.expires_at == second.clock.at + HOUR
            token = await fetch_jwt(workload, *wanted.audiences)
            assert token == found.token

    asyncio.run(main())


def test_after_a_restart_a_good_token_is_kept_in_file_and_cache(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            token = (await first.open(first.volume("spiffe", API))).directory.read().jwt_svids["api.jwt"].token
        async with rig(tmp_path, first) as second:
            workload = await second.adopt(second.volume("spiffe", API))
            assert await fetch_jwt(workload, "api") == token
            assert workload.directory.read().jwt_svids["api.jwt"].token == token
            assert len(second.authority.asked_jwt) == 1

    asyncio.run(main())


@pytest.mark.parametrize("way", ["a publish", "a change", "a renewal that fails"])
def test_no_way_of_newer_trust_keeps_what_was_read_of_a_certificate(tmp_path: Path, way: str) -> None:
    async def play(at: Rig) -> None:
        old = at.authority.trust.current
        assert old is not None
        at.authority.bend = lambda _, minted: replace(minted, trust=old)
        workloads = [await at.open(at.volume(f"v{number}")) for number in range(3)]
        newest = publish(at, bundle_sequence=5)
        # The bundle is one object for all, and is read.
        assert workloads[0].feed.current is not None
        workloads[0].feed.current.with_trust(newest).lean().check(at.clock.at)
        before = read_extensions()
        if way == "a publish":
            # As the authority answers, and while there is newer trust.
            earlier, workloads = workloads, [await at.open(at.volume(f"w{number}")) for number in range(3)]
            assert not any(each.follows(newest) for each in earlier)
        elif way == "a change":
            assert [await each.take_trust(newest) for each in workloads] == [True] * 3
        else:
            at.authority.error = AuthorityUnavailable("the signer is away")
            for each in workloads:
                each.ask_for_renewal()
                with pytest.raises(AuthorityUnavailable):
                    await each.renew()
        assert all(each.feed.current and each.feed.current.trust == newest for each in workloads)
        assert read_extensions() == before

    on_rig(tmp_path, play)


def test_an_answer_whose_bundle_was_overtaken_meanwhile_is_served_with_the_newest(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        old = at.authority.trust.current
        assert old is not None
        newest = publish(at, bundle_sequence=5)
        at.authority.bend = lambda _, minted: replace(minted, trust=old)
        workload = await at.open(at.volume())
        assert workload.directory.read().identity.trust == newest
        # An SVID that only its own, older bundle verifies stays with that one, until a renewal brings better.
        at.authority.x509 = root(at.clock.at)
        assert not await workload.take_trust(publish(at, bundle_sequence=6))
        assert workload.feed.current is not None
        assert workload.feed.current.trust == newest

    on_rig(tmp_path, play)
