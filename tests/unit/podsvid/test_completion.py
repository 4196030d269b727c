"""Completion, tried in the shells that are here."""

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from podsvid.cli import main

ROOT = Path(__file__).resolve().parents[3]
# A line as far as it is typed, and what its last word becomes; each has one completion only.
LINES = [
    ("podsvid auth", "authority"),
    ("podsvid authority pre", "prepare"),
    ("podsvid node ls -o y", "yaml"),
    ("podsvid api fetch x509 --wr", "--write"),
    ("podsvid agent --jwt-jti t", "true"),
    ("podsvid signer --reissue-r", "--reissue-rate"),
    ("podsvid completion fi", "fish"),
    ("podsvid help quick", "quickstart"),
    ("podsvid doc", "doctor"),
    ("podsvid agent --config ./pyproject.t", "./pyproject.toml"),
    ("podsvid agent --authority e", "embedded"),
    ("podsvid signer --upstream-cert-file ./pyproject.t", "./pyproject.toml"),
    ("podsvid api watch --signal 1 --exec-t", "--exec-timeout"),
    ("podsvid node ls --socket ./pyproject.t", "./pyproject.toml"),
    ("podsvid authority revoke --socket ./pyproject.t", "./pyproject.toml"),
    ("podsvid explain --kubeconfig ./pyproject.t", "./pyproject.toml"),
    ("podsvid uninstall-check --kubeconfig ./pyproject.t", "./pyproject.toml"),
    ("podsvid agent --jwt-algorithm PS38", "PS384"),
    ("podsvid node rotate -o w", "wide"),
    ("podsvid migr", "migrate"),
    ("podsvid migrate csi", "csi-driver-spiffe"),
    ("podsvid migrate spire --ignored-n", "--ignored-namespaces"),
    ("podsvid migrate spire ./pyproject.t", "./pyproject.toml"),
    ("podsvid migrate spire a --report ./pyproject.t", "./pyproject.toml"),
]
DEADLINE = 60.0


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = tmp_path_factory.mktemp("completion")

    def make(shell: str) -> Path:
        path = made / shell
        if not path.exists():
            command = [sys.executable, "-m", "podsvid", "completion", shell]
            path.write_bytes(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
        return path

    return make


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def test_bash(script: Callable[[str], Path]) -> None:
    asked = f"source {script('bash')}\nread -r _ _ _ _ function _ < <(complete -p podsvid)\n"
    for line, _ in LINES:
        asked += f'COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; $function; echo "${{COMPREPLY[*]}}"\n'
    command = [shell("bash"), "--norc"]
    ran = subprocess.run(command, input=asked, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ran.stdout.splitlines() == [wanted for _, wanted in LINES]
    assert ran.stderr == ""


def test_fish(script: Callable[[str], Path], tmp_path: Path) -> None:
    asked = f"source {script('fish')}\n" + "".join(f"complete -C '{line}'\n" for line, _ in LINES)
    ran = subprocess.run(
        [shell("fish"), "--no-config"],
        input=asked,
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    # What fish shows beside a word follows a tab.
    assert [each.split("\t")[0] for each in ran.stdout.splitlines()] == [wanted for _, wanted in LINES], ran.stderr


def test_zsh(script: Callable[[str], Path], tmp_path: Path) -> None:
    """A person's keys, in a terminal: what the shell then runs as `podsvid` prints what it was given."""
    setup = tmp_path / "setup"
    setup.write_text(
        "unsetopt beep\nautoload -Uz compinit && compinit -u -D\n"
        f'eval "$(cat {script("zsh")})"\n'
        'podsvid() { print -r -- "<<$*>>" }\nprint -r -- READY\n'
    )
    zsh = shell("zsh")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(zsh, ["zsh", "-f", "-i"], os.environ | {"HOME": str(tmp_path), "TERM": "dumb"})
    try:
        os.write(terminal, f". {setup}\n".encode())
        _until(terminal, b"READY\r\n")
        for line, wanted in LINES:
            os.write(terminal, f"{line}\t\n".encode())
            given = [*line.split()[1:-1], wanted]
            assert f"<<{' '.join(given)}>>".encode() in _until(terminal, b">>")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def _until(terminal: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        assert select.select([terminal], [], [], DEADLINE)[0], data
        with suppress(BlockingIOError):
            data += os.read(terminal, 65536)
    return data


def test_a_plug_ins_script_completes_podsvid(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-podsvid"])
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("_podsvid podsvid")


def test_the_library_is_imported_for_it_only() -> None:
    code = "import sys; from podsvid.cli import main; main(['node', '--help']); sys.exit('shtab' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0
