"""Programs that follow their certificate by watching its file, which others wrote: none serves one that has ended."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.test_clients import lines_of
from tests.conformance.test_nginx import CONFIG, NGINX, request
from tests.inotify import MASKS, watching
from tests.ports import free_port
from tests.processes import end
from tests.support import IS_ROOT, VOLUME, node, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
# Certificates that are seen, the first one included; ten rotations take two minutes.
SEEN = int(os.environ.get("TESTS_WATCHED_ROTATIONS", "3")) + 1
HERE = Path(__file__).parent
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Watcher:
    """How a volume is followed until SEEN certificates were served, and how many were; fails when one has ended."""

    name: str
    follow: Callable[[Mapping[str, Path], Path], Awaitable[int]]
    absent: str = ""


def program(how: str) -> Watcher:
    """One of the Go programs."""
    return Watcher(how, lambda tools, target: served_by(str(tools["watchers"]), how, str(target)))


async def served_by(*command: str) -> int:
    (line,) = await lines_of(*command, str(SEEN))
    print(*command, line)
    return int(line["serials"])


async def nginx(_: Mapping[str, Path], target: Path) -> int:
    """Told to read its files again by a watch of `tls.crt` alone; asked by a client that verifies what it serves."""
    serials: set[str] = set()
    with tempfile.TemporaryDirectory() as name, watching(target / "tls.crt", MASKS["delete_self"]) as watch:
        base, port = Path(name), free_port()
        (base / "nginx.conf").write_text(CONFIG.format(base=base, port=port, volume=target))
        process = subprocess.Popen([str(NGINX), "-p", name, "-c", str(base / "nginx.conf")])
        try:
            while not (base / "nginx.pid").exists():
                assert process.poll() is None, "nginx ended"
                await asyncio.sleep(LOOK_SECONDS)
            while len(serials) < SEEN:
                if watch.events():
                    process.send_signal(signal.SIGHUP)
                serials.add((await request(port, target))[1])
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            end(process)
    return len(serials)


WATCHERS = (
    program("certwatcher"),
    program("fsnotify"),
    Watcher(
        "WatchService",
        lambda _, target: served_by("java", str(HERE / "Watch.java"), str(target)),
        # It is compiled when it is started.
        "" if shutil.which("javac") else "needs a JDK: apt-get install default-jdk-headless",
    ),
    Watcher("nginx", nginx, "" if NGINX else "needs nginx: apt-get install nginx-light"),
)


@pytest.fixture(scope="module")
def seen(go_tools: Mapping[str, Path]) -> Mapping[str, int]:
    """How many certificates each watcher on this machine served, side by side."""

    async def run() -> Mapping[str, int]:
        present = [watcher for watcher in WATCHERS if not watcher.absent]
        async with node(ttl="20s") as (_, kubelet), asyncio.TaskGroup() as group:
            following = {}
            for watcher in present:
                target = await kubelet.publish_until(pod(watcher.name.lower(), watcher.name.lower()), VOLUME)
                following[watcher.name] = group.create_task(_followed(watcher, go_tools, target))
            return {name: await task for name, task in following.items()}

    return asyncio.run(run())


async def _followed(watcher: Watcher, tools: Mapping[str, Path], target: Path) -> int:
    return await watcher.follow(tools, target)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("watcher", WATCHERS, ids=lambda watcher: watcher.name)
def test_each_rotation_is_seen_by_who_watches_the_file(watcher: Watcher, seen: Mapping[str, int]) -> None:
    if watcher.absent:
        pytest.skip(watcher.absent)
    assert seen[watcher.name] == SEEN
