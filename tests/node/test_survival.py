"""An agent that starts under what a dead one left, in a memory cgroup: it makes room, and what goes can go."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from bench.limited import Limited, limited
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod
from tests.ports import free_port
from tests.support import DEADLINE, IS_ROOT, VOLUME, Host, first, host, pod, serial

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts and a memory cgroup on this host: run as root")
MIB = 1024 * 1024
PODS = 12


@asynccontextmanager
async def left_behind(group: Limited) -> AsyncIterator[tuple[Host, StandInKubelet, list[Pod], list[Path]]]:
    """A node whose agent was killed, with the volumes of some pods."""
    with host() as here:
        here.start(within=group.command)
        kubelet = StandInKubelet(here.kubelet_root)
        await kubelet.start()
        try:
            await kubelet.wait_registered()
            pods = [pod(f"p{number}", f"sa{number}") for number in range(PODS)]
            targets = [await kubelet.publish(each, VOLUME) for each in pods]
            here.kill()
            yield here, kubelet, pods, targets
        finally:
            await kubelet.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():
            await asyncio.sleep(0.02)


async def page(port: int, path: str) -> str:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


def older(target: Path) -> list[str]:
    return [name for name in os.listdir(target) if name.startswith("..2") and name != os.readlink(target / "..data")]


@pytest.mark.timeout(180)
def test_without_memory_to_serve_what_is_left_kubelet_takes_it_away_and_the_rest_comes_back() -> None:
    """Headroom stands for memory that is used: half of it is needed to pick volumes up."""

    async def main() -> None:
        with limited(300 * MIB) as group:
            async with left_behind(group) as (here, kubelet, pods, targets):
                serials = [serial(target) for target in targets]
                older_files = targets[0] / "..2020_01_01_00_00_00.00000000"
                older_files.mkdir()
                (older_files / "tls.key").write_bytes(bytes(MIB))
                port = free_port()
                here.start("--memory-headroom", "600", "--metrics-listen", f"127.0.0.1:{port}", within=group.command)
                await kubelet.wait_deregistered()
                await kubelet.wait_registered()
                # Room was made before anything else.
                assert older(targets[0]) == []
                assert (targets[0] / "tls.key").exists()

                async def waits() -> bool:
                    return f"{PODS} volumes of an earlier agent" in await page(port, "/readyz")

                await until(waits)
                with pytest.raises(PublishFailed, match=r"NODE_FULL.*its files stay") as caught:
                    await kubelet.publish(pods[0], VOLUME)
                assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                for each in pods[: PODS // 2]:
                    await kubelet.unpublish(each, VOLUME)
                assert len(here.mounts()) == len(here.journal()) == PODS - PODS // 2
                waiting = re.compile(rf"^podsvid_volumes_waiting {float(PODS - PODS // 2)}$", re.MULTILINE)

                async def told() -> bool:
                    return waiting.search(await page(port, "/metrics")) is not None

                await until(told)
                assert [each["event"] for each in here.events() if each["event"].startswith("volumes of an earlier")]
                name = "memory.limit_in_bytes" if group.version == 1 else "memory.max"
                (group.folder / name).write_text(str(4096 * MIB))

                async def ready() -> bool:
                    return "200 OK" in await page(port, "/readyz")

                await until(ready)
                for number in range(PODS // 2, PODS):
                    assert (await first(here.short(targets[number]) / "socket")).svids
                    assert serial(targets[number]) == serials[number]
                assert group.killed() == 0

    asyncio.run(main())


@pytest.mark.timeout(180)
def test_a_start_needs_no_more_memory_than_the_run_before() -> None:
    async def main() -> None:
        with limited(512 * MIB) as group, host() as here:
            here.start(within=group.command)
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await kubelet.wait_registered()
                for number in range(150):
                    await kubelet.publish(pod(f"p{number}", f"sa{number}"), VOLUME)
                before = group.peak()
                if not before:
                    pytest.skip("this kernel does not tell the peak of a cgroup (memory.peak is of Linux 5.19)")
                here.kill()
                here.start(within=group.command)
                await kubelet.wait_deregistered()
                await kubelet.wait_registered()
                # A tenth for what the allocator happens to do.
                assert group.peak() <= before * 1.1

    asyncio.run(main())
