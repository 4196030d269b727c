"""`podsvid node` against a real agent: what it shows is so, and nobody but root is shown anything."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.admin import NodeAdmin, serve_admin
from agent.authority.local import IssuePolicy, Kept, LocalAuthority
from agent.authority.protocol import EarlyRenewal, JwtRequest, Minted, MintedJwt, MintRequest
from agent.errors import AuthorityUnavailable
from agent.metrics import Metrics
from agent.pb import node_admin_pb2 as pb
from agent.workload.kept import KeptBundles
from agent.workload.registry import WorkloadRegistry
from csi.journal import Journal
from csi.model import PodRef, Volume
from csi.volume import VolumeDirectory
from podsvid.node import show
from podsvid.quickstart.errors import PublishFailed
from runtime.blocking import Blocking
from runtime.bounded import Bounded
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.identity import Trust
from svid.keys import KeyAlgorithm
from svid.renewal import RenewalWindow
from svid.spiffeid import TrustDomain
from tests.here_sockets import HereSockets
from tests.shapes import described
from tests.support import DEADLINE, IS_ROOT, ROOT, VOLUME, Host, node, pod, serial, svid_stream
from tests.workload_rig import issue, slow_work

UID = "0b6a9a4e-6a8e-4c1c-9f3c-111111111111"
FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"


class StepClock:
    def __init__(self) -> None:
        self.at = datetime.now(UTC).replace(microsecond=0)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


class Switchable:
    """A real authority that can be away, or slow."""

    def __init__(self, authority: LocalAuthority) -> None:
        self._authority = authority
        self.away, self.why = False, "SIGNER_UNREACHABLE: nobody there"
        self.hold_mints: asyncio.Event | None = None
        self.waiting = False
        self.early_renewals: Feed[tuple[EarlyRenewal, ...]] = Feed()
        self.returns: Feed[None] = Feed()

    @property
    def trust(self) -> Feed[Trust]:
        return self._authority.trust

    @property
    def issues_jwt(self) -> bool:
        return self._authority.issues_jwt

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        self._authority.hold(trust, svids)

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        return await self._authority.mint_jwt(request)

    async def mint_x509(self, request: MintRequest) -> Minted:
        if self.away:
            raise AuthorityUnavailable(self.why)
        if self.hold_mints is not None:
            self.waiting = True
            await self.hold_mints.wait()
        return replace(await self._authority.mint_x509(request), policy="shop/web")


def command(here: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "podsvid", "node", *arguments, "--socket", str(socket_of(here))]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def socket_of(here: Host) -> Path:
    return (here.base / "r") / "admin.sock"


async def asked(here: Host, *arguments: str, code: int = 0) -> Any:
    done = await asyncio.to_thread(command, here, *arguments, "--output", "json")
    assert done.returncode == code, done.stdout + done.stderr
    return described(f"node {arguments[0]}", done.stdout)


def test_ls_and_explain_say_what_is_so() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            first = await kubelet.publish(pod("one"), VOLUME)
            await kubelet.publish(pod("two"), VOLUME)
            found = (await asked(here, "ls"))["volumes"]
            assert [each["pod"] for each in found] == ["one", "two"]
            assert {each["state"] for each in found} == {"ok"}
            async with svid_stream(first / "socket") as answers:
                await anext(aiter(answers))
                (volume,) = (await asked(here, "explain", "default/one"))["volumes"]
            assert volume["serial"] == serial(first)
            assert volume["spiffe_id"] == "spiffe://example.org/ns/default/sa/web"
            assert volume["directory"] == str(first)
            assert {"tls.crt", "tls.key", "ca.crt", "socket"} <= set(volume["files"])
            assert [each["method"] for each in volume["streams"]] == [FETCH]
            (peer,) = volume["peers"]
            assert (peer["pid"], peer["uid"]) == (os.getpid(), os.getuid())
            assert "drawn at random in the window that the authority gave" in volume["renew_because"]
            assert volume["renew_from"] <= volume["renew_at"] <= volume["renew_until"]
            listed = next(each for each in found if each["pod"] == "one")
            for name in ("renew_from", "renew_until", "files_written_at", "files_serial", "files_not_after"):
                assert listed[name] == volume[name]
            assert volume["problems"] == []
            (quiet,) = (await asked(here, "explain", "default/two"))["volumes"]
            assert (quiet["streams"], quiet["peers"]) == ([], [])

    asyncio.run(run())


def test_rotate_renews_one_pod_and_no_other() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            first, second = [await kubelet.publish(pod(name), VOLUME) for name in ("one", "two")]
            before = serial(first), serial(second)
            (volume,) = (await asked(here, "rotate", "default/one"))["volumes"]
            assert volume["serial"] != before[0]
            async with asyncio.timeout(DEADLINE):
                while serial(first) != volume["serial"]:
                    await asyncio.sleep(0.05)
            assert serial(second) == before[1]

    asyncio.run(run())


def test_after_a_restart_the_reason_for_the_instant_is_said_to_be_unknown() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            await kubelet.publish(pod("one"), VOLUME)
            assert here.stop() == 0
            here.start()
            async with asyncio.timeout(DEADLINE):
                while (await asyncio.to_thread(command, here, "ls")).returncode != 0:
                    await asyncio.sleep(0.1)
            (volume,) = (await asked(here, "explain", "default/one"))["volumes"]
            assert volume["renew_because"] == "an instant drawn before the agent was restarted"
            assert "renew_from" not in volume
            assert volume["files_written_at"]

    asyncio.run(run())


def test_for_people() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            await kubelet.publish(pod("one"), VOLUME)
            listed = await asyncio.to_thread(command, here, "ls")
            head, line = listed.stdout.splitlines()
            heads = ["POD", "SPIFFE ID", "DRIVER/LAYOUT", "ENDS IN", "RENEWS IN", "STREAMS", "STATE"]
            assert head.split() == " ".join(heads).split()
            identity = "spiffe://example.org/ns/default/sa/web"
            assert line.split()[:3] == ["default/one", identity, "csi.podsvid.io/spiffe"]
            wide = await asyncio.to_thread(command, here, "ls", "-o", "wide")
            head, line = wide.stdout.splitlines()
            more = ["ACCOUNT", "KEY", "SERIAL", "AUTHORITY", "ENDS AT", "RENEWS AT", "POD UID", "VOLUME"]
            assert head.split() == " ".join([*heads, *more]).split()
            (volume,) = (await asked(here, "ls"))["volumes"]
            at = [f"{volume[name][:19]}Z" for name in ("not_after", "renew_at")]
            known = ["web", "ec-p256", volume["serial"], volume["authority_id"], *at]
            assert line.split()[-8:] == [*known, volume["pod_uid"], volume["volume_id"]]
            told = (await asyncio.to_thread(command, here, "explain", "default/one")).stdout
            for part in ("pod default/one", "signed by authority", "renewal", "next publish answers OK", "authority: "):
                assert part in told
            unknown = await asyncio.to_thread(command, here, "explain", "default/nobody")
            assert unknown.returncode == 1
            assert "kubelet asked for no volume of a pod default/nobody on this node" in unknown.stderr
            bare = await asyncio.to_thread(command, here, "explain", "nobody")
            assert "NAMESPACE/POD" in bare.stderr

    asyncio.run(run())


def test_nothing_secret_is_told() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod("one"), VOLUME)
            done = await asyncio.to_thread(command, here, "explain", "default/one", "--output", "json")
            assert "BEGIN" not in done.stdout
            key = (target / "tls.key").read_text().splitlines()[1]
            assert key[:24] not in done.stdout

    asyncio.run(run())


def test_only_root_gets_through() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")

    async def run() -> None:
        async with node() as (here, kubelet):
            await kubelet.publish(pod("one"), VOLUME)
            path = socket_of(here)
            assert path.stat().st_mode & 0o777 == 0o600
            # Even where the directories above were opened to everybody.
            for folder in (here.base, (here.base / "r")):
                folder.chmod(0o755)
            connecting = "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or die $!"
            # Not this interpreter: another user may not be able to reach it.
            line = ["/usr/bin/perl", "-e", connecting, str(path)]
            root = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=False)
            assert root.returncode == 0, root.stderr
            nobody = await asyncio.to_thread(
                subprocess.run, line, user=65534, capture_output=True, text=True, check=False
            )
            assert "Permission denied" in nobody.stderr

    asyncio.run(run())


@pytest.mark.parametrize(("asked", "told"), [(["ls"], "ls"), (["explain", "a/b"], "explain NAMESPACE/POD")])
def test_without_an_agent_it_says_where_to_run(tmp_path: Path, asked: list[str], told: str) -> None:
    line = [sys.executable, "-m", "podsvid", "node", *asked, "--socket", str(tmp_path / "admin.sock")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no agent listens at" in done.stderr
    assert done.stderr.endswith(f"-- podsvid node {told}\n")


def test_a_publish_that_is_refused_is_told_with_its_reason_until_it_succeeds() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            one = pod("one")
            for _ in range(3):
                with pytest.raises(PublishFailed):
                    await kubelet.publish(one, replace(VOLUME, attributes={"nonsense": "\x1b[31m"}))
            told = await asked(here, "explain", "default/one", code=3)
            assert told["volumes"] == []
            (problem,) = told["publish_problems"]
            assert (problem["reason"], problem["times"]) == ("INVALID_REQUEST", 3)
            assert "unknown 'nonsense'" in problem["message"]
            people = await asyncio.to_thread(command, here, "explain", "default/one")
            assert "could not be published" in people.stdout
            assert "3 times since" in people.stdout
            await kubelet.publish(one, VOLUME)
            told = await asked(here, "explain", "default/one")
            assert told["publish_problems"] == []
            (volume,) = told["volumes"]
            assert [each["reason"] for each in volume["problems"]] == ["INVALID_REQUEST"]
            assert (volume["state"], volume["state_reason"]) == ("ok", "")
            # One that is refused for a volume that is published stays with that volume.
            with pytest.raises(PublishFailed):
                await kubelet.publish(one, replace(VOLUME, attributes={"layout": "istio"}))
            (volume,) = (await asked(here, "explain", "default/one"))["volumes"]
            assert [each["reason"] for each in volume["problems"]] == ["INVALID_REQUEST", "VOLUME_CONFLICT"]

    asyncio.run(run())


def test_a_pod_cannot_draw_on_the_terminal_with_the_name_of_its_process() -> None:
    # With a stream that stays: a connection that says nothing is closed, which a busy machine might be too slow to see.
    hostile = """
