"""Giving up: what this process could do beyond its descriptors is taken from it, for good.

To be called while it has one thread, has read nothing that a pod sent, and has loaded all that it needs: directories
are not listed any more, by which modules are found.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.exposed import root
from runtime import confining
from runtime.confining import call

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITIES = 64
_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
# Where its program is; the libraries are beside.
_PACKAGES = ("agent", "csi", "runtime", "svid")
# How likely the kernel is to end this process and not the agent when memory is short.
_OOM_SCORE = "500"
# What it has of its own where nobody else can be reached by a name or a path.
_NETWORK, _ROOT = "no network", "own root"


@dataclass(frozen=True, slots=True)
class Bounds:
    """`user`: uid and gid to become. `memory`: bytes. `descriptors`: how many may be open. `parent`: the agent.
    `strict`: every step must succeed that the kernel knows."""

    user: int
    memory: int
    descriptors: int
    parent: int
    strict: bool


class Refused(Exception):
    """A step did not succeed: the process must not go on."""


def confine(bounds: Bounds) -> tuple[tuple[str, ...], bool]:
    """Give up everything; answers what the host did not let it give up, and whether this process is alone: then it may
    connect, to itself. Raises Refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    if len(os.listdir("/proc/self/task")) != 1:
        raise Refused("there are threads already")
    lacking = []
    # Made while the program's files may be looked at, wherever they are.
    ruleset = confining.ruleset(libc, readable(), binds_sockets=True)

    def step(name: str, act: Callable[[], object], *, needed: bool) -> None:
        try:
            act()
        except (OSError, ValueError) as error:
            if needed:
                raise Refused(f"{name}: {error}") from None
            lacking.append(name)

    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    step(_NETWORK, lambda: call(libc.unshare, _CLONE_NEWNET | _CLONE_NEWIPC), needed=bounds.strict)
    step(_ROOT, lambda: _enter(libc), needed=bounds.strict)
    step("limits", lambda: _limit(bounds), needed=True)
    step("small stacks", lambda: confining.shrink_stacks(libc), needed=False)
    step("no bounding set", lambda: _empty_bounding_set(libc), needed=bounds.strict)
    step("own user", lambda: _become(bounds.user), needed=bounds.strict)
    step("no capabilities", lambda: _drop_capabilities(libc), needed=True)
    step("no new privileges", lambda: confining.no_new_privileges(libc), needed=True)
    step("not dumpable", lambda: call(libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0), needed=True)
    # A change of user takes this away.
    step("end with the agent", lambda: call(libc.prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), needed=True)
    if os.getppid() != bounds.parent:
        raise Refused("the agent has ended")
    if ruleset is None:
        lacking.append("no files")
    else:
        step("no files", lambda: confining.restrict(libc, ruleset), needed=True)
    alone = not {_NETWORK, _ROOT} & set(lacking)
    step("system calls", lambda: confining.refuse_calls(libc, connect=alone), needed=True)
    return tuple(lacking), alone


def _enter(libc: ctypes.CDLL) -> None:
    try:
        root.enter(libc, call, confining.program_paths(_PACKAGES))
    except root.Stranded as error:
        raise Refused(f"{_ROOT}: {error}") from None


def _limit(bounds: Bounds) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (bounds.memory, bounds.memory))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = bounds.descriptors if most == resource.RLIM_INFINITY else min(bounds.descriptors, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (found, found))
    # Not RLIMIT_NPROC: it counts all processes of the user on the whole node, and a pod may run as any user.
    os.umask(0o077)


def _empty_bounding_set(libc: ctypes.CDLL) -> None:
    for capability in range(_CAPABILITIES):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            if capability == 0 or number != errno.EINVAL:  # there are no more
                raise OSError(number, os.strerror(number))
            return


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    none = ctypes.create_string_buffer(24)
    call(libc.syscall, confining.number_of(_SYS_CAPSET), header, none)


def readable() -> Sequence[str]:
    """Where the program and its libraries are: all that may be read. Not sys.path, in which any folder could be."""
    return list(dict.fromkeys(os.path.realpath(path) for path in confining.program_paths(_PACKAGES)))
