"""The exposed process: started with nothing but its end of the channel, and looked at before it is told anything."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.distrusted import begun
from runtime.stderr import hand_on

_log = logging.getLogger("podsvid.servers")
# glibc's arenas: one for each thread would reserve more than it uses.
_ARENAS = "2"


class NotConfined(Exception):
    """The process has more than it should."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """`user`: uid and gid of its own; `memory`: bytes, and `descriptors`: open files, that it may have; `nice`: by how
    much it gives way to the agent."""

    user: int
    memory: int
    descriptors: int
    nice: int = 0

    @property
    def strict(self) -> bool:
        """Whether nothing may be left to it: this process is root, and the user exists for it."""
        return os.geteuid() == 0 and is_mapped(self.user)

    @property
    def owner(self) -> int | None:
        """Who owns what it is to write into; None: the same user as this process."""
        return self.user if self.strict else None


class Exposed:
    """One exposed process. `start` makes it; `end` may be called at any time."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        end: socket.socket,
        confinement: Confinement,
        pidfd: int | None = None,
    ) -> None:
        self._process = process
        # What names the process for as long as it is open.
        self._pidfd = pidfd
        self._confinement = confinement
        self._listening = asyncio.create_task(self._listen(), name="exposed process's stderr")
        self.channel = end

    @classmethod
    async def start(cls, confinement: Confinement) -> "Exposed":
        """Start it. Raises OSError."""
        strict = "strict" if confinement.strict else "lenient"
        arguments = (os.getpid(), confinement.user, confinement.memory, confinement.descriptors, strict)
        process, ours = await begun("agent.exposed", *map(str, arguments), variables=[("MALLOC_ARENA_MAX", _ARENAS)])
        if confinement.nice:
            # Of its first thread, before there are others: they take it over. It may have ended already.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + confinement.nice)
        return cls(process, ours, confinement, pidfd_of(process.pid))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it was not seen to end."""
        return self._process.returncode is None

    def check(self) -> None:
        """Look whether it has given up what it said. Raises NotConfined, OSError."""
        check_status(Path(f"/proc/{self.pid}/status").read_text(encoding="ascii"), self._confinement)
        if not self._confinement.strict:
            return
        for name, what in (("net", "network"), ("mnt", "mounts")):
            if os.readlink(f"/proc/{self.pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}"):
                raise NotConfined(f"it has this process's {what}")

    async def end(self) -> str:
        """Kill it, if it is there, and answer how it ended."""
        self._kill()
        try:
            code = await self._process.wait()
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None
        await asyncio.wait([self._listening], timeout=1)
        self._listening.cancel()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            if self._pidfd is None:
                self._process.kill()
            else:
                # Popen.kill looks first whether it has ended; asyncio would never learn how then, and say 255.
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        await hand_on(self._process.stderr, _wrote)


def _wrote(line: str, more: Mapping[str, int]) -> None:
    _log.warning("the exposed process wrote", extra={"line": line, "said_by": "exposed", **more})


def pidfd_of(pid: int) -> int | None:
    """Names the process for as long as it is open; None before Linux 5.3, or where it has ended."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def check_status(status: str, confinement: Confinement) -> None:
    """Whether /proc/PID/status is that of a confined process. Raises NotConfined."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    wanted: dict[str, str] = {"CapEff": "0" * 16, "CapPrm": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    if confinement.strict:
        four = "\t".join([str(confinement.user)] * 4)
        wanted |= {"CapBnd": "0" * 16, "CapAmb": "0" * 16, "CapInh": "0" * 16, "Uid": four, "Gid": four, "Groups": ""}
    for name, value in wanted.items():
        if fields.get(name, "").strip() != value:
            raise NotConfined(f"{name} of the exposed process is {fields.get(name, 'not there')!r}, not {value!r}")


def is_mapped(user: int) -> bool:
    """Whether the user and the group of this number exist in this process's user namespace."""
    for name in ("uid_map", "gid_map"):
        lines = Path(f"/proc/self/{name}").read_text(encoding="ascii").splitlines()
        ranges = [(int(line.split()[0]), int(line.split()[2])) for line in lines]
        if not any(first <= user < first + length for first, length in ranges):
            return False
    return True
