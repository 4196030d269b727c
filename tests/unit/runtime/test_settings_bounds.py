"""Settings one by one: each bound from both sides, where a value came from, and that nothing unknown passes."""

import argparse
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runtime import loading, settings
from runtime.settings import Conflict, InvalidSetting, setting


@dataclasses.dataclass(frozen=True)
class Example:
    """Settings of all kinds."""

    name: str = setting(settings.matching(re.compile("[a-z]+"), "lower case"), "a name", required=True)
    ttl: timedelta = setting(settings.ttl, "a lifetime", "1h")
    unsafe: bool = setting(settings.boolean, "UNSAFE: for tests", "false")
    on: bool = setting(settings.boolean, "whether", "false")
    many: tuple[int, ...] = setting(settings.listed(settings.number(1, 9)), "numbers", "")
    file: Path | None = setting(settings.absolute, "a file")
    key: Path | None = setting(settings.absolute, "where a key is", secret=True)
    pairs: tuple[str, ...] = setting(settings.listed(str, pairs=True), "pairs", "")
    number: int = setting(settings.number(0, 9000), "a number", "1")
    address: tuple[str, int] | None = setting(settings.listen, "an address", ":1")

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        yield from ()


def load(*flags: str, environment: dict[str, str] | None = None, **fallbacks: Any) -> Example:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser, Example)
    return loading.load(Example, parser.parse_args(flags), environment or {}, **fallbacks)


ACCEPTED: list[tuple[Callable[[str], Any], str, Any]] = [
    (settings.duration(), "0s", timedelta(0)),
    (settings.duration(), "90s", timedelta(seconds=90)),
    (settings.duration(), "30m", timedelta(minutes=30)),
    (settings.duration(), "7d", timedelta(days=7)),
    (settings.duration(), "1h30m", timedelta(minutes=90)),
    (settings.ttl, "2s", timedelta(seconds=2)),
    (settings.ttl, "90d", timedelta(days=90)),
    (settings.period, "1h", timedelta(hours=1)),
    (settings.period, "3650d", timedelta(days=3650)),
    (settings.absolute, "/a/b", Path("/a/b")),
    (settings.listen, "127.0.0.1:9099", ("127.0.0.1", 9099)),
    (settings.listen, "[::1]:0", ("::1", 0)),
    (settings.listen, ":65535", ("::", 65535)),
    (settings.listen, "off", None),
    (settings.boolean, "true", True),
    (settings.boolean, "false", False),
    (settings.url, "https://a.test/b", "https://a.test/b"),
    (settings.collector, "http://c:4317", "http://c:4317"),
    (settings.number(1, 9), "1", 1),
    (settings.number(1, 9), "9", 9),
    (settings.listed(settings.boolean), " true , false", (True, False)),
    (settings.listed(settings.boolean), " ", ()),
    (settings.jwt_algorithm, "ES256", "ES256"),
    (settings.choice("a", "b"), "b", "b"),
]


@pytest.mark.parametrize(("parse", "text", "wanted"), ACCEPTED)
def test_accepted(parse: Callable[[str], Any], text: str, wanted: Any) -> None:
    assert parse(text) == wanted


REFUSED: list[tuple[Callable[[str], Any], str]] = [
    *((settings.duration(), text) for text in ("", "60", "-1s", "1.5h", " 1h", "1h\n", "1w", "٣s", "1234567890s")),
    *((settings.ttl, text) for text in ("1s", "0s", "91d", "7776001s")),
    *((settings.period, text) for text in ("59m", "3651d")),
    *((settings.absolute, text) for text in ("", "a", "./a", "/a/../b", "/..", "/a\0b", "~/a")),
    *((settings.listen, text) for text in ("9099", "a:", "a:b", "a:65536", "a:-1", "a:٣", "")),
    *((settings.boolean, text) for text in ("True", "1", "yes", "", "false ")),
    *((settings.url, text) for text in ("http://a.test", "https://a b", "https://ä", "https://" + "a" * 1017, "")),
    *((settings.collector, text) for text in ("c:4317", "http://c", "grpc://c:1", "http://:1", "http://c:x", "")),
    *((settings.number(1, 9), text) for text in ("0", "10", "-1", "", "1.0", "٣", "1" * 5000, " 1")),
    (settings.jwt_algorithm, "HS256"),
    (settings.jwt_algorithm, "none"),
    (settings.jwt_algorithm, "es256"),
    (settings.choice("a"), "A"),
    (settings.trust_domain, "Example.org"),
    (settings.trust_domain, "spiffe://example.org"),
]


