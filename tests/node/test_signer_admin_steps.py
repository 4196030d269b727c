"""`podsvid authority` and a signer's part of `podsvid explain`, against a whole replica by its admin socket."""

import argparse
import asyncio
import json
import logging
import re
import stat
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import hashes
from google.protobuf.json_format import ParseDict

from podsvid import authority as authority_command
from podsvid import status as authority_status
from podsvid.authority import CommandFailed, NoSuchPod, show_explained
from podsvid.outcome import WrongUsage
from podsvid.sockets import NotASocket, SocketAbsent
from signer.admin_api import SERVICE
from signer.authority.advice import to_do
from signer.authority.knowledge import Acks
from signer.authority.rotation import Rotation
from signer.authority.slots import KINDS
from signer.authority.state import Abandoned, AuthorityState
from signer.authority.timing import FORCED_GRACE
from signer.front.admin import MAX_NODES, _abandoned, _reissuing, _rotating
from signer.model import Agent
from signer.pb import admin_pb2
from signer.policy.policy import GROUP
from tests.pod_certificates import source
from tests.shapes import described
from tests.signer_rig import START, Serving, Site, serving
from tests.support import ROOT
from tests.unit.signer.test_lifecycle import TTL, advanced, done, first, life, stages
from tests.unit.signer.test_upstream_roots import ONE, TWO, upstream

WIDE = f"{GROUP}/clusterworkloadidentities/wide"


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("signer.front.admin.REFRESH_SECONDS", 0.01)
    # What rich may take for the width of a table.
    monkeypatch.setenv("COLUMNS", "200")


class Rig:
    def __init__(self, signer: Serving, folder: Path) -> None:
        self.site = signer.site
        self.socket = folder / "a.sock"
        self.rotation: Rotation = signer.replica._rotation

    @property
    def state(self) -> AuthorityState:
        assert self.rotation.state is not None
        return self.rotation.state

    async def authority(self, *arguments: str) -> str:
        """What `podsvid authority` prints. Raises CommandFailed."""
        parser = argparse.ArgumentParser()
        authority_command.add_arguments(parser)
        parsed = parser.parse_args([*arguments, "--socket", str(self.socket)])
        code, text = await asyncio.to_thread(_printed, authority_command.run, parsed)
        assert code == 0
        return text

    async def shown(self) -> Any:
        """What it shows for programs."""
        return described("authority show", await self.authority("show", "--output", "json"))

    async def refused(self, *arguments: str) -> str:
        with pytest.raises(CommandFailed) as caught:
            await self.authority(*arguments)
        assert caught.value.reason == "AUTHORITY_COMMAND_FAILED"
        return str(caught.value)

    async def explain(self, pod: str, output: str = "text") -> tuple[int, str]:
        parsed = argparse.Namespace(pod=pod, socket=str(self.socket), output=output, all=False, timeout=60.0)
        return await asyncio.to_thread(_printed, authority_command.explain, parsed)

    def agent(self, node: str) -> None:
        """A live agent, which says nothing."""
        self.site.pod(f"agent-{node}", node=node, account="podsvid-agent", namespace="podsvid", driver=None)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.01)