import ctypes, sys, grpc
ctypes.CDLL(None).prctl(15, b"\\x1b[2Jx\\ny", 0, 0, 0)
fetch = grpc.insecure_channel(f"unix:{sys.argv[1]}").unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
for _ in fetch(b"", metadata=(("workload.spiffe.io", "true"),)):
    print("on", flush=True)
"""

    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod("one"), VOLUME)
            line = [sys.executable, "-c", hostile, str(here.short(target / "socket"))]
            with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as client:
                try:
                    assert client.stdout is not None
                    assert client.stdout.readline() == "on\n"
                    told = await asyncio.to_thread(command, here, "explain", "default/one")
                    (volume,) = (await asked(here, "explain", "default/one"))["volumes"]
                finally:
                    client.kill()
            (peer,) = volume["peers"]
            assert peer["pid"] == client.pid
            assert peer["command"] == "\N{REPLACEMENT CHARACTER}[2Jx\N{REPLACEMENT CHARACTER}y"
            assert f"pid {client.pid} '\\ufffd[2Jx\\ufffdy'" in told.stdout
            assert all(each.isprintable() for each in told.stdout if each != "\n")

    asyncio.run(run())


def test_jwt_svids_that_are_files_are_told_with_their_own_renewal_and_without_the_token() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            attributes = {"jwt-audiences": "db=spiffe://example.org/db"}
            target = await kubelet.publish(pod("one"), replace(VOLUME, attributes=attributes))
            (volume,) = (await asked(here, "explain", "default/one"))["volumes"]
            (file,) = volume["jwt_files"]
            assert file["audiences"] == ["spiffe://example.org/db"]
            token = (target / file["name"]).read_text().strip()
            assert token.split(".")[2][:20] not in json.dumps(volume)
            assert volume["not_before"] < file["renew_at"] < file["not_after"]

    asyncio.run(run())


def test_rotate_answers_when_the_files_are_there_too() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            # Keystores take a moment, in a thread.
            target = await kubelet.publish(pod("one"), replace(VOLUME, attributes={"keystores": "pkcs12"}))
            for _ in range(3):
                (volume,) = (await asked(here, "rotate", "default/one"))["volumes"]
                assert volume["state"] == "ok"
                assert serial(target) == volume["serial"]

    asyncio.run(run())


@pytest.mark.skipif(not IS_ROOT, reason="without a tmpfs there is no end to the space")
def test_what_could_not_be_written_is_told_beside_what_the_files_hold() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod("one"), VOLUME)
            held = serial(target)
            with open(target / "fill", "wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(65536))
            done = await asyncio.to_thread(command, here, "rotate", "default/one")
            assert done.returncode == 1
            assert "WRITE_FAILED: the volume's files: No space left on device" in done.stderr
            (volume,) = (await asked(here, "explain", "default/one", code=3))["volumes"]
            assert (volume["state"], volume["state_reason"]) == ("unwritten", "WRITE_FAILED")
            assert volume["files_serial"] == held == serial(target)
            assert volume["serial"] != held
            assert "df -i" in volume["problems"][0]["advice"]
            told = (await asyncio.to_thread(command, here, "explain", "default/one")).stdout
            assert f"they hold an older SVID: serial {held}, valid to" in told
            assert "renewal      not all that is renewed is in the files yet, " in told
            (target / "fill").unlink()
            (volume,) = (await asked(here, "rotate", "default/one"))["volumes"]
            assert volume["serial"] == serial(target)

    asyncio.run(run())


@pytest.mark.skipif(not IS_ROOT, reason="unmounts")
def test_a_volume_that_was_unmounted_behind_the_agent_is_minted_anew_at_the_next_publish_and_it_says_so() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            one = pod("one")
            target = await kubelet.publish(one, VOLUME)
            (before,) = (await asked(here, "explain", "default/one"))["volumes"]
            assert "SVID and files stay as they are" in before["next_publish"]
            subprocess.run(["umount", "-l", str(target)], check=True)
            (volume,) = (await asked(here, "explain", "default/one"))["volumes"]
            assert "mints a new SVID, because it was unmounted behind podsvid" in volume["next_publish"]
            await kubelet.republish(one, VOLUME)
            (after,) = (await asked(here, "explain", "default/one"))["volumes"]
            assert after["serial"] != before["serial"]
            assert after["next_publish"] == before["next_publish"]

    asyncio.run(run())


@asynccontextmanager
async def without_signer(base: Path) -> AsyncIterator[tuple[Switchable, WorkloadRegistry, StepClock, str]]:
    """A workload whose authority can be switched off, and the admin socket over it, in this process."""
    clock, target = StepClock(), f"{base}/pods/{UID}/volumes/kubernetes.io~csi/spiffe/mount"
    issuer = X509Authority.create(
        TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=clock.at
    )
    os.makedirs(target)
    below = tuple(Path(target).relative_to(base / "pods").parts)
    volume = Volume("csi-1", target, below, PodRef("default", "web", UID, "web"), None)
    journal, hour = Journal(base / "journal", str(base)), timedelta(hours=1)
    with ThreadPoolExecutor(1) as executor:
        blocking = Blocking(executor)
        authority = Switchable(LocalAuthority(Kept(issuer), IssuePolicy(hour, hour, hour), clock, Bounded()))
        sockets = HereSockets(clock, metrics := Metrics())
        kept = KeptBundles(base / "federated.json")
        registry = WorkloadRegistry(
            authority, journal, blocking, clock, random.Random(1), metrics, slow_work(blocking), sockets, kept
        )
        directory = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), volume)
        await registry.open(volume, directory, await issue(registry, volume, None))
        loops = [asyncio.ensure_future(each()) for each in (registry.scheduler.run, registry.follow_early_renewals)]
        service = NodeAdmin(registry, lambda: "a switch", blocking)
        server = await serve_admin(service.handlers(), base / "admin.sock")
        try:
            yield authority, registry, clock, str(base / "admin.sock")
        finally:
            await server.stop(None)
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await registry.stop()
            directory.close()


async def said(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "podsvid", "node", *arguments, "--socket", path]
    return await asyncio.to_thread(
        subprocess.run, line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_while_the_authority_is_away_the_reason_is_everywhere_and_it_ends_with_the_outage(tmp_path: Path) -> None:
    async def run(base: Path) -> None:
        async with without_signer(base) as (authority, _, _, admin):
            authority.why = "POD_TOKEN_EXPIRED: kubelet has not passed a new token of this pod yet"
            authority.away = True
            done = await said(admin, "rotate", "default/web")
            assert done.returncode == 1
            assert "AUTHORITY_UNAVAILABLE: POD_TOKEN_EXPIRED: kubelet has not passed" in done.stderr
            listed = await said(admin, "ls")
            assert listed.returncode == 3
            assert "retrying POD_TOKEN_EXPIRED" in listed.stdout
            told = await said(admin, "explain", "default/web")
            assert (
                "somebody asked for it, 1 attempt failed, waits for kubelet's next token; the next one" in told.stdout
            )
            assert "kubelet brings a token with its next publish" in told.stdout
            authority.away = False
            assert (await said(admin, "rotate", "default/web")).returncode == 0
            told = await said(admin, "explain", "default/web")
            assert told.returncode == 0
            assert "drawn at random" in told.stdout
            assert "POD_TOKEN_EXPIRED" in told.stdout, "what went wrong is its past, and still of use"

    asyncio.run(run(tmp_path))


def test_a_renewal_that_the_signer_pulled_forward_says_so(tmp_path: Path) -> None:
    async def run(base: Path) -> None:
        async with without_signer(base) as (authority, registry, clock, admin):
            (workload,) = registry.by_volume.values()
            identity = workload.feed.current
            assert identity is not None
            window = RenewalWindow(clock.at + timedelta(minutes=1), clock.at + timedelta(minutes=2))
            authority.early_renewals.publish((EarlyRenewal(identity.default.authority_id, window),))
            async with asyncio.timeout(DEADLINE):
                while workload.early is None:
                    await asyncio.sleep(0.01)
            told = await said(admin, "explain", "default/web")
            assert "policy       shop/web\n" in told.stdout
            span = " to ".join(f"{each:%Y-%m-%dT%H:%M:%SZ}" for each in (window.start, window.end))
            assert f"renewed early, spread over {span}" in told.stdout

    asyncio.run(run(tmp_path))


def test_a_trust_bundle_that_comes_meanwhile_is_not_taken_for_the_renewal(tmp_path: Path) -> None:
    async def run(base: Path) -> None:
        async with without_signer(base) as (authority, registry, _, admin):
            (workload,) = registry.by_volume.values()
            before = workload.feed.current
            assert before is not None
            authority.hold_mints = asyncio.Event()
            rotating = asyncio.create_task(said(admin, "rotate", "default/web"))
            async with asyncio.timeout(20):
                while not authority.waiting:
                    await asyncio.sleep(0.01)
            workload.feed.publish(replace(before))
            done, _ = await asyncio.wait([rotating], timeout=1)
            assert not done
            authority.hold_mints.set()
            assert (await rotating).returncode == 0
            after = workload.feed.current
            assert after is not None
            assert after.default.serial != before.default.serial

    asyncio.run(run(tmp_path))


@pytest.mark.skipif(not IS_ROOT, reason="makes a PID namespace")
def test_a_process_outside_of_the_agents_pid_namespace_has_a_user_and_no_pid(tmp_path: Path) -> None:
    listening = "import socket,sys; from runtime.peers import credentials_of; s = socket.socket(socket.AF_UNIX); \
        s.bind(sys.argv[1]); s.listen(); print('on', flush=True); c, _ = s.accept(); print(credentials_of(sys.argv[1]))"
    path = str(tmp_path / "socket")
    line = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", listening, path]
    with (
        subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as agent,
        socket.socket(socket.AF_UNIX) as client,
    ):
        assert agent.stdout is not None
        assert agent.stdout.readline() == "on\n"
        client.connect(path)
        assert agent.stdout.readline() == f"[({os.getuid()}, {os.getgid()}, 0)]\n"


def test_the_same_peers_and_streams_many_times_are_one_entry() -> None:
    peers = [pb.Peer(uid=7, pid=0), pb.Peer(uid=7, pid=0), pb.Peer(uid=0, pid=3, command="it's")]
    streams = [pb.Stream(method="/A", open_seconds=300), pb.Stream(method="/A", open_seconds=2)]
    volume = pb.Volume(namespace="default", pod="web", state="ok", peers=peers, streams=streams)
    text = StringIO()
    show(pb.ExplainResponse(volumes=[volume]), Console(file=text, width=200), datetime.now(UTC))
    assert "streams      /A for 5m (2 times)\n" in text.getvalue()
    assert "uid 7, pid unknown, not in the agent's PID namespace (2 times), uid 0, pid 3 \"it's\"\n" in text.getvalue()


@pytest.mark.parametrize(
    ("state", "notice", "said"),
    [
        ("ok", "by subPath", "ok (see explain)"),
        ("ok", "", "ok"),
        ("retrying", "by subPath", "retrying"),
    ],
)
def test_a_volume_with_something_for_its_pods_author_is_seen_in_a_long_list(state: str, notice: str, said: str) -> None:
    volume = pb.Volume(namespace="default", pod="web", state=state, notice=notice)
    text = StringIO()
    show(pb.ExplainResponse(volumes=[volume]), Console(file=text, width=200), datetime.now(UTC))
    first, *others = text.getvalue().splitlines()
    assert first == f"pod default/web (): {said}"
    assert [each for each in others if each.startswith("  notice")] == ([f"  notice       {notice}"] if notice else [])
