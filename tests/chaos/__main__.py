"""Faults on real processes, many of them: python -m tests.chaos --seed 1 --faults 500 [--world workers] [--only KIND]

The same seed brings the same faults in the same order. Needs root (or a user namespace that may mount) and libfaketime.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from bench.report import environment
from tests.chaos.plan import EMBEDDED_FAULTS, SIGNER_FAULTS, WORKERS_FAULTS, plan
from tests.chaos.run import Outcome, play
from tests.faketime import LIBRARY

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "chaos.md"
WORLDS = {"embedded": EMBEDDED_FAULTS, "signer": SIGNER_FAULTS, "workers": WORKERS_FAULTS}


def report(given: argparse.Namespace, outcomes: dict[str, Outcome]) -> str:
    """What is recorded."""
    about = ", ".join(f"{key} {value}" for key, value in environment().items())
    command = f"python -m tests.chaos --seed {given.seed} --faults {given.faults} --pods {given.pods}"
    for name in ("world", "only"):
        command += f" --{name} {getattr(given, name)}" if getattr(given, name) else ""
    lines = [f"`{command}`: {about}.", ""]
    for world, outcome in outcomes.items():
        count = sum(map(len, outcome.kinds.values()))
        lines += [f"## {world}, {environment()['date']}", ""]
        lines += [f"{count} faults in {outcome.seconds:.0f} s; {outcome.reads} reads of volumes at full speed,"]
        lines += [f"{outcome.messages} messages on streams, no violation. Kubelet's repeated publishes that failed"]
        lines += [f"while the agent was away or without means: {outcome.republish_failures}.", ""]
        lines += ["| fault | times | well again after, p50 | at most |", "|---|---|---|---|"]
        for kind, seconds in sorted(outcome.kinds.items()):
            lines += [f"| {kind} | {len(seconds)} | {statistics.median(seconds):.1f} s | {max(seconds):.1f} s |"]
        if outcome.back:
            moves = ", ".join(f"{to} {times}" for to, times in sorted(outcome.moves.items()))
            lines += ["", f"Pods that flooded and were moved: {moves}.", ""]
            lines += ["| killed | times | a socket of another pod answers after, p50 | at most |", "|---|---|---|---|"]
            for what, seconds in sorted(outcome.back.items()):
                lines += [f"| {what} | {len(seconds)} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |"]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--faults", type=int, default=500, help="in each world")
    parser.add_argument("--pods", type=int, default=40)
    parser.add_argument("--world", choices=sorted(WORLDS), help="default: all, one after the other")
    parser.add_argument(
        "--only", choices=sorted({*EMBEDDED_FAULTS, *SIGNER_FAULTS, *WORKERS_FAULTS}), help="faults of this kind alone"
    )
    parser.add_argument("--patient", action="store_true", help="with pauses of two minutes")
    parser.add_argument("--record", action="store_true", help=f"add it to {RESULTS.name}, at its end")
    given = parser.parse_args()
    if not LIBRARY.exists():
        parser.error(f"there is no {LIBRARY}, which sets the agent's clock: apt-get install libfaketime")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"seed {given.seed}")
    outcomes = {}
    for world in [given.world] if given.world else sorted(WORLDS):
        weights = {given.only: 1} if given.only else WORLDS[world]
        faults = plan(given.seed, given.faults, weights)
        outcomes[world] = play(world, faults, given.pods, say, patient=given.patient)
    text = report(given, outcomes)
    print(text)
    if given.record:
        # What earlier runs found stays: a run of one world, or of one fault, says nothing of the others.
        RESULTS.write_text(f"{RESULTS.read_text(encoding='utf-8').rstrip()}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
