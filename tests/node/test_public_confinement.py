"""What a stranger who has got into the process of the public listeners can do there, tried from inside."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from signer.public.confinement import NO_CALLS, NO_FILES
from svid.authority import X509Authority
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import TrustDomain
from tests.support import ROOT

# What whoever is in it tries; each line says what came of it.
INSIDE = """
import ctypes, fcntl, json, os, resource, signal, socket, sys
from runtime.child import harden
from signer.public import tls
from signer.public.confinement import confine
from signer.public.shown import Pair

told = json.load(sys.stdin)
harden()
lacking = confine()
libc = ctypes.CDLL(None, use_errno=True)

def tried(act):
    try:
        act()
    except OSError as error:
        return error.errno
    return 0

def called(name, *arguments):
    def act():
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
    return act

tls.context(Pair(told["chain"].encode(), told["key"].encode()))
listening = socket.socket(fileno=told["listening"])
listening.accept()[0].sendall(b"served")
signer = os.getppid()
print(json.dumps({
    "lacking": lacking,
    "read": tried(lambda: os.open(told["secret"], os.O_RDONLY)),
    "handle": tried(lambda: os.open(told["secret"], os.O_PATH)),
    "write": tried(lambda: os.open(told["folder"] + "/new", os.O_WRONLY | os.O_CREAT)),
    "list": tried(lambda: os.listdir(told["folder"])),
    "environment": tried(lambda: os.open(f"/proc/{os.getppid()}/environ", os.O_RDONLY)),
    "connect": tried(lambda: socket.socket(fileno=told["calling"]).connect(("127.0.0.1", told["port"]))),
    "call": tried(lambda: socket.socket()),
    "connect by a send": tried(lambda: (
        listening.shutdown(socket.SHUT_RD),
        listening.sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", told["other"])),
    )),
    "limit": tried(lambda: resource.prlimit(signer, resource.RLIMIT_CORE, (0, 0))),
    "own": tried(lambda: fcntl.fcntl(told["calling"], fcntl.F_SETOWN, signer)),
    "leave the group": tried(lambda: os.setpgid(0, 0)),
    "leave the session": tried(os.setsid),
    "fork": tried(os.fork) if hasattr(os, "fork") else 1,
    "run": tried(lambda: os.execv("/bin/true", ["true"])),
    "end": tried(lambda: os.kill(os.getppid(), signal.SIGTERM)),
    "look": tried(called("ptrace", 16, os.getppid(), 0, 0)),
    "mount": tried(called("unshare", 0x10000000)),
}))
"""


def inside(folder: Path) -> Mapping[str, object]:
    """What came of each of them."""
    now = datetime.now(UTC)
    authority = X509Authority.create(
        TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=now
    )
    secret = folder / "token"
    secret.write_text("of the signer")
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket() as calling,
        socket.socket() as client,
    ):
        told = {
            "chain": to_pem(authority.chain).decode(),
            "key": key_to_pem(authority.private_key).decode(),
            "secret": str(secret),
            "folder": str(folder),
            "listening": listening.fileno(),
            "calling": calling.fileno(),
            "port": listening.getsockname()[1],
            "other": other.getsockname()[1],
        }
        client.connect(listening.getsockname())
        done = subprocess.run(
            [sys.executable, "-c", INSIDE],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            cwd=ROOT,
            pass_fds=(listening.fileno(), calling.fileno()),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert client.recv(16) == b"served"
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    found: Mapping[str, object] = json.loads(done.stdout)
    return found


def test_whoever_takes_it_over_reads_nothing_connects_nowhere_and_ends_nobody(tmp_path: Path) -> None:
    found = dict(inside(tmp_path))
    lacking = found.pop("lacking")
    assert isinstance(lacking, list)
    files = ["read", "handle", "write", "list", "environment"]
    if NO_FILES in lacking:
        # A kernel before 5.13: handles and writing are refused as system calls all the same.
        files = ["handle", "write"]
    assert not [each for each in files if found[each] == 0], found
    assert NO_CALLS not in lacking
    assert not [each for each in found if each not in ("read", "list", "environment") and found[each] == 0], found
    assert os.listdir(tmp_path) == ["token"]