@pytest.mark.parametrize(("parse", "text"), REFUSED)
def test_refused(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(text)


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: file\nttl: 2h\n", encoding="utf-8")
    environment = {"PODSVID_CONFIG": str(file)}
    assert (load(environment=environment).name, load(environment=environment).ttl) == ("file", timedelta(hours=2))
    environment |= {"PODSVID_NAME": "environment"}
    assert load(environment=environment).name == "environment"
    assert load("--name", "flag", environment=environment).name == "flag"
    assert load("--name", "flag").ttl == timedelta(hours=1)
    # Two files: the flag's.
    other = tmp_path / "other.yaml"
    other.write_text("name: other\n", encoding="utf-8")
    assert load("--config", str(other), environment={"PODSVID_CONFIG": str(file)}).name == "other"


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (("--name", "A"), {}, "name from --name is 'A'; accepted: lower case"),
        ((), {"PODSVID_NAME": "A"}, "name in PODSVID_NAME is 'A'; accepted: lower case"),
        (("--name", "a", "--ttl", "1s"), {}, "ttl from --ttl is '1s'; accepted: a duration from 2s to 90d"),
        ((), {}, "name is missing: give --name, PODSVID_NAME or name in YAML"),
        ((), {"name": "a", "PODSVIDNAME": "a", "podsvid_name": "a"}, "name is missing"),
    ],
)
def test_a_refusal_says_where_the_value_came_from(
    flags: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidSetting, match=re.escape(said)):
        load(*flags, environment=environment)


def test_a_refusal_quotes_no_more_than_a_line() -> None:
    with pytest.raises(InvalidSetting) as refused:
        load("--name", "A" * 100_000)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nmae: a", "'nmae' in .* is no setting; did you mean name"),
        ("name: 1", "name in .* is '1'; accepted: lower case"),
        ("name: a\nttl: 3600", "is '3600'; accepted: a duration"),
        ("name: [a, 1]", "accepted: one value"),
        ("name: {a: b}", "accepted: one value"),
        ("name: null", "accepted: a value"),
        ("name: a\nmany: [1, 10]", "is '1,10'; accepted: a number from 1 to 9"),
        ("name: a\nmany: [[1]]", "accepted: a plain value, or a list of plain values"),
        ("name: a\nmany: {1: 2}", "accepted: a list, no mapping"),
        ("name: a\non: 1", "accepted: true or false"),
        *((f"name: a\nnumber: {text}", "in decimal digits") for text in ("010", "0x10", "1_000", "1:30", "-1")),
        ("name: a\nnumber: 1.5", "a number from 0 to 9000"),
        ("name: a\nkey: MC4CAQAwBQYDK2VwBCIEI", "key in .*:2 is not shown"),
        ("- name", "must be a mapping"),
        ("name: [", "is not YAML"),
        ("name: !!python/object/apply:os.getcwd []", "accepted: a plain value"),
        ("name: \xff", "cannot be read"),
    ],
)
def test_a_file_is_strict(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidSetting, match=said):
        load("--config", str(file))


def test_yaml_is_written_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: no\non: yes\nmany: [1, '2']\nnumber: 9000\naddress: off\n", encoding="utf-8")
    found = load("--config", str(file))
    # A name is what was written, though YAML takes it for false; the setting `on` is no word of YAML's either.
    assert (found.name, found.on, found.many, found.number, found.address) == ("no", True, (1, 2), 9000, None)
    file.write_text("name: a\nmany: 3\npairs: {a: b, c: , d: 1}\nunsafe: FALSE\n", encoding="utf-8")
    found = load("--config", str(file))
    assert (found.many, found.pairs, found.unsafe) == ((3,), ("a=b", "c", "d=1"), False)
    file.write_text("name: a\nmany: []\npairs:\n  - a=b\n  - c\n", encoding="utf-8")
    assert (load("--config", str(file)).many, load("--config", str(file)).pairs) == ((), ("a=b", "c"))
    file.write_text("", encoding="utf-8")
    assert load("--config", str(file), "--name", "a") == Example(
        "a", timedelta(hours=1), False, False, (), None, None, (), 1, ("::", 1)
    )


def test_a_switch_needs_no_value_and_unsafe_ones_are_not_advertised() -> None:
    assert load("--name", "a", "--on").on
    assert not load("--name", "a", "--on", "false").on
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser, Example)
    assert "UNSAFE" not in parser.format_help()
    assert "--on" in parser.format_help()
    assert "(default: 1h)" in parser.format_help()


def test_a_fallback_is_for_what_nobody_said() -> None:
    assert load(name="host").name == "host"
    assert load("--name", "flag", name="host").name == "flag"
