"""Programs that watch a file of a volume by itself, on a real tmpfs under a real agent."""

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inotify import MASKS, watching
from tests.support import DEADLINE, IS_ROOT, ROOT, VOLUME, Host, node, pod, serial

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")


def rotate(here: Host, name: str) -> None:
    """Have the pod's SVID renewed now, files included."""
    admin = str(here.base / "r" / "admin.sock")
    command = [sys.executable, "-m", "podsvid", "node", "rotate", f"default/{name}", "--socket", admin]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=DEADLINE)


async def only_one(target: Path) -> None:
    """Until there is nothing but the present files."""
    async with asyncio.timeout(DEADLINE):
        while [path.name for path in target.glob("..2*")] != [os.readlink(target / "..data")]:
            await asyncio.sleep(0.05)


def test_each_rotation_wakes_who_watches_the_certificate_and_leaves_no_older_key() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod("web"), VOLUME)
            serials = [serial(target)]
            with watching(target / "tls.crt", MASKS["fsnotify"]) as watch:
                for _ in range(3):
                    await asyncio.to_thread(rotate, here, "web")
                    ready, _, _ = await asyncio.to_thread(select.select, [watch], [], [], DEADLINE)
                    assert ready, "it goes on with the certificate before"
                    assert watch.events()
                    serials.append(serial(target))
                    await only_one(target)
                    watch.events()
            assert len(set(serials)) == 4
            # What an agent left that was killed in between is the next one's.
            await asyncio.to_thread(rotate, here, "web")
            here.kill()
            here.start()
            await only_one(target)
            assert here.stop() == 0

    asyncio.run(run())
