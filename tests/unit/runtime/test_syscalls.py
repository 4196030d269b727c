"""The filter of system calls, run by hand for both machines: what it refuses, and that it refuses nothing needed."""

import errno
import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path

import pytest

from runtime.syscalls import MACHINES, Machine, program, refused

ALLOW, KILL = "allow", "kill"
PID = 4711
MAP_SHARED_VALIDATE, MAP_GROWSDOWN, MAP_STACK = 0x3, 0x100, 0x20000
CLONE_THREAD, CLONE_NEWUSER = 0x00010000, 0x10000000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# What serving sockets takes.
NEEDED = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "mmap": 9,
        "accept4": 288,
        "bind": 49,
        "listen": 50,
        "epoll_wait": 232,
        "futex": 202,
    },
    "aarch64": {"read": 63, "write": 64, "mmap": 222, "accept4": 242, "bind": 200, "listen": 201, "futex": 98},
}


def verdict(
    machine: Machine, number: int, *arguments: int, audit: int | None = None, connect: bool = False
) -> str | int:
    """What the kernel would do: allow, kill, or the error. As the kernel's own machine does it (bpf(2), classic)."""
    given = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, machine.audit if audit is None else audit, 0, *given)
    code = program(machine, PID, connect=connect)
    held = at = 0
    while True:
        what, then, otherwise, value = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if what == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        elif what == 0x54:
            held &= value
        elif what == 0x06:
            if value == 0x7FFF0000:
                return ALLOW
            return KILL if value == 0x80000000 else value & 0xFFFF
        else:
            met = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[what]
            at += then if met else otherwise


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_the_kernels(name: str) -> None:
    header = HEADERS[name]
    if not header.exists():
        pytest.skip("this host has no headers of the kernel")
    numbers = {}
    for line in header.read_text(encoding="ascii").splitlines():
        words = line.replace("__NR3264_", "__NR_").split()
        if len(words) == 3 and words[0] == "#define" and words[1].startswith("__NR_") and words[2].isdigit():
            numbers[words[1].removeprefix("__NR_")] = int(words[2])
    for call, number in refused(MACHINES[name]).items():
        # Newer than the headers.
        assert numbers.get(call, number) == number, call


@pytest.mark.parametrize("name", MACHINES)
def test_all_on_the_list_are_refused_and_what_serving_takes_is_not(name: str) -> None:
    machine = MACHINES[name]
    numbers = refused(machine)
    assert {
        "ptrace",
        "mount",
        "setns",
        "unshare",
        "execve",
        "bpf",
        "keyctl",
        "io_uring_setup",
        "shmget",
        "sched_setscheduler",
        "sched_setaffinity",
    } <= set(numbers)
    for call, number in numbers.items():
        assert verdict(machine, number) == errno.EPERM, call
    for call, number in NEEDED[name].items():
        assert verdict(machine, number) == ALLOW, call


@pytest.mark.parametrize(("name", "number"), [("x86_64", 42), ("aarch64", 203)])
def test_only_who_has_nobody_in_reach_may_connect(name: str, number: int) -> None:
    assert verdict(MACHINES[name], number) == errno.EPERM
    assert verdict(MACHINES[name], number, connect=True) == ALLOW


@pytest.mark.parametrize("name", MACHINES)
def test_another_machines_numbers_end_the_process(name: str) -> None:
    (other,) = (each for each in MACHINES if each != name)
    assert verdict(MACHINES[name], 0, audit=MACHINES[other].audit) == KILL
    assert verdict(MACHINES[name], 0, audit=0x40000003) == KILL  # i386
    if name == "x86_64":
        assert verdict(MACHINES[name], 0x40000000) == KILL  # x32
        assert verdict(MACHINES[name], 0x40000000 + 165) == KILL


