"""What docs/tutorials/java.md has people type: a quickstart's keystores, Java's server and client, and renewals."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.support import ROOT
from tests.tutorials import Page, page, quickstart, replaced, said, typed, volumes

PAGE = page("java.md")
SERVE, CALL = PAGE.line(" serve 8443"), PAGE.line(" call https")
CLIENT, SERVER = "spiffe://example.org/ns/demo/sa/app", "spiffe://example.org/ns/demo/sa/app-2"
RENEWALS = 2
# How a client hears of it is a race of the server's alert with what the client writes.
REFUSED = r"certificate_unknown|Broken pipe|Connection reset|Error writing to server|Unexpected end of file"
pytestmark = [
    # It compiles what it is started with.
    pytest.mark.skipif(not shutil.which("javac"), reason="needs a JDK: apt-get install default-jdk-headless"),
    pytest.mark.timeout(180),
]


def test_keystores_are_read_again_under_calls_and_none_fails() -> None:
    # Shorter than ten seconds in all would be too short for a look each second.
    with quickstart(PAGE, "12s") as (_, own):
        instead = own | {"8443": str(free_port())}
        with typed(f"{replaced(SERVE, instead)} 2>&1") as server:
            assert said(server) == f"serving on {instead['8443']}"
            with typed(f"{replaced(CALL, instead)} 2>&1") as client:
                calls = _called(client)
            assert calls > RENEWALS
            # Another than the page's client, and a server that is another than the client wants.
            stranger = replaced(CALL, instead | {"pod-1": "pod-2"})
            assert re.search(REFUSED, _refused(stranger))
            assert f"{SERVER} is not {CLIENT}" in _refused(replaced(CALL.replace(SERVER, CLIENT), instead))
            # Who has those very SPIFFE IDs of somebody else's CA, as the client of this server and as its server.
            own_pod = Path(f"/proc/{own['PID']}/root{own['/tmp/lab']}/pod-1")
            with volumes("forged", "root", policies=(), services=()) as forged:
                assert _asked(instead["8443"], own_pod) == f"hello {CLIENT}"
                assert _asked(instead["8443"], forged.of("app", "demo")) == ""
                place = {"/proc/PID/root/tmp/lab/pod-1": str(forged.of("app", "demo"))}
                assert "PKIX path building failed" in _refused(replaced(CALL, place | instead))


def _called(client: "subprocess.Popen[str]") -> int:
    """How many calls there were until the server had shown certificates of all renewals; none may fail."""
    serials, reloaded, calls, until = set[str](), 0, 0, time.monotonic() + 120
    while len(serials) <= RENEWALS or reloaded < RENEWALS:
        line = said(client)
        if line.startswith("reloaded "):
            reloaded += 1
            continue
        found = re.fullmatch(rf"hello {CLIENT}, by (\w+): (\d+) calls, 0 failed", line)
        assert found, line
        serials.add(found[1])
        calls = int(found[2])
        assert time.monotonic() < until
    return calls


def _refused(command: str) -> str:
    """Why the first call fails."""
    with typed(f"{command} 2>&1") as client:
        line = said(client)
    assert line.endswith(": 1 calls, 1 failed"), line
    return line


def _asked(port: str, identity: Path) -> str:
    """What the server answers to this certificate and key, by whoever it is certified; empty when it refuses them."""
    # Both of one renewal.
    there = identity / (identity / "..data").readlink()
    shown = subprocess.run(
        f"openssl s_client -quiet -connect localhost:{port} -cert {there}/tls.crt -key {there}/tls.key".split(),
        input="GET / HTTP/1.0\r\n\r\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return shown.stdout.strip().rpartition("\n")[2]


def test_a_volume_without_keystores_is_said_as_the_page_has_it() -> None:
    without = Page(PAGE.text.replace(" --keystores", "", 1))
    with quickstart(without, "30s") as (_, own):
        command = ["sh", "-c", replaced(SERVE, own)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert re.search(r"NoSuchFileException: .*/keystore\.password", ended.stderr)
