"""The system calls that a process for strangers may not make, as a seccomp filter: what a server does not need.

A list of what is refused and not of what is allowed: a newer libc or interpreter keeps working.
"""

import mmap
import os
import platform
import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_LOAD, _EQUAL, _GREATER_EQUAL, _SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EACCES, _EAFNOSUPPORT = 1, 38, 13, 97
# Of struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x00010000
_SOCK_TYPE_MASK = 0xF
# Who is signalled by a descriptor: F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP.
_OWNERS = (("fcntl", 1, (8, 15)), ("ioctl", 1, (0x8901, 0x8902)))
_MAP_GROWSDOWN = 0x100
_X32 = 0x40000000

# Name, number on x86_64, number on aarch64. All are refused with EPERM.
_REFUSED = """
# look into or signal other processes
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, process_mrelease 448
448, kcmp 312 272, pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424, kill 62 129, tkill 200 130,
rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240
# leave the group that it is ended with
setpgid 109 154, setsid 112 157
# become or make another program
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, personality 135 92, modify_ldt 154 -, iopl 172 -, ioperm 173
-
# mount, and change namespaces
mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428, move_mount 429 429, fsopen 430
430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442, unshare 272 97, setns 308 268
# give way more than it is told to: who waits for it would take it for one that gets no processor
setpriority 141 140, sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, sched_setaffinity 203
122, ioprio_set 251 30
# what the kernel is attacked by
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426,
io_uring_register 427 427, add_key 248 217, request_key 249 218, keyctl 250 219, memfd_create 319 279, memfd_secret
447 447, name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262, mbind 237 235, set_mempolicy
238 237, migrate_pages 256 238, move_pages 279 239
# memory that its limit does not count
shmget 29 194, shmat 30 196, msgget 68 186, semget 64 190, mq_open 240 180
# change files
creat 85 -, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, mknod 133 -, mknodat 259 33, mkdir 83 -,
mkdirat 258 34, rename 82 -, renameat 264 38, renameat2 316 276, truncate 76 45, ftruncate 77 46, chmod 90 -, fchmod
91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, setxattr 188 5,
lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
# what is the machine's
init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294,
reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, quotactl_fd 443 443, sethostname 170
161, setdomainname 171 162, settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266,
syslog 103 116, vhangup 153 58
"""
# Looked into, or refused in another way.
_SPECIAL = """
clone 56 220, clone3 435 435, socket 41 198, socketpair 53 199, open 2 -, openat 257 56, openat2 437 437, connect 42
203, tgkill 234 131, mmap 9 222, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, fcntl 72 25, ioctl 16 29, prlimit64
302 261
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of processor, as the kernel's auditing names it, and its numbers of system calls."""

    audit: int
    column: int

    def calls(self, table: str) -> Mapping[str, int]:
        """Name to number of those in `table` that this machine has."""
        lines = (line for line in table.splitlines() if not line.startswith("#"))
        words = " ".join(lines).replace(",", " ").split()
        rows = (words[at : at + 3] for at in range(0, len(words), 3))
        return {row[0]: int(row[self.column]) for row in rows if row[self.column] != "-"}


MACHINES: Mapping[str, Machine] = {"x86_64": Machine(0xC000003E, 1), "aarch64": Machine(0xC00000B7, 2)}


def refused(machine: Machine) -> Mapping[str, int]:
    """What is refused whatever its arguments are."""
    return machine.calls(_REFUSED)


