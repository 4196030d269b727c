"""`python -m tests.mutants`: try the mutants and say which the tests notice.

python -m tests.mutants                      all of them (about half an hour on two cores)
python -m tests.mutants --area agent         one list
python -m tests.mutants --only NAME          some, by a part of their name
python -m tests.mutants --write              all, and docs/mutants.md with the table
"""

import argparse
import os
import random
import sys

from .document import PATH, document
from .model import Mutant, MutantsError, Outcome, load, sample
from .run import try_all


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a mutant survives that nobody argued for, or proves nothing."""
    parser = argparse.ArgumentParser(prog="tests.mutants", description="Changes of the product that tests must notice.")
    parser.add_argument("--area", help="one list only")
    parser.add_argument("--only", default="", help="those whose name contains this")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="about N of them, of each list its share")
    parser.add_argument("--seed", type=int, default=1, help="another seed takes another sample (default: 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    options = parser.parse_args(arguments)
    try:
        known = load()
        mutants = [each for each in known if options.area in (None, each.area) and options.only in each.name]
        if options.sample:
            mutants = sample(mutants, options.sample, random.Random(options.seed))
        if options.write and (options.area or options.only):
            raise MutantsError("--write needs all areas: leave --area and --only out")
        done = 0

        def report(mutant: Mutant, outcome: Outcome) -> None:
            nonlocal done
            done += 1
            print(f"{done:4} of {len(mutants)}  {outcome:9} {mutant.area}/{mutant.name}", flush=True)

        print(f"{len(mutants)} mutants, {options.jobs} at once; first their tests without any change", flush=True)
        outcomes = try_all(mutants, options.jobs, report)
    except MutantsError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    if options.write:
        PATH.write_text(document(outcomes, known), encoding="utf-8")
    gaps = [each for each, outcome in outcomes.items() if outcome is not Outcome.KILLED and not each.argued]
    killed = sum(outcome is Outcome.KILLED for outcome in outcomes.values())
    print(f"{killed} of {len(outcomes)} killed")
    for each in gaps:
        print(f"  {outcomes[each]}: {each.area}/{each.name} ({each.file})")
    return 1 if gaps else 0


if __name__ == "__main__":
    sys.exit(main())
