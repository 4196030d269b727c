"""How the benchmarks judge: a budget that is missed is missed, and whether the host's slowness explains it is said."""

import pytest

from bench import markdown
from bench.report import RATIO, Row


@pytest.mark.parametrize(
    ("values", "floor", "usual", "verdict", "budget"),
    [
        ((4.0,), 1.0, 1.0, "met", "p50 5 (1), here 5"),
        ((5.1,), 1.0, 1.0, "p50 missed", "p50 5 (1), here 5"),
        ((9.9,), 2.0, 1.0, "p50 missed, not by the floor", "p50 5 (1), here 10"),
        ((10.1,), 2.0, 1.0, "p50 missed", "p50 5 (1), here 10"),
        # A faster host has no less.
        ((4.9,), 0.5, 1.0, "met", "p50 5 (1), here 5"),
        ((9.9,), 2.0, 0.0, "p50 missed", "p50 5"),
        ((9.9,), None, 1.0, "p50 missed", "p50 5 (1), here 5"),
    ],
)
def test_a_budget_is_the_same_on_every_host(
    values: tuple[float, ...], floor: float | None, usual: float, verdict: str, budget: str
) -> None:
    row = Row("a", "ms", values, floor, {"p50": 5.0}, usual)
    assert row.verdict() == row.cells()[-1] == verdict
    assert row.cells()[-2] == budget


def test_one_that_the_floor_does_not_explain_is_enough() -> None:
    values = (1.0,) * 98 + (9.0,) * 2
    row = Row("a", "ms", values, 2.0, {"p50": 0.6, "p99": 4.0}, 1.0)
    assert row.verdict() == "p50 and p99 missed"


def test_how_many_times_the_floor_is_a_budget_of_two_decimals_and_no_host_explains_it() -> None:
    values = (1.342,) * 9
    row = Row("a", "ms", values, 1.0, {"p50": 1.5, RATIO: 1.3}, 1.0, "what is before it")
    assert row.cells()[-3:] == [
        "1.34",
        "p50 1.5, p50 / floor 1.3 (1), here 1.5",
        "p50 / floor missed: what is before it",
    ]
    assert Row("a", "ms", (2.69,), 2.0, {RATIO: 1.3}, 1.0).verdict() == "p50 / floor missed"
    assert Row("a", "ms", (1.6,), 1.0, {"p50": 1.5, RATIO: 1.7}, 1.0, "x").verdict() == "p50 missed"
    assert Row("a", "ms", values, 1.04, {RATIO: 1.3}).verdict() == "met"
    assert Row("a", "ms", values, None, {RATIO: 1.3}).verdict() == "too few"


@pytest.mark.parametrize(("number", "p95", "p99"), [(19, None, None), (20, 19, None), (99, 95, None), (100, 95, 99)])
def test_a_percentile_needs_values_enough(number: int, p95: int | None, p99: int | None) -> None:
    row = Row("a", "ms", tuple(float(each) for each in range(1, number + 1)))
    assert (row.statistic("p95"), row.statistic("p99")) == (p95, p99)


def test_without_a_budget_there_is_nothing_to_judge() -> None:
    row = Row("a", "ms", (1.0,), 1.0, usual=1.0)
    assert (row.verdict(), row.cells()[-2]) == ("", "-")


def test_a_table_has_as_many_rules_as_headings_and_its_rows_as_they_come() -> None:
    rows = (markdown.row([name, "1", ""]) for name in ("a", "b"))
    expected = ["| what | ms |  |", "|---|---|---|", "| a | 1 |  |", "| b | 1 |  |"]
    assert markdown.table(["what", "ms", ""], rows) == expected
