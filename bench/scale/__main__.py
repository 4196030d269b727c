"""python -m bench.scale [--quick] [--agents N] [--workers N] [--renewals N] [--only STEP,…]: the signer at size.

Prints a table; exits with 1 only where something could not be measured, not for a goal that is missed. What does not
come about within the time of its step (Limits in bench/scale/run.py) is told of as far as it came, and the run goes
on. A full run takes some twenty minutes and 4 GiB, and records itself in bench/results; --quick does a tenth of it in
under a minute on a quiet machine.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.report import RESULTS, environment
from bench.scale.figures import OF_RENEWALS, ROWS, Figures
from bench.scale.renewals import Renewing
from bench.scale.run import FULL, QUICK, RENEWALS, STEPS, Plan, Run, sized


def report(figures: Figures, plan: Plan, about: dict[str, str]) -> str:
    """What is printed, and recorded."""
    cluster = plan.cluster
    size = f"{cluster.nodes} agents, {cluster.pods} pods, {cluster.policies} policies, {cluster.services} Services"
    replicas = "Two replicas, one is lost" if RENEWALS in plan.steps else "One replica"
    lines = [
        "# The signer at size",
        "",
        f"{replicas}, workers {plan.workers}; {size}; {plan.changes:.0%} of pods change a minute.",
        "",
    ]
    lines += [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        figures.table(figures.found if RENEWALS in plan.steps else [key for key in ROWS if key not in OF_RENEWALS]),
    ]
    if figures.failure:
        lines += [f"Not measured to its end: {figures.failure}"]
    lines += [f"Goals missed: {', '.join(figures.missed) or 'none'}.", ""]
    return "\n".join(lines)


async def measured(run: Run) -> Figures:
    """The run; whoever ends this process ends its children with it, and gets what was found until then."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await run.run()
    except asyncio.CancelledError:
        run.figures.failed("it was ended")
        return run.figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it; records nothing")
    held = "re-issue so many SVIDs of each node, where the agents have too few cores for all (default: all)"
    parser.add_argument("--held", type=int, metavar="N", help=held)
    rate = "the signer's --reissue-rate, where the cores that agents have are too few for its default"
    parser.add_argument("--reissue-rate", type=float, metavar="N", help=rate)
    agents = "so many nodes, and as much of everything else as that gives (default: 5000; records nothing)"
    parser.add_argument("--agents", type=int, metavar="N", help=agents)
    only = f"of what befalls the cluster these steps only, of {', '.join(STEPS)} (records nothing)"
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="STEP,…", help=only)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--watch", type=Path, metavar="FILE", help="write there what holds the signer's event loop")
    workers = "workers of each signer (default: 1, which is none; records nothing)"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    renewals = "renewals by the clock alone, so many: two replicas, one is lost in the middle (records nothing)"
    parser.add_argument("--renewals", type=int, metavar="N", help=renewals)
    often = f"so many of them a second (default: {Renewing().rate:g})"
    parser.add_argument("--renewal-rate", type=float, default=Renewing().rate, metavar="N", help=often)
    given = parser.parse_args()
    plan, about, begun = QUICK if given.quick else FULL, environment(), time.monotonic()
    plan = replace(plan, held=given.held or plan.held, workers=given.workers)
    if given.renewals:
        plan = replace(plan, steps=(RENEWALS,), renewing=Renewing(given.renewals, given.renewal_rate))
    if given.agents:
        plan = replace(plan, cluster=sized(given.agents))
    if given.only:
        if unknown := sorted(set(given.only) - set(STEPS)):
            parser.error(f"--only: no such step: {', '.join(unknown)}; they are {', '.join(STEPS)}")
        plan = replace(plan, steps=given.only)
    if given.reissue_rate:
        plan = replace(plan, flags=(*plan.flags, "--reissue-rate", f"{given.reissue_rate:g}"))

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        figures = asyncio.run(measured(Run(plan, Path(folder), say, given.watch and given.watch.absolute())))
    about["seconds"] = f"{time.monotonic() - begun:.0f}"
    text = report(figures, plan, about)
    print(text)
    if given.json:
        given.json.write_text(figures.json(about), encoding="utf-8")
    if not (given.quick or given.agents or given.only or given.renewals or given.workers > 1):
        (RESULTS / "scale.md").write_text(text, encoding="utf-8")
        name = f"{about['date']}-{about['cores']}c-scale.json"
        (RESULTS / name).write_text(figures.json(about), encoding="utf-8")
    return 1 if figures.failure else 0


if __name__ == "__main__":
    sys.exit(main())
