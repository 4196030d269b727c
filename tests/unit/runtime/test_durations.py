"""One grammar of durations: read, written, bounded, and the same in every schema that the product ships."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csi.attributes import parse_attributes
from csi.errors import InvalidRequest
from podsvid.outcome import WrongUsage
from podsvid.quickstart.play import _seconds
from runtime import durations, settings
from runtime.durations import InvalidDuration
from tests.unit.signer.test_policy import policy

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "chart" / "podsvid"
SIZES = {"d": 86400, "h": 3600, "m": 60, "s": 1}
NONE = (
    *(
        "",
        "s",
        "60",
        "-1s",
        "+1s",
        "1.5h",
        " 1h",
        "1h ",
        "1h\n",
        "1h 30m",
        "1w",
        "1ms",
        "1H",
        "30m1h",
        "1h1h",
        "1d1s1m",
    ),
    *(
        "٣s",
        "1_0s",
        "0x1s",
        "1e3s",
        "1234567890s",
        "0000000001s",
        "1" * 5000 + "s",
        "1d" * 40,
        "000000001d000000001h000001m",
        "\x00s",
        "1s\x00",
    ),
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("1h", 3600),
        ("7d", 604800),
        ("1h30m", 5400),
        ("1d2h3m4s", 93784),
        ("0s", 0),
        ("0d0h", 0),
        ("90m", 5400),
        ("007s", 7),
        ("36500d", 36500 * 86400),
    ],
)
def test_what_is_a_duration(text: str, seconds: int) -> None:
    assert durations.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", NONE)
def test_what_is_none_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InvalidDuration, match=r"^a duration: whole numbers of d, h, m and s in this order, such as"):
        durations.parse(text)


@pytest.mark.parametrize("text", ["36501d", "36500d1s", "999999999d", "999999999d999999999h"])
def test_no_duration_is_longer_than_instants_can_be_reckoned_with(text: str) -> None:
    with pytest.raises(InvalidDuration):
        durations.parse(text)


def test_bounds_are_accepted_themselves_and_said() -> None:
    least, most = timedelta(seconds=2), timedelta(days=90)
    assert durations.parse("2s", least, most) == least
    assert durations.parse("2160h", least, most) == most
    for text in ("1s", "90d1s", "x"):
        with pytest.raises(InvalidDuration, match=r"^a duration from 2s to 90d: whole numbers"):
            durations.parse(text, least, most)


@given(st.integers(0, 36500 * 86400))
def test_what_is_written_is_read_again(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert durations.parse(durations.text(duration)) == duration
    assert len(durations.text(duration)) <= durations.MAX_LENGTH


@given(st.timedeltas(timedelta(days=-9), durations.MAX))
def test_every_duration_can_be_written(duration: timedelta) -> None:
    assert abs(durations.parse(durations.text(duration)) - max(duration, timedelta(0))) <= timedelta(seconds=1)


PARTS = st.tuples(*(st.none() | st.integers(0, 999) for _ in SIZES)).filter(any)


@given(PARTS)
def test_a_text_of_the_grammar_means_the_sum_of_its_parts(parts: tuple[int | None, ...]) -> None:
    given_parts = [(number, unit) for number, unit in zip(parts, SIZES, strict=True) if number is not None]
    text = "".join(f"{number}{unit}" for number, unit in given_parts)
    assert durations.parse(text).total_seconds() == sum(number * SIZES[unit] for number, unit in given_parts)


@given(st.text(max_size=30) | st.text(alphabet="0123456789dhms", max_size=30))
def test_any_text_is_a_duration_in_bounds_or_refused(text: str) -> None:
    try:
        found = durations.parse(text)
    except InvalidDuration:
        return
    assert timedelta(0) <= found <= durations.MAX
    assert re.search(durations.PATTERN, text)
    assert durations.MIN_LENGTH <= len(text) <= durations.MAX_LENGTH


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "120m"), (7200, "2h"), (172799, "48h"), (172800, "2d"), (0.4, "0s")],
)
def test_about_how_long(seconds: float, said: str) -> None:
    assert durations.about(seconds) == said


def _by_setting(text: str) -> timedelta | None:
    try:
        return settings.ttl(text)
    except ValueError:
        return None


def _by_attribute(text: str) -> timedelta | None:
    try:
        return parse_attributes({"ttl": text}).ttl
    except InvalidRequest:
        return None


def _by_policy(text: str) -> timedelta | None:
    found = policy("p", x509TTL=text)
    return None if found.problem else found.x509_ttl


def _by_jwt_policy(text: str) -> timedelta | None:
    found = policy("p", jwtTTL=text)
    return None if found.problem else found.jwt_ttl


def _by_quickstart(text: str) -> timedelta | None:
    try:
        return timedelta(seconds=_seconds(text))
    except WrongUsage:
        return None


READERS = (_by_setting, _by_attribute, _by_policy, _by_jwt_policy, _by_quickstart)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", ["2s", "90s", "90m", "1h30m", "1d", "1d12h", "90d", "2160h", "007s", "1d1h1m1s"])
def test_every_reader_takes_the_same_texts(read: Callable[[str], timedelta | None], text: str) -> None:
    assert read(text) == durations.parse(text)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", NONE)
def test_every_reader_refuses_the_same_texts(read: Callable[[str], timedelta | None], text: str) -> None:
    assert read(text) is None


def lifetimes(kind: str) -> Iterator[dict[str, Any]]:
    document = yaml.safe_load((CHART / "files" / "crds" / f"{kind}.yaml").read_text(encoding="utf-8"))
    spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    yield from (spec["x509TTL"], spec["jwtTTL"])


@pytest.mark.parametrize("kind", ["workloadidentities", "clusterworkloadidentities"])
def test_the_policies_schema_has_the_grammar_and_the_bounds(kind: str) -> None:
    """What the rule means is shown at a real API server (tests/cluster/test_alone.py)."""
    sums = " + ".join(f"int('0' + self.find('[0-9]+{u}').replace('{u}', '')) * {size}" for u, size in SIZES.items())
    least, most = (int(each.total_seconds()) for each in (durations.MIN_TTL, durations.MAX_TTL))
    bounds = f"[{sums}].all(seconds, seconds >= {least} && seconds <= {most})"
    wanted = {
        "rule": f"self.matches('{durations.PATTERN}') && {bounds}".replace(" * 1]", "]"),
        "message": durations.accepted(durations.MIN_TTL, durations.MAX_TTL),
    }
    for each in lifetimes(kind):
        assert each["x-kubernetes-validations"] == [wanted]
        assert each["maxLength"] == durations.MAX_LENGTH


def test_the_charts_schema_has_the_grammar() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"]
    for name, each in schema["ttl"]["properties"].items():
        wanted: dict[str, Any] = {"pattern": durations.PATTERN, "maxLength": durations.MAX_LENGTH}
        # Empty stands for what holds without it.
        wanted |= {} if name == "podMax" else {"minLength": durations.MIN_LENGTH}
        assert {"type": "string", **wanted} == each


def test_nobody_else_reads_or_writes_durations() -> None:
    """A second parser is a second grammar; `total_seconds():g` is a duration that nothing reads again."""
    second = re.compile(r"\(s\|m\|h|\[smhd\]|\[dhms\]|total_seconds\(\):[^\n]")
    found = [
        str(path.relative_to(ROOT))
        for package in ("svid", "runtime", "csi", "agent", "signer", "podsvid")
        for path in (ROOT / package).rglob("*.py")
        if second.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
