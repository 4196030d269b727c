"""Giving up: what this process could do beyond its descriptors is taken from it, for good.

To be called while it has one thread and has read nothing that a pod sent. All that is imported later has to be below
the directories that may still be read.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.exposed import root, syscalls

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITIES = 64
_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
# The same numbers on all machines.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Not to list directories: from one that is open its receiver could walk up.
_READ_FILE = 1 << 2
_MAKE_SOCK = 1 << 9
# Rights that exist from each version on.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}
_TCP_RIGHTS, _SCOPES = 0b11, 0b11
# Bytes of a thread's stack; and of a pthread_attr_t, with room.
_STACK, _PTHREAD_ATTR = 1024 * 1024, 256
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
    ruleset = _ruleset(libc)

    def step(name: str, act: Callable[[], object], *, needed: bool) -> None:
        try:
            act()
        except (OSError, ValueError) as error:
            if needed:
                raise Refused(f"{name}: {error}") from None
            lacking.append(name)

    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    step(_NETWORK, lambda: _call(libc.unshare, _CLONE_NEWNET | _CLONE_NEWIPC), needed=bounds.strict)
    step(_ROOT, lambda: _enter(libc), needed=bounds.strict)
    step("limits", lambda: _limit(bounds), needed=True)
    step("small stacks", lambda: _shrink_stacks(libc), needed=False)
    step("no bounding set", lambda: _empty_bounding_set(libc), needed=bounds.strict)
    step("own user", lambda: _become(bounds.user), needed=bounds.strict)
    step("no capabilities", lambda: _drop_capabilities(libc), needed=True)
    step("no new privileges", lambda: _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), needed=True)
    step("not dumpable", lambda: _call(libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0), needed=True)
    # A change of user takes this away.
    step("end with the agent", lambda: _call(libc.prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), needed=True)
    if os.getppid() != bounds.parent:
        raise Refused("the agent has ended")
    if ruleset is None:
        lacking.append("no files")
    else:
        step("no files", lambda: _call(libc.syscall, _LANDLOCK_RESTRICT, ruleset, 0), needed=True)
        os.close(ruleset)
    alone = not {_NETWORK, _ROOT} & set(lacking)
    step("system calls", lambda: _filter(libc, connect=alone), needed=True)
    return tuple(lacking), alone


def _call(function: Callable[..., int], *arguments: object) -> int:
    answer = function(*arguments)
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def _enter(libc: ctypes.CDLL) -> None:
    try:
        root.enter(libc, _call, _named())
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


def _shrink_stacks(libc: ctypes.CDLL) -> None:
    # Of threads to come. The limit of data counts them whole, and what is not used of eight MiB is nobody's.
    attributes = ctypes.create_string_buffer(_PTHREAD_ATTR)
    for done in (
        libc.pthread_attr_init(attributes),
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK)),
        libc.pthread_setattr_default_np(attributes),
    ):
        if done != 0:
            raise OSError(done, os.strerror(done))


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
    _call(libc.syscall, _number(_SYS_CAPSET), header, none)


def _ruleset(libc: ctypes.CDLL) -> int | None:
    """A Landlock ruleset (Linux 5.13): no file but those of the program, by whatever path or directory, no TCP, nobody
    else's signals. None where the kernel has none. Raises OSError."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise OSError(number, os.strerror(number))
    rights = (1 << _FILE_RIGHTS[max(each for each in _FILE_RIGHTS if each <= version)]) - 1
    # It binds sockets in directories that it is handed later.
    attributes = struct.pack("=QQQ", rights & ~_MAKE_SOCK, _TCP_RIGHTS, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(libc.syscall, _LANDLOCK_CREATE, attributes[:size], ctypes.c_size_t(size), 0)
    for path in readable():
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE, found)
        _call(libc.syscall, _LANDLOCK_ADD, ruleset, 1, rule, 0)
        os.close(found)
    return ruleset


def readable() -> Sequence[str]:
    """Where the program and its libraries are: all that may be read. Not sys.path, in which any folder could be."""
    return list(dict.fromkeys(os.path.realpath(path) for path in _named()))


def _named() -> Sequence[str]:
    """The same by the names that they are found by, which may lead through links."""
    own = [_folder(name) for name in ("agent", "csi", "runtime", "svid")]
    # Of a module of the standard library, and beside a package that was installed.
    installed = [os.path.dirname(os.__file__), os.path.dirname(_folder("grpc") or os.__file__)]
    libraries = [os.path.join(top, name) for top in ("/", "/usr") for name in ("lib", "lib64")]
    # gRPC seeds itself from there.
    devices = ["/dev/urandom", "/dev/random", "/dev/null"]
    found = [*installed, *(each for each in own if each), *libraries, *devices]
    return [each for each in dict.fromkeys(found) if os.path.exists(each)]


def _folder(package: str) -> str:
    """The folder of a package that was loaded; empty for one that was not."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return os.path.dirname(file) if file else ""


def _filter(libc: ctypes.CDLL, *, connect: bool) -> None:
    machine = syscalls.here()
    if machine is None:
        raise OSError(None, "the system calls of this machine are not known")
    code = syscalls.program(machine, os.getpid(), connect=connect)
    kept = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions of eight bytes, and where they are.
    given = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    _call(libc.syscall, _number(_SYS_SECCOMP), _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, given)


def _number(numbers: dict[str, int]) -> int:
    machine = os.uname().machine
    if machine not in numbers:
        raise OSError(None, "the system calls of this machine are not known")
    return numbers[machine]
