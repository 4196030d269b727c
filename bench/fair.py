"""One tenant has kubelet start, stop or renew very much at once: what do the others notice?

    python -m bench.fair

A real agent. A process of its own (bench/storms.py) does what one namespace can have kubelet do; another namespace's
pods start meanwhile, one after the other, as often as the storm lasts. In the same run, in turn: quiet; the storm; a
floor, in which a process burns the CPU time that the storm's own process burnt and asks the agent for nothing. Records
bench/results/fair.md.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.pb import workload_pb2
from bench import markdown
from bench.fair_signer import signer
from bench.report import RESULTS, Row, environment, record_values
from bench.storms import Child
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.signer_rig import AUDIENCE
from tests.support import HEADER, VOLUME, node, pod

# What is done at once, how many of it, and what a pod of the others has.
STORMS: Mapping[str, tuple[int, PodVolume]] = {
    "start": (500, VOLUME),
    "stop": (500, VOLUME),
    "keystores": (500, VOLUME),
    "rsa": (100, VOLUME),
    "rsa, beside rsa-2048": (100, PodVolume(name="spiffe", attributes={"keyAlgorithm": "rsa-2048"})),
    "jwt": (1000, VOLUME),
    "jwt, beside jwt": (1000, VOLUME),
}
WHAT = {
    "start": "500 pods of one namespace start",
    "stop": "500 pods of one namespace go",
    "keystores": "500 pods of one namespace start, each with keystores",
    "rsa": "100 volumes of one pod with RSA-4096 keys",
    "rsa, beside rsa-2048": "the same, where the others have RSA-2048 keys",
    "jwt": "a pod's 1,000 callers ask for JWT-SVIDs of ever new audiences; the signer allows the node 50 a second",
    "jwt, beside jwt": "the same, where another pod asks for JWT-SVIDs of ever new audiences, one after the other",
}
LOADS = ("quiet", "floor", "storm")
# Seconds that a storm of keys is looked at; quiet and floor are a fifth of that.
SECONDS = 8.0
ROUNDS = 5
PAUSE = 0.02
LIMIT = 1200.0
# That the signer knows; each starts once.
PODS = 4000


@dataclass
class Seen:
    """What one kind of storm did: milliseconds by load; what it made, and how often it was put off."""

    kind: str
    values: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    made: int = 0
    put_off: int = 0
    seconds: float = 0.0


class Others:
    """Pods of another namespace, started one after the other."""

    def __init__(self, kubelet: StandInKubelet) -> None:
        self._kubelet = kubelet
        self._number = 0

    async def start(self, seen: Seen, load: str, volume: PodVolume, until: "asyncio.Future[Any]") -> None:
        """Until that is done, and once more at least."""
        values = seen.values.setdefault(load, [])
        while True:
            self._number += 1
            try:
                values.append(await self._one(self._number, volume) * 1e3)
            except (PublishFailed, grpc.aio.AioRpcError):
                seen.failed += 1
            if until.done():
                return
            await asyncio.sleep(PAUSE)

    async def _one(self, number: int, volume: PodVolume) -> float:
        """Seconds of one start."""
        each = pod(f"other-{number}", "other", "other")
        began = time.perf_counter()
        await self._kubelet.publish(each, volume)
        took = time.perf_counter() - began
        await self._kubelet.unpublish(each, volume)
        return took


class OthersOfSigner(Others):
    """The same, of pods that a signer knows; each starts once."""

    def __init__(self, kubelet: StandInKubelet, pods: Sequence[Sequence[str]]) -> None:
        super().__init__(kubelet)
        self._pods = iter(pods)

    async def next(self) -> tuple[Pod, PodVolume]:
        """One that did not start yet, and its volume."""
        namespace, name, uid, token = next(self._pods)
        tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
        return Pod(namespace, name, uid, "web"), PodVolume(name="spiffe", tokens=tokens)

    async def _one(self, number: int, volume: PodVolume) -> float:
        each, own = await self.next()
        began = time.perf_counter()
        await self._kubelet.publish(each, own)
        took = time.perf_counter() - began
        await self._kubelet.unpublish(each, own)
        return took


class Fetching(OthersOfSigner):
    """One pod that asks for a JWT-SVID, and again."""

    socket = Path()

    async def _one(self, number: int, volume: PodVolume) -> float:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))
        async with grpc.aio.insecure_channel(f"unix:{self.socket}", options=options) as channel:
            fetch = channel.unary_unary(
                "/SpiffeWorkloadAPI/FetchJWTSVID", workload_pb2.JWTSVIDRequest.SerializeToString, lambda data: data
            )
            began = time.perf_counter()
            await fetch(workload_pb2.JWTSVIDRequest(audience=[f"own-{number}"]), metadata=HEADER, timeout=60.0)
            return time.perf_counter() - began


async def storm(of: Path, others: Others, seen: Seen, many: int, volume: PodVolume, seconds: float) -> float:
    """One storm at kubelet's directory or a socket, beside the others; the share of a core that its process took."""
    child = await Child.ready(seen.kind.partition(",")[0], of, many, seconds)
    done = child.begin()
    await others.start(seen, "storm", volume, done)
    found = await done
    seen.made += found.made
    seen.put_off += found.put_off
    seen.seconds += found.seconds
    await child.end()
    return found.share