def program(machine: Machine, pid: int, *, connect: bool = False, needed: Collection[str] = ()) -> bytes:
    """The filter as an array of struct sock_filter. `pid`: the only process that threads may be signalled of.
    `connect`: it may do that, having nobody in reach but itself. `needed`: what is not refused all the same."""
    special = machine.calls(_SPECIAL)
    code = [
        *_when(_ARCHITECTURE, _EQUAL, machine.audit, 1, 0),
        _do(_RETURN, _KILL),
        _do(_LOAD, _NUMBER),
    ]
    if machine.column == 1:
        # x86_64's other numbering of the same calls.
        code += [_jump(_GREATER_EQUAL, _X32, 0, 1), _do(_RETURN, _KILL)]
    for name, number in refused(machine).items():
        if name in needed:
            continue
        code += [_jump(_EQUAL, number, 0, 1), _do(_RETURN, _ERRNO | _EPERM)]
    if not connect:
        code += [_jump(_EQUAL, special["connect"], 0, 1), _do(_RETURN, _ERRNO | _EPERM)]
        # A send connects as well (TCP Fast Open), also on a listening socket that was shut down.
        for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            code += _looked_into(
                special[name], [*_when(_argument(flags), _SET, int(socket.MSG_FASTOPEN), 0, 1), _no(_EPERM)]
            )
    for name, asked, numbers in _OWNERS:
        checks = [[*_when(_argument(asked), _EQUAL, each, 0, 1), _no(_EPERM)] for each in numbers]
        code += _looked_into(special[name], [step for check in checks for step in check])
    # Its own limits, and nobody else's.
    code += _looked_into(special["prlimit64"], [*_when(_argument(0), _EQUAL, 0, 1, 0), _no(_EPERM)])
    # A libc that is told so makes threads by clone, whose flags can be looked at.
    for name in ("clone3", "openat2"):
        code += [_jump(_EQUAL, special[name], 0, 1), _do(_RETURN, _ERRNO | _ENOSYS)]
    code += _looked_into(special["clone"], [*_when(_argument(0), _SET, _CLONE_THREAD, 1, 0), _no(_EPERM)])
    code += _looked_into(special["tgkill"], [*_when(_argument(0), _EQUAL, pid, 1, 0), _no(_EPERM)])
    # Of two that are connected already one could still send to whatever path it names, were they of datagrams.
    for name in ("socket", "socketpair"):
        code += _looked_into(special[name], _streams_only())
    code += _looked_into(special["mmap"], _counted_only())
    # Landlock lets everybody have a handle of any place (O_PATH); whoever is sent it could walk on from there.
    unneeded = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_PATH
    for name, flags in (("open", 1), ("openat", 2)):
        if name in special:
            code += _looked_into(special[name], [*_when(_argument(flags), _SET, unneeded, 0, 1), _no(_EACCES)])
    code.append(_do(_RETURN, _ALLOW))
    return b"".join(code)


def _streams_only() -> list[bytes]:
    return [
        *_when(_argument(0), _EQUAL, int(socket.AF_UNIX), 1, 0),
        _no(_EAFNOSUPPORT),
        _do(_LOAD, _argument(1)),
        _do(_AND, _SOCK_TYPE_MASK),
        _jump(_EQUAL, int(socket.SOCK_STREAM), 1, 0),
        _no(_EPERM),
    ]


def _counted_only() -> list[bytes]:
    # RLIMIT_DATA counts neither memory that could be shared nor what grows as a stack does.
    return [
        *_when(_argument(3), _SET, _MAP_GROWSDOWN, 2, 0),
        _jump(_SET, mmap.MAP_ANONYMOUS, 0, 2),
        _jump(_SET, mmap.MAP_SHARED, 0, 1),
        _no(_EPERM),
    ]


def here() -> Machine | None:
    """The machine that this runs on; None when its numbers are not known."""
    return MACHINES.get(platform.machine())


def _argument(index: int) -> int:
    # The lower half of 64 bits: all that is looked at are ints of the kernel. Both machines are little endian.
    return _ARGUMENTS + 8 * index


def _do(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _no(error: int) -> bytes:
    return _do(_RETURN, _ERRNO | error)


def _jump(code: int, value: int, then: int, otherwise: int) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _when(offset: int, code: int, value: int, then: int, otherwise: int) -> list[bytes]:
    return [_do(_LOAD, offset), _jump(code, value, then, otherwise)]


def _looked_into(number: int, checks: list[bytes]) -> list[bytes]:
    """`checks` for one call; whoever comes to their end may make it."""
    return [_jump(_EQUAL, number, 0, len(checks) + 1), *checks, _do(_RETURN, _ALLOW)]
