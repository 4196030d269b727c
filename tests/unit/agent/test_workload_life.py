"""One workload's life with failures injected: a mint, a write, a socket, a cancelled call; and what is left of each."""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.authority.protocol import EarlyRenewal, Minted, MintRequest
from agent.errors import AgentError, AuthorityRefused, AuthorityUnavailable
from agent.servers.protocol import Kept
from agent.workload.workload import LATE_RENEWAL, MAX_PROBLEMS
from csi.errors import IdentityDenied, IdentityUnavailable
from csi.journal import Journal
from csi.model import JwtFile
from csi.volume import VolumeDirectory
from svid.renewal import RenewalWindow
from tests.fake_authority import HOUR, root
from tests.workload_rig import TOKEN, Rig, fetch_jwt, issue, on_rig, rig

API = JwtFile("api.jwt", ("api",))
REFUSED, AWAY = AuthorityRefused("POLICY_DENIED: no"), AuthorityUnavailable("SIGNER_UNREACHABLE: away")


def failing(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def due(at: Rig) -> None:
    at.clock.at += HOUR / 2


@pytest.mark.parametrize(("error", "kind"), [(REFUSED, IdentityDenied), (AWAY, IdentityUnavailable)])
@pytest.mark.parametrize("which", ["x509", "jwt"])
def test_a_first_mint_that_fails_keeps_its_kind_and_its_reason(
    tmp_path: Path, error: AgentError, kind: type[Exception], which: str
) -> None:
    async def play(at: Rig) -> None:
        if which == "x509":
            at.authority.error = error
        else:
            at.authority.jwt_error = error
        with pytest.raises(kind, match=str(error)):
            await issue(at.registry, at.volume("spiffe", API), TOKEN)
        assert not at.registry.by_volume

    on_rig(tmp_path, play)


@pytest.mark.parametrize(
    ("part", "method"),
    [
        (VolumeDirectory, "write"),
        (Journal, "record"),
        (VolumeDirectory, "prepare_socket"),
        (VolumeDirectory, "open_socket"),
    ],
)
def test_a_volume_that_cannot_be_begun_leaves_nothing_running_journalled_or_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type, method: str
) -> None:
    async def play(at: Rig) -> None:
        volume = at.volume()
        directory, issued = at.directory(volume), await issue(at.registry, volume, TOKEN)
        with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
            broken.setattr(part, method, failing)
            await at.registry.open(volume, directory, issued)
        assert not at.entries()
        assert not at.registry.by_volume
        assert at.registry.scheduler.due(volume.id) is None
        assert not directory.has_socket(), "somebody may still connect"
        # Nothing of it is in the way of the next attempt.
        await at.registry.open(volume, directory, issued)
        assert directory.has_socket()
        assert len(at.entries()) == 1

    on_rig(tmp_path, play)


def test_a_call_that_is_cancelled_while_the_socket_opens_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(at: Rig) -> None:
        volume = at.volume()
        directory, issued = at.directory(volume), await issue(at.registry, volume, TOKEN)
        entered = asyncio.Event()

        async def hanging(*_: object) -> None:
            entered.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as slow:
            slow.setattr("agent.socket.endpoint.Endpoint.open", hanging)
            opening = asyncio.create_task(at.registry.open(volume, directory, issued))
            await entered.wait()
            assert at.entries(), "the journal comes before the socket: a process that dies now is picked up"
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        assert not at.entries()
        assert not at.registry.by_volume

    on_rig(tmp_path, play)


def test_the_journal_is_told_of_a_renewal_only_when_the_files_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        (before,) = at.entries()
        due(at)
        with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
            broken.setattr(VolumeDirectory, "write", failing)
            await workload.renew()
        assert at.entries() == [before]
        assert at.rotations("x509", "write_failed") == 1
        newest = workload.problems.newest
        assert newest is not None
        assert (newest.reason, newest.message) == ("WRITE_FAILED", "the volume's files: No space left on device")
        assert workload.written != workload.contents
        # Repeated without minting again.
        assert await workload.renew() == workload.renew_at
        (after,) = at.entries()
        assert after.serial == workload.directory.read().identity.default.serial != before.serial
        assert after.renew_at == workload.renew_at
        assert len(at.authority.asked) == 2

    on_rig(tmp_path, play)


