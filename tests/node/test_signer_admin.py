"""`podsvid authority` and `podsvid explain` against a signer's admin socket, which only its owner opens."""

import argparse
import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from podsvid import authority
from podsvid.authority import CommandFailed, NoSuchPod
from podsvid.outcome import WrongUsage
from podsvid.sockets import SocketAbsent
from signer.front.admin import AdminService, serve_admin
from signer.pb import admin_pb2
from signer.publishing.documents import Publication
from svid.federation import NO_HINT
from tests.signer_rig import Serving, Site, serving

WEB = "/api/v1/namespaces/default/pods/web"
CLUSTER_POLICIES = "/apis/podsvid.io/v1alpha1/clusterworkloadidentities"
Check = Callable[[Callable[[Serving], Awaitable[None]]], None]


def parsed(folder: Path, *line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    authority.add_arguments(parser)
    return parser.parse_args([*line, "--socket", str(folder / "a.sock")])


@pytest.fixture
def with_signer(tmp_path: Path) -> Check:
    """Runs a test beside a replica with one node, whose agent is not connected."""

    def check(test: Callable[[Serving], Awaitable[None]]) -> None:
        async def run() -> None:
            site = Site()
            site.pod("agent-node-a", account="podsvid-agent", namespace="podsvid", driver=None)
            async with serving(site, tmp_path, site.clock) as here:
                async with asyncio.timeout(10):
                    while not (tmp_path / "a.sock").is_socket():
                        await asyncio.sleep(0.01)
                await test(here)

        asyncio.run(run())

    return check


async def say(folder: Path, *line: str) -> int:
    return await asyncio.to_thread(authority.run, parsed(folder, *line))


async def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert await say(folder, "show", "--output", "json") == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def stages(status: dict[str, object], kind: str = "KIND_X509") -> list[str]:
    authorities = status["authorities"]
    assert isinstance(authorities, list)
    return [each["stage"] for each in authorities if each["kind"] == kind]


def test_only_the_owner_opens_the_socket_from_its_first_moment_whatever_the_umask_is(
    with_signer: Check, tmp_path: Path
) -> None:
    async def test(here: Serving) -> None:
        replica, path = here.replica, tmp_path / "new" / "admin.sock"
        drivers: frozenset[str] = frozenset()
        service = AdminService(
            replica._rotation,
            replica._policies,
            replica._pods,
            drivers,
            here.site.clock,
            Publication(NO_HINT),
            namespace="podsvid",
        )
        modes: set[int] = set()
        before = os.umask(0)
        try:
            starting = asyncio.create_task(serve_admin(service, path))
            while not starting.done():
                await asyncio.sleep(0)
                if path.exists():
                    modes.add(stat.S_IMODE(path.stat().st_mode))
        finally:
            after = os.umask(before)
        await (await starting).stop(None)
        assert modes == {0o600}
        assert after == 0
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    with_signer(test)


def test_who_cannot_follow_is_said_by_every_command_that_has_to_do_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        site = Site()
        site.pod("agent-node-a", account="podsvid-agent", namespace="podsvid", driver=None)
        async with serving(site, tmp_path, site.clock, "--authority-algorithm", "ml-dsa-65"):
            assert await say(tmp_path, "show") == 0
            assert "warning: x509: SVIDs of the active authority" in capsys.readouterr().out
            assert await say(tmp_path, "prepare", "--forced") == 0
            told = capsys.readouterr().out.splitlines()
            assert [line.split(" authority ")[0] for line in told] == [
                "prepared x509",
                "warning: x509: SVIDs of the active",
                "warning: x509: SVIDs of the prepared",
            ]
            assert all("Go before 1.27" in line for line in told[1:])
            found = await shown(tmp_path, capsys)
            assert [f"warning: {each}" for each in found["warnings"]] == told[1:]  # type: ignore[attr-defined]

    asyncio.run(run())


def test_where_all_can_follow_nothing_is_warned_of(
    with_signer: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(here: Serving) -> None:
        found = await shown(tmp_path, capsys)
        assert not found.get("warnings")

    with_signer(test)


def test_a_rotation_says_who_cannot_follow_as_soon_as_that_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    going_on = admin_pb2.AuthorityStatus(reissuing_x509=True, warnings=["x509: old"])
    new = admin_pb2.AuthorityStatus(reissuing_x509=True, warnings=["x509: old", "x509: new"])
    done = admin_pb2.AuthorityStatus(warnings=["x509: new"])
    monkeypatch.setattr(authority, "watch", lambda channel, seconds: iter([going_on, new, new, done]))
    with grpc.insecure_channel("unix:/nowhere") as channel:
        authority._follow(channel, admin_pb2.KIND_X509, lambda status: status.reissuing_x509, "text", {"x509: old"})
    said = capsys.readouterr().out
    assert said.count("warning: ") == said.count("warning: x509: new") == 1


def test_a_socket_that_was_left_is_replaced(with_signer: Check, tmp_path: Path) -> None:
    (tmp_path / "a.sock").write_text("left by the one before")

    async def test(here: Serving) -> None:
        assert await say(tmp_path, "show") == 0

    with_signer(test)


def test_show_says_what_is_so(with_signer: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(here: Serving) -> None:
        status = await shown(tmp_path, capsys)
        assert (status["trust_domain"], status["agents"], status["agents_waiting"]) == ("example.org", 1, 1)
        assert status["waiting_nodes"] == ["node-a"]
        assert status["leader"] == "signer-1"
        assert (stages(status), stages(status, "KIND_JWT")) == (["active"], ["active"])
        assert status["rotating_x509"] is status["rotating_jwt"] is False
        assert "PRIVATE" not in json.dumps(status)
        await say(tmp_path, "show")
        text = capsys.readouterr().out
        authorities = status["authorities"]
        assert isinstance(authorities, list)
        assert all(f" {each['id']} " in text for each in authorities)
        assert "agents: 0 of 1 have acknowledged" in text
        assert "missing: node-a" in text
        assert "next: x509: prepare a new authority at" in text

    with_signer(test)


def test_steps_are_taken_refused_and_forced(
    with_signer: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(here: Serving) -> None:
        with caplog.at_level("INFO"):
            await say(tmp_path, "prepare")
        assert "prepared x509 authority" in capsys.readouterr().out
        (asked,) = [vars(each) for each in caplog.records if each.message == "step asked for"]
        assert (asked["action"], asked["kind"], asked["forced"]) == ("prepare", "x509", False)
        assert stages(await shown(tmp_path, capsys)) == ["active", "prepared"]
        for line, why in (
            (("prepare",), "TRANSITION_REFUSED: a new x509 authority is prepared already"),
            (("activate",), "node-a"),
            (("activate", "--kind", "jwt"), "no jwt authority is prepared"),
            (("revoke", "unknown"), "no x509 authority 'unknown'"),
        ):
            with pytest.raises(CommandFailed, match=why):
                await say(tmp_path, *line)
        status = await shown(tmp_path, capsys)
        assert (stages(status), status["rotating_x509"]) == (["active", "prepared"], True)
        await say(tmp_path, "activate", "--forced")
        status = await shown(tmp_path, capsys)
        assert stages(status) == ["old", "active"]
        old, active = status["authorities"][:2]  # type: ignore[index]
        with pytest.raises(CommandFailed, match="active authority cannot be revoked"):
            await say(tmp_path, "revoke", active["id"])
        await say(tmp_path, "revoke", old["id"])
        assert stages(await shown(tmp_path, capsys)) == ["tainted", "active"]
        await say(tmp_path, "revoke", old["id"], "--forced")
        assert stages(await shown(tmp_path, capsys)) == ["active"]

    with_signer(test)


def test_a_rotation_is_followed_to_its_end(
    with_signer: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(here: Serving) -> None:
        capsys.readouterr()
        await say(tmp_path, "rotate", "--kind", "jwt", "--forced", "--no-wait")
        assert capsys.readouterr().out.startswith("forced rotation of the jwt authorities started; abandoned: jwt ")
        # The agent is gone, so nothing is waited for any more.
        here.site.kube.remove("/api/v1/namespaces/podsvid/pods/agent-node-a")
        assert await say(tmp_path, "rotate", "--kind", "jwt", "--forced") == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("active; agents acknowledged 0 of 0" in line for line in lines)
        assert stages(await shown(tmp_path, capsys), "KIND_JWT") == ["active"]

    with_signer(test)


def test_explain_answers_by_policy_and_by_its_exit_code(
    with_signer: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def explain(pod: str, output: str = "text") -> int:
        asked = argparse.Namespace(pod=pod, socket=str(tmp_path / "a.sock"), output=output, all=False, timeout=60.0)
        return await asyncio.to_thread(authority.explain, asked)

    async def test(here: Serving) -> None:
        here.site.pod("web")
        async with asyncio.timeout(10):
            while here.replica._pods.known(here.site.kube.objects[WEB]["metadata"]["uid"]) is None:
                await asyncio.sleep(0.01)
        assert await explain("default/web") == 0
        assert "pod default/web: spiffe://example.org/ns/default/sa/web" in capsys.readouterr().out
        here.site.kube.put(f"{CLUSTER_POLICIES}/none", {"spec": {"deny": True}})
        async with asyncio.timeout(10):
            while await explain("default/web", "json") == 0:
                capsys.readouterr()
                await asyncio.sleep(0.01)
        found = json.loads(capsys.readouterr().out)
        assert found["outcome"].startswith("refused: POLICY_DENIED")
        assert (found["policy"], found["spiffe_id"]) == ("none", "")
        with pytest.raises(NoSuchPod, match="there is no pod default/other"):
            await explain("default/other")
        for wrong in ("web", "/web", "default/"):
            with pytest.raises(WrongUsage, match="NAMESPACE/POD"):
                await explain(wrong)

    with_signer(test)


def test_where_no_signer_listens_it_says_where_to_run_it(tmp_path: Path) -> None:
    with pytest.raises(SocketAbsent, match=r"no signer listens at .*kubectl -n podsvid exec"):
        authority.run(parsed(tmp_path, "show"))
