"""What a host lacks for a setting: each kind, and that no text has more of a file than its name."""

import importlib.util
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from runtime import host
from svid.errors import InvalidBundle

SECRET = "c2VjcmV0LXNlY3JldA"


def raising(error: Exception) -> host.Lack | None:
    def read() -> None:
        raise error

    return host.usable("x is '/x'", read)


def test_a_file_is_said_to_be_wrong_without_what_is_in_it() -> None:
    assert host.usable("x", lambda: b"") is None
    assert raising(ValueError(f"{SECRET} is no key")) == host.Lack(
        "FILE_UNUSABLE", "x is '/x': it is not what belongs there"
    )
    assert raising(InvalidBundle("no certificate")) == host.Lack("INVALID_TRUST_BUNDLE", "x is '/x': no certificate")
    missing = FileNotFoundError(2, "No such file or directory", "/x")
    assert raising(missing) == host.Lack("NOT_FOUND", "x is '/x': it cannot be read: No such file or directory")
    denied = raising(PermissionError(13, "Permission denied", "/x"))
    assert denied is not None
    assert denied.reason == "PERMISSION_DENIED"


def test_what_hangs_is_said_and_left(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    wanted = host.Lack("NO_ANSWER", "x: no answer within 0.05 s; is it on a file system that hangs, or a pipe?")
    assert host.usable("x", pipe.read_bytes, 0.05) == wanted
    gate = threading.Event()

    def hangs() -> None:
        gate.wait(30)

    assert host.looked("x", hangs, 0.05) == wanted
    gate.set()
    assert host.looked("x", lambda: None) is None
    # Whoever reads it goes on, and ends.
    os.close(os.open(pipe, os.O_RDWR))


def test_a_port_is_free_or_taken_and_is_given_back() -> None:
    assert host.port("x", None) is None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = ("127.0.0.1", taken.getsockname()[1])
        found = host.port("x is it", address)
        assert found is not None
        assert (found.reason, found.text.startswith("x is it: 127.0.0.1:")) == ("ADDRESS_IN_USE", True)
    assert host.port("x", address) is None
    assert host.port("x", address) is None
    unknown = host.port("x", ("192.0.2.1", 1))
    assert unknown is not None
    assert unknown.reason == "ADDRESS_NOT_HERE"


def test_a_directory_may_be_there_or_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.directory("x", tmp_path) is None
    assert host.directory("x", tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for each in (tmp_path / "file", tmp_path / "file" / "below"):
        found = host.directory("x", each)
        assert found is not None
        assert found.reason == "IN_THE_WAY"
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", lambda *_: False)
        found = host.directory("x", tmp_path)
        assert found is not None
        assert found.reason == "PERMISSION_DENIED"
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 1000, 900, 900, 0, 255))
    without_inodes = os.statvfs_result((4096, 4096, 10000, 9000, 9000, 1000, 0, 0, 0, 255))
    for room in (full, without_inodes):
        monkeypatch.setattr(os, "statvfs", lambda _, room=room: room)
        found = host.directory("x", tmp_path)
        assert found is not None
        assert found.reason == "NO_SPACE"
    # Some file systems have no number of files.
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 10000, 9000, 9000, 0, 0, 0, 0, 255)))
    assert host.directory("x", tmp_path) is None


def test_what_a_reboot_empties() -> None:
    assert host.is_memory(Path("/dev/shm/podsvid-is-not-there")) == (
        subprocess.run(["stat", "-fc", "%T", "/dev/shm"], capture_output=True, text=True, check=True).stdout.strip()
        in ("tmpfs", "ramfs")
    )
    assert not host.is_memory(Path("/proc"))


def test_traces_need_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.tracing("x", None) is None
    assert host.tracing("x", "http://c:1") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = host.tracing("x is it", "http://c:1")
    assert found is not None
    assert (found.reason, "podsvid[tracing]" in found.text) == ("NOT_INSTALLED", True)


def test_a_path_that_cannot_be_looked_at_keeps_nothing_else_from_being_said(tmp_path: Path) -> None:
    """Whoever may not look into a directory above gets the same; root always may."""
    long = tmp_path / ("x" * 300) / "state"
    assert host.directory("x", long) is None
    assert host.is_memory(long) == host.is_memory(tmp_path)
