"""bench.peers without its processes: what a table says of what was found, how runs are merged, what is asked."""

import asyncio
from pathlib import Path

import pytest

from bench.peers import disk, latencies, minting, nodes, wire
from bench.peers.figures import Figures, Found, from_json, merged, p50, p99, read, to_json
from bench.peers.nodes import DueFailed, spent
from bench.peers.page import ALL_SIDES, NOT_MEASURED, cell, line, page, verdict
from bench.peers.rows import BY_KEY, ROWS
from bench.peers.side import EMBEDDED, PEER, SIGNER, turns
from bench.peers.spire import Followed
from signer.pb import spire_pb2

ABOUT = {"date": "2026-11-29", "commit": "abc", "load before": "0.10"}


def found(**values: list[float]) -> Found:
    names = {"peer": PEER, "embedded": EMBEDDED, "signer": SIGNER}
    return Found({names[side]: each for side, each in values.items()}, {}, ABOUT)


def test_each_row_is_measured_by_one_part() -> None:
    measured = [*latencies.KEYS, *minting.KEYS, *nodes.KEYS, *disk.KEYS]
    assert sorted(measured) == sorted(BY_KEY)
    assert len(ROWS) == len(BY_KEY)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "-"),
        ([0.12345], "0.123"),
        ([0.3, 0.1, 0.2], "0.2 (0.1 to 0.3)"),
        ([1400.4, 2100.0, 900.0], "1,400 (900 to 2,100)"),
    ],
)
def test_a_cell_has_the_median_and_the_spread(values: list[float], said: str) -> None:
    assert cell(values) == said


@pytest.mark.parametrize(
    ("key", "of", "said"),
    [
        # More is better, and the goal is the peer's own.
        ("first-8", found(peer=[100, 110, 120], embedded=[111], signer=[110]), "met"),
        ("first-8", found(peer=[100, 110, 120], embedded=[109], signer=[200]), f"missed: {EMBEDDED}"),
        ("first-8", found(peer=[110], embedded=[1], signer=[1]), "missed"),
        ("first-8", found(embedded=[111]), NOT_MEASURED),
        # Less is better, and each side has a goal of its own: the median counts, not the best.
        ("due-100", found(embedded=[0.2, 0.1, 0.9], signer=[0.25]), "met"),
        ("due-100", found(embedded=[0.1, 0.21, 0.3], signer=[0.25]), f"missed: {EMBEDDED}"),
        ("mint-rate", found(signer=[1300]), "met"),
        ("mint-rate", found(peer=[9000], signer=[1299]), "missed"),
        ("written-100", found(signer=[9]), "-"),
    ],
)
def test_medians_are_held_against_goals(key: str, of: Found, said: str) -> None:
    assert verdict(BY_KEY[key], of) == said


def test_a_line_says_what_was_not_measured() -> None:
    assert line(BY_KEY["due-100"], None).count(NOT_MEASURED) == 4
    assert "| 0.2 / 0.25 | met |" in line(BY_KEY["due-100"], found(embedded=[0.1], signer=[0.1]))
    assert "| SPIRE's | met |" in line(BY_KEY["idle"], found(peer=[0.3], embedded=[0.1], signer=[0.1]))


def test_the_page_names_what_is_missing_and_what_is_of_another_run() -> None:
    figures = Figures(ABOUT)
    figures.add("first-8", PEER, 1.0)
    figures.lack("disk", EMBEDDED, "no image")
    figures.lack("mint-rate", ALL_SIDES, "it ended early")
    older = {"idle": Found({PEER: [1.0]}, {}, {**ABOUT, "commit": "old"})}
    text = page(merged(older, figures.found()), ABOUT, {"SPIRE": "1.13.3"})
    assert f"- `disk`, {EMBEDDED}: no image" in text
    assert "- `mint-rate`: it ended early" in text
    assert "- `due-100`: no run has measured it yet." in text
    assert "- `idle`: date 2026-11-29, commit old, load before 0.10" in text
    assert "`first-8`: date" not in text
    assert "csi-driver-spiffe" in text


