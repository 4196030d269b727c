"""Settings of any command: which text is a value and which is refused, who wins, and what a refusal says."""

import argparse
import ast
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from runtime import durations, loading, settings
from runtime.settings import Conflict, InvalidSetting, setting
from signer.config import SignerConfig
from tests.support import ROOT


@dataclass(frozen=True)
class Model:
    """Settings of a command that exists here only."""

    name: str = setting(settings.choice("a", "b", "c", "d"), "a letter", "a")
    life: timedelta = setting(settings.ttl, "how long", "1h")
    loud: bool = setting(settings.boolean, "a switch", "false")
    names: tuple[str, ...] = setting(settings.listed(settings.choice("a", "b", "c")), "letters", "")
    must: str | None = setting(settings.choice("x", "y"), "has no default", required=True)
    fallback: str | None = setting(str, "has no default either")

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        if self.loud and self.name != "a":
            yield Conflict(("loud", "name"), "only a is loud")
        if "life" in given and self.life < timedelta(minutes=1):
            yield Conflict(("life", "fallback"), "too short")


def load(*flags: str, environment: dict[str, str] | None = None, **fallbacks: Any) -> Model:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser, Model)
    return loading.load(Model, parser.parse_args(flags), environment or {}, **fallbacks)


def file_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    assert load("--must", "x").name == "a"
    given = ["--config", file_of(tmp_path, "name: b\nmust: x\n")]
    assert load(*given).name == "b"
    assert load(*given, environment={"PODSVID_NAME": "c"}).name == "c"
    assert load(*given, "--name", "d", environment={"PODSVID_NAME": "c"}).name == "d"


def test_the_file_may_be_named_by_the_environment_and_a_flag_names_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "b"), (second, "c")):
        folder.mkdir()
        file_of(folder, f"name: {name}\nmust: x\n")
    environment = {"PODSVID_CONFIG": str(first / "config.yaml")}
    assert load(environment=environment).name == "b"
    assert load("--config", str(second / "config.yaml"), environment=environment).name == "c"


def test_a_flag_that_switches_needs_no_value_and_false_switches_off(tmp_path: Path) -> None:
    assert not load("--must", "x").loud
    assert load("--must", "x", "--loud").loud
    assert not load("--must", "x", "--loud", "false", environment={"PODSVID_LOUD": "true"}).loud
    assert load("--config", file_of(tmp_path, "must: x\nloud: true\n")).loud


def test_lists_in_every_form(tmp_path: Path) -> None:
    assert load("--must", "x", "--names", " a, b ").names == ("a", "b")
    assert load("--config", file_of(tmp_path, "must: x\nnames: [a, c]\n")).names == ("a", "c")
    assert load("--must", "x", "--names", " ").names == ()
    with pytest.raises(InvalidSetting, match="names from --names is 'a,,b'"):
        load("--must", "x", "--names", "a,,b")


def test_what_is_required_is_missed_and_fallbacks_fill_only_what_nobody_gave() -> None:
    with pytest.raises(InvalidSetting, match=r"^must is missing: give --must, PODSVID_MUST or must in YAML$"):
        load()
    assert load("--must", "x", fallback="from elsewhere").fallback == "from elsewhere"
    assert load("--must", "x", "--fallback", "given", fallback="from elsewhere").fallback == "given"
    assert load(must="y").must == "y"


