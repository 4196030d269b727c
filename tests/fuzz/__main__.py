"""Fuzz one target with atheris (`pip install podsvid[fuzz]`): python -m tests.fuzz TARGET [--seconds N]."""

import argparse
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
DICTIONARY = Path(__file__).parent / "words.dict"


def main() -> None:
    """Runs until the time is over or a property does not hold; new inputs go to --corpus."""
    import atheris

    with atheris.instrument_imports():
        from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder for what is found (default: nothing is kept)")
    given = parser.parse_args()
    folders = [str(folder) for folder in (given.corpus, CORPUS / given.target) if folder is not None]
    limits = [
        f"-max_total_time={given.seconds}",
        f"-artifact_prefix={given.corpus or CORPUS}/",
        "-max_len=4096",
        "-timeout=20",
        f"-dict={DICTIONARY}",
    ]
    atheris.Setup([sys.argv[0], *limits, *folders], TARGETS[given.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
