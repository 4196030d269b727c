"""`podsvid node` against a real agent: what it shows is so, and nobody but root is shown anything."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import DEADLINE, ROOT, VOLUME, Host, node, pod, serial, svid_stream

FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"


def command(here: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "podsvid", "node", *arguments, "--socket", str(socket_of(here))]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def socket_of(here: Host) -> Path:
    return (here.base / "r") / "admin.sock"


async def asked(here: Host, *arguments: str, code: int = 0) -> Any:
    done = await asyncio.to_thread(command, here, *arguments, "--output", "json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


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
            async with asyncio.timeout(10):
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
            assert volume["files_written_at"]

    asyncio.run(run())


def test_for_people() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            await kubelet.publish(pod("one"), VOLUME)
            listed = await asyncio.to_thread(command, here, "ls")
            head, line = listed.stdout.splitlines()
            assert head.split() == ["POD", "SPIFFE", "ID", "DRIVER", "ENDS", "IN", "RENEWS", "IN", "STREAMS", "STATE"]
            assert line.split()[:3] == ["default/one", "spiffe://example.org/ns/default/sa/web", "csi.podsvid.io"]
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


def test_without_an_agent_it_says_where_to_run(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "podsvid", "node", "ls", "--socket", str(tmp_path / "admin.sock")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no agent listens at" in done.stderr
