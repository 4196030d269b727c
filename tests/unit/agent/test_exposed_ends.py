"""How an exposed process ended is said, whoever was first to see it."""

import asyncio
import os
import signal
import socket
from pathlib import Path

from agent.servers.process import Confinement, Exposed, pidfd_of


async def started(script: str) -> Exposed:
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", script, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    ours, theirs = socket.socketpair()
    theirs.close()
    return Exposed(process, ours, Confinement(os.getuid(), 0, 0), pidfd_of(process.pid))


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_one_that_has_just_ended_by_itself_is_asked_how() -> None:
    """Many times: it takes another thread to see it end at the same moment."""

    async def main() -> None:
        for _ in range(100):
            exposed = await started("exit 75")
            while not is_over(exposed.pid):
                pass
            assert await exposed.end() == "exit code 75"
            exposed.channel.close()

    asyncio.run(main())


def test_one_that_is_there_is_killed_and_both_may_be_asked_twice() -> None:
    async def main() -> None:
        exposed = await started("exec sleep 1000")
        assert await exposed.end() == f"signal {int(signal.SIGKILL)}"
        assert await exposed.end() == f"signal {int(signal.SIGKILL)}"
        exposed.channel.close()

    asyncio.run(main())
