"""Every input of the fuzzers' corpus, those that once broke something included, without a fuzzer."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.channel import messages
from runtime.frames import BadFrame, Frames
from signer.workers import messages as of_workers
from tests.fuzz.made import kinds, made
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
    for name in ("reports", "orders", "workers"):
        for body in (b"\x91" * 100_000, b"\x81\xa1a" * 50_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
            TARGETS[name](len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize(
    ("name", "union", "decoder"),
    [
        ("reports", messages.Report, messages.reports()),
        ("orders", messages.Order, messages.orders()),
        ("workers", of_workers.Report, msgspec.msgpack.Decoder(of_workers.Report)),
        ("workers", of_workers.Order, msgspec.msgpack.Decoder(of_workers.Order)),
    ],
    ids=("reports", "orders", "workers' reports", "workers' orders"),
)
def test_every_kind_of_message_is_begun_with_and_made(name: str, union: Any, decoder: Any) -> None:
    every = {str(each.tag) for each in kinds(union)}
    seeds = set()
    for path in (CORPUS / name).iterdir():
        frames: Frames[Any] = Frames(decoder, messages.MAX_SNAPSHOT)
        try:
            seeds |= {str(each.__struct_config__.tag) for each in frames.feed(path.read_bytes())}
        except BadFrame:
            continue
    assert seeds == every
    rng = random.Random(1)
    taken, refused = set(), set()
    for _ in range(4000):
        body, kind, fits = made(union, rng.randbytes(200))
        try:
            decoder.decode(body)
        except msgspec.ValidationError:
            assert not fits, kind
            refused.add(kind)
        else:
            assert fits, kind
            taken.add(kind)
    assert taken == every
    # All that a report may hold is bounded but for numbers of calls and servers; one's own orders are believed.
    bounded = {messages.Report: every - {"pong", "ready"}, of_workers.Report: {"1", "2", "5", "7"}}
    assert refused >= bounded.get(union, set())
