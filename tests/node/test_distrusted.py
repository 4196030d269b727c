"""A process that may be somebody else's ends with all that it began."""

import asyncio
import sys
from pathlib import Path

import pytest

from runtime.distrusted import put_down

SECONDS = 10.0
# It begins another one in its group, says which, and ends, or hangs and does not want to.
BEGINS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(other.pid, file=sys.stderr, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


def there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("stays", "patience", "how"), [("0", SECONDS, "exit code 3"), ("1000", 0.01, "signal 9")])
def test_what_it_began_ends_with_it(stays: str, patience: float, how: str) -> None:
    async def run() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BEGINS, stays, stderr=asyncio.subprocess.PIPE, process_group=0
        )
        assert process.stderr is not None
        stderr = process.stderr
        other = int(await stderr.readline())

        async def relayed() -> None:
            await stderr.read()

        handing_on = asyncio.create_task(relayed())
        assert there(other)
        assert await put_down(process, handing_on, patience) == how
        assert handing_on.done()
        async with asyncio.timeout(SECONDS):
            while there(other):
                await asyncio.sleep(0.01)

    asyncio.run(run())
