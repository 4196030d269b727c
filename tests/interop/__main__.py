"""`python -m tests.interop`: peers that others wrote, against this tree.

python -m tests.interop list             the suites, and what each would need
python -m tests.interop build SUITE      get or build a suite's programs (no time limit)
python -m tests.interop run SUITE        build, run, and add a line to docs/interop.md
python -m tests.interop run --ready      all whose programs are wheels or in the cache; says which it leaves out
                                         (--most MINUTES: and those that take longer)
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from tests.go_tools import BuildError, say

from . import table
from .run import run
from .suites import Suite, SuiteError, load, load_all
from .tools import get, lacking


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """The command; its exit status: 0 when no test failed."""
    parser = argparse.ArgumentParser(prog="tests.interop", description="Peers that others wrote, against this tree.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="the suites")
    actions.add_parser("build", help="get or build a suite's programs").add_argument("suite")
    running = actions.add_parser("run", help="run a suite, or all that are ready")
    which = running.add_mutually_exclusive_group(required=True)
    which.add_argument("suite", nargs="?")
    which.add_argument("--ready", action="store_true", help="those whose programs are wheels or in the cache")
    running.add_argument(
        "--most",
        type=float,
        default=float("inf"),
        metavar="MINUTES",
        help="of --ready, suites that take longer are left out",
    )
    running.add_argument("--no-record", action="store_true", help="write nothing to docs/interop.md (as with CI=true)")
    options = parser.parse_args(arguments)
    try:
        if options.action == "list":
            return _list()
        if options.action == "build":
            get(load(options.suite), say)
            return 0
        if os.geteuid() != 0:
            raise SuiteError("the suites make real mounts: run them as root")
        suites = _ready(options.most) if options.ready else [load(options.suite)]
        record = not options.no_record and environment.get("CI") != "true"
        return max([_run(suite, record) for suite in suites], default=0)
    except (SuiteError, BuildError, table.TableError) as error:
        print(f"interop: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interop: interrupted", file=sys.stderr)
        return 130


def _list() -> int:
    for suite in load_all():
        print(f"{suite.name}  {suite.tool} {suite.version}: {suite.shows}")
        print(f"  {lacking(suite) or 'ready'}")
    return 0


def _ready(most: float) -> list[Suite]:
    found = []
    for suite in load_all():
        why = lacking(suite)
        if not why and suite.minutes > most:
            why = f"its tests take some {suite.minutes:g} minutes; make interop SUITE={suite.name}"
        if why:
            print(f"interop: {suite.name} left out: {why}", flush=True)
        else:
            found.append(suite)
    return found


def _run(suite: Suite, record: bool) -> int:
    get(suite, say)
    print(f"interop: {suite.name}, {suite.tool} {suite.version}: {suite.shows}", flush=True)
    row, gaps = run(suite)
    if record:
        table.append(row)
    known = f", {gaps} known gaps" if gaps else ""
    print(
        f"interop: {suite.name}: {row.passed} passed, {row.failed} failed{known}, {row.minutes:.1f} minutes", flush=True
    )
    return 1 if row.failed else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")


if __name__ == "__main__":
    # SIGINT too: who starts this in the background has it ignored, and pytest would inherit that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    sys.exit(main())
