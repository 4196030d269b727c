"""What is done to the node. Each function is one kind of fault, by the name that tests.chaos.plan gives it.

A fault does its harm, takes it back where that is somebody else's part (space is freed, a process is started again),
and returns; `World.settle` then waits for everything to be well.
"""

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc.aio

from podsvid.quickstart.errors import StandInError
from tests.chaos.apart import kill_agent_apart, kill_apart, kill_waiting
from tests.chaos.link import Mode
from tests.chaos.world import BOUND, FIRST_OFFSET, LAST_OFFSET, TTL, Running, Signer, World
from tests.support import DRIVER

# Seconds for which renewals may be impossible without any SVID ending: half of its life, less what a busy machine
# takes to catch up.
BEARABLE = TTL / 2 - 20.0
# A signer begins its workers later each time, up to half a minute, which SVIDs of this life cannot do without any; so
# often it takes less than BEARABLE.
WORKER_KILLS = 6


async def kill(world: World) -> None:
    world.kill_agent()
    await asyncio.sleep(world.rng.uniform(0.0, 2.0))
    await _agent_again(world)


async def kill_publishing(world: World) -> None:
    new = [world.source.next_pod() for _ in range(4)]
    publishing = await world.within(
        0.2, asyncio.gather(*(world.kubelet.publish_until(*each, timeout=BOUND) for each in new))
    )
    world.kill_agent()
    await _agent_again(world)
    for (each, volume), target in zip(new, await publishing, strict=True):
        world.published(each, volume, target)
    for name in world.pick(4):
        await world.remove(name)


async def kill_unpublishing(world: World) -> None:
    going = [await world.forget(name) for name in world.pick(4)]
    removing = await world.within(
        0.1,
        asyncio.gather(*(world.kubelet.unpublish_until(each.pod, each.volume, timeout=BOUND) for each in going)),
    )
    world.kill_agent()
    await _agent_again(world)
    await removing
    await asyncio.gather(*(world.add() for _ in going))


async def kill_renewing(world: World) -> None:
    rotating = await world.within(0.15, world.rotate(world.pick(12)))
    world.kill_agent()
    await rotating
    await _agent_again(world)


async def kill_server(world: World) -> None:
    """The process that serves sockets, while volumes are renewed, published and taken away."""
    rotating = await world.within(0.1, world.rotate(world.pick(6)))
    new = world.source.next_pod()
    publishing = asyncio.create_task(world.kubelet.publish_until(*new, timeout=BOUND))
    (going,) = world.pick(1)
    for _ in range(world.rng.choice((1, 1, 3))):
        world.kill_server()
        await asyncio.sleep(world.rng.uniform(0.0, 1.5))
    await world.remove(going)
    world.published(*new, await publishing)
    await rotating


async def pause_server(world: World) -> None:
    # One that is needed no more, or answers too late, is ended by the agent meanwhile.
    with suppress(ProcessLookupError), world.stopped(world.server):
        await asyncio.sleep(world.rng.uniform(0.2, 3.0))


async def stop(world: World) -> None:
    code = await asyncio.to_thread(world.host.stop)
    assert code == 0, f"the agent ended with {code} at SIGTERM"
    await _agent_again(world)


async def pause(world: World) -> None:
    await _paused(world, world.agent)


async def restart_kubelet(world: World) -> None:
    await world.kubelet.restart(registered_within=BOUND, timeout=BOUND)


async def churn(world: World) -> None:
    names = world.pick(6)
    await asyncio.gather(*(world.remove(name) for name in names))
    await asyncio.gather(*(world.add() for _ in names))


async def delete_while_publishing(world: World) -> None:
    new = [world.source.next_pod() for _ in range(3)]
    for each, volume in new:
        publishing = await world.within(0.03, world.kubelet.publish(each, volume))
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await world.kubelet.unpublish_until(each, volume, timeout=BOUND)
        assert not world.kubelet.target_path(each, volume).exists()


async def publish_twice(world: World) -> None:
    """Two kubelets' connections at once: one may be told to come back, and there is one mount in the end."""
    each, volume = world.source.next_pod()
    first = asyncio.create_task(world.kubelet.publish_until(each, volume, timeout=BOUND))
    request = world.kubelet.publish_request(each, volume)
    for _ in range(3):
        with suppress(grpc.aio.AioRpcError):
            await world.kubelet.call("NodePublishVolume", request)
    world.published(each, volume, await first)
    await world.remove(world.pick(1)[0])


