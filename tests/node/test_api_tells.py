"""`podsvid api watch` tells a program: commands that run, processes that are signalled."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from podsvid.api.watch import Notification
from tests.fake_workload_api import FakeWorkloadApi, authority, eventually, x509_answer, x509_svid
from tests.node.api_rig import DEADLINE, Runs, podsvid, watching, with_server


def test_over_a_hundred_rotations_each_during_a_run_every_run_sees_one_whole_state(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        issuers = (server.issuer, authority())
        fifo = base / "fifo"
        os.mkfifo(fifo)
        runs = Runs(base)
        sent = [x509_svid(server.issuer)]
        server.rotate(*sent)
        out = base / "out"
        async with watching("--socket", str(server.path), "--write", str(out), "--exec", *runs.command(fifo)) as found:
            for n in range(1, 102):
                await eventually(lambda n=n: len(runs.serials("begin")) == n)  # type: ignore[misc]
                if n <= 100:
                    server.issuer = issuers[n % 2]
                    sent.append(x509_svid(server.issuer))
                    server.rotate(sent[-1])
                    await eventually(lambda n=n: server.sent == n + 1)  # type: ignore[misc]
                await asyncio.to_thread(fifo.write_text, "go\n")
            await eventually(lambda: len(runs.serials("ok")) + len(runs.serials("TORN")) == 101)
            assert await found.end() == 0
        # gRPC has much to say about forks when it is given a chance to.
        assert {line for line in found.err if not line.startswith("podsvid: ")} == {str(out)}
        assert runs.serials("TORN") == []
        assert runs.serials("ok") == [svid.serial for svid in sent]

    with_server(base, run)


def test_a_hundred_rotations_at_once_become_few_runs_and_the_last_sees_the_newest(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        issuers = (server.issuer, authority())
        svids = [x509_svid(issuers[n % 2]) for n in range(100)]
        server.flood = [x509_answer(issuers[n % 2], svid) for n, svid in enumerate(svids)]
        last = x509_svid(server.issuer)
        server.rotate(last)
        runs = Runs(base)
        async with watching(
            *("--socket", str(server.path), "--write", str(base / "out"), "--exec", *runs.command())
        ) as found:
            await eventually(lambda: last.serial in runs.serials("ok"))
            assert await found.end() == 0
        seen, order = runs.serials("ok"), [svid.serial for svid in (*svids, last)]
        assert runs.serials("TORN") == []
        assert seen == [serial for serial in order if serial in seen]
        assert len(seen) < 50

    with_server(base, run)


def test_the_command_is_told_the_directory_and_does_not_speak_on_our_output(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        script = 'echo "out $PODSVID_DIR"; echo err >&2; cat; exit 3'
        relative = os.path.relpath(base / "out")
        watch = ("--socket", str(server.path), "--output", "json")
        async with watching(*watch, "--write", relative, "--exec", "--", "sh", "-c", script) as found:
            await eventually(lambda: found.said("sh ended with exit code 3"))
            # A command that fails does not end the watch.
            server.rotate()
            await eventually(lambda: sum("exit code 3" in line for line in found.err) == 2)
            assert found.said(f"out {os.path.abspath(relative)}")
            assert found.said("err")
            assert len(found.serials) == 2
            assert await found.end() == 0
        async with watching(*watch, "--exec", "sh", "-c", script, PODSVID_DIR="/inherited") as found:
            await eventually(lambda: found.said("exit code 3"))
            assert "out " in found.err
            assert await found.end() == 0

    with_server(base, run)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_command_that_hangs_is_terminated_with_its_children_and_reported(base: Path, stubborn: bool) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        trap = "trap '' TERM; " if stubborn else ""
        script = f"{trap}sleep 1000 & echo $! $$ >> {base}/pids; wait; wait; sleep 1000"
        watch = ("--socket", str(server.path), "--output", "json", "--exec-timeout", "1.5")
        async with watching(*watch, "--exec", "sh", "-c", script) as found:
            await eventually(lambda: found.said("sh has not ended within 1.5 s and is terminated"))
            wanted = signal.SIGKILL if stubborn else signal.SIGTERM
            await eventually(lambda: found.said(f"sh was ended by signal {int(wanted)}"))
            pids = [int(pid) for pid in (base / "pids").read_text().split()]
            await eventually(lambda: not any(map(alive, pids)))
            if not stubborn:
                server.rotate()
                await eventually(lambda: len((base / "pids").read_text().splitlines()) == 2)
            assert await found.end() == 0

    with_server(base, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_ends_during_a_run_and_takes_the_command_along(base: Path, number: signal.Signals) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        script = f"echo $$ > {base}/pid; exec sleep 1000"
        async with watching("--socket", str(server.path), "--exec", "sh", "-c", script) as found:
            await eventually(lambda: (base / "pid").exists() and (base / "pid").read_text().endswith("\n"))
            assert await found.end(number) == 0
            assert not alive(int((base / "pid").read_text()))

    with_server(base, run)


def test_a_command_that_cannot_be_started_is_exit_code_6_and_later_only_reported(base: Path) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        command = base / "command"
        watch = ("watch", "--socket", str(server.path), "--exec", str(command))
        found = await podsvid(*watch)
        assert found.code == 6
        assert "COMMAND_NOT_STARTED" in found.err
        command.write_text("#!/bin/sh\nexit 0\n")
        assert (await podsvid(*watch)).code == 6  # not executable
        command.chmod(0o755)
        async with watching(*watch[1:]) as running:
            await eventually(lambda: running.said("ended with exit code 0"))
            command.unlink()
            server.rotate()
            await eventually(lambda: running.said("cannot be started"))
            assert await running.end() == 0
        assert (await podsvid("watch", "--socket", str(server.path), "--exec")).code == 2

    with_server(base, run)


COUNTS = """
import signal, sys
def note(number, _):
    with open(sys.argv[1], "a") as file:
        file.write(f"{signal.Signals(number).name}\\n")
