"""A node that is full, with real mounts: who is refused, what is told, and what goes on."""

import asyncio
import json
import os
import subprocess
import sys

import grpc
import pytest

from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume, VolumeState
from tests.support import IS_ROOT, ROOT, VOLUME, Host, first, node, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")


async def refused(kubelet: StandInKubelet, wanted: Pod, volume: PodVolume, reason: str) -> str:
    """The text in the pod's event of a publish that kubelet will try again."""
    with pytest.raises(PublishFailed) as caught:
        await kubelet.publish(wanted, volume)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not caught.value.final
    assert reason in str(caught.value)
    assert kubelet.state(wanted, volume) is VolumeState.UNCERTAIN
    return str(caught.value)


def explained(here: Host, of: Pod) -> str:
    command = [sys.executable, "-m", "podsvid", "node", "explain", f"{of.namespace}/{of.name}"]
    environment = {**os.environ, "PODSVID_RUN_DIR": str(here.base / "r")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    ).stdout


def test_a_full_node_mounts_nothing_more_until_a_volume_goes() -> None:
    async def main() -> None:
        async with node("--volumes", "2") as (here, kubelet):
            running = [pod("a"), pod("b")]
            targets = [await kubelet.publish(each, VOLUME) for each in running]
            late = pod("late")
            mounts = here.mounts()
            text = await refused(kubelet, late, VOLUME, "NODE_FULL")
            assert "2 of 2 volumes" in text
            assert here.mounts() == mounts
            assert not kubelet.target_path(late, VOLUME).exists()
            assert "NODE_FULL" in explained(here, late)
            # Who has a volume keeps it, through kubelet's next publish too.
            await kubelet.republish(running[0], VOLUME)
            assert (await first(here.short(targets[0]) / "socket")).svids
            # A refused pod that is deleted is unpublished, and is none the others' place.
            assert await kubelet.unpublish(late, VOLUME)
            await refused(kubelet, pod("later"), VOLUME, "NODE_FULL")
            await kubelet.unpublish(running[0], VOLUME)
            await kubelet.publish(pod("last"), VOLUME)

    asyncio.run(main())


def test_one_pods_volumes_keep_no_other_pod_from_starting() -> None:
    async def main() -> None:
        async with node("--volumes", "8", "--pod-volumes", "7") as (here, kubelet):
            greedy = pod("greedy")
            got = 0
            for number in range(10):
                try:
                    await kubelet.publish(greedy, PodVolume(name=f"v{number}"))
                    got += 1
                except PublishFailed as failed:
                    assert "kept for pods without a volume" in str(failed)
            assert got == 6
            for name in ("a", "b"):
                await kubelet.publish(pod(name), VOLUME)
            assert len(here.mounts()) == 8

    asyncio.run(main())


def test_a_pod_has_so_many_volumes_and_what_they_weigh_is_bounded() -> None:
    async def main() -> None:
        async with node("--pod-volumes", "2", "--volumes-memory", "1") as (here, kubelet):
            greedy = pod("greedy")
            for number in range(2):
                await kubelet.publish(greedy, PodVolume(name=f"v{number}"))
            assert "POD_FULL: pod default/greedy has 2" in await refused(kubelet, greedy, VOLUME, "POD_FULL")
            names: list[str] = []
            for number in range(20):
                try:
                    await kubelet.publish(pod(f"p{number}"), VOLUME)
                    names.append(f"p{number}")
                except PublishFailed as failed:
                    assert "volumes_memory" in str(failed)
                    break
            # Of some 100 KiB each.
            assert 4 < len(names) < 12
            assert len(here.mounts()) == 2 + len(names)

    asyncio.run(main())


def test_volumes_of_an_agent_before_count_for_the_next_one() -> None:
    async def main() -> None:
        async with node("--volumes", "4") as (here, kubelet):
            for name in ("a", "b"):
                await kubelet.publish(pod(name), VOLUME)
            here.kill()
            here.start("--volumes", "2")
            await kubelet.wait_deregistered()
            await kubelet.wait_registered()
            await refused(kubelet, pod("late"), VOLUME, "NODE_FULL")
            events = [json.dumps(each) for each in here.events()]
            assert not [each for each in events if "unexpectedly" in each]

    asyncio.run(main())