async def fill_volume(world: World) -> None:
    (name,) = world.pick(1)
    # Kubelet's call after a restart may have come before the agent was registered again, and without a token nothing is
    # minted.
    await world.republish(world.running[name])
    target = world.running[name].target
    filling = target / "filling"
    # What was replaced gives way to what is written: a volume is full when there is nothing of that.
    async with asyncio.timeout(BOUND):
        while True:
            _fill(filling)
            if len(list(target.glob("..2*"))) == 1:
                break
            filling.unlink()
            await asyncio.sleep(0.1)
    try:
        failed = await world.rotate([name])
        assert failed, "a renewal was written into a full volume"
        assert "WRITE_FAILED" in failed[0] or "No space left" in failed[0], failed
    finally:
        filling.unlink()


async def fill_run_dir(world: World) -> None:
    filling = world.run_dir / "filling"
    _fill(filling)
    try:
        await _publishing_fails_or_works(world)
        await world.rotate(world.pick(3))
    finally:
        filling.unlink()


async def exhaust_inodes(world: World) -> None:
    filling = world.run_dir / "filling"
    filling.mkdir()
    with suppress(OSError):
        for number in range(10_000):
            (filling / str(number)).touch()
    try:
        await _publishing_fails_or_works(world)
        await world.rotate(world.pick(3))
    finally:
        for path in filling.iterdir():
            path.unlink()
        filling.rmdir()