@pytest.mark.parametrize("error", [REFUSED, AWAY])
@pytest.mark.parametrize("which", ["x509", "jwt"])
def test_one_kind_that_fails_keeps_neither_the_other_nor_its_files_from_being_renewed(
    tmp_path: Path, error: AgentError, which: str
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume("spiffe", API))
        before = workload.directory.read()
        due(at)
        if which == "x509":
            at.authority.error = error
        else:
            at.authority.jwt_error = error
        # During an outage the token that is there stays in use, so that is no failure of the renewal.
        if which == "jwt" and error is AWAY:
            await workload.renew()
        else:
            with pytest.raises(type(error), match=str(error)):
                await workload.renew()
            assert at.rotations(which, error.reason.lower()) == 1
            newest = workload.problems.newest
            assert newest is not None
            assert (newest.reason, newest.message) == (error.reason, str(error))
        after = workload.directory.read()
        same_svid = after.identity.default.serial == before.identity.default.serial
        same_token = after.jwt_svids["api.jwt"] == before.jwt_svids["api.jwt"]
        assert (same_svid, same_token) == ((True, False) if which == "x509" else (False, True))

    on_rig(tmp_path, play)


def test_what_is_not_due_is_not_minted_and_what_is_due_is_counted(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume("spiffe", API))
        assert await workload.renew() == workload.next_due()
        assert (len(at.authority.asked), len(at.authority.asked_jwt)) == (1, 1)
        assert at.rotations("x509", "ok") == at.rotations("jwt", "ok") == 0
        due(at)
        await workload.renew()
        assert (len(at.authority.asked), len(at.authority.asked_jwt)) == (2, 2)
        assert at.rotations("x509", "ok") == at.rotations("jwt", "ok") == 1
        assert at.authority.asked[-1].token == TOKEN
        # Only what has an SVID may wait for others.
        assert [each.renewal for each in at.authority.asked] == [False, True]

    on_rig(tmp_path, play)


