"""What a process that reads strangers' bytes takes from itself for good: files, system calls, programs with privileges.

Landlock and seccomp have no package that is alive; both are a few calls of the kernel.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Sequence

from runtime import syscalls

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
# The same numbers on all machines.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Not to list directories: from one that is open its receiver could walk up.
_READ_FILE = 1 << 2
_MAKE_SOCK = 1 << 9
# Rights that exist from each version on.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}
_TCP_RIGHTS, _SCOPES = 0b11, 0b11
# Bytes: of a thread's stack, and more than a pthread_attr_t has.
_STACK, _PTHREAD_ATTR = 1024 * 1024, 256


def call(function: Callable[..., int], *arguments: object) -> int:
    """Of the libc. Raises OSError where it answers less than 0."""
    answer = function(*arguments)
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def number_of(numbers: dict[str, int]) -> int:
    """That of this machine. Raises OSError where it is not known."""
    machine = os.uname().machine
    if machine not in numbers:
        raise OSError(None, "the system calls of this machine are not known")
    return numbers[machine]


def no_new_privileges(libc: ctypes.CDLL) -> None:
    """None by whatever program is run; what comes below needs it. Raises OSError."""
    call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def program_paths(packages: Iterable[str]) -> Sequence[str]:
    """Where `packages` of ours and the libraries are, by the names that they are found by, which may lead through
    links.

    All that such a process may read. Not sys.path, in which any folder could be.
    """
    own = [_folder(name) for name in packages]
    # Of a module of the standard library, and beside a package that was installed.
    installed = [os.path.dirname(os.__file__), os.path.dirname(_folder("grpc") or os.__file__)]
    libraries = [os.path.join(top, name) for top in ("/", "/usr") for name in ("lib", "lib64")]
    # gRPC seeds itself from there.
    devices = ["/dev/urandom", "/dev/random", "/dev/null"]
    found = [*installed, *(each for each in own if each), *libraries, *devices]
    return [each for each in dict.fromkeys(found) if os.path.exists(each)]


def ruleset(libc: ctypes.CDLL, readable: Iterable[str], *, binds_sockets: bool, binds_below: str = "") -> int | None:
    """A Landlock ruleset (Linux 5.13): no file but `readable` ones and what is below them, by whatever path or
    directory, no TCP, nobody else's signals. A descriptor; None where the kernel has none. Raises OSError.

    `binds_sockets`: to paths, in directories that it is handed. `binds_below`: only to those below that directory.
    """
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise OSError(number, os.strerror(number))
    rights = (1 << _FILE_RIGHTS[max(each for each in _FILE_RIGHTS if each <= version)]) - 1
    if binds_sockets:
        rights &= ~_MAKE_SOCK
    attributes = struct.pack("=QQQ", rights, _TCP_RIGHTS, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    made = call(libc.syscall, _LANDLOCK_CREATE, attributes[:size], ctypes.c_size_t(size), 0)
    try:
        for path in readable:
            _let(libc, made, path, _READ_FILE)
        if binds_below:
            _let(libc, made, binds_below, _MAKE_SOCK)
    except OSError:
        os.close(made)
        raise
    return made


def _let(libc: ctypes.CDLL, made: int, path: str, right: int) -> None:
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", right, found)
        call(libc.syscall, _LANDLOCK_ADD, made, 1, rule, 0)
    finally:
        os.close(found)


def restrict(libc: ctypes.CDLL, made: int) -> None:
    """To that ruleset, which is closed. Raises OSError."""
    try:
        call(libc.syscall, _LANDLOCK_RESTRICT, made, 0)
    finally:
        os.close(made)


def shrink_stacks(libc: ctypes.CDLL) -> None:
    """Of threads to come. The limit of data counts them whole, and what is not used of eight MiB is nobody's. Raises
    OSError."""
    attributes = ctypes.create_string_buffer(_PTHREAD_ATTR)
    for done in (
        libc.pthread_attr_init(attributes),
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK)),
        libc.pthread_setattr_default_np(attributes),
    ):
        if done != 0:
            raise OSError(done, os.strerror(done))


def refuse_calls(libc: ctypes.CDLL, *, connect: bool = False, needed: Collection[str] = ()) -> None:
    """Those of `syscalls`, but for `needed` ones. Raises OSError."""
    machine = syscalls.here()
    if machine is None:
        raise OSError(None, "the system calls of this machine are not known")
    code = syscalls.program(machine, os.getpid(), connect=connect, needed=needed)
    kept = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions of eight bytes, and where they are.
    given = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    call(libc.syscall, number_of(_SYS_SECCOMP), _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, given)


def _folder(package: str) -> str:
    """The folder of a package that was loaded; empty for one that was not."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return os.path.dirname(file) if file else ""