async def make_run_dir_read_only(world: World) -> None:
    # The journal's part of it: a file system with a file open for writing, the lock, cannot be made read-only.
    journal = str(world.run_dir / "journal")
    subprocess.run(["mount", "--bind", journal, journal], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", journal], check=True)
        await _publishing_fails_or_works(world)
        await world.rotate(world.pick(3))
    finally:
        subprocess.run(["umount", "-l", journal], check=True)


async def exhaust_descriptors(world: World) -> None:
    soft, hard = resource.prlimit(world.agent, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{world.agent}/fd"))
    resource.prlimit(world.agent, resource.RLIMIT_NOFILE, (used + world.rng.randrange(0, 12), hard))
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await _publishing_fails_or_works(world)
    finally:
        resource.prlimit(world.agent, resource.RLIMIT_NOFILE, (soft, hard))


async def step_clock(world: World) -> None:
    step = world.rng.choice([-1, 1]) * world.rng.choice([60, 600, 3600, 86_400, 3 * 86_400]) * world.rng.uniform(0.9, 1)
    with world.excused():
        world.set_clock(min(max(world.ahead + step, FIRST_OFFSET), LAST_OFFSET))


async def damage_journal(world: World) -> None:
    world.kill_agent()
    folder = world.run_dir / "journal"
    names = [f"{world.running[name].volume_id}.json" for name in world.pick(world.rng.choice([1, 5, 40]))]
    foreign = (folder / names[0]).read_bytes()
    for name in names:
        how = world.rng.choice(["cut", "noise", "foreign", "gone", "nested", "empty"])
        path = folder / name
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(_damaged(how, path.read_bytes(), foreign, world.rng))
    (folder / "not-ours.json").write_text(json.dumps({"version": 1}))
    (folder / "not-ours.txt").write_text("x")
    await _agent_again(world)
    for path in folder.glob("not-ours*"):
        path.unlink()


async def damage_files(world: World) -> None:
    names = world.pick(world.rng.choice([1, 3]))
    with world.excused(*names):
        world.kill_agent()
        for name in names:
            data = world.running[name].target / "..data"
            which = world.rng.choice([".state.json", "tls.key", "tls.crt", "ca.crt", "bundle.json", "..data"])
            if which == "..data":
                data.unlink()
                continue
            path = data / which
            how = world.rng.choice(["cut", "noise", "gone", "empty"])
            if how == "gone":
                path.unlink()
            else:
                path.write_bytes(_damaged(how, path.read_bytes(), b"", world.rng))
        await _agent_again(world)


async def unmount(world: World) -> None:
    names = world.pick(2)
    with world.excused(*names):
        for name in names:
            subprocess.run(["umount", "-l", str(world.running[name].target)], check=True)


async def remove_socket(world: World) -> None:
    for name in world.pick(3):
        with suppress(FileNotFoundError):
            (world.running[name].target / "socket").unlink()


# --- the signer and the way to it


async def kill_signer(world: World) -> None:
    signer = _signer(world)
    signer.kill()
    await asyncio.sleep(world.rng.uniform(0.0, BEARABLE / 2))
    await signer.run()


async def kill_worker(world: World) -> None:
    """That one by which the agent asks, amid renewals that it asks for together."""
    await _kill_workers(world, 1)


async def kill_workers(world: World) -> None:
    """All of them: nobody is served until others are there."""
    await _kill_workers(world, 2)


async def pause_worker(world: World) -> None:
    """For less than it may be silent, so that it goes on."""
    signer = _signer(world)
    async with asyncio.timeout(BOUND):
        # Of a fault before others may only be on their way.
        while not (workers := signer.workers()):
            await asyncio.sleep(0.1)
    with world.stopped(workers[0]):
        await asyncio.sleep(world.rng.uniform(0.2, BEARABLE))


async def pause_signer(world: World) -> None:
    signer = _signer(world)
    assert signer.process is not None
    await _paused(world, signer.process.pid)


async def cut_link(world: World) -> None:
    await _link(world, Mode.CUT, BEARABLE)


async def stall_link(world: World) -> None:
    await _link(world, Mode.STALLED, BEARABLE / 2)


async def slow_link(world: World) -> None:
    await _link(world, Mode.SLOW, BEARABLE)


async def lose_connections(world: World) -> None:
    await _link(world, Mode.LOSSY, BEARABLE)


async def publish_without_signer(world: World) -> None:
    """A new pod waits and starts by itself."""
    link = _signer(world).link
    link.become(Mode.CUT)
    new = asyncio.create_task(world.add())
    await asyncio.sleep(world.rng.uniform(1.0, BEARABLE / 2))
    assert not new.done(), "a pod started without the signer"
    link.become(Mode.WHOLE)
    await new
    await world.remove(world.pick(1)[0])


# --- parts


async def _agent_again(world: World) -> None:
    world.start_agent()
    # The old registration socket is replaced: kubelet has to see both, or it registers nobody.
    await world.kubelet.wait_registered(DRIVER, timeout=BOUND)


async def _paused(world: World, pid: int) -> None:
    """Mostly as long as nothing ends; sometimes so long that everything does."""
    if world.rng.random() < 0.15:
        seconds = world.rng.choice([TTL * 1.2, 120.0]) if world.patient else TTL * 1.2
        with world.excused(), world.stopped(pid):
            await asyncio.sleep(seconds)
        return
    with world.stopped(pid):
        await asyncio.sleep(world.rng.uniform(0.2, BEARABLE / 2))


async def _kill_workers(world: World, number: int) -> None:
    signer, names = _signer(world), world.pick(12)
    for name in names:
        # Kubelet's call after a restart may not have come yet, and without a token nothing is minted.
        await world.republish(world.running[name])
    before = {name: world.serial(name) for name in names}
    rotating = await world.within(0.15, world.rotate(names))
    for pid in signer.workers()[:number]:
        os.kill(pid, signal.SIGKILL)
    await rotating
    # Whatever was under way is asked for again by the agent itself.
    async with asyncio.timeout(BOUND):
        while any(world.serial(name) == before[name] for name in names):
            await asyncio.sleep(0.1)
    signer.worker_kills += 1
    if signer.worker_kills == WORKER_KILLS:
        signer.kill()
        await signer.run()


async def _link(world: World, mode: Mode, most: float) -> None:
    link = _signer(world).link
    link.become(mode)
    await asyncio.sleep(world.rng.uniform(0.5, most))
    link.become(Mode.WHOLE)


async def _publishing_fails_or_works(world: World) -> None:
    """A pod that comes now gets its volume, or an error and nothing of it stays."""
    each, volume = world.source.next_pod()
    try:
        await world.kubelet.publish(each, volume)
    except StandInError as error:
        assert str(error), "an error without a word"
    finally:
        world.later.append(Running(each, volume, world.kubelet.target_path(each, volume)))


def _signer(world: World) -> Signer:
    assert isinstance(world.source, Signer)
    return world.source


def _fill(path: Path) -> None:
    """Until nothing fits any more, not a byte."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)


def _damaged(how: str, content: bytes, foreign: bytes, rng: random.Random) -> bytes:
    if how == "cut":
        return content[: rng.randrange(len(content))]
    if how == "noise":
        at = rng.randrange(len(content))
        return content[:at] + rng.randbytes(8) + content[at + 8 :]
    if how == "foreign":
        return foreign
    return b"[" * 4_000 if how == "nested" else b""


FAULTS: Mapping[str, Callable[[World], Awaitable[Any]]] = MappingProxyType(
    {
        each.__name__: each
        for each in (
            kill,
            kill_publishing,
            kill_unpublishing,
            kill_renewing,
            kill_server,
            pause_server,
            kill_apart,
            kill_agent_apart,
            kill_waiting,
            stop,
            pause,
            restart_kubelet,
            churn,
            delete_while_publishing,
            publish_twice,
            fill_volume,
            fill_run_dir,
            exhaust_inodes,
            make_run_dir_read_only,
            exhaust_descriptors,
            step_clock,
            damage_journal,
            damage_files,
            unmount,
            remove_socket,
            kill_signer,
            kill_worker,
            kill_workers,
            pause_worker,
            pause_signer,
            cut_link,
            stall_link,
            slow_link,
            lose_connections,
            publish_without_signer,
        )
    }
)