def _printed(run: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> tuple[int, str]:
    with redirect_stdout(StringIO()) as text:
        code = run(parsed)
    return code, text.getvalue()


def rigged(test: Callable[[Rig], Awaitable[None]], *flags: str) -> None:
    async def run(folder: Path) -> None:
        site = Site()
        async with serving(site, folder, site.clock, *flags) as signer:
            rig = Rig(signer, folder)
            await rig.until(lambda: rig.rotation.leader_name == "signer-1")
            await test(rig)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_replica_serves_it_on_a_private_socket() -> None:
    async def test(rig: Rig) -> None:
        assert mode(rig.socket) == 0o600

    rigged(test)


def test_show_says_whom_outside_a_prepared_authority_waits_for() -> None:
    async def test(rig: Rig) -> None:
        begun = rig.site.clock.now()
        await rig.authority("rotate", "--kind", "jwt", "--no-wait")
        await rig.until(lambda: stages(rig.state, "jwt") == ["active", "prepared"])
        prepared = rig.state.jwt[1].id
        known = {"kind": "KIND_JWT", "id": prepared}
        partners = {**known, "audience": "federation", "until": f"{begun + timedelta(minutes=25):%Y-%m-%dT%H:%M:%SZ}"}
        readers = {**known, "audience": "oidc", "until": f"{begun + timedelta(days=1, minutes=5):%Y-%m-%dT%H:%M:%SZ}"}
        assert (await rig.shown())["awaited"] == [partners, readers]
        text = await rig.authority("show")
        assert f"verifiers that never acknowledge: jwt {prepared} waits for oidc until {readers['until']}" in text
        both = "verifiers that never acknowledge (federation, oidc) had time to read it"
        assert f"next: jwt: activate {prepared} when {both}, at {readers['until']}\n" in text
        assert "may not have it before" in await rig.refused("activate", "--kind", "jwt")
        rig.site.clock.pass_by(minutes=25)
        assert (await rig.shown())["awaited"] == [readers]
        status = admin_pb2.AuthorityStatus()
        ParseDict(await rig.shown(), status)
        assert authority_command._progress(status, admin_pb2.KIND_JWT).endswith(
            f"; waits for oidc until {readers['until']}"
        )
        assert "waits" not in authority_command._progress(status, admin_pb2.KIND_X509)

    rigged(test, "--trust-audiences", "federation,oidc")


def test_in_the_middle_of_a_rotation_with_everything_on_it_is_as_operations_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looked at as by who is paged: which node, who outside, and until when."""
    # It has led for long.
    monkeypatch.setattr("signer.authority.knowledge.SETTLE", timedelta(0))

    async def test(rig: Rig) -> None:
        for node in ("node-a", "node-b"):
            rig.agent(node)
        await rig.until(lambda: rig.rotation.live_nodes() == {"node-a", "node-b"})
        agents, clock = rig.rotation._agents, rig.site.clock
        for node in ("node-a", "node-b"):
            agents.connect(Agent(node, f"uid-{node}", f"agent-{node}", f"pod-uid-{node}", clock.now()))
            agents.acknowledged(node, rig.state.sequence, {rig.state.active_x509_id: 40})
        for kind in KINDS:
            await rig.authority("rotate", "--kind", kind, "--no-wait")
            await rig.until(lambda kind=kind: stages(rig.state, kind) == ["active", "prepared"])  # type: ignore[misc]
        agents.acknowledged("node-a", rig.state.sequence, {rig.state.active_x509_id: 40})
        shown = await rig.authority("show")
        documented = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
        _, _, rest = documented.partition("    $ podsvid authority show\n")
        block = [line.removeprefix("    ") for line in rest.partition("\n\n")[0].splitlines()]
        assert [_named(line) for line in shown.rstrip().splitlines()] == [_named(line) for line in block], shown

    rigged(test, "--trust-audiences", "federation,oidc")


def _named(line: str) -> str:
    """Without what is another each time."""
    line = re.sub(r"\b[0-9a-f]{40}\b|(?<![-\w])[-\w]{43}(?![-\w])", "ID", line)
    return re.sub(" +", " ", re.sub(r"sequence \d+", "sequence N", line)).rstrip()


def test_show_says_what_is_so_and_no_key() -> None:
    async def test(rig: Rig) -> None:
        for number in range(MAX_NODES + 5):
            rig.agent(f"node-{number:02}")
        await rig.until(lambda: len(rig.rotation.live_nodes()) == MAX_NODES + 5)
        said = described("authority prepare", await rig.authority("prepare", "-o", "json"))
        assert said == {"message": f"prepared x509 authority {rig.state.x509[1].id}", "warnings": []}
        state = rig.state
        found = await rig.shown()
        assert (found["trust_domain"], found["leader"]) == ("example.org", "signer-1")
        assert found["sequence"] == str(state.sequence)
        assert (found["agents"], found["agents_waiting"]) == (MAX_NODES + 5, MAX_NODES + 5)
        assert found["waiting_nodes"] == [f"node-{number:02}" for number in range(MAX_NODES)]
        assert (found["rotating_x509"], found["rotating_jwt"]) == (True, False)
        told = [(each["kind"], each["stage"], each["id"]) for each in found["authorities"]]
        assert told == [
            ("KIND_X509", "active", state.x509[0].id),
            ("KIND_X509", "prepared", state.x509[1].id),
            ("KIND_JWT", "active", state.jwt[0].id),
        ]
        active, prepared, jwt = found["authorities"]
        assert active["activated_at"] == active["prepared_at"] == prepared["prepared_at"] == "2030-01-01T00:00:00Z"
        assert "activated_at" not in prepared
        assert active["not_after"] == f"{state.x509[0].authority.not_after:%Y-%m-%dT%H:%M:%SZ}"
        assert "not_after" not in jwt
        # Nobody has said what is in use.
        assert [each["svids_known"] for each in found["authorities"]] == [False, False, False]
        people = await rig.authority("show")
        assert f"trust domain example.org, sequence {state.sequence}" in people
        lines = people.splitlines()
        assert lines[1].split() == ["KIND", "STAGE", "ID", "SINCE", "ENDS", "SVIDS", "HELD"]
        wide = (await rig.authority("show", "-o", "wide")).splitlines()
        assert wide[1].split("  ")[0] == "KIND"
        for head in ("PREPARED", "SIGNS SINCE", "LEAVES BUNDLE", "CERTIFICATE ENDS"):
            assert head in wide[1]
        (signs,) = (each for each in wide if each.startswith("x509  active"))
        start = "2030-01-01T00:00:00Z"
        assert signs.split()[2:] == [state.x509[0].id, start, start, active["not_after"], "?"]
        for authority in state.x509:
            (line,) = (each for each in lines if authority.id in each and "next:" not in each)
            # Unknown is not none.
            assert line.split()[-1] == "?"
        (line,) = (each for each in lines if state.jwt[0].id in each and "next:" not in each)
        assert line.split()[-1] == state.jwt[0].id or line.split()[-1].endswith("Z")
        assert f"agents: 0 of {MAX_NODES + 5} have acknowledged sequence {state.sequence}" in people
        assert "missing: node-00, node-01" in people
        assert "node-19 and 5 more\n" in people
        assert "leader: signer-1" in people
        # It has just begun to lead.
        assert f"next: x509: activate {state.x509[1].id} when it is known who has it\n" in people
        assert "PRIVATE" not in people + json.dumps(found)

    rigged(test)


def test_what_agents_hold_is_shown_when_all_have_said_it() -> None:
    async def test(rig: Rig) -> None:
        found = await rig.shown()
        assert [each["svids_known"] for each in found["authorities"]] == [True, False]
        rig.agent("node-a")
        await rig.until(lambda: rig.rotation.live_nodes() == {"node-a"})
        assert (await rig.shown())["authorities"][0]["svids_known"] is False
        agents = rig.rotation._agents
        agents.connect(Agent("node-a", "uid", "agent-node-a", "pod-uid", rig.site.clock.now()))
        agents.acknowledged("node-a", rig.state.sequence, {rig.state.active_x509_id: 7})
        found = await rig.shown()
        assert (found["authorities"][0]["svids_known"], found["authorities"][0]["svids"]) == (True, 7)
        assert found["agents_waiting"] == 0
        assert "agents: 1 of 1 have acknowledged" in await rig.authority("show")

    rigged(test)


def test_the_steps_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.admin")

    async def test(rig: Rig) -> None:
        rig.agent("node-a")
        await rig.until(lambda: rig.rotation.live_nodes() == {"node-a"})
        before = rig.state.active_x509_id
        said = await rig.authority("prepare")
        prepared = rig.state.x509[1].id
        assert said == f"prepared x509 authority {prepared}\n"
        for flags in ((), ("--forced",)):
            refusal = await rig.refused("prepare", *flags)
            assert refusal.startswith("TRANSITION_REFUSED: a new x509 authority is prepared already")
        assert (await rig.refused("activate")).startswith("TRANSITION_REFUSED: 1 agents (node-a) would refuse")
        assert rig.state.active_x509_id == before
        assert await rig.authority("activate", "--forced") == f"activated x509 authority {prepared}\n"
        assert rig.state.active_x509_id == prepared
        shown = (await rig.shown())["authorities"][0]
        assert (shown["stage"], "leaves_at" in shown) == ("old", True)
        assert "use: authority rotate --forced" in await rig.refused("revoke", prepared)
        assert "there is no x509 authority 'nobody'" in await rig.refused("revoke", "nobody", "--forced")
        # Of the other kind it is none.
        assert "there is no jwt authority" in await rig.refused("revoke", before, "--kind", "jwt")
        assert "leaves the trust bundle when its SVIDs are re-issued" in await rig.authority("revoke", before)
        assert [each.stage.value for each in rig.state.x509] == ["tainted", "active"]
        assert "is no longer trusted" in await rig.authority("revoke", before, "--forced")
        assert [each.id for each in rig.state.x509] == [prepared]
        assert "prepared jwt authority" in await rig.authority("prepare", "--kind", "jwt")
        asked = [vars(each) for each in caplog.records if each.getMessage() == "step asked for"]
        told = [(each["action"], each["kind"], each["authority"], each["forced"]) for each in asked]
        # What was refused, too: who reads the log sees who tried.
        assert told[:7] == [
            ("prepare", "x509", "", False),
            ("prepare", "x509", "", False),
            ("prepare", "x509", "", True),
            ("activate", "x509", "", False),
            ("activate", "x509", "", True),
            ("revoke", "x509", prepared, False),
            ("revoke", "x509", "nobody", True),
        ]
        assert told[-1] == ("prepare", "jwt", "", False)

    rigged(test)


def test_a_rotation_is_followed_to_its_end() -> None:
    async def test(rig: Rig) -> None:
        before = rig.state.active_x509_id
        jwt = rig.state.jwt[0].id
        text = await rig.authority("rotate", "--forced", "--kind", "x509")
        head, *lines = text.splitlines()
        # The one of before is all that is in use until then, and nothing of it was re-issued.
        assert not [line for line in lines if "re-issued" in line and f"{before[:8]} active" in line]
        assert head == f"forced rotation of the x509 authorities started; abandoned: x509 {before}"
        # The last line of progress says the end: nobody trusts the old one any more.
        (*_, last) = (line for line in lines if "agents acknowledged" in line)
        assert last.endswith(
            f"{rig.state.active_x509_id[:8]} active; agents acknowledged 0 of 0; SVIDs re-issued 0 of 0"
        )
        assert lines[-1].startswith("next: x509: prepare a new authority at")
        assert [each.stage.value for each in rig.state.x509] == ["active"]
        assert rig.state.active_x509_id != before
        assert rig.state.goals == frozenset()
        assert rig.state.jwt[0].id == jwt
        text = await rig.authority("rotate", "--forced", "--kind", "jwt")
        assert rig.state.jwt[0].id != jwt
        assert len(rig.state.jwt) == 1
        assert f"accept tokens of {jwt} until they read the keys anew" in text

    rigged(test)


@pytest.mark.parametrize("flag", ["--forced", "--compromised"])
def test_a_theft_is_of_both_kinds_unless_one_is_named(flag: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")

    async def test(rig: Rig) -> None:
        x509, jwt = rig.state.active_x509_id, rig.state.jwt[0].id
        text = await rig.authority("rotate", flag)
        head, *_, progress = (line for line in text.splitlines() if not line.startswith(("next: ", "to do: ")))
        assert head == f"forced rotation of the x509 and jwt authorities started; abandoned: x509 {x509}, jwt {jwt}"
        assert not {x509, jwt} & {slot.id for kind in KINDS for slot in rig.state.slots(kind)}
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", progress)
        assert progress.partition(" ")[2].startswith(
            f"{rig.state.x509[0].id[:8]} active, {rig.state.jwt[0].id[:8]} active; "
        )
        found = await rig.shown()
        told = {each["id"]: each for each in found["abandoned"]}
        assert [(each["kind"], each["id"]) for each in found["abandoned"]] == [("KIND_X509", x509), ("KIND_JWT", jwt)]
        assert {each["asked_at"] for each in told.values()} == {"2030-01-01T00:00:00Z"}
        assert {each["left_at"] for each in told.values()} == {"2030-01-01T00:00:00Z"}
        assert [each["replaced"] for each in found["abandoned"]] == [True, False]
        people = await rig.authority("show")
        assert f"abandoned: x509 {x509}, asked for 2030-01-01T00:00:00Z: left the trust bundle at" in people
        assert f"abandoned: jwt {jwt}, asked for" in people
        assert "to do: jwt: verifiers outside that cache keys (API servers, OpenBao, Vault, Keycloak) acce" in people
        assert f"(key id {rig.state.jwt[0].id})" in people
        assert "podsvid api validate jwt --audience A --svid-file OLD" in people
        # A line each in the audit log.
        lines = [vars(each) for each in caplog.records if each.name == "podsvid.audit"]
        assert [each["authority"] for each in lines if each["message"] == "authority abandoned"] == [x509, jwt]
        left = {each["authority"]: each for each in lines if each["message"].startswith("abandoned authority left")}
        assert set(left) == {x509, jwt}
        assert (left[x509]["replaced"], left[jwt]["replaced"]) == (True, False)
        assert left[jwt]["svids_end"] > "2030-01-01T00:00:00"

    rigged(test)


def test_what_is_told_of_an_abandoned_authority() -> None:
    def told(**changes: Any) -> str:
        entry = replace(Abandoned("x509", "id", START), **changes)
        return authority_status._abandoned(_abandoned(entry))

    later = START + timedelta(hours=1)
    head = "x509 id, asked for 2030-01-01T00:00:00Z: "
    last = "its last SVID ends at 2030-01-01T01:00:00Z at the latest"
    left = "left the trust bundle at 2030-01-01T01:00:00Z"
    assert told() == f"{head}signs until its successor does"
    assert told(svids_end=later) == f"{head}trusted until its SVIDs are replaced; {last}"
    assert told(left_at=later) == f"{head}{left}; it never signed"
    assert told(svids_end=later, left_at=later) == f"{head}{left}; {last}"
    assert told(svids_end=later, left_at=later, replaced=True) == f"{head}{left}; all its SVIDs were replaced"


def test_people_are_told_what_no_signer_can_do() -> None:
    state = first()
    active = state.jwt[0].id
    until = START + timedelta(days=7)
    signed = Abandoned("jwt", "signed", START, svids_end=START, left_at=START)
    never = Abandoned("jwt", "never", START, left_at=START)
    x509 = Abandoned("x509", "cert", START, svids_end=START, left_at=START, certified_until=START + TTL)
    own = replace(x509, authority_id="own", certified_until=None)
    after = replace(state, abandoned=(signed, never, x509, own))
    lines = to_do(after, START)
    assert [line.partition(":")[0] for line in lines] == ["jwt", "jwt", "jwt", "x509"]
    # One that never signed was published all the same.
    assert "accept tokens of signed, never until" in lines[0]
    assert f"one token that was issued after 2030-01-01T00:00:00Z (key id {active})" in lines[0]
    assert "podsvid oidc probe" in lines[2]
    assert "what a thief signs is accepted until 2030-01-01T01:00:00Z: replace that root" in lines[3]
    assert len(to_do(after, until - timedelta(seconds=1))) == 3
    assert to_do(after, until) == []
    assert to_do(state, START) == []
    # While it signs there is nothing to present.
    assert to_do(replace(state, abandoned=(replace(signed, left_at=None),)), START) == []


@pytest.mark.parametrize("step", ["prepare", "activate", "revoke"])
def test_only_a_theft_is_of_both_kinds(step: str) -> None:
    async def test(rig: Rig) -> None:
        async with grpc.aio.insecure_channel(f"unix:{rig.socket}") as channel:
            call: Any = channel.unary_unary(
                f"/{SERVICE}/Step", admin_pb2.StepRequest.SerializeToString, admin_pb2.StepResponse.FromString
            )
            action = authority_command.ACTIONS[step]
            requests = [admin_pb2.StepRequest(action=action, kind=admin_pb2.KIND_BOTH, forced=True)]
            requests.append(admin_pb2.StepRequest(action=admin_pb2.ACTION_ROTATE, kind=admin_pb2.KIND_BOTH))
            for request in requests:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(request)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    rigged(test)


def test_a_rotation_is_over_for_who_asked_when_svids_are_re_issued_and_says_what_is_left() -> None:
    async def test(rig: Rig) -> None:
        before = rig.state.active_x509_id
        text = await rig.authority("rotate")
        assert [each.stage.value for each in rig.state.x509] == ["old", "active"]
        ends = rig.state.x509[0].ends_at
        assert f"next: x509: stop trusting {before} when its last SVID ended, at {ends:%Y-%m-%dT%H:%M:%SZ}" in text
        # Nothing of the other kind.
        assert "jwt" not in text
        # Who wants to be there until the end says so.
        waiting = asyncio.ensure_future(rig.authority("rotate", "--wait"))
        await rig.until(lambda: len(rig.state.x509) == 3)
        over, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not over
        rig.site.clock.pass_by(days=2)
        text = await waiting
        assert len(rig.state.x509) == 1
        assert "stop trusting" not in text.splitlines()[-1]

    rigged(test)


def test_a_rotation_waits_for_what_agents_hold() -> None:
    async def test(rig: Rig) -> None:
        rig.agent("node-a")
        await rig.until(lambda: rig.rotation.live_nodes() == {"node-a"})
        agents = rig.rotation._agents
        agents.connect(Agent("node-a", "uid", "agent-node-a", "pod-uid", rig.site.clock.now()))
        old = rig.state.active_x509_id
        agents.acknowledged("node-a", rig.state.sequence, {old: 1})
        waiting = asyncio.ensure_future(rig.authority("rotate"))

        async def acknowledged(held: str) -> None:
            agents.acknowledged("node-a", rig.state.sequence, {held: 1})

        await rig.until(lambda: len(rig.state.x509) == 2)
        while rig.state.active_x509_id == old:
            await acknowledged(old)
            await asyncio.sleep(0.01)
        await acknowledged(old)
        over, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not over
        await acknowledged(rig.state.active_x509_id)
        said = await waiting
        assert "SVIDs re-issued 0 of 1" in said
        assert "SVIDs re-issued 1 of 1" in said
        of_before = [line for line in said.splitlines() if f"{old[:8]} active" in line]
        assert of_before
        assert "re-issued" not in "".join(of_before)

    rigged(test)


def test_nothing_is_called_re_issued_before_the_new_authority_signs() -> None:
    def line(*stages: str, rotating: bool, svids: int = 4) -> str:
        status = admin_pb2.AuthorityStatus(agents=1, rotating_x509=rotating)
        for stage in stages:
            status.authorities.add(kind=admin_pb2.KIND_X509, id=stage, stage=stage, svids=svids, svids_known=True)
        return authority_command._progress(status, admin_pb2.KIND_X509)

    # It was asked for, and is made and published.
    for each in (("active",), ("active", "prepared"), ("old", "active", "prepared")):
        assert line(*each, rotating=True).endswith("; agents acknowledged 1 of 1")
    assert line("old", "active", rotating=True).endswith("; SVIDs re-issued 4 of 8")
    assert line("active", rotating=False).endswith("; SVIDs re-issued 4 of 4")


def test_waiting_and_not_waiting_are_not_asked_for_together() -> None:
    parser = argparse.ArgumentParser()
    authority_command.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["rotate", "--wait", "--no-wait"])


def test_until_when_a_rotation_counts_as_under_way() -> None:
    """For who waits for its SVIDs: bounded by the window in which agents renew, whoever is silent."""
    state = first()
    asked, _ = life().asked(state, "x509", forced=False, now=START)
    unknown = Acks(frozenset({"silent"}), None)
    prepared = advanced(asked, START, unknown)
    rotated = advanced(prepared, START)
    old = rotated.x509[0].id
    for each in (asked, prepared):
        assert _reissuing(each, "x509", Acks(frozenset(), {}), START)
        assert not _reissuing(each, "jwt", unknown, START)
    end = rotated.directives[0].end + FORCED_GRACE
    for acks in (unknown, Acks(frozenset(), {old: 1}), Acks(frozenset(), None), Acks(frozenset({"silent"}), {})):
        assert _reissuing(rotated, "x509", acks, end - timedelta(seconds=1))
        assert not _reissuing(rotated, "x509", acks, end)
    assert not _reissuing(rotated, "x509", Acks(frozenset(), {rotated.x509[1].id: 1}), START)
    jwt, _ = life().asked(state, "jwt", forced=False, now=START)
    assert _reissuing(jwt, "jwt", unknown, START)
    assert _reissuing(done(life().prepare(state, "jwt", START))[0], "jwt", unknown, START)
    assert not _reissuing(advanced(jwt, START), "jwt", unknown, START)


def test_a_rotation_is_under_way_from_when_it_is_asked_for_until_the_old_one_is_gone() -> None:
    state = first()
    asked, _ = life().asked(state, "x509", forced=False, now=START)
    rotated = advanced(asked, START)
    assert stages(rotated) == ["old", "active"]
    assert [_rotating(each, "x509") for each in (state, asked, rotated)] == [False, True, True]
    assert [_rotating(each, "jwt") for each in (state, asked, rotated)] == [False, False, False]


def test_a_rotation_that_nobody_waits_for_goes_on() -> None:
    async def test(rig: Rig) -> None:
        assert await rig.authority("rotate", "--no-wait") == "rotation of the x509 authority started\n"
        await rig.until(lambda: [each.stage.value for each in rig.state.x509] == ["old", "active"])
        found = await rig.shown()
        assert (found["rotating_x509"], found["rotating_jwt"]) == (True, False)
        rig.site.clock.pass_by(days=2)
        await rig.until(lambda: len(rig.state.x509) == 1)
        assert (await rig.shown())["rotating_x509"] is False

    rigged(test)


@pytest.mark.parametrize(
    "request_",
    [
        admin_pb2.StepRequest(),
        admin_pb2.StepRequest(action=admin_pb2.ACTION_ROTATE),
        admin_pb2.StepRequest(kind=admin_pb2.KIND_X509),
    ],
)
def test_a_step_that_says_not_what_is_none(request_: admin_pb2.StepRequest) -> None:
    async def test(rig: Rig) -> None:
        before = rig.state
        async with grpc.aio.insecure_channel(f"unix:{rig.socket}") as channel:
            call: Any = channel.unary_unary(
                f"/{SERVICE}/Step", admin_pb2.StepRequest.SerializeToString, admin_pb2.StepResponse.FromString
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert rig.state is before

    rigged(test)


def test_a_step_that_cannot_be_stored_says_why() -> None:
    async def test(rig: Rig) -> None:
        rig.site.kube.denied.add(("replace", "/api/v1/namespaces/podsvid/secrets"))
        assert (await rig.refused("prepare")).startswith("FORBIDDEN: cannot replace")

    rigged(test)


def test_a_change_is_told_once_and_what_stays_is_not_told_again() -> None:
    async def test(rig: Rig) -> None:
        async with grpc.aio.insecure_channel(f"unix:{rig.socket}") as channel:
            call: Any = channel.unary_stream(
                f"/{SERVICE}/Watch", admin_pb2.WatchRequest.SerializeToString, admin_pb2.AuthorityStatus.FromString
            )
            answers = aiter(call(admin_pb2.WatchRequest()))
            head = await anext(answers)
            following = asyncio.ensure_future(anext(answers))
            done, _ = await asyncio.wait([following], timeout=0.3)
            assert not done
            await rig.rotation.step("prepare", "jwt", "", forced=False)
            second = await following
        assert second.sequence == head.sequence + 1
        assert second.rotating_jwt

    rigged(test)


def test_explain_says_who_wins_and_why() -> None:
    async def test(rig: Rig) -> None:
        rig.site.pod("web")
        rig.site.kube.put("/api/v1/namespaces/default", {"metadata": {"name": "default", "labels": {"team": "a"}}})

        async def told(text: str) -> tuple[int, str]:
            async with asyncio.timeout(20):
                while True:
                    code, found = await rig.explain("default/web")
                    if text in found:
                        return code, found
                    await asyncio.sleep(0.01)

        code, found = await told("pod default/web: spiffe://example.org/ns/default/sa/web")
        assert (code, found.splitlines()[1]) == (0, "policy: (default)")
        assert found.splitlines()[2] == "X.509-SVIDs live 1h; a volume's ttl gets 1h at most"
        other = {"podSelector": {"matchLabels": {"app": "other"}}}
        rig.site.kube.put(f"{GROUP}/namespaces/default/workloadidentities/mine", {"spec": {}})
        rig.site.kube.put(f"{GROUP}/namespaces/default/workloadidentities/other", {"spec": other})
        rig.site.kube.put(WIDE, {"spec": {}})
        code, found = await told("matches as well, and lost: wide: default/mine is the namespace's own")
        code, found = await told(
            "does not match: default/other: podSelector wants app=other, and the pod has no label app"
        )
        assert (code, found.splitlines()[1]) == (0, "policy: default/mine")
        assert "lost: default/mine" not in found
        code, text = await rig.explain("default/web", "json")
        message = described("explain --socket", text)
        assert (message["outcome"], message["matched"]) == ("allowed", ["default/mine", "wide"])
        assert message["not_matched"][0]["policy"] == "default/other"
        mine = f"{GROUP}/namespaces/default/workloadidentities/mine"
        rig.site.kube.put(mine, {"spec": {"x509TTL": "999h"}})
        code, found = await told("not granted: x509TTL 999h is above x509_max_ttl: 1d is granted")
        assert (code, found.splitlines()[2]) == (0, "X.509-SVIDs live 1d; a volume's ttl gets 1d at most")
        async with asyncio.timeout(30):
            while not (conditions := rig.site.kube.objects[mine].get("status", {}).get("conditions", [])):
                await asyncio.sleep(0.01)
        clipped = {each["type"]: each for each in conditions}["TtlClipped"]
        assert (clipped["status"], clipped["message"]) == ("True", "x509TTL 999h is above x509_max_ttl: 1d is granted")
        rig.site.kube.put(mine, {"spec": {"deny": True}})
        code, found = await told("refused: POLICY_DENIED")
        assert code == 3
        assert (await rig.explain("default/web", "json"))[0] == 3
        for unknown in ("default/nobody", "other/web"):
            with pytest.raises(NoSuchPod, match=f"there is no pod {unknown}"):
                await rig.explain(unknown)
        for wrong in ("web", "/web", "default/", ""):
            with pytest.raises(WrongUsage, match="NAMESPACE/POD"):
                await rig.explain(wrong)

    rigged(test)


def test_explain_says_how_long_what_kubelet_asks_for_lives_and_nothing_of_volumes_where_there_are_none() -> None:
    async def test(rig: Rig) -> None:
        def put(*sources: Any) -> None:
            found = rig.site.kube.objects["/api/v1/namespaces/default/pods/web"]
            volumes = [each for each in found["spec"]["volumes"] if "csi" in each]
            found["spec"]["volumes"] = [*volumes, {"name": "certificates", "projected": {"sources": list(sources)}}]
            rig.site.kube.put("/api/v1/namespaces/default/pods/web", found)

        async def told(line: str) -> str:
            async with asyncio.timeout(20):
                while line not in (found := (await rig.explain("default/web"))[1]).splitlines():
                    await asyncio.sleep(0.01)
            return found

        lives = "X.509-SVIDs of podCertificate sources live"
        mine = f"{GROUP}/namespaces/default/workloadidentities/mine"
        rig.site.pod("web", driver=None)
        put(source(), source(maxExpirationSeconds=3600))
        assert "ttl gets" not in await told(f"{lives} 1h")
        rig.site.kube.put(mine, {"spec": {"x509TTL": "10m"}})
        await told(f"{lives} 1h, as none lives for less (it would be 10m)")
        rig.site.kube.put(mine, {"spec": {"x509TTL": "12h"}})
        await told(f"{lives} 1h to 12h, as maxExpirationSeconds says (it would be 12h)")
        # Another signer's is nothing of podsvid's.
        put(source(maxExpirationSeconds=7200), source(signerName="other.example/a", maxExpirationSeconds=3600))
        await told(f"{lives} 2h, as maxExpirationSeconds says (it would be 12h)")
        put(source())
        await told(f"{lives} 12h")
        rig.site.pod("web")
        found = await told("X.509-SVIDs live 12h; a volume's ttl gets 12h at most")
        assert lives not in found
        put(source())
        assert "ttl gets 12h at most" in await told(f"{lives} 12h")

    rigged(test, "--pod-certificates", "true", "--authority-ttl", "30d")


def test_explain_begins_with_what_a_pod_certificate_source_asks_for_and_does_not_get() -> None:
    async def test(rig: Rig) -> None:
        path = "/api/v1/namespaces/default/pods/web"
        rig.site.pod("web", driver=None)

        async def code(said: str, *sources: Any) -> int:
            found = rig.site.kube.objects[path]
            found["spec"]["volumes"] = [{"name": "tls", "projected": {"sources": list(sources)}}]
            rig.site.kube.put(path, found)
            async with asyncio.timeout(20):
                while not (told := await rig.explain("default/web"))[1].startswith(f"pod default/web: {said}"):
                    await asyncio.sleep(0.01)
            return told[0]

        named = source(userAnnotations={"podsvid.io/dns-names": "web.example.org"})
        foreign = source("ECDSAP521", signerName="other.example/a")
        assert await code("spiffe://example.org/ns/default/sa/web", source(), foreign) == 0
        assert await code("refused: KEY_WEAK: volume tls: SVIDs are not for keys of keyType 'ECDSAP521'; set the pod",
                          source(), source("ECDSAP521")) == 3  # fmt: skip
        assert await code("refused: DNS_NAME_DENIED: volume tls: 'web.example.org' is not among", named) == 3

    rigged(test, "--pod-certificates", "true")


def test_what_somebody_called_a_policy_cannot_draw_on_the_terminal() -> None:
    hostile = "\x1b[2J"
    found = admin_pb2.ExplainResponse(
        outcome=f"refused {hostile}",
        policy=hostile,
        matched=["x", hostile],
        not_matched=[admin_pb2.NotMatched(policy=hostile, because=hostile)],
        x509_ttl=hostile,
        ttl_clipped=hostile,
    )
    with redirect_stdout(StringIO()) as text:
        show_explained(f"default/{hostile}", found, every=False)
    assert len(text.getvalue().splitlines()) == 6
    assert "\x1b" not in text.getvalue()


def test_without_a_signer_it_says_where_to_run(tmp_path: Path) -> None:
    absent = str(tmp_path / "admin.sock")
    for run, example in ((authority_command.run, "authority show"), (authority_command.explain, "explain NAMESPACE")):
        parsed = argparse.Namespace(action="show", socket=absent, pod="a/b", output="json", watch=False, timeout=60.0)
        with pytest.raises(SocketAbsent, match=f"no signer listens at {absent}; .* podsvid {example}"):
            run(parsed)
    # One that is there and answers nothing.
    (tmp_path / "admin.sock").touch()
    with pytest.raises(NotASocket):
        authority_command.run(
            argparse.Namespace(action="show", socket=absent, output="json", watch=False, timeout=60.0)
        )


def test_who_stops_looking_stops_no_rotation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("podsvid.authority._follow", interrupted)

    async def test(rig: Rig) -> None:
        parser = argparse.ArgumentParser()
        authority_command.add_arguments(parser)
        parsed = parser.parse_args(["rotate", "--socket", str(rig.socket)])
        assert await asyncio.to_thread(authority_command.run, parsed) == 130
        assert "the signer goes on by itself" in capsys.readouterr().err
        await rig.until(lambda: len(rig.state.x509) == 2)
        assert rig.state.x509[0].ends_at is None or rig.state.x509[0].ends_at > rig.site.clock.now() + timedelta(
            hours=1
        )

    rigged(test)


def test_a_rotation_whose_signer_goes_away_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that no signer runs here: who types it again begins another one."""
    lines: list[str] = []
    progress = authority_command._progress

    def noted(status: admin_pb2.AuthorityStatus, kind: "admin_pb2.Kind") -> str:
        lines.append(progress(status, kind))
        return lines[-1]

    monkeypatch.setattr("podsvid.authority._progress", noted)

    async def run(folder: Path) -> None:
        site = Site()
        async with serving(site, folder, site.clock) as signer:
            rig = Rig(signer, folder)
            await rig.until(lambda: rig.rotation.leader_name == "signer-1")
            rig.agent("a")
            await rig.until(lambda: rig.rotation.live_nodes() == {"a"})
            asked = asyncio.create_task(rig.refused("rotate"))
            await rig.until(lambda: bool(lines) and "prepared" in lines[-1])
            assert not asked.done()
        text = await asked
        assert "the signers go on by themselves" in text
        assert "do not ask for it again: `podsvid authority show`" in text

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))


