"""Whether gRPC shows its connections is tried in a process of its own, whatever becomes of that."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

PROGRAM = """
import sys
from agent.socket import connections, proof

exec(sys.argv[1])
print(proof.begin().passed())
"""
# What a gRPC that is not the one this was made for is like.
OTHERS = {
    "connections have another number": "connections._TAKEN = 7",
    "the table is somewhere else": (
        "connections.Mutator.__int__ = lambda self: connections.ctypes.addressof(self._struct) + 8"
    ),
    "the table is not there": "connections.Mutator.__int__ = lambda self: 8",
    "the table has another order": (
        "kinds = connections._MutateInfo, connections._Compare, connections._Destroy, connections._Mutate\n"
        "class Other(connections.ctypes.Structure):\n"
        "    _fields_ = tuple(zip(('info', 'compare', 'destroy', 'mutate'), kinds))\n"
        "class Struct(connections.ctypes.Structure):\n"
        "    _fields_ = (('table', connections.ctypes.POINTER(Other)), ('references', connections.ctypes.c_ssize_t))\n"
        "connections._Table = lambda mutate, compare, destroy, info: Other(info, compare, destroy, mutate)\n"
        "connections._Struct = Struct"
    ),
    "it has no such argument": "proof.MUTATOR = 'grpc.other'",
    "it hangs": "proof._MOST = 1; proof.secrets.token_hex = lambda size: __import__('time').sleep(60)",
    "it ends by an error": "proof.secrets = None",
}


def tried(change: str) -> str:
    command = [sys.executable, "-c", PROGRAM, change]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout


def test_the_one_that_is_installed_shows_them() -> None:
    assert tried("pass") == "True\n"


@pytest.mark.parametrize("what", OTHERS)
def test_another_one_is_noticed_and_hurts_nobody(what: str) -> None:
    assert tried(OTHERS[what]) == "False\n"


def test_where_it_cannot_be_alone_nothing_is_tried() -> None:
    # Somebody else could connect to a process that has given up nothing.
    assert tried("proof._alone = lambda libc: False; proof._tell = None") == "True\n"
