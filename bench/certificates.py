"""Kubelets that ask for 500 pods' certificates at once: what do agents notice that mint meanwhile?

    python -m bench.certificates [--rounds N] [--seconds S]

A signer with `pod_certificates`, on a core of its own; honest agents on the other. In turn, in each round: nobody; 500
PodCertificateRequests at once of another signer; 500 of podsvid, of all nodes, as after kubelets were started again.
The API server is in the signer's process, so that its work is on the signer's core as well: that of the second load
is nearly that alone. Records bench/results/certificates.md.
"""

import argparse
import asyncio
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench import markdown
from bench.mix import NODES, PODS, SETTINGS, WAYS, Served, honest, told
from bench.report import RESULTS, environment
from tests.ports import free_port
from tests.signer_process import CROWD, process

# By what the signer's process is told of it.
LOADS: Mapping[str, signal.Signals | None] = {"nobody": None, "another's": signal.SIGHUP, "podsvid's": signal.SIGUSR2}
ROUNDS, SECONDS = 7, 9.5
# Until all are decided.
PATIENCE = 120.0
ISSUED = 'podsvid_signer_pod_certificate_decisions_total{result="issued"}'


def decided(pid: int, folder: Path, wanted: int) -> float:
    """Seconds until so many were issued, in all. Raises TimeoutError."""
    began = time.monotonic()
    while told(pid, folder).get(ISSUED, 0.0) < wanted:
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError("the requests are not decided; look at signer.log")
        time.sleep(0.1)
    return time.monotonic() - began


def run(rounds: int, seconds: float) -> Mapping[str, Sequence[Served]]:
    """All, in turn: of each load what was served in each round."""
    found: dict[str, list[Served]] = {load: [] for load in LOADS}
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as temporary:
        folder, flags = Path(temporary), (*SETTINGS, "--pod-certificates", "true")
        with process(
            *(folder, PODS, NODES, free_port(), *flags), within=lambda *command: ["taskset", "-c", "0", *command]
        ) as (signer, site):
            os.sched_setaffinity(0, {1})
            # As strangers' bench: what else the machine does meets neither.
            with suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
                os.sched_setscheduler(signer.pid, os.SCHED_RR, os.sched_param(1))
            for number in range(rounds):
                for load, to_ask in LOADS.items():
                    if to_ask is not None:
                        signer.send_signal(to_ask)
                    served = asyncio.run(honest(site, folder, seconds))
                    late = decided(signer.pid, folder, CROWD * (number + 1)) if to_ask is signal.SIGUSR2 else 0.0
                    found[load].append(served)
                    print(load, served.figures(), f"all decided {late:.0f} s later", file=sys.stderr, flush=True)
    return found


def line(load: str, found: Mapping[str, Sequence[Served]]) -> str:
    """A row of the table."""
    cells = [load if load == "nobody" else f"{load}, {CROWD} at once"]
    for way in WAYS:
        every, beside = _figures(found[load], way), _figures(found["nobody"], way)
        for name, value in every.items():
            ratio = f" ({value / beside[name]:.2f})" if load != "nobody" and name not in ("mints", "longest") else ""
            cells.append(f"{value:.3g}{ratio}" if name != "mints" else f"{value:.0f}")
    failed = sum(number for each in found[load] for number in each.failures.values())
    return markdown.row([*cells, str(failed)])


def _figures(served: Sequence[Served], way: str) -> Mapping[str, float]:
    """What else the machine does meets one round or another: of their percentiles the middle one, and the least."""
    rounds = [sorted(each.times[way]) for each in served]
    return {
        "mints": sum(map(len, rounds)),
        "p50": statistics.median(each[len(each) // 2] for each in rounds),
        "p99": statistics.median(map(_p99, rounds)),
        "least": min(map(_p99, rounds)),
        "longest": max(each[-1] for each in rounds),
    }


def _p99(times: Sequence[float]) -> float:
    return times[math.ceil(len(times) * 0.99) - 1]


def report(found: Mapping[str, Sequence[Served]], about: Mapping[str, str]) -> str:
    """What is recorded."""
    heads = ["PodCertificateRequests"]
    for way in WAYS:
        heads += [f"mints, {way}", "p50, ms", "p99, ms", "its least, ms", "longest, ms"]
    rounds = len(found["nobody"])
    return "\n".join(
        [
            "# Pod certificates beside agents' mints",
            "",
            ", ".join(f"{key} {each}" for key, each in about.items()),
            "",
            f"`python -m bench.certificates`: {CROWD} requests come at once while agents mint; 50 a second are",
            f"decided. The loads take turns in {rounds} rounds. The table has the middle one of the rounds'",
            "percentiles, and the least, which other work on the machine met least; in brackets how many times",
            "nobody's. The API server is in the signer's process: what it costs there shows beside requests of",
            "another signer. Signer and agents have real-time scheduling, each on a core of its own.",
            "",
            *markdown.table([*heads, "failed"], (line(load, found) for load in LOADS)),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.certificates", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn")
    arguments = parser.parse_args()
    about = environment()
    text = report(run(arguments.rounds, arguments.seconds), about)
    (RESULTS / "certificates.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