def test_who_does_not_lead_says_whom_to_ask_for_what_failed() -> None:
    async def test(rig: Rig) -> None:
        command = "kubectl -n podsvid exec signer-1 -- podsvid authority show"
        line = f"next: signer-1 leads and takes the steps; errors of these are shown in its pod alone: {command}"
        assert line not in (await rig.authority("show")).splitlines()
        rig.rotation.seat = replace(rig.rotation.seat, leading=lambda: False)
        assert (await rig.authority("show")).splitlines()[-1] == line

    rigged(test)


def test_show_says_which_roots_the_ca_above_names_and_why_some_are_not_taken(tmp_path: Path) -> None:
    above = upstream(tmp_path, ONE, ONE, TWO)

    async def test(rig: Rig) -> None:
        await rig.until(lambda: len(rig.state.roots) == 2)
        told = (await rig.shown())["upstream_roots"]
        assert [each["subject"] for each in told] == ["CN=one", "CN=two"]
        assert told[1]["id"] == rig.state.roots[0].id
        assert [each["authorities"] for each in told] == [[rig.state.active_x509_id], []]
        assert not any("leaves_at" in each for each in told)
        times = "ends 2039-12-30T00:00:00Z, named since 2030-01-01T00:00:00Z"
        line = f"root of the CA above: {told[1]['id']}, key {told[1]['key_id']}, CN=two, {times}"
        assert line in (await rig.authority("show")).splitlines()
        leaving = replace(rig.state.roots[0], ends_at=START + TTL)
        rig.rotation.see(replace(rig.state, sequence=rig.state.sequence + 1, roots=(leaving,)))
        assert (
            f"{line}; named no more, leaves not before 2030-01-01T01:00:00Z"
            in (await rig.authority("show")).splitlines()
        )
        upstream(tmp_path, ONE, TWO)
        rig.site.clock.pass_by(minutes=5)
        await rig.until(lambda: rig.rotation.roots.refuses)
        assert "no root of the active authority is among them" in await rig.authority("show")
        kube = rig.site.kube
        await rig.until(lambda: any(each.get("reason") == "UpstreamRootsRefused" for each in kube.objects.values()))

    files = ("--upstream-cert-file", str(above.certificate), "--upstream-key-file", str(above.key))
    rigged(test, *files, "--upstream-bundle-file", str(above.bundle))


