"""Measure a signer in a process of its own: CPU time of a mint, and agents that come back after a restart.

python -m bench.signer: prints a table and records it. With --profile: where the time of a mint goes, under cProfile,
which makes everything slower and small functions most; records signer-profile.md.
"""

import argparse
import asyncio
import itertools
import logging
import os
import pstats
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority.batches import CALLS as BATCH_CALLS
from agent.authority.batches import MOST
from agent.authority.connection import YOUNG_SECONDS, SignerSettings
from agent.authority.signer import SignerAuthority
from bench.report import RESULTS, Report, environment, record, table
from runtime.clock import SystemClock
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm, signature_hash
from svid.spiffeid import TrustDomain
from tests.ports import free_port
from tests.signer_process import LEVEL, START_SECONDS, process
from tests.signer_rig import AUDIENCE

TD = TrustDomain("example.org")
NODES, AT_ONCE = 8, 64


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Minted:
    """Of each round: milliseconds of the signer's CPU time of a mint, and mints a second."""

    cpu: Sequence[float]
    rates: Sequence[float]


async def mints(
    count: int,
    rounds: int,
    profile: Path | None = None,
    flags: Sequence[str] = (),
    at_once: int = AT_ONCE,
    batch: int = 1,
) -> Minted:
    """Attested mints, each of another pod with a token of its own; `profile` gets where the signer spent its time.

    `batch`: so many are asked for by one call; 1: by one each. `at_once` are calls.
    """
    key = KeyAlgorithm.EC_P256.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request_der = csr.sign(key, signature_hash(key)).public_bytes(Encoding.DER)
    values, rates = [], []
    with (
        tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name,
        process(Path(name), count * rounds, NODES, free_port(), *flags, profile=profile, within=_as_installed) as (
            running,
            site,
        ),
    ):
        roots = TrustBundle.from_jwks(TD, Path(site["bundle"]).read_bytes()).to_pem()
        # A connection for each node, as agents have one each.
        options = [("grpc.ssl_target_name_override", SIGNER_NAME), ("grpc.use_local_subchannel_pool", 1)]
        credentials = grpc.ssl_channel_credentials(roots)
        async with AsyncExitStack() as opened:
            calls = []
            for _ in range(NODES):
                channel = await opened.enter_async_context(
                    grpc.aio.secure_channel(site["address"], credentials, options)
                )
                await channel.channel_ready()
                calls.append((_single if batch == 1 else _batch)(channel))
            if batch > 1:
                # As agents do: of a young connection little is taken at once.
                await asyncio.sleep(YOUNG_SECONDS)
            for number in range(rounds):
                found = site["pods"][number * count : (number + 1) * count]
                by_node = [iter([each for each in found if each[4] == node]) for node in range(NODES)]

                async def work(number: int, by_node: list[Iterator[Any]] = by_node) -> None:
                    node = number % NODES
                    metadata = (("authorization", f"Bearer {site['agents'][node]}"),)
                    wanted = (
                        signer_pb2.MintX509SVIDRequest(
                            pod=signer_pb2.Pod(namespace=namespace, name=pod, uid=uid),
                            pod_token=token,
                            csr=request_der,
                        )
                        for namespace, pod, uid, token, *_ in by_node[node]
                    )
                    while some := list(itertools.islice(wanted, batch)):
                        await calls[node](some, metadata)

                before, started = cpu_seconds(running.pid), time.perf_counter()
                await asyncio.gather(*(work(each) for each in range(at_once)))
                values.append((cpu_seconds(running.pid) - before) / count * 1e3)
                rates.append(count / (time.perf_counter() - started))
    return Minted(values, rates)


Ask = Callable[[list[signer_pb2.MintX509SVIDRequest], tuple[tuple[str, str], ...]], Awaitable[None]]


def _single(channel: grpc.aio.Channel) -> Ask:
    method = channel.unary_unary(
        "/podsvid.signer.v1.Signer/MintX509SVID",
        signer_pb2.MintX509SVIDRequest.SerializeToString,
        signer_pb2.MintX509SVIDResponse.FromString,
    )

    async def ask(wanted: list[signer_pb2.MintX509SVIDRequest], metadata: tuple[tuple[str, str], ...]) -> None:
        (request,) = wanted
        await method(request, metadata=metadata)

    return ask


def _batch(channel: grpc.aio.Channel) -> Ask:
    method = channel.unary_stream(
        "/podsvid.signer.v1.Signer/MintX509SVIDs",
        signer_pb2.MintX509SVIDsRequest.SerializeToString,
        signer_pb2.MintX509SVIDsResponse.FromString,
    )

    async def ask(wanted: list[signer_pb2.MintX509SVIDRequest], metadata: tuple[tuple[str, str], ...]) -> None:
        items = [signer_pb2.MintX509SVIDItem(request=each) for each in wanted]
        found = 0
        async for response in method(signer_pb2.MintX509SVIDsRequest(items=items), metadata=metadata):
            for each in response.outcomes:
                if each.WhichOneof("outcome") != "answer":
                    raise RuntimeError(f"refused: {each.refusal!r}")
                found += 1
        if found != len(items):
            raise RuntimeError(f"{found} answers to {len(items)} items")

    return ask


