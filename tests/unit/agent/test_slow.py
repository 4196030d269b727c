"""Keys that are slow to make, and keystores: whose turn it is, who is refused, and that nobody else waits for them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AuthorityUnavailable, KeysBusy
from agent.workload import slow
from agent.workload.slow import Lane, SlowWork
from agent.workload.workload import Workload
from csi.errors import NodeBusy
from csi.model import Contents, JwtFile, PodRef, Volume, VolumeOptions
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.turns import Turns
from svid.keys import KeyAlgorithm, PrivateKey
from tests.fake_authority import HOUR
from tests.workload_rig import POD, TOKEN, Rig, issue, rig, slow_work

EVIL = PodRef("evil", "evil", "0b6a9a4e-6a8e-4c1c-9f3c-222222222222", "evil")
RSA = VolumeOptions(key_algorithm=KeyAlgorithm.RSA_4096)
SLOW = [each for each in KeyAlgorithm if each.slow]
PATIENCE = 30.0


class Maker:
    """Makes keys when it is told to: one for each `let_go`. What it was asked for is kept, whoever asked."""

    def __init__(self) -> None:
        self.asked: list[KeyAlgorithm] = []
        self._go = threading.Semaphore(0)
        # An RSA key that takes no time, since every test of a slow one would otherwise be slow.
        self._key = KeyAlgorithm.RSA_2048.generate()

    def __call__(self, algorithm: KeyAlgorithm) -> PrivateKey:
        if not algorithm.slow:
            return algorithm.generate()
        self.asked.append(algorithm)
        assert self._go.acquire(timeout=PATIENCE)
        return self._key

    def let_go(self, many: int = 1) -> None:
        self._go.release(many)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def some_steps() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


def volume(pod: PodRef = POD, options: VolumeOptions = RSA) -> Volume:
    return Volume("csi-1", "/target", ("below",), pod, None, options)


def on_threads(play: Callable[[SlowWork, Maker, Turns], Awaitable[Any]], most_waiting: int | None = None) -> None:
    async def main() -> None:
        make, keys = Maker(), Turns(1, most_waiting=most_waiting)
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            work = SlowWork(Lane(keys, Blocking(one)), Lane(Turns(1), Blocking(other)), Turns(1), make)
            try:
                await play(work, make, keys)
            finally:
                make.let_go(1000)

    asyncio.run(main())


@pytest.mark.parametrize("algorithm", [each for each in KeyAlgorithm if not each.slow])
def test_a_key_that_takes_no_time_waits_for_nobody(algorithm: KeyAlgorithm) -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        waiting = [asyncio.create_task(work.key(volume(EVIL), renewal=False)) for _ in range(10)]
        await until(lambda: make.asked)
        options = VolumeOptions(key_algorithm=algorithm)
        async with asyncio.timeout(PATIENCE):
            await work.key(volume(options=options), renewal=False)
            await work.key(volume(EVIL, options), renewal=True)
        assert not [each for each in waiting if each.done()]
        make.let_go(10)
        await asyncio.gather(*waiting)

    on_threads(play)


@pytest.mark.parametrize("algorithm", SLOW)
def test_slow_keys_are_made_one_after_the_other_and_another_pods_comes_in_between(algorithm: KeyAlgorithm) -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        options = VolumeOptions(key_algorithm=algorithm)
        offender = [asyncio.create_task(work.key(volume(EVIL, options), renewal=False)) for _ in range(40)]
        await until(lambda: make.asked)
        one = asyncio.create_task(work.key(volume(), renewal=False))
        await until(lambda: keys.waiting == 40)
        assert make.asked == [algorithm]
        make.let_go(3)
        await until(lambda: len(make.asked) == 4)
        assert one.done()
        assert sum(each.done() for each in offender) == 2
        make.let_go(40)
        await asyncio.gather(*offender)

    on_threads(play)


def test_a_pod_with_too_many_waiting_is_told_so_and_what_to_do() -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        waiting = [asyncio.create_task(work.key(volume(EVIL), renewal=False)) for _ in range(5)]
        await until(lambda: keys.waiting == 4)
        with pytest.raises(KeysBusy) as caught:
            await work.key(volume(EVIL), renewal=False)
        assert str(caught.value) == (
            "KEYS_BUSY: pod evil/evil has as many rsa-4096 keys waiting to be made as one pod may have; it is tried "
            "again by itself. Keys of kind ec-p256 take no time: see keyAlgorithm in the volumeAttributes"
        )
        other = asyncio.create_task(work.key(volume(), renewal=False))
        renewal = asyncio.create_task(work.key(volume(EVIL), renewal=True))
        make.let_go(7)
        await asyncio.gather(*waiting, other, renewal)

    on_threads(play, most_waiting=4)


@pytest.mark.parametrize("renewal", [False, True])
def test_a_key_that_does_not_come_in_time_is_a_reason(monkeypatch: pytest.MonkeyPatch, renewal: bool) -> None:
    monkeypatch.setattr(slow, "RENEWAL_SECONDS" if renewal else "FIRST_SECONDS", 0.01)

    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        first = asyncio.create_task(work.key(volume(EVIL), renewal=not renewal))
        await until(lambda: make.asked)
        with pytest.raises(KeysBusy, match=r"KEYS_BUSY: no rsa-4096 key within 0.01 s: 0 others wait on this node; "):
            await work.key(volume(), renewal=renewal)
        assert keys.waiting == 0
        make.let_go()
        await first

    on_threads(play)


def test_first_keys_go_before_those_of_renewals() -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        running = asyncio.create_task(work.key(volume(EVIL), renewal=False))
        await until(lambda: make.asked)
        renewal = asyncio.create_task(work.key(volume(), renewal=True))
        await until(lambda: keys.waiting == 1)
        first = asyncio.create_task(work.key(volume(EVIL), renewal=False))
        await until(lambda: keys.waiting == 2)
        make.let_go(2)
        await asyncio.gather(running, first)
        assert not renewal.done()
        make.let_go()
        await renewal

    on_threads(play)


def test_whoever_is_cancelled_leaves_the_line_and_no_key_is_made_for_it() -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        running, *waiting = [asyncio.create_task(work.key(volume(EVIL), renewal=False)) for _ in range(20)]
        await until(lambda: keys.waiting == 19)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert keys.waiting == 0
        make.let_go()
        await running
        assert len(make.asked) == 1

    on_threads(play)


def test_a_keystore_waits_for_no_key() -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        waiting = [asyncio.create_task(work.key(volume(EVIL), renewal=False)) for _ in range(10)]
        await until(lambda: make.asked)
        written: list[str] = []
        async with asyncio.timeout(PATIENCE):
            await work.keystore(POD, lambda: written.append(threading.current_thread().name), renewal=False)
        assert len(written) == 1
        assert written[0] != threading.main_thread().name
        make.let_go(10)
        await asyncio.gather(*waiting)

    on_threads(play)


def test_another_pods_keystore_comes_after_one_of_a_pod_that_has_many() -> None:
    async def play(work: SlowWork, make: Maker, keys: Turns) -> None:
        written, go = list[str](), threading.Event()

        def write(pod: PodRef) -> None:
            assert go.wait(PATIENCE)
            written.append(pod.namespace)

        tasks = [asyncio.create_task(work.keystore(EVIL, lambda: write(EVIL), renewal=False)) for _ in range(20)]
        await some_steps()
        tasks.append(asyncio.create_task(work.keystore(POD, lambda: write(POD), renewal=False)))
        await some_steps()
        go.set()
        await asyncio.gather(*tasks)
        assert written.index(POD.namespace) == 2

    on_threads(play)


def on_slow_rig(base: Path, play: Callable[[Rig, Maker], Awaitable[Any]], most_waiting: int | None = None) -> None:
    async def main() -> None:
        make = Maker()
        with ThreadPoolExecutor(1) as keys:
            async with rig(base, slow=slow_work(Blocking(keys), make, most_waiting)) as found:
                try:
                    await play(found, make)
                finally:
                    make.let_go(1000)

    asyncio.run(main())


async def opened(at: Rig, make: Maker, many: int) -> list[Workload]:
    """So many volumes of a pod with keys that are slow to make."""
    make.let_go(many)
    found = []
    for number in range(many):
        found.append(await at.open(replace(at.volume(f"v{number}", options=RSA), pod=EVIL)))
    return found


def due(workload: Workload) -> datetime:
    assert workload.renew_at is not None
    return workload.renew_at


def test_renewals_that_wait_for_their_keys_hold_up_nobody_elses(tmp_path: Path) -> None:
    async def play(at: Rig, make: Maker) -> None:
        # More than are renewed at once.
        offenders = await opened(at, make, 24)
        other = await at.open(at.volume("other"))
        at.clock.at += HOUR / 2 + HOUR / 4
        async with at.looping(at.registry.scheduler.run):
            await at.until(lambda: due(other) > at.clock.at)
            assert not [each for each in offenders if due(each) > at.clock.at]
            make.let_go(24)
            await at.until(lambda: all(due(each) > at.clock.at for each in offenders))
        assert at.rotations("x509", "ok") == 25

    on_slow_rig(tmp_path, play)


def test_a_key_of_a_renewal_that_failed_is_used_for_the_next_attempt_and_for_no_more(tmp_path: Path) -> None:
    async def play(at: Rig, make: Maker) -> None:
        (workload,) = await opened(at, make, 1)
        at.authority.error = AuthorityUnavailable("SIGNER_UNREACHABLE: away")
        at.clock.at += HOUR / 2 + HOUR / 4
        make.let_go(1)
        for _ in range(3):
            await workload.prepare()
            with pytest.raises(AuthorityUnavailable):
                await workload.renew()
        assert len(make.asked) == 2
        at.authority.error = None
        await workload.renew()
        at.clock.at += HOUR
        make.let_go(1)
        await workload.prepare()
        await workload.renew()
        assert len(make.asked) == 3

    on_slow_rig(tmp_path, play)


def test_without_a_key_in_time_the_rest_of_a_volume_is_renewed_and_the_key_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow, "RENEWAL_SECONDS", 0.01)

    async def play(at: Rig, make: Maker) -> None:
        make.let_go(1)
        options = replace(RSA, jwt_files=(JwtFile("api.jwt", ("api",)),))
        workload = await at.open(at.volume("spiffe", options=options))
        offender = asyncio.create_task(at.registry.key(volume(EVIL)))
        await until(lambda: len(make.asked) == 2)
        at.clock.at += HOUR / 2 + HOUR / 4
        await workload.prepare()
        with pytest.raises(KeysBusy, match="KEYS_BUSY: no rsa-4096 key"):
            await workload.renew()
        assert at.rotations("jwt", "ok") == 1
        assert at.rotations("x509", "keys_busy") == 1
        assert workload.problems.newest is not None
        assert workload.problems.newest.code == "KEYS_BUSY"
        make.let_go(2)
        await offender
        await workload.prepare()
        await workload.renew()
        assert at.rotations("x509", "ok") == 1

    on_slow_rig(tmp_path, play)


def test_what_became_due_since_it_was_prepared_is_due_again_at_once(tmp_path: Path) -> None:
    async def play(at: Rig, make: Maker) -> None:
        (workload,) = await opened(at, make, 1)
        await workload.prepare()
        at.clock.at += HOUR / 2 + HOUR / 4
        assert await workload.renew() <= at.clock.at
        assert len(make.asked) == 1

    on_slow_rig(tmp_path, play)


def test_keystores_are_written_in_a_thread_and_the_other_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_main: list[bool] = []
    write = VolumeDirectory.write

    def noted(directory: VolumeDirectory, contents: Contents, now: datetime) -> None:
        at_main.append(threading.current_thread() is threading.main_thread())
        write(directory, contents, now)

    monkeypatch.setattr(VolumeDirectory, "write", noted)

    async def play(at: Rig, make: Maker) -> None:
        workload = await at.open(at.volume("stores", options=VolumeOptions(keystores="pkcs12")))
        at.clock.at += HOUR / 2 + HOUR / 4
        await workload.renew()
        await at.open(at.volume("files"))
        assert at_main == [False, False, True]

    on_slow_rig(tmp_path, play)


def test_kubelet_is_told_that_the_node_is_busy(tmp_path: Path) -> None:
    async def play(at: Rig, make: Maker) -> None:
        waiting = [asyncio.create_task(issue(at.registry, volume(EVIL), TOKEN)) for _ in range(2)]
        await until(lambda: make.asked)
        await some_steps()
        with pytest.raises(NodeBusy, match=r"^KEYS_BUSY: pod evil/evil has as many"):
            await at.registry.key(volume(EVIL))
        make.let_go(2)
        await asyncio.gather(*waiting)

    on_slow_rig(tmp_path, play, most_waiting=1)
