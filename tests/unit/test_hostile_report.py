"""What `python -m bench.hostile` records: of as many values as there are, what they can tell."""

from agent.budget import LIMIT
from bench.hostile import Effect, Seen, report


def cells(line: str) -> list[str]:
    return [each.strip() for each in line.strip("|").split("|")]


def test_each_column_says_what_can_be_said_of_so_many_values() -> None:
    seen = Seen("garbage", effects=[Effect(140, 0, 7.0, 3.5)], memory=131_000_000)
    for number in range(1, 201):
        for load in ("quiet", "floor", "attack"):
            seen.add("fetch", load, float(number))
    for number in range(1, 41):
        seen.add("late", "quiet", float(number))
        seen.add("publish", "attack", float(number))
    for number in range(1, 11):
        seen.add("late", "attack", float(number))
    seen.failure("publish", "attack")
    text = report([seen], {"date": "today"})
    headings, _, line = (each for each in text.splitlines() if each.startswith("|"))
    found = dict(zip(cells(headings), cells(line), strict=True))
    assert found["fetch p99, ms"] == "198 / 198 / 198"
    assert found["fetch max, ms"] == "200 / 200 / 200"
    assert (found["publishes failed"], found["publish p95, ms"]) == ("1 of 41", "- / - / 38")
    assert found["due, renewed"] == "40 / 0 / 10"
    assert found["due to written p95, ms"] == "38 / - / -"
    assert found["due to written max, ms"] == "40 / - / 10"
    assert found["done, 1/s"] == "20"
    assert f"the chart's limit of {LIMIT / 1e6:.0f} MB" in text