for name in ("SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), note)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("suffix", "name"), [("", "SIGHUP"), (":USR1", "SIGUSR1")])
def test_a_process_is_signalled_after_each_change_and_missed_without_harm(base: Path, suffix: str, name: str) -> None:
    async def run(server: FakeWorkloadApi) -> None:
        notes = base / "notes"
        notes.touch()
        with subprocess.Popen([sys.executable, "-c", COUNTS, str(notes)], stdout=subprocess.PIPE) as told:
            try:
                assert told.stdout is not None
                await asyncio.to_thread(told.stdout.readline)
                watch = ("--socket", str(server.path), "--output", "json", "--signal", f"{told.pid}{suffix}")
                async with watching(*watch) as found:
                    await eventually(lambda: notes.read_text() == f"{name}\n")
                    server.rotate()
                    await eventually(lambda: notes.read_text() == f"{name}\n" * 2)
                    told.kill()
                    told.wait()
                    for n in (3, 4):
                        server.rotate()
                        await eventually(lambda n=n: len(found.out) == n)  # type: ignore[misc]
                        await eventually(
                            lambda n=n: sum(f"{name} cannot be sent" in line for line in found.err) == n - 2  # type: ignore[misc]
                        )
                    assert await found.end() == 0
            finally:
                told.kill()

    with_server(base, run)


def started_as(pid: int) -> subprocess.Popen[bytes] | None:
    """A process with exactly that number, if the kernel can be talked into it."""
    for _ in range(200):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            return None
        process = subprocess.Popen(["sleep", "1000"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    return None


@pytest.mark.alone  # nobody else may take the number
def test_a_later_process_with_the_same_number_is_left_alone() -> None:
    reports: list[str] = []
    first = subprocess.Popen(["sleep", "1000"])
    # Not SIGHUP, which a test run under nohup passes on as ignored.
    notification = Notification(first.pid, signal.SIGUSR1, reports.append)
    notification.send()
    assert first.wait(DEADLINE) == -signal.SIGUSR1
    stranger = started_as(first.pid)
    if stranger is None:
        pytest.skip("process numbers cannot be chosen here")
    try:
        notification.send()
        assert reports == [f"SIGUSR1 cannot be sent to process {first.pid}: No such process"]
        stranger.terminate()
        assert stranger.wait(DEADLINE) == -signal.SIGTERM
    finally:
        stranger.kill()
        stranger.wait()