@pytest.mark.parametrize(
    ("calls", "arguments", "wanted"),
    [
        ((56, 220), (CLONE_THREAD | 0xF00,), ALLOW),
        ((56, 220), (0x11,), errno.EPERM),
        ((56, 220), (CLONE_NEWUSER,), errno.EPERM),
        ((435, 435), (0,), errno.ENOSYS),
        ((437, 437), (0,), errno.ENOSYS),
        ((41, 198), (socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK), ALLOW),
        ((41, 198), (socket.AF_UNIX, socket.SOCK_DGRAM), errno.EPERM),
        ((41, 198), (socket.AF_UNIX, socket.SOCK_SEQPACKET), errno.EPERM),
        ((41, 198), (socket.AF_INET, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
        ((41, 198), (socket.AF_INET6, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
        ((41, 198), (socket.AF_NETLINK, socket.SOCK_RAW), errno.EAFNOSUPPORT),
        *(
            ((calls), (3, 0, *before, flags), wanted)
            for calls, before in (((44, 206), (0,)), ((46, 211), ()), ((307, 269), (0,)))
            for flags, wanted in ((socket.MSG_NOSIGNAL, ALLOW), (socket.MSG_FASTOPEN | 0x4000, errno.EPERM))
        ),
        ((72, 25), (3, fcntl.F_SETFL, os.O_NONBLOCK), ALLOW),
        ((72, 25), (3, fcntl.F_SETOWN, 1), errno.EPERM),
        ((72, 25), (3, 15, 0), errno.EPERM),
        ((16, 29), (3, 0x5421, 0), ALLOW),
        ((16, 29), (3, 0x8901, 0), errno.EPERM),
        ((16, 29), (3, 0x8902, 0), errno.EPERM),
        ((302, 261), (0, 7, 0, 0), ALLOW),
        ((302, 261), (1, 7, 0, 0), errno.EPERM),
        ((53, 199), (socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC), ALLOW),
        ((53, 199), (socket.AF_UNIX, socket.SOCK_DGRAM), errno.EPERM),
        ((53, 199), (socket.AF_UNIX, socket.SOCK_SEQPACKET), errno.EPERM),
        ((53, 199), (socket.AF_INET, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
        ((9, 222), (0, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), ALLOW),
        ((9, 222), (0, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_STACK), ALLOW),
        ((9, 222), (0, 4096, 1, mmap.MAP_SHARED), ALLOW),
        ((9, 222), (0, 4096, 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS), errno.EPERM),
        ((9, 222), (0, 4096, 3, MAP_SHARED_VALIDATE | mmap.MAP_ANONYMOUS), errno.EPERM),
        ((9, 222), (0, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_GROWSDOWN), errno.EPERM),
        ((257, 56), (0, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW),
        ((257, 56), (0, 0, os.O_WRONLY), errno.EACCES),
        ((257, 56), (0, 0, os.O_RDWR), errno.EACCES),
        ((257, 56), (0, 0, os.O_CREAT), errno.EACCES),
        ((257, 56), (0, 0, os.O_TRUNC), errno.EACCES),
        ((257, 56), (0, 0, os.O_PATH | os.O_CLOEXEC), errno.EACCES),
        ((234, 131), (PID, PID, 6), ALLOW),
        ((234, 131), (PID + 1, PID + 1, 9), errno.EPERM),
    ],
)
def test_some_are_refused_by_what_they_ask_for(
    calls: tuple[int, int], arguments: tuple[int, ...], wanted: str | int
) -> None:
    for machine, number in zip(MACHINES.values(), calls, strict=True):
        assert verdict(machine, number, *arguments) == wanted
        # Only the lower half counts for the kernel, too: what is above does not get past.
        high = tuple(each | 1 << 32 for each in arguments)
        assert verdict(machine, number, *high) == wanted


def test_open_of_x86_is_looked_into_as_openat_is() -> None:
    machine = MACHINES["x86_64"]
    assert verdict(machine, 2, 0, os.O_RDONLY) == ALLOW
    assert verdict(machine, 2, 0, os.O_WRONLY) == errno.EACCES
    assert verdict(machine, 2, 0, os.O_PATH) == errno.EACCES
