"""Every input of the fuzzers' corpus, those that once broke something included, without a fuzzer."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
INPUTS = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_replay(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


def test_deep_nesting_breaks_no_reader() -> None:
    for name in ("bundles", "journals", "policies"):
        for data in (b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud800"', b"1" * 10_000):
            TARGETS[name](data)
    for name in ("reports", "orders"):
        for body in (b"\x91" * 100_000, b"\x81\xa1a" * 50_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
            TARGETS[name](len(body).to_bytes(4, "big") + body)
