"""What is said of an error, whoever raised it."""

import errno
import socket
import ssl
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from agent.errors import AgentError
from podsvid import outcome
from podsvid.outcome import Outcome, OutputFailed
from podsvid.quickstart.failure import AgentDied
from runtime.listening import bound


@dataclass(frozen=True)
class Settings:
    run_dir: Path = Path("/run/podsvid")
    inner_dir: Path = Path("/run/podsvid/inner")
    metrics_listen: tuple[str, int] | None = ("127.0.0.1", 1)
    health_listen: tuple[str, int] | None = None


def test_an_address_that_is_taken_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = taken.getsockname()
        with pytest.raises(OSError, match="in use") as caught:
            bound(address)
        found = outcome.of(caught.value, Settings(metrics_listen=address))
    assert found.reason == "ADDRESS_IN_USE"
    assert found.text.startswith(f"127.0.0.1:{address[1]} cannot be bound: Address already in use (")
    assert "setting metrics_listen: --metrics-listen, PODSVID_METRICS_LISTEN" in found.text


@pytest.mark.parametrize(
    ("path", "named"),
    [("/run/podsvid/lock", "run_dir"), ("/run/podsvid/inner/a", "inner_dir"), ("/run/podsvid2", None), ("/x", None)],
)
def test_a_path_names_the_setting_that_it_is_below(path: str, named: str | None) -> None:
    text = outcome.of(PermissionError(errno.EACCES, "Permission denied", path), Settings()).text
    assert text.startswith(f"{path}: Permission denied")
    assert ("setting" in text) is (named is not None)
    if named:
        assert f"(setting {named}: " in text


def test_the_first_cause_of_a_group_is_told() -> None:
    group = ExceptionGroup("unhandled", [ExceptionGroup("inner", [AgentError("the cause")]), ValueError()])
    assert outcome.of(group) == Outcome("AGENT_ERROR", "the cause")


def test_the_reasons_of_other_packages_are_not_ours() -> None:
    error = ssl.SSLError(1, "wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    assert outcome.of(error).reason == "SYSTEM_ERROR"


def test_a_bug_says_where_it_is_in_one_line() -> None:
    error = RuntimeError("of\nseveral lines")
    try:
        raise error
    except RuntimeError:
        found = outcome.of(error)
    assert found.reason == "INTERNAL"
    assert found.text.startswith("RuntimeError: of several lines; this is a bug")
    assert "tests/unit/podsvid/test_outcome.py:" in found.text
    assert "\n" not in found.line()


@pytest.mark.parametrize("value", ["SECRET\nTOKEN", "SECRET\u20ac"])
def test_what_a_package_says_of_a_value_is_not_repeated(value: str) -> None:
    connection = HTTPConnection("127.0.0.1", 1)
    connection.putrequest("GET", "/")
    with pytest.raises(ValueError, match=r"SECRET|latin-1") as caught:
        connection.putheader("Authorization", value)
    found = outcome.of(caught.value)
    assert "SECRET" not in found.line()
    assert found.text.startswith(f"{type(caught.value).__name__}; this is a bug")
    try:
        raise RuntimeError("the heap loop ended") from caught.value
    except RuntimeError as error:
        assert "SECRET" not in outcome.of(error).line()


def test_what_ended_a_loop_is_told_with_its_end() -> None:
    """A daemon's loop that ended was said to have ended, and nothing else of it."""

    def fails() -> None:
        raise ExceptionGroup("tasks", [KeyError("the cause")])

    try:
        try:
            fails()
        except ExceptionGroup as cause:
            raise RuntimeError("the heap loop ended") from cause
    except RuntimeError as error:
        found = outcome.of(error)
    assert found.text.startswith("RuntimeError: the heap loop ended by KeyError: 'the cause'; this is a bug")


def test_an_error_that_is_its_own_cause_is_told_as_well() -> None:
    error = RuntimeError("the loop ended")
    error.__cause__ = error
    assert outcome.of(error).text.startswith("RuntimeError: the loop ended; this is a bug")


def test_what_a_peer_says_is_no_line_of_the_command() -> None:
    assert Outcome("X", "no\npodsvid: DONE: all is well").line() == "podsvid: X: no podsvid: DONE: all is well"
    assert outcome.of(AgentDied("it ended\n--- the end of its log")).line().count("\n") == 1


@pytest.mark.parametrize("other", ["127.0.0.1:80", "127.0.0.1:808", "27.0.0.1:8080"])
def test_an_address_is_not_taken_for_one_that_it_begins_or_ends_with(other: str) -> None:
    host, _, port = other.rpartition(":")
    error = OSError(errno.EADDRINUSE, "127.0.0.1:8080 cannot be bound: Address already in use")
    assert "setting" not in outcome.of(error, Settings(metrics_listen=(host, int(port)))).text
    assert "setting metrics_listen" in outcome.of(error, Settings(metrics_listen=("127.0.0.1", 8080))).text


def test_what_others_wrote_draws_on_no_terminal_and_is_cut() -> None:
    line = Outcome("X", "\x1b[2J\x9b" + "a" * 5000).line()
    assert all(each.isprintable() for each in line)
    assert len(line) < 1600


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 141), (errno.ENOSPC, 1), (errno.EBADF, 1)])
def test_the_output(number: int, code: int) -> None:
    assert outcome.of(OutputFailed(number, "why")) == Outcome(
        "OUTPUT_FAILED", "the standard output cannot be written: why", code
    )