def test_a_root_is_revoked_followed_to_its_end_and_trusted_again(tmp_path: Path) -> None:
    above = upstream(tmp_path, ONE, ONE, TWO)

    async def test(rig: Rig) -> None:
        await rig.until(lambda: len(rig.state.roots) == 2)
        one, two = (each.certificate.fingerprint(hashes.SHA256()).hex() for each in (ONE, TWO))
        assert "neither a subject key identifier" in await rig.refused("revoke-upstream", "one")
        assert "no revoked roots" in await rig.refused("trust-upstream", two)
        said = await rig.authority("revoke-upstream", two)
        assert f"root {two} (CN=two) is revoked: it has left the trust bundle" in said
        (told,) = (await rig.shown())["revoked_roots"]
        assert (told["id"], told["subject"], told["trusted"]) == (two, "CN=two", False)
        shown = (await rig.authority("show")).splitlines()
        assert any(each.startswith(f"revoked root: {two}, key ") and each.endswith("; not trusted") for each in shown)
        assert "may be trusted again" in await rig.authority("trust-upstream", told["key_id"])
        assert (await rig.shown())["revoked_roots"] == []
        # Every authority is below the other one: it is waited for until one is not.
        assert "leave --forced out" in await rig.refused("revoke-upstream", one, "--forced")
        said = await rig.authority("revoke-upstream", one, "--no-wait")
        assert "is revoked, and trusted until another authority signs" in said
        assert (await rig.shown())["revoked_roots"][0]["trusted"] is True
        assert "the CA above has to certify one below another" in await rig.authority("show")
        upstream(tmp_path, TWO, ONE, TWO)
        rig.site.clock.pass_by(minutes=5)
        await rig.authority("prepare")
        said = await rig.authority("revoke-upstream", one)
        assert "is being revoked already" in said
        assert one not in {each["id"] for each in (await rig.shown())["upstream_roots"]}
        assert stages(rig.state) == ["active"]
        events = [each for each in rig.site.kube.objects.values() if each.get("reason") == "UpstreamRootRevoked"]
        assert events

    files = ("--upstream-cert-file", str(above.certificate), "--upstream-key-file", str(above.key))
    rigged(test, *files, "--upstream-bundle-file", str(above.bundle))
