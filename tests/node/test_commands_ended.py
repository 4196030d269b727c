"""Commands as processes: ended by a signal at any moment, and written to where nobody reads."""

import os
import random
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fake_workload_api import authority
from tests.processes import STOP_SECONDS

pytestmark = pytest.mark.timeout(180)
INSTANTS = int(os.environ.get("TESTS_INSTANTS", "4"))
# From where on podsvid decides what a signal does; what comes before is Python's own start.
BEGUN = (
    "import os, sys; from podsvid import start; start._die_without_a_word(); os.write(1, b'.'); sys.exit(start.main())"
)
KUBECONFIG = (
    "{current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}], "
    "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:%d', certificate-authority-data: %s}}]}"
)
COMMANDS = (
    ("--help",),
    ("node", "ls", "--socket", "{base}/absent"),
    ("authority", "show", "--socket", "{base}/absent"),
    ("explain", "a/b", "--kubeconfig", "{base}/kubeconfig"),
    ("doctor", "--kubeconfig", "{base}/kubeconfig"),
    ("console", "--kubeconfig", "{base}/kubeconfig"),
    ("uninstall-check", "--kubeconfig", "{base}/kubeconfig"),
    ("api", "fetch", "x509", "--socket", "{base}/absent", "--timeout", "3"),
    (
        "agent",
        "--trust-domain",
        "a",
        "--kubelet-root",
        "{base}/none",
        "--run-dir",
        "{base}/run",
        "--state-dir",
        "{base}",
    ),
    ("signer", "--trust-domain", "a", "--kubeconfig", "{base}/kubeconfig", "--namespace", "a"),
    ("quickstart", "--pods", "1", "--exit-after", "0", "--without-mounts", "--dir", "{base}/q"),
)


def kubeconfig(port: int) -> str:
    return KUBECONFIG % (port, b64encode(authority().bundle.to_pem()).decode())


def environment(base: Path) -> dict[str, str]:
    (base / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(base / "tmp"), "HOME": str(base)}


def begun(base: Path, line: Sequence[str], ignored: Sequence[signal.Signals] = ()) -> "subprocess.Popen[bytes]":
    """The command, once it decides what a signal does."""
    ignoring = "".join(f"import signal; signal.signal({int(each)}, signal.SIG_IGN); " for each in ignored)
    command = [sys.executable, "-c", ignoring + BEGUN, *(each.format(base=base) for each in line)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(base),
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    return process


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[0])
def test_a_signal_at_any_moment_ends_a_command_without_a_traceback(line: Sequence[str], base: Path) -> None:
    # Nobody answers, or it would be too fast to be interrupted at its work.
    (base / "kubeconfig").write_text(kubeconfig(1))
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(INSTANTS):
        number = chance.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM))
        process = begun(base, line)
        try:
            process.wait(chance.uniform(0, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        try:
            _, told = process.communicate(timeout=STOP_SECONDS)
        finally:
            process.kill()
        said = f"seed {seed}: {told.decode()}"
        for sign in (b"Traceback", b"Exception ignored", b"KeyboardInterrupt", b"never retrieved"):
            assert sign not in told, said
        # Ended by itself, by the signal, or as by it.
        assert process.returncode in (0, 1, 2, 3, -number, 128 + number), said
        assert list((base / "tmp").iterdir()) == [], said


@pytest.mark.parametrize(
    ("number", "times", "ignored"),
    [
        (signal.SIGINT, 1, ()),
        (signal.SIGTERM, 1, ()),
        (signal.SIGHUP, 1, ()),
        # A terminal that is closed: the kernel sends one, and the shell another.
        (signal.SIGHUP, 3, ()),
        # A shell without job control has what it starts in the background ignore Ctrl-C.
        (signal.SIGTERM, 1, (signal.SIGINT,)),
    ],
)
def test_what_a_kubeconfig_held_is_gone_with_the_command(
    number: signal.Signals, times: int, ignored: Sequence[signal.Signals], base: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        (base / "kubeconfig").write_text(kubeconfig(deaf.getsockname()[1]))
        process = begun(base, ("uninstall-check", "--kubeconfig", "{base}/kubeconfig"), ignored)
        # It asks, and gets no answer.
        deaf.settimeout(STOP_SECONDS)
        connection, _ = deaf.accept()
        with connection:
            assert list((base / "tmp").iterdir())
            for _ in range(times):
                process.send_signal(number)
            _, told = process.communicate(timeout=STOP_SECONDS)
    assert (process.returncode, told) == (128 + number, b"")
    assert list((base / "tmp").iterdir()) == []


@pytest.mark.parametrize("line", [("--help",), ("node", "--help")], ids=" ".join)
def test_an_output_that_takes_no_more(line: Sequence[str], base: Path) -> None:
    command = [sys.executable, "-m", "podsvid", *line]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(base), check=False)
    wanted = b"podsvid: OUTPUT_FAILED: the standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, wanted)


def test_who_stops_reading_hears_no_complaint(base: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "podsvid", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(base), check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_files_of_somebody_else(closed: str, base: Path) -> None:
    shell = ["sh", "-c", f'"$0" -m podsvid node ls --socket {base}/absent {closed}', sys.executable]
    done = subprocess.run(shell, capture_output=True, env=environment(base), check=False)
    assert done.returncode == 1
    assert (b"NO_SOCKET: no agent listens" in done.stderr) is ("2>" not in closed)
    assert done.stderr.count(b"\n") <= 1
