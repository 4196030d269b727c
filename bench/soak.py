"""An agent under load for a long time: does anything grow?

    python -m bench.soak --minutes 60 --volumes 250 --ttl 30 --churn 1

A real agent with its own CA, the stand-in kubelet, one open Workload API stream for each volume, pods coming and going.
Memory, descriptors, threads and files are sampled; what they grow by an hour is the slope of a least squares line over
the samples after the first tenth. Records bench/results/soak.md.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio

from agent.pb import workload_pb2
from bench.report import environment
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod
from svid.certificates import certificates_from_pem
from tests.ports import free_port
from tests.support import HEADER, VOLUME, Host, node, pod

RESULTS = Path(__file__).parent / "results" / "soak.md"
SAMPLE_SECONDS = 5.0
# Pods keep running while kubelet publishes them again; so often for each volume.
REPUBLISH_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """The agent at one moment: seconds since the start, bytes, counts."""

    at: float
    rss: int
    descriptors: int
    threads: int
    tasks: int
    journal: int
    mounts: int
    expired: int


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Growth an hour, by least squares, over what comes after the first tenth."""
    kept = samples[len(samples) // 10 :]
    line = statistics.linear_regression([each.at / 3600 for each in kept], [value(each) for each in kept])
    return line.slope


class Soak:
    """The load, and what is seen of the agent meanwhile."""

    def __init__(self, here: Host, kubelet: StandInKubelet, metrics: str, rng: random.Random) -> None:
        self._here = here
        self._metrics = metrics
        self._kubelet = kubelet
        self._rng = rng
        self._started = time.monotonic()
        self._pods: dict[str, tuple[Pod, Path, asyncio.Task[None]]] = {}
        self.samples: list[Sample] = []
        self.messages = 0
        self.broken_streams = 0
        self.churned = 0

    async def add(self, number: int) -> None:
        """A pod with its volume, and a program in it that follows its SVID."""
        each = pod(f"soak-{number}", f"account-{number % 20}")
        target = await self._kubelet.publish_until(each, VOLUME, timeout=60)
        link = self._here.short(target)
        self._pods[each.name] = (each, target, asyncio.create_task(self._follow(link / "socket")))

    async def _follow(self, socket: Path) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
            call = channel.unary_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID",
                request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
                response_deserializer=workload_pb2.X509SVIDResponse.FromString,
            )(workload_pb2.X509SVIDRequest(), metadata=HEADER)
            try:
                async for _ in call:
                    self.messages += 1
            except grpc.aio.AioRpcError:
                self.broken_streams += 1

    async def remove(self) -> None:
        """One of the pods goes, as kubelet takes it down."""
        name = self._rng.choice(sorted(self._pods))
        each, _, following = self._pods.pop(name)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await self._kubelet.unpublish_until(each, VOLUME, timeout=60)
        self.churned += 1

    async def churn(self, each_second: float, first: int) -> None:
        """One pod goes and another comes, for ever."""
        number = first
        while True:
            await asyncio.sleep(1 / each_second)
            await self.remove()
            await self.add(number)
            number += 1

    async def republish(self) -> None:
        """kubelet's repeated calls for running pods, for ever."""
        while True:
            for name in sorted(self._pods):
                await asyncio.sleep(REPUBLISH_SECONDS / max(len(self._pods), 1))
                known = self._pods.get(name)
                if known is not None:
                    await self._kubelet.republish(known[0], VOLUME)

    async def watch(self, say: Callable[[str], None]) -> None:
        """Sample for ever."""
        reported = 0.0
        while True:
            sample = self._sample()
            self.samples.append(sample)
            if sample.at - reported >= 60:
                reported = sample.at
                say(
                    f"{sample.at / 60:4.0f} min: {sample.rss / 1e6:.1f} MB, {sample.descriptors} descriptors, "
                    f"{sample.threads} threads, {sample.tasks} tasks, {self.churned} pods changed, "
                    f"{self.messages} messages, {sample.expired} expired"
                )
            await asyncio.sleep(SAMPLE_SECONDS)

    def _sample(self) -> Sample:
        process = self._here.process
        assert process is not None
        assert process.poll() is None, "the agent has ended"
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = {line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()}
        now = datetime.now(UTC)
        expired = 0
        for each in self._rng.sample(sorted(self._pods), min(20, len(self._pods))):
            with suppress(OSError):  # it goes right now
                leaf = certificates_from_pem((self._pods[each][1] / "tls.crt").read_bytes())[0]
                expired += leaf.not_valid_after_utc < now
        return Sample(
            at=time.monotonic() - self._started,
            rss=int(found["VmRSS"][0]) * 1024,
            descriptors=len(os.listdir(f"/proc/{process.pid}/fd")),
            threads=int(found["Threads"][0]),
            tasks=self._tasks(),
            journal=len(list((self._here.base / "r" / "journal").iterdir())),
            mounts=len(self._here.mounts()),
            expired=expired,
        )

    def _tasks(self) -> int:
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return int(float(next(line for line in lines if line.startswith("podsvid_tasks ")).split()[1]))

    async def end(self) -> None:
        """All pods go."""
        while self._pods:
            await self.remove()