def test_a_renewal_that_does_not_verify_changes_nothing(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        before = workload.contents
        due(at)

        def bend(asked: MintRequest, minted: Minted) -> Minted:
            chain = root(at.clock.at).issue(asked.public_key, minted.spiffe_id, ttl=HOUR, now=at.clock.at)
            return replace(minted, chain=chain)

        at.authority.bend = bend
        with pytest.raises(AuthorityRefused, match="unusable SVID"):
            await workload.renew()
        assert before is not None
        assert workload.contents == workload.written == before
        assert workload.directory.holds(before)

    on_rig(tmp_path, play)


def test_an_identity_that_changed_takes_its_tokens_along(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume("spiffe", API))
        other = replace(workload.directory.read().identity.default.spiffe_id, path="/ns/default/sa/other")

        def bend(asked: MintRequest, minted: Minted) -> Minted:
            chain = at.authority.x509.issue(asked.public_key, other, ttl=HOUR, now=at.clock.at)
            return replace(minted, spiffe_id=other, chain=chain)

        at.authority.bend = bend
        workload.ask_for_renewal()
        assert workload.asked_for
        await workload.renew()
        found = workload.directory.read()
        assert found.identity.default.spiffe_id == found.jwt_svids["api.jwt"].spiffe_id == other
        assert not workload.asked_for

    on_rig(tmp_path, play)


def test_a_socket_that_disappeared_is_made_again(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        workload.directory.prepare_socket()
        assert not workload.directory.has_socket()
        await workload.renew()
        assert workload.directory.has_socket()
        await fetch_jwt(workload, "api")

    on_rig(tmp_path, play)


def test_a_socket_that_is_closed_for_what_it_costs_is_not_made_again_and_said_to_be(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        (socket,) = at.sockets.made
        workload.directory.prepare_socket()
        socket.kept = Kept("SOCKET_CLOSED", "closed for 30 s more", closed=True)
        serial = workload.feed.current and workload.feed.current.default.serial
        due(at)
        await workload.renew()
        assert workload.feed.current
        assert workload.feed.current.default.serial != serial, "files wait for the socket"
        planned = at.registry.scheduler.due(workload.volume.id)
        at.registry.republished(workload.volume.id, TOKEN)
        assert at.registry.scheduler.due(workload.volume.id) == planned, "a publish has it made again"
        assert not workload.directory.has_socket()
        assert at.registry.state(workload) == "closed"
        condition = at.registry.condition(workload.volume.id)
        assert condition.abnormal
        assert condition.message.startswith("SOCKET_CLOSED: closed for 30 s more")
        # Served again, apart: what is missing is made again as ever.
        socket.kept = Kept("SOCKET_QUARANTINED", "served apart", closed=False)
        await workload.renew()
        assert workload.directory.has_socket()
        assert at.registry.state(workload) == "ok"
        condition = at.registry.condition(workload.volume.id)
        assert not condition.abnormal
        assert condition.message.endswith("SOCKET_QUARANTINED: served apart")

    on_rig(tmp_path, play)


def early(at: Rig, start: timedelta, end: timedelta) -> Callable[[str], EarlyRenewal]:
    window = RenewalWindow(at.clock.at + start, at.clock.at + end)
    return lambda authority_id: EarlyRenewal(authority_id, window)


@pytest.mark.parametrize(
    ("start", "end", "earliest", "latest"),
    [
        (timedelta(minutes=1), timedelta(minutes=3), timedelta(minutes=1), timedelta(minutes=3)),
        (-timedelta(hours=9), timedelta(minutes=3), timedelta(0), timedelta(minutes=3)),
        # Over: at once, though not in the same breath.
        (-timedelta(hours=9), -timedelta(hours=8), LATE_RENEWAL, LATE_RENEWAL),
        (-timedelta(hours=9), timedelta(0), LATE_RENEWAL, LATE_RENEWAL),
    ],
)
def test_an_early_renewal_is_drawn_once_between_now_and_its_end(
    tmp_path: Path, start: timedelta, end: timedelta, earliest: timedelta, latest: timedelta
) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        assert workload.feed.current is not None
        renewal = early(at, start, end)
        at.authority.early_renewals.publish((renewal("ff" * 20),))
        assert not workload.renew_early(), "another authority's"
        mine = renewal(workload.feed.current.default.authority_id)
        at.authority.early_renewals.publish((renewal("ff" * 20), mine))
        assert workload.renew_early()
        assert workload.renew_at is not None
        assert earliest <= workload.renew_at - at.clock.at <= latest
        assert workload.window == mine.window
        drawn = workload.renew_at
        assert not workload.renew_early()
        assert workload.renew_at == drawn

    on_rig(tmp_path, play)


def test_an_early_renewal_never_puts_off_what_is_due_before(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        assert workload.feed.current is not None
        before = (workload.renew_at, workload.window)
        mine = early(at, timedelta(hours=3), timedelta(hours=4))(workload.feed.current.default.authority_id)
        at.authority.early_renewals.publish((mine,))
        assert not workload.renew_early()
        assert (workload.renew_at, workload.window) == before

    on_rig(tmp_path, play)


def test_after_a_restart_the_instant_is_the_one_that_was_drawn_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            drawn = (await first.open(first.volume())).renew_at
        async with rig(tmp_path, first) as second:
            workload = await second.adopt(second.volume())
            assert workload.renew_at == second.registry.scheduler.due("csi-spiffe") == drawn
            assert len(second.authority.asked) == 1
            assert await fetch_jwt(workload, "api")

    asyncio.run(main())


@pytest.mark.parametrize("how", ["ended", "unreadable", "of the future"])
def test_after_a_restart_an_svid_that_is_no_good_is_not_served_and_due_at_once(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            await first.open(first.volume())
        async with rig(tmp_path, first) as second:
            second.clock.at += {"ended": HOUR * 2, "of the future": -HOUR}.get(how, timedelta(0))
            volume = second.volume()
            directory = second.directory(volume)
            contents = None if how == "unreadable" else directory.read()
            await second.registry.adopt(volume, directory, contents, second.entries()[0].renew_at)
            workload = second.registry.by_volume[volume.id]
            held = workload.feed.current
            assert held is None or not held.is_granted(second.clock.at)
            assert second.registry.state(workload) == ("expired" if how == "ended" else "waiting")
            assert second.registry.scheduler.due(volume.id) == second.clock.at
            assert second.registry.condition(volume.id).abnormal
            workload.take_token(TOKEN)
            await workload.renew()
            directory.read().identity.check(second.clock.at)
            assert not second.registry.condition(volume.id).abnormal

    asyncio.run(main())


def test_after_a_restart_files_that_were_tampered_with_are_written_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as first:
            volume = first.volume()
            await first.open(volume)
        certificate = Path(volume.target, "tls.crt").resolve()
        good = certificate.read_bytes()
        certificate.chmod(0o600)
        certificate.write_bytes(b"something else")
        async with rig(tmp_path, first) as second:
            workload = await second.adopt(volume)
            assert second.registry.scheduler.due(volume.id) == second.clock.at
            await workload.renew()
            assert Path(volume.target, "tls.crt").read_bytes() == good
            assert len(second.authority.asked) == 1

    asyncio.run(main())


def test_only_so_many_problems_are_kept(tmp_path: Path) -> None:
    async def play(at: Rig) -> None:
        workload = await at.open(at.volume())
        for number in range(MAX_PROBLEMS * 2):
            workload.remember("R", f"problem {number}")
        assert [each.message for each in workload.problems] == [
            f"problem {n}" for n in range(MAX_PROBLEMS, MAX_PROBLEMS * 2)
        ]

    on_rig(tmp_path, play)