async def calm(others: Others, seen: Seen, load: str, volume: PodVolume, seconds: float, share: float = 0.0) -> None:
    """The others alone, or beside a process that takes that share of a core."""
    burning = None
    if share:
        options = ("--seconds", str(seconds + 1), "--share", f"{min(share, 1.0):.3f}", "burn")
        burning = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.attacks", *options, stdout=asyncio.subprocess.DEVNULL
        )
        await asyncio.sleep(1)
    await others.start(seen, load, volume, asyncio.ensure_future(asyncio.sleep(seconds)))
    if burning is not None:
        await burning.wait()


@asynccontextmanager
async def placed(kind: str) -> AsyncIterator[tuple[Path, Others]]:
    """An agent of its own for that kind: where the storm goes on, and who starts beside it."""
    if not kind.startswith("jwt"):
        async with node("--pod-volumes", "1000", "--volumes", "5000", ttl="1h") as (here, kubelet):
            yield here.kubelet_root, Others(kubelet)
        return
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name, signer(Path(name), PODS) as site:
        token = Path(name, "token")
        token.write_text(site["agent"], encoding="ascii")
        flags = ("--authority", "signer", "--signer-address", site["address"], "--signer-bundle", site["bundle"])
        async with node(*flags, "--agent-token-file", str(token), ttl="1h") as (here, kubelet):
            others = (Fetching if "beside" in kind else OthersOfSigner)(kubelet, site["pods"])
            offender = here.short(await kubelet.publish(*await others.next())) / "socket"
            if isinstance(others, Fetching):
                others.socket = here.short(await kubelet.publish(*await others.next())) / "socket"
            yield offender, others


async def run(kinds: Sequence[str], rounds: int, seconds: float) -> list[Seen]:
    """Each kind in an agent of its own. Raises TimeoutError."""
    found = []
    for kind in kinds:
        many, volume = STORMS[kind]
        seen = Seen(kind)
        # Keys and questions do not come to an end; the other storms do.
        long = seconds if kind.startswith(("rsa", "jwt")) else 60.0
        async with asyncio.timeout(LIMIT), placed(kind) as (of, others):
            for _ in range(rounds):
                await calm(others, seen, "quiet", volume, seconds / 5)
                share = await storm(of, others, seen, many, volume, long)
                await calm(others, seen, "floor", volume, seconds / 5, share)
        found.append(seen)
        print(line(seen), file=sys.stderr, flush=True)
    return found


def rows(seen: Seen) -> dict[str, Row]:
    """Its latencies by load."""
    return {
        load: Row(f"{WHAT[seen.kind]}: another's pod starts, {load}", "ms", tuple(values))
        for load, values in seen.values.items()
    }


def line(seen: Seen) -> str:
    """A line of the table: quiet / floor / storm in each cell of latencies."""
    by = rows(seen)

    def cell(statistic: str) -> str:
        values = [by[load].statistic(statistic) for load in LOADS]
        return " / ".join("-" if value is None else f"{value:.3g}" for value in values)

    counts = " / ".join(str(len(seen.values[load])) for load in LOADS)
    counts += f"; {seen.failed} failed" if seen.failed else ""
    cells = [WHAT[seen.kind], f"{seen.seconds:.1f}", str(seen.made), str(seen.put_off), counts]
    return markdown.row([*cells, cell("p50"), cell("p99"), cell("max")])


def report(found: Sequence[Seen], about: Mapping[str, str]) -> str:
    """What is recorded."""
    headings: tuple[str, ...] = (
        "what one namespace does",
        "seconds",
        "volumes made",
        "put off",
        "others' starts",
        "p50, ms",
        "p99, ms",
    )
    headings += ("most, ms",)
    lines = [
        "# What one namespace's storms are to others",
        "",
        ", ".join(f"{key} {each}" for key, each in about.items()),
    ]
    lines += [
        "",
        "`python -m bench.fair`: NodePublishVolume of another namespace's pods, one after the other, in the cells of",
        "latencies quiet / floor / storm; the floor burns the CPU time of the process that asks for the storm, and",
        "asks for nothing. A p99 needs a hundred starts. What is put off is asked for again as kubelet does.",
        "",
        *markdown.table(headings, map(line, found)),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fair", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each once, for a second or two; records nothing")
    parser.add_argument("--kinds", default=";".join(STORMS), help="some of them, with semicolons between")
    arguments = parser.parse_args()
    about = environment()
    rounds, seconds = (1, 2.0) if arguments.quick else (ROUNDS, SECONDS)
    found = asyncio.run(run(arguments.kinds.split(";"), rounds, seconds))
    text = report(found, about)
    print(text)
    if not arguments.quick:
        (RESULTS / "fair.md").write_text(text, encoding="utf-8")
        record_values([row for seen in found for row in rows(seen).values()], about, "-fair")
    return 0


if __name__ == "__main__":
    sys.exit(main())