async def herd(report: Report, agents: int) -> None:
    """Agents that lose their signer and find it again three seconds later."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        folder = Path(name)
        port = free_port()
        # Each of them would say that it lost its signer.
        logging.getLogger("podsvid").setLevel(logging.ERROR)
        found: list[SignerAuthority] = []
        tasks: list[asyncio.Task[None]] = []
        try:
            with process(folder, 1, agents, port) as (_, site):
                for number in range(agents):
                    token = folder / f"token-{number}"
                    token.write_text(site["agents"][number])
                    bundle, run_dir = Path(site["bundle"]), folder / f"run-{number}"
                    settings = SignerSettings(site["address"], bundle, token, AUDIENCE, TD, run_dir=run_dir)
                    authority = SignerAuthority(settings, SystemClock(), random.Random(number))
                    authority.load()
                    found.append(authority)
                    tasks.append(asyncio.create_task(authority.run()))
                await _until(lambda: all(each.contact.connected for each in found))
            lost = time.perf_counter()
            await _until(lambda: not any(each.contact.connected for each in found))
            await asyncio.sleep(max(0.0, 3.0 - (time.perf_counter() - lost)))
            back: dict[int, float] = {}
            starting = asyncio.to_thread(_entered, process(folder, 1, agents, port))
            manager, _ = await starting
            started = time.perf_counter()
            try:
                while len(back) < agents:
                    for number, each in enumerate(found):
                        if each.contact.connected:
                            back.setdefault(number, time.perf_counter() - started)
                    await asyncio.sleep(0.05)
            finally:
                manager.__exit__(None, None, None)
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
        peak = max(Counter(int(seconds) for seconds in back.values()).values())
        report.add(f"signer: {agents} agents back after a restart", "s", list(back.values()))
        report.add(f"signer: most of {agents} agents back in one second", "", [float(peak)])


def _as_installed(*command: str) -> list[str]:
    """With the log of a signer that nobody looks for faults of: grpc has a line for each call in the other one."""
    return ["env", f"{LEVEL}=info", *command]


def _entered(manager: Any) -> Any:
    return manager, manager.__enter__()


async def _until(true: Any) -> None:
    async with asyncio.timeout(START_SECONDS * 2):
        while not true():
            await asyncio.sleep(0.05)


def profiled(file: Path, count: int) -> str:
    """The functions that took most of the time themselves, and those below which most of it was spent."""
    found: Any = pstats.Stats(str(file))
    total = found.total_tt
    rows = {
        f"{Path(path).name}:{line} {name}" if line else name: (own, below)
        for (path, line, name), (_, _, own, below, _) in found.stats.items()
        if "poll" not in name and "select" not in name
    }
    lines = [f"{count} mints; {total / count * 1e3:.2f} ms each by the profiler's clock, waiting included.", ""]
    for title, at in (("time in the function itself", 0), ("time in it and what it calls", 1)):
        lines += [f"| {title} | ms a mint |", "|---|---|"]
        best = sorted(rows.items(), key=lambda row: -row[1][at])[:25]
        lines += [f"| `{name.replace('|', ' ')}` | {values[at] / count * 1e3:.3f} |" for name, values in best] + [""]
    return "\n".join(lines)


def record_profile(count: int) -> None:
    """Mint under the profiler and write down what it saw."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        file = Path(name) / "profile"
        asyncio.run(mints(count, 1, file))
        text = profiled(file, count)
    about = ", ".join(f"{key} {value}" for key, value in environment().items())
    text = f"# Profile of the signer\n\n`python -m bench.signer --profile`: {about}.\n\n{text}"
    (RESULTS / "signer-profile.md").write_text(text)
    print(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.signer", description=__doc__)
    parser.add_argument("--profile", action="store_true")
    if parser.parse_args().profile:
        record_profile(2000)
        return 0
    report, about = Report(), environment()

    async def run() -> None:
        found = await mints(2000, 3)
        # 1,500 a second and core are 0.667 ms of CPU time each.
        budget = {"p50": 1000 / 1500}
        report.add("signer: CPU time of an attested mint, reviews take 2 ms", "ms", found.cpu, budget=budget)
        report.add("signer: mints a second, client on the same cores", "1/s", found.rates)
        # As agents renew: two calls at once of each.
        found = await mints(2240, 3, at_once=BATCH_CALLS * NODES, batch=MOST)
        report.add(f"signer: CPU time of an attested mint, {MOST} in a call", "ms", found.cpu)
        report.add(f"signer: mints a second, {MOST} in a call, client on the same cores", "1/s", found.rates)
        # Of the process that decides; on two cores the workers share the other one with the client.
        found = await mints(2000, 3, flags=("--workers", "2"))
        report.add("signer: CPU time of an attested mint where it is decided, 2 workers", "ms", found.cpu)
        report.add("signer: mints a second, 2 workers, client on the same cores", "1/s", found.rates)
        await herd(report, 1000)

    asyncio.run(run())
    print(table(report.rows, about))
    record(report.rows, about, "signer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