def test_a_row_that_failed_now_does_not_take_the_place_of_one_that_was_found() -> None:
    old = {"idle": found(peer=[1.0]), "disk": found(peer=[2.0])}
    figures = Figures(ABOUT)
    figures.lack("idle", ALL_SIDES, "it ended early")
    figures.add("disk", PEER, 3.0)
    figures.add("validate", PEER, 4.0)
    both = merged(old, figures.found())
    assert {key: each.values[PEER] for key, each in both.items()} == {"idle": [1.0], "disk": [3.0], "validate": [4.0]}


def test_what_is_kept_is_read_as_it_was() -> None:
    kept = {"idle": Found({PEER: [1.0, 2.5]}, {SIGNER: "why"}, ABOUT)}
    assert from_json(to_json(kept)) == kept


def test_rows_measured_alone_are_merged_into_those_of_the_newest_day(tmp_path: Path) -> None:
    assert read(tmp_path, "2") == {}
    for day, value in (("2026-11-28", 1.0), ("2026-11-29", 2.0)):
        (tmp_path / f"{day}-2c-peers.json").write_text(to_json({"idle": found(peer=[value])}))
    (tmp_path / "2026-11-30-4c-peers.json").write_text(to_json({"idle": found(peer=[3.0])}))
    assert read(tmp_path, "2")["idle"].values == {PEER: [2.0]}


def test_percentiles() -> None:
    values = [float(each) for each in range(1, 201)]
    assert (p50(values), p99(values)) == (100.5, 198.0)
    with pytest.raises(ValueError, match="99 values"):
        p99(values[:99])


def test_a_rotation_is_charged_from_the_look_before_it_to_the_one_after() -> None:
    seen = [(0.0, 1.0), (1.0, 1.1), (2.0, 1.9), (3.0, 2.0)]
    assert spent(seen, 1.5, 2.5) == pytest.approx(0.9)
    for begun, ended in ((-1.0, 2.0), (1.0, 4.0)):
        with pytest.raises(DueFailed):
            spent(seen, begun, ended)


def test_spires_messages_are_as_protobuf_has_them() -> None:
    csr = bytes(range(256)) * 2
    assert wire.mint_request(csr) == spire_pb2.NewDownstreamX509CARequest(csr=csr).SerializeToString()
    request = wire.batch_request(csr, ["a", "b"])
    params = [dict(wire.fields(each)) for _, each in wire.fields(request) if isinstance(each, bytes)]
    assert params == [{1: b"a", 2: csr}, {1: b"b", 2: csr}]


def test_only_svids_count_as_minted() -> None:
    refused = wire.field(1, b"\x08\x05")  # a Status, code 5
    made = wire.field(1, b"") + wire.field(2, wire.field(2, b"chain"))
    assert wire.minted(wire.field(1, made) + wire.field(1, refused) + wire.field(1, made)) == 2
    with pytest.raises(ValueError, match="ends in a number"):
        list(wire.fields(b"\x80"))


def test_renewals_of_one_burst_are_counted_together(tmp_path: Path) -> None:
    async def main() -> Followed:
        pipe, told = asyncio.StreamReader(), Followed(tmp_path / "log")
        pipe.feed_data(b'level=info msg="Creating X509-SVID" entry_id=a\n' * 2)
        pipe.feed_data(b'level=info msg="Renewing X509-SVID" entry_id=a\nlevel=info msg="another"\n' * 3)
        pipe.feed_eof()
        await told.follow(pipe)
        return told

    told = asyncio.run(main())
    assert (told.made, told.renewed) == (2, 3)
    assert told.begun > 0
    assert (tmp_path / "log").read_bytes().count(b"\n") == 8


def test_another_side_begins_in_each_round() -> None:
    assert ["".join(turns(number, "abc")) for number in range(4)] == ["abc", "bca", "cab", "abc"]
