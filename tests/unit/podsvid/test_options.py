"""What is spelt the same in every command."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.config import AgentConfig
from docs import shapes
from podsvid import cli
from podsvid.api import command as api
from podsvid.cli import main
from podsvid.options import add_pod, as_yaml, seconds, which_pod, yaml_of
from podsvid.outcome import WrongUsage
from podsvid.parsing import Parser
from runtime.version import VERSION
from signer.config import SignerConfig
from tests.support import ROOT


@pytest.mark.parametrize("beside", [(), ("node",), ("help",)])
def test_the_version(beside: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", *beside]) == 0
    assert capsys.readouterr().out == f"podsvid {VERSION}\n"


@pytest.mark.parametrize("line", [["--version"], ["node", "--help"], ["api", "watch", "--help"]], ids=" ".join)
def test_what_needs_no_cryptography_does_not_load_it(line: list[str]) -> None:
    code = f"import sys; from podsvid.cli import main; main({line}); sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("line", [["node"], ["api", "fetch", "x509"], ["authority", "rotate"], []], ids=" ".join)
def test_help_is_what_the_flag_prints(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", *line]) == 0
    helped = capsys.readouterr().out
    assert main([*line, "--help"]) == 0
    assert helped == capsys.readouterr().out
    assert helped.startswith(f"usage: {' '.join(['podsvid', *line])}")


def test_a_plug_in_of_kubectl_calls_itself_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-podsvid"])
    assert main(["node", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: kubectl podsvid node")


@pytest.mark.parametrize(
    "line", [["shop/cart"], ["shop", "cart"], ["-n", "shop", "cart"], ["cart", "--namespace=shop"]]
)
def test_a_pod_in_every_spelling(line: list[str]) -> None:
    parser = Parser()
    add_pod(parser)
    assert which_pod(parser.parse_args(line)) == ("shop", "cart")


@pytest.mark.parametrize("line", [["cart"], ["a/b/c"], ["a/b", "c"], ["-n", "a", "b/c"], ["-n", "a", "b", "c"], ["a/"]])
def test_a_pod_that_could_be_two_is_none(line: list[str]) -> None:
    parser = Parser()
    add_pod(parser)
    with pytest.raises(WrongUsage, match="NAMESPACE/POD, NAMESPACE POD, or -n NAMESPACE POD"):
        which_pod(parser.parse_args(line))


@pytest.mark.parametrize(("text", "wanted"), [("10s", 10.0), ("1m30s", 90.0), ("10", 10.0), ("0.3", 0.3)])
def test_how_long(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["0", "0s", "-1", "nan", "inf", "1e400", "soon", "", "9" * 5000, "99999999d"])
def test_no_time_to_wait(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time to wait"):
        seconds(text)


def test_yaml_is_the_same_document() -> None:
    document = {"b": 1, "a": [None, True, "yes", "2026-11-24T17:04:18Z", "é"], "c": {}}
    made = as_yaml(json.dumps(document))
    assert yaml.safe_load(made) == document
    assert made.index("b:") < made.index("a:")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "y",
            "N",
            "yes",
            "Off",
            "on",
            "TRUE",
            "null",
            "~",
            "",
            "12345e6",
            "1e3",
            "0o17",
            "0123",
            "0x1F",
            "1_000",
        ),
        *("+1", "-1", ".5", ".inf", ".NaN", "190:20:30", "2026-11-24", "<<", "=", "0b1", "1.5", "- a", "a: b", "a #b"),
    ],
)
def test_no_reader_of_yaml_takes_a_text_for_something_else(text: str) -> None:
    """What YAML 1.1, 1.2 or Go's readers resolve is resolved of bare scalars alone."""
    document = {"key": text, text: ["x", text]}
    made = as_yaml(json.dumps(document))
    scalars = [each for each in yaml.parse(made) if isinstance(each, yaml.ScalarEvent)]
    assert yaml.safe_load(made) == document
    assert {bool(each.style) for each in scalars if each.value == text} == {True}
    assert {bool(each.style) for each in scalars if each.value in ("key", "x")} == {False}
    assert yaml_of(document) == made


