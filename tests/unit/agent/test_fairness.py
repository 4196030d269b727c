"""The turns that the agent's settings make: their numbers, their threads, and what is counted of them."""

import argparse
import asyncio
import threading
from collections.abc import Callable

import pytest

from agent import config, fairness
from agent.config import AgentConfig
from agent.errors import KeysBusy
from agent.metrics import Metrics
from csi.model import PodRef, Volume, VolumeOptions
from svid.keys import KeyAlgorithm

EVIL, OTHER = PodRef("evil", "evil", "uid-1", "evil"), PodRef("other", "other", "uid-2", "other")


def settings(*flags: str) -> AgentConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(["--trust-domain", "example.org", *flags]), {})


def volume(pod: PodRef) -> Volume:
    return Volume("csi-1", "/target", ("below",), pod, None, VolumeOptions(key_algorithm=KeyAlgorithm.RSA_2048))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def number(metrics: Metrics, name: str, **labels: str) -> float:
    metrics.refresh()
    return metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("flags", "places", "of_one"), [((), 8, 4), (("--publishes", "1"), 1, 1), (("--publishes", "3"), 3, 1)]
)
def test_one_namespace_has_half_of_the_places_for_new_volumes(flags: tuple[str, ...], places: int, of_one: int) -> None:
    async def main() -> None:
        metrics, begun, go = Metrics(), list[str](), asyncio.Event()
        turns = fairness.volume_turns(settings(*flags), metrics)

        async def one(namespace: str) -> None:
            async with turns.whole(volume(PodRef(namespace, "pod", "uid", "web"))):
                begun.append(namespace)
                await go.wait()

        tasks = [asyncio.create_task(one(namespace)) for namespace in ("evil", "other", "third") for _ in range(10)]
        await until(lambda: len(begun) >= places)
        assert len(begun) == places
        assert begun.count("evil") == of_one
        assert number(metrics, "podsvid_queue_length", queue="publish") == 30 - places
        go.set()
        await asyncio.gather(*tasks)
        assert number(metrics, "podsvid_queue_length", queue="publish") == 0
        assert number(metrics, "podsvid_queue_wait_seconds_count", queue="publish") == 30

    asyncio.run(main())


def test_the_nodes_own_part_is_done_for_one_volume_of_a_namespace_and_one_of_another() -> None:
    async def main() -> None:
        turns, begun = fairness.volume_turns(settings(), Metrics()), list[str]()

        async def one(namespace: str) -> None:
            async with turns.making(volume(PodRef(namespace, "pod", "uid", "web"))):
                begun.append(namespace)
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(one(namespace)) for namespace in ("evil", "other") for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert sorted(begun) == ["evil", "other"]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_one_namespace_has_half_of_the_places_for_volumes_that_go() -> None:
    async def main() -> None:
        metrics, begun, go = Metrics(), list[str](), asyncio.Event()
        turns = fairness.volume_turns(settings(), metrics)

        async def one(number: int, namespace: str) -> None:
            pod = PodRef(namespace, "pod", "uid", "web") if namespace else None
            async with turns.ending(f"csi-{number}", pod):
                begun.append(namespace)
                await go.wait()

        namespaces = ("evil", "other", "third", "")
        tasks = [asyncio.create_task(one(number, each)) for each in namespaces for number in range(20)]
        await until(lambda: len(begun) >= fairness.ENDINGS)
        assert sorted(begun) == ["evil"] * 8 + ["other"] * 8
        assert number(metrics, "podsvid_queue_length", queue="unpublish") == 80 - fairness.ENDINGS
        # None of them waits for a volume that comes, nor that for them.
        async with turns.whole(volume(EVIL)), turns.making(volume(EVIL)):
            go.set()
            await asyncio.gather(*tasks)
        assert number(metrics, "podsvid_queue_wait_seconds_count", queue="unpublish") == 80
        assert begun.count("") == 20

    asyncio.run(main())


def test_keys_and_keystores_have_lines_and_threads_of_their_own() -> None:
    async def main() -> None:
        metrics, chosen = Metrics(), settings("--key-queue", "2")
        go, named = threading.Event(), list[str]()

        def write() -> None:
            named.append(threading.current_thread().name)
            assert go.wait(30)

        with fairness.threads(chosen) as threads:
            work = fairness.slow_work(chosen, threads, metrics)
            keystores = [asyncio.create_task(work.keystore(EVIL, write, renewal=False)) for _ in range(3)]
            await until(lambda: named)
            blocked = threading.Event()
            held: list[asyncio.Task[object]] = [
                asyncio.create_task(threads.blocking(lambda: blocked.wait(30))) for _ in range(fairness.THREADS)
            ]
            await asyncio.sleep(0)
            # Keys are made while all threads of mounts and of keystores are held.
            for pod in (EVIL, OTHER):
                await work.key(volume(pod), renewal=False)
            held.append(asyncio.create_task(threads.keys(lambda: blocked.wait(30))))
            held += [asyncio.create_task(work.key(volume(EVIL), renewal=False)) for _ in range(3)]
            await until(lambda: number(metrics, "podsvid_queue_length", queue="key") == 2)
            with pytest.raises(KeysBusy):
                await work.key(volume(EVIL), renewal=False)
            assert number(metrics, "podsvid_queue_refusals_total", queue="key", why="full") == 1
            assert number(metrics, "podsvid_queue_length", queue="keystore") == 2
            blocked.set()
            go.set()
            await asyncio.gather(*held, *keystores)
        assert {each.rpartition("_")[0] for each in named} == {"keystore"}
        assert number(metrics, "podsvid_queue_wait_seconds_count", queue="key") == 5

    asyncio.run(main())