@pytest.mark.parametrize(
    ("flags", "environment", "text", "sentence"),
    [
        (["--name", "z"], {}, "", "name from --name is 'z'; accepted: one of a, b, c, d"),
        ([], {"PODSVID_NAME": "z"}, "", "name in PODSVID_NAME is 'z'; accepted: one of"),
        ([], {}, "name: z", "name in {file}:1 is 'z'; accepted: one of"),
        ([], {}, "# one\nnmae: a", "'nmae' in {file}:2 is no setting; did you mean name?"),
        ([], {}, "zzz: a", "'zzz' in {file}:1 is no setting; --help has all of them"),
        (
            [],
            {"PODSVID_NMAE": "x"},
            "",
            "PODSVID_NMAE is set and is no setting of this command; did you mean PODSVID_NAME?",
        ),
        ([], {"PODSVID_Q": "x"}, "", "PODSVID_Q is set and is no setting of this command; --help has all of them"),
        ([], {}, "life: 60", "life in {file}:1 is '60'; accepted: a duration from 2s to 90d"),
        ([], {}, "names: [1]", "names in {file}:1 is '1'; accepted: one of a, b, c"),
        ([], {}, "names: [a, [b]]", "names in {file}:1 is 'a nested value'; accepted: a plain value, or a list"),
        ([], {}, "names: [a, null]", "names in {file}:1 is 'a,null'; accepted: a list in which each has a value"),
        ([], {}, "names: {a: b}", "names in {file}:1 is 'a=b'; accepted: a list, no mapping"),
        ([], {}, "name: null", "name in {file}:1 is 'null'; accepted: a value; without one take the line out"),
        ([], {}, "name:", "name in {file}:1 is ''; accepted: a value; without one take the line out"),
        ([], {}, "name: {}", "name in {file}:1 is ''; accepted: one value"),
        ([], {}, "name: [a]", "name in {file}:1 is 'a'; accepted: one value"),
        ([], {}, "name: a\nlife: 1h\nname: b", "'name' is in {file} twice, lines 1 and 3: leave one out"),
        ([], {}, "name: a\n\tlife: 1h", "config file {file} is not YAML: in line 2, column 1, stands a tab"),
        ([], {}, "name: " + "[" * 5000, "config file {file} is not YAML"),
        ([], {}, "# " + "a" * 2**20, "config file {file} is larger than 1048576 bytes"),
        ([], {}, "[a]", "config file {file} must be a mapping"),
        ([], {}, "a word", "config file {file} must be a mapping"),
        ([], {}, "name: [", "config file {file} is not YAML"),
        (
            [],
            {},
            "name: !!python/object/apply:os.getcwd []",
            "name in {file}:1 is 'a nested value'; accepted: a plain value",
        ),
        ([], {}, "\udcff", "config file {file} cannot be read"),
    ],
)
def test_a_refusal_names_the_setting_where_it_stands_and_what_is_accepted(
    tmp_path: Path, flags: list[str], environment: dict[str, str], text: str, sentence: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidSetting) as caught:
        load("--must", "x", "--config", str(path), *flags, environment=environment)
    assert str(caught.value).startswith(sentence.replace("{file}", str(path)))


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    text = "name: b\nloud: true\nlife: 1s\nnmae: x\nname: c\nnames: [a, z]\n"
    with pytest.raises(InvalidSetting) as caught:
        load("--config", file_of(tmp_path, text), environment={"PODSVID_LOUDER": "1"})
    file = tmp_path / "config.yaml"
    assert caught.value.faults == (
        f"'name' is in {file} twice, lines 1 and 5: leave one out",
        f"'nmae' in {file}:4 is no setting; did you mean name?",
        "PODSVID_LOUDER is set and is no setting of this command; did you mean PODSVID_LOUD?",
        f"life in {file}:3 is '1s'; accepted: {durations.accepted(durations.MIN_TTL, durations.MAX_TTL)}",
        f"names in {file}:6 is 'a,z'; accepted: one of a, b, c",
        "must is missing: give --must, PODSVID_MUST or must in YAML",
        f"loud in {file}:2 is 'true' and name in {file}:1 is 'b': only a is loud",
    )
    assert str(caught.value).splitlines() == list(caught.value.faults)


def test_a_conflict_shows_defaults_and_what_is_not_set_and_none_of_a_value_that_is_refused_itself() -> None:
    with pytest.raises(InvalidSetting, match=r"^life from --life is '2s' and fallback is not set: too short$"):
        load("--must", "x", "--life", "2s")
    with pytest.raises(InvalidSetting, match=r"^loud from --loud is 'true' and name in PODSVID_NAME is 'b': only a"):
        load("--must", "x", "--loud", environment={"PODSVID_NAME": "b"})
    with pytest.raises(InvalidSetting) as caught:
        load("--must", "x", "--loud", "--name", "z")
    assert len(caught.value.faults) == 1


def test_what_kubelet_and_other_commands_have_variables_for_is_no_mistake() -> None:
    others = {"PODSVID_RUN_DIR": "/r", "PODSVID_ADMIN_SOCKET": "/a", "PODSVID_DIR": "/d", "PODSVIDX": "1"}
    links = {
        "PODSVID_SIGNER_PORT": "tcp://10.0.0.1:8443",
        "PODSVID_SIGNER_PORT_8443_TCP": "tcp://10.0.0.1:8443",
        "PODSVID_SIGNER_PORT_8443_TCP_ADDR": "10.0.0.1",
        "PODSVID_SIGNER_SERVICE_HOST": "10.0.0.1",
        "PODSVID_SIGNER_SERVICE_PORT": "8443",
        "PODSVID_SIGNER_SERVICE_PORT_GRPC": "8443",
    }
    # Those of a Service that is called podsvid as well.
    links |= {name.replace("_SIGNER", ""): value for name, value in links.items()}
    assert load("--must", "x", environment=others | links).must == "x"
    with pytest.raises(InvalidSetting, match="PODSVID_METRICS_PORT is set"):
        load("--must", "x", environment={"PODSVID_METRICS_PORT": "9099"})