def test_numbers_and_truths_stay_bare() -> None:
    assert as_yaml('{"a": [1, true, null, 1.5]}') == "a:\n- 1\n- true\n- null\n- 1.5\n"
    same = ["x"]
    assert yaml_of([same, same]) == "- - x\n- - x\n"


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return [leaf for each in below for one in each.choices.values() for leaf in _leaves(one)] if below else [parser]


@pytest.mark.parametrize("command", ["node", "authority", "explain", "api"])
def test_whoever_prints_a_document_prints_it_in_either_form(command: str) -> None:
    parser = cli._parser(command)
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    outputs = [
        action
        for leaf in _leaves(commands.choices[command])
        for action in leaf._actions
        if "--output" in action.option_strings
    ]
    assert outputs
    assert all({"json", "yaml"} <= set(each.choices or ()) and "-o" in each.option_strings for each in outputs)


def test_each_of_them_is_described_and_tables_are_wide_as_well() -> None:
    wide = set()
    for name, leaf in _named(cli._parser(None), ""):
        for action in leaf._actions:
            if "--output" in action.option_strings:
                assert shapes.of(name)
                assert next(iter(action.choices or ())) == "text"
                wide |= {name} if "wide" in (action.choices or ()) else set()
    assert wide == {"node ls", "node rotate", "authority show"}


def _named(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for each in below:
        for word, one in each.choices.items():
            yield from _named(one, f"{name} {word}".strip())


def test_what_has_another_shape_than_described_is_found() -> None:
    shape = shapes.obj(at=shapes.TIME, names=shapes.listed(shapes.STRING), last=replace(shapes.NUMBER, absent=True))
    good = {"at": "2026-11-24T17:04:18Z", "names": ["a"]}
    assert list(shape.faults(good)) == []
    for changes in (
        {"at": "2026-11-24 17:04:18Z"},
        {"at": "2026-11-24T17:04:18+00:00"},
        {"at": None},
        {"names": [1]},
        {"names": "a"},
        {"last": "1"},
        {"last": True},
        {"more": 1},
    ):
        assert len(list(shape.faults(good | changes))) == 1, changes
    assert len(list(shape.faults({"names": []}))) == 1


def test_without_a_variable_the_customary_socket_is_asked(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(api.ENDPOINT_VARIABLE, raising=False)
    places = (str(short / "one"), str(short / "two"))
    monkeypatch.setattr(api, "CUSTOMARY", places)
    assert main(["api", "fetch", "x509"]) == 2
    assert f"nothing is at {places[0]} or {places[1]}" in capsys.readouterr().err
    (short / "two").touch()
    assert main(["api", "fetch", "x509"]) == 3
    assert f"{places[1]} is a file" in capsys.readouterr().err


def test_every_help_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pages = list(_pages(cli._parser(None)))
    assert len(pages) > 20
    for each in pages:
        text = each.format_help()
        assert max(map(len, text.splitlines())) <= 80, text
        # What it is for, and every value by what it is.
        assert each.description, each.prog
        for action in each._actions:
            if action.option_strings and action.nargs != 0 and action.help != argparse.SUPPRESS:
                assert action.metavar or action.choices, f"{each.prog} {action.option_strings}"


def _pages(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for each in parser._actions:
        if isinstance(each, argparse._SubParsersAction):
            for one in each.choices.values():
                yield from _pages(one)


@pytest.mark.parametrize(("command", "model"), [("agent", AgentConfig), ("signer", SignerConfig)])
def test_a_daemons_help_names_the_variable_of_each_setting(
    command: str, model: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    shown = [each.name for each in dataclasses.fields(model) if not each.metadata["help"].startswith("UNSAFE")]
    assert all(f"PODSVID_{name.upper()}]" in text for name in shown)
    assert "jwt settings:" in text