async def run(minutes: float, volumes: int, ttl: int, churn: float, say: Callable[[str], None]) -> tuple[Soak, Sample]:
    """The soak, and the agent after every pod has gone."""
    metrics = f"127.0.0.1:{free_port()}"
    async with node("--metrics-listen", metrics, ttl=f"{ttl}s") as (here, kubelet):
        soak = Soak(here, kubelet, metrics, random.Random(1))
        for number in range(volumes):
            await soak.add(number)
        say(f"{volumes} volumes; SVIDs of {ttl} s; {churn:g} pods a second change; for {minutes:g} minutes")
        tasks = [asyncio.create_task(each) for each in (soak.churn(churn, volumes), soak.republish(), soak.watch(say))]
        try:
            done, _ = await asyncio.wait(tasks, timeout=minutes * 60, return_when=asyncio.FIRST_EXCEPTION)
            for each in done:
                each.result()
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await soak.end()
        return soak, soak._sample()


def report(soak: Soak, after: Sample, given: argparse.Namespace) -> str:
    """What is recorded."""
    first, last = soak.samples[len(soak.samples) // 10], soak.samples[-1]
    values: dict[str, Callable[[Sample], float]] = {
        "resident memory, MB": lambda sample: sample.rss / 1e6,
        "descriptors": lambda sample: sample.descriptors,
        "threads": lambda sample: sample.threads,
        "tasks": lambda sample: sample.tasks,
        "journal files": lambda sample: sample.journal,
        "mounts": lambda sample: sample.mounts,
    }
    command = f"--minutes {given.minutes:g} --volumes {given.volumes} --ttl {given.ttl} --churn {given.churn:g}"
    about = ", ".join(f"{key} {value}" for key, value in environment().items())
    seen = f"{sum(each.expired for each in soak.samples)} expired SVIDs were seen in {len(soak.samples)} samples"
    lines = ["# Soak", "", f"`python -m bench.soak {command}`: {about}.", ""]
    lines += ["| | after a tenth | at the end | growth an hour | after all pods are gone |", "|---|---|---|---|---|"]
    for name, value in values.items():
        grown = slope(soak.samples, value)
        lines.append(f"| {name} | {value(first):.1f} | {value(last):.1f} | {grown:+.2f} | {value(after):.1f} |")
    lines += ["", f"{soak.churned} pods came and went, {soak.messages} messages were pushed on streams,"]
    lines += [f"{soak.broken_streams} streams broke, {seen} of 20 volumes each.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--volumes", type=int, default=250)
    parser.add_argument("--ttl", type=int, default=30, help="seconds")
    parser.add_argument("--churn", type=float, default=1.0, help="pods a second")
    given = parser.parse_args()
    soak, after = asyncio.run(
        run(given.minutes, given.volumes, given.ttl, given.churn, lambda text: print(text, file=sys.stderr, flush=True))
    )
    text = report(soak, after, given)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