def test_the_variables_of_other_commands_are_known() -> None:
    """All that is read below podsvid/, and all that it gives to programs that it starts."""
    named = {
        match
        for path in (ROOT / "podsvid").rglob("*.py")
        for match in re.findall(r"[\"']PODSVID_([A-Z_]+)[\"']", path.read_text(encoding="utf-8"))
    }
    assert named == loading.OTHERS


def test_a_refusal_quotes_no_more_than_a_person_reads() -> None:
    with pytest.raises(InvalidSetting) as caught:
        load("--must", "x", "--name", "z" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_a_file_without_settings_is_a_file(tmp_path: Path, text: str) -> None:
    assert load("--must", "x", "--config", file_of(tmp_path, text)).name == "a"


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (settings.ttl, "2s", timedelta(seconds=2)),
        (settings.ttl, "90d", 90 * DAY),
        (settings.duration(), "0s", timedelta(0)),
        (settings.duration(), "5m", timedelta(minutes=5)),
        (settings.period, "1h", timedelta(hours=1)),
        (settings.period, "3650d", 3650 * DAY),
        (settings.absolute, "/a/b", Path("/a/b")),
        (settings.absolute, "/a/..b", Path("/a/..b")),
        (settings.listen, "off", None),
        (settings.listen, "127.0.0.1:0", ("127.0.0.1", 0)),
        (settings.listen, "[::1]:65535", ("::1", 65535)),
        (settings.listen, ":9099", ("::", 9099)),
        (settings.listen, "[::]:9099", ("::", 9099)),
        (settings.listen, "[2001:DB8:0::1]:1", ("2001:db8::1", 1)),
        (settings.listen, "localhost:1", ("localhost", 1)),
        (settings.boolean, "true", True),
        (settings.boolean, "false", False),
        (settings.url, "https://issuer.test/a", "https://issuer.test/a"),
        (settings.url, "https://" + "a" * 1016, "https://" + "a" * 1016),
        (settings.collector, "http://collector.monitoring:4317", "http://collector.monitoring:4317"),
        (settings.collector, "https://c:1", "https://c:1"),
        (settings.collector, "http://[fd00::1]:4317", "http://[fd00::1]:4317"),
        (settings.host_and_port, "[fd00::1]:8443", ("fd00::1", 8443)),
        (settings.host_and_port, "signer.podsvid.svc:8443", ("signer.podsvid.svc", 8443)),
        (settings.host_and_port, "10.0.0.1:1", ("10.0.0.1", 1)),
        (settings.number(1, 10), "1", 1),
        (settings.number(1, 10), "10", 10),
        (settings.number(1, 10), "007", 7),
        (settings.matching(re.compile("[a-z]+"), "letters"), "abc", "abc"),
    ],
)
def test_what_is_a_value(parse: Callable[[str], Any], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (settings.ttl, "1s"),
        (settings.ttl, "90d1s"),
        (settings.ttl, "2161h"),
        (settings.duration(), "60"),
        (settings.duration(), "-1s"),
        (settings.duration(), "1.5h"),
        (settings.duration(), "1w"),
        (settings.duration(), "1s\n"),
        (settings.duration(), "1234567890s"),
        (settings.duration(), "١s"),
        (settings.period, "59m"),
        (settings.period, "3651d"),
        (settings.absolute, "a/b"),
        (settings.absolute, "/a/../b"),
        (settings.absolute, "/.."),
        (settings.absolute, ""),
        (settings.absolute, "/a\0b"),
        (settings.listen, "9099"),
        (settings.listen, "::1:9099"),
        (settings.listen, ":::9099"),
        (settings.listen, "[::1:9099"),
        (settings.listen, "::1]:9099"),
        (settings.listen, "[]:9099"),
        (settings.listen, "[127.0.0.1]:9099"),
        (settings.listen, "[fe80::1%lo]:9099"),
        (settings.listen, "[[::1]]:9099"),
        (settings.listen, "host:" + "9" * 5000),
        (settings.listen, "host:"),
        (settings.listen, "host:65536"),
        (settings.listen, "host:-1"),
        (settings.listen, "host:٣"),
        (settings.listen, ""),
        (settings.boolean, "yes"),
        (settings.boolean, "True"),
        (settings.boolean, ""),
        (settings.url, "http://issuer.test"),
        (settings.url, "https://issuer.test/a b"),
        (settings.url, "https://ìssuer.test"),
        (settings.url, "https://" + "a" * 1017),
        (settings.collector, "collector:4317"),
        (settings.collector, "ftp://collector:4317"),
        (settings.collector, "http://collector"),
        (settings.collector, "http://fd00::1:4317"),
        (settings.collector, "http://:4317"),
        (settings.collector, "http://collector:x"),
        (settings.number(1, 10), "0"),
        (settings.number(1, 10), "11"),
        (settings.number(1, 10), "1.0"),
        (settings.number(1, 10), "-1"),
        (settings.number(1, 10), "²"),
        (settings.number(1, 10), ""),
        (settings.number(1, 10), "9" * 10_000),
        (settings.choice("a", "b"), "ab"),
        (settings.choice("a", "b"), ""),
        (settings.matching(re.compile("[a-z]+"), "letters"), "abc\n"),
        (settings.trust_domain, "Example.org"),
        (settings.trust_domain, "spiffe://example.org"),
        (settings.jwt_algorithm, "none"),
        (settings.jwt_algorithm, "HS256"),
    ],
)
def test_what_is_no_value(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


def test_an_unsafe_switch_is_in_no_help(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Unsafe:
        plain: bool = setting(settings.boolean, "for everybody", "false")
        hidden: bool = setting(settings.boolean, "UNSAFE, for tests", "false")

        def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
            yield from ()

    parser = argparse.ArgumentParser()
    settings.add_arguments(parser, Unsafe)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "--plain" in shown
    assert "hidden" not in shown
    assert loading.load(Unsafe, parser.parse_args(["--hidden"]), {}).hidden


@pytest.mark.parametrize(
    "text",
    [
        "fd00::1:8443",
        "fd00::1",
        "[fd00::1]",
        "[fd00::1]:",
        "[10.0.0.1]:1",
        "[fe80::1%eth0]:1",
        "[]:1",
        ":1",
        "a:0",
        "a:65536",
    ],
)
def test_an_address_that_could_be_two_is_refused(text: str) -> None:
    """Without brackets the end of an IPv6 address passes for a port."""
    with pytest.raises(ValueError, match=r"^$"):
        settings.host_and_port(text)


@pytest.mark.parametrize(("model", "package"), [(AgentConfig, "agent"), (SignerConfig, "signer")])
def test_every_setting_is_read_by_something(model: type[Any], package: str) -> None:
    """Beyond the file that declares it: one that is checked there and used nowhere promises what nothing does."""
    read = {
        node.attr
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / package / "config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    # Through a property of the settings, or by whoever starts the program.
    apart = {"x509_pod_max_ttl", "x509_min_ttl", "x509_max_ttl", "jwt_max_ttl", "log_format", "log_level", "jwt_svids"}
    names = {each.name for each in fields(model)}
    # Handed on as UpstreamSettings, and read of those.
    handed_on = ("openbao_", "cert_manager_", "aws_pca_", "google_cas_", "spire_", "upstream_")
    apart |= {name for name in names for prefix in handed_on if name.removeprefix(prefix) in read} | {"upstream"}
    assert names - read - apart == set()


@pytest.mark.parametrize("text", ["a..b:80", ".:80", "-a:80", "ä:80", "a" * 64 + ":80", "a b:80"])
def test_what_no_resolver_takes_is_no_host(text: str) -> None:
    with pytest.raises(ValueError):
        settings.listen(text)


def test_an_item_of_a_list_may_hold_several() -> None:
    """As in every version before: kept values of a chart have such."""
    listed = settings.listed(str)
    assert listed("a,b") == listed.each(["a,b"]) == listed.each(["a", "b"])
    assert listed.each([""]) == ()


@pytest.mark.parametrize(
    ("model", "flag", "called"),
    [
        (SignerConfig, "--admin-socket", "SOCKET"),
        (AgentConfig, "--signer-address", "HOST:PORT"),
        (AgentConfig, "--signer-bundle", "FILE"),
    ],
)
def test_help_calls_a_value_by_what_it_is(model: type[Any], flag: str, called: str) -> None:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser, model)
    assert {each.metavar for each in parser._actions if flag in each.option_strings} == {called}
