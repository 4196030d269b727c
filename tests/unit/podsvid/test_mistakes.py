"""A newcomer's mistakes: each is one clear line with a reason, an exit code of the one table, and leaves nothing."""

import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from podsvid import outcome
from podsvid.cli import main

pytestmark = pytest.mark.timeout(60)
X509, JWT = ("api", "fetch", "x509"), ("api", "fetch", "jwt")
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "http://127.0.0.1:%d"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {token: x}}]
current-context: a
"""
# Of an API server that does not listen.
AWAY = "cannot be reached (Connection refused); look at the kubeconfig's context and at your connection"


@dataclass(frozen=True)
class Mistake:
    """A command line, with {places}; what is said; the reason and the exit code."""

    line: tuple[str, ...]
    said: str
    reason: str = "WRONG_USAGE"
    code: int = 2
    variables: tuple[tuple[str, str], ...] = ()


def wrong(*line: str, said: str) -> Mistake:
    return Mistake(line, said)


def setting(*line: str, said: str, **variables: str) -> Mistake:
    return Mistake(line, said, "INVALID_SETTING", 2, tuple(variables.items()))


def failed(reason: str, *line: str, said: str, code: int = 1) -> Mistake:
    return Mistake(line, said, reason, code)


MISTAKES = (
    # The command line itself.
    wrong(said="COMMAND"),
    wrong("agnet", said="did you mean agent?"),
    wrong("node", said="ACTION"),
    wrong("node", "lss", said="did you mean ls?"),
    wrong("node", "explain", said="NAMESPACE/POD"),
    wrong("node", "ls", "--no-such", said="unrecognized arguments: --no-such"),
    wrong("node", "ls", "--output", "xml", said="'xml'"),
    wrong("authority", said="ACTION"),
    wrong("authority", "rotat", said="did you mean rotate?"),
    wrong("authority", "rotate", "--kind", "x508", said="did you mean x509?"),
    wrong("authority", "rotate", "--wait", "--no-wait", said="not allowed with argument --wait"),
    wrong("authority", "revoke", said="AUTHORITY_ID"),
    wrong("explain", said="NAMESPACE/POD"),
    wrong("api", said="fetch|watch|validate"),
    wrong("api", "fetch", "x508", said="did you mean x509?"),
    wrong("api", "fetsh", said="did you mean fetch?"),
    wrong(*JWT, said="--audience"),
    wrong(*JWT, "--audience", "", said="must not be empty"),
    wrong(*JWT, "--audience", "a", "--spiffe-id", "https://example.org/a", said="--spiffe-id"),
    wrong(*X509, "--timeout", "0", said="--timeout"),
    wrong(*X509, "--timeout", "1e400", said="1e400"),
    wrong(*X509, "--timeout", "9" * 5000, said="--timeout"),
    wrong("api", "watch", "--signal", "99999999999", said="is not a process ID"),
    wrong("api", "watch", "--signal", "1:NOPE", said="'NOPE' is not a signal name"),
    wrong("api", "validate", "jwt", "--audience", "a", said="--svid-file"),
    wrong("quickstart", "--pods", "9" * 40, said="a number from 1 to 500"),
    wrong("quickstart", "--pods", "none", said="'none' is not a number"),
    wrong("quickstart", "--exit-after", "-1", said="'-1' is not a number"),
    wrong("quickstart", "--ttl", "soon", said="--ttl 'soon' is not a duration"),
    wrong("quickstart", "--trust-domain", "Not A Domain", said="example.org"),
    wrong("uninstall-check", "--bad\x1b[2J", said="unrecognized arguments: --bad\N{REPLACEMENT CHARACTER}[2J"),
    wrong("console", "--every", "1s", said="--every is 5s at least"),
    wrong("console", "--every", "soon", said="'soon' is no time to wait"),
    wrong("migrate", said="PRODUCT"),
    wrong("migrate", "spyre", said="did you mean spire?"),
    wrong("migrate", "spire", said="FILE"),
    wrong("migrate", "spire", "-", "-", said="give - once"),
    wrong(
        "migrate", "spire", "{file}", "--output-dir", "{absent}", "-o", "json", said="--output-dir has files of YAML"
    ),
    # Settings.
    setting("agent", said="trust_domain is missing: give --trust-domain, PODSVID_TRUST_DOMAIN"),
    setting("agent", "--config", "{absent}", said="{absent}"),
    setting("agent", "--config", "{folder}", said="{folder}"),
    setting("agent", "--config", "{file}", said="{file} must be a mapping"),
    setting("agent", "--config", "{garbled}", said="{garbled} is not YAML"),
    setting(
        "agent", "--config", "{unknown}", said="'trustdomains' in {unknown}:2 is no setting; did you mean trust_domain?"
    ),
    setting("agent", "--trust-domain", "a", "--x509-ttl", "9" * 4000 + "d", said="x509_ttl from --x509-ttl"),
    setting("agent", said="x509_ttl in PODSVID_X509_TTL is '1'", PODSVID_TRUST_DOMAIN="a", PODSVID_X509_TTL="1"),
    setting("agent", "--trust-domain", "a", "--metrics-listen", "1.2.3.4:99999999", said="metrics_listen from"),
    setting("agent", "--trust-domain", "a", "--run-dir", "run", said="an absolute path"),
    setting("signer", said="trust_domain is missing"),
    setting("signer", "--trust-domain", "a", "--listen", "fd00::1:8443", said="listen from --listen"),
    setting("uninstall-check", "--kubeconfig", "{folder}/../x", said="--kubeconfig"),
    setting("api", "watch", "--socket", "{absent}", "--exec", said="--exec needs a command"),
    # Addresses and sockets.
    failed("INVALID_WORKLOAD_API_ADDRESS", *X509, "--socket", "tcp://localhost:80", said="never a name", code=2),
    failed("INVALID_WORKLOAD_API_ADDRESS", *X509, "--socket", "run/socket", said="an absolute path", code=2),
    failed("INVALID_WORKLOAD_API_ADDRESS", *X509, "--socket", "/" + "a" * 200, said="107 bytes", code=2),
    failed("WORKLOAD_API_UNREACHABLE", *X509, "--socket", "{absent}", said="{absent}", code=3),
    failed("WORKLOAD_API_UNREACHABLE", *X509, "--socket", "{file}", said="{file} is a file and no socket", code=3),
    failed("WORKLOAD_API_UNREACHABLE", *X509, "--socket", "{left}", said="nobody listens at {left} any more", code=3),
    failed("NO_SOCKET", "node", "ls", "--socket", "{absent}", said="no agent listens at {absent}; run this as root"),
    failed("NOT_A_SOCKET", "node", "ls", "--socket", "{folder}", said="{folder} is a directory and no socket"),
    failed("NOBODY_LISTENS", "node", "rotate", "a/b", "--socket", "{left}", said="nobody listens at {left} any more"),
    failed("NO_SOCKET", "authority", "show", "--socket", "{absent}", said="no signer listens at {absent}; run this in"),
    failed("NOT_A_SOCKET", "authority", "prepare", "--socket", "{file}", said="{file} is a file and no socket"),
    failed("NO_SOCKET", "explain", "a/b", "--socket", "{absent}", said="no signer listens at {absent}"),
    wrong("explain", "a-b", "--socket", "{absent}", said="NAMESPACE/POD"),
    wrong("node", "explain", "a/", "--socket", "{file}", said="NAMESPACE/POD"),
    failed("NO_SOCKET", "console", "--socket", "{absent}", said="there is no {absent}: an agent does not run here"),
    failed("NOT_A_SOCKET", "console", "--socket", "{file}", said="{file} is a file and no socket of an agent"),
    # Kubeconfigs.
    failed("API_SERVER_UNAVAILABLE", "doctor", "--kubeconfig", "{absent}", said="no usable kubeconfig"),
    failed("API_SERVER_UNAVAILABLE", "doctor", "--kubeconfig", "{closed}", said=AWAY),
    failed("API_SERVER_UNAVAILABLE", "oidc", "probe", "--kubeconfig", "{closed}", said=AWAY),
    failed("API_SERVER_UNAVAILABLE", "bundle", "show", "--kubeconfig", "{closed}", said=AWAY),
    failed("TIMED_OUT", "doctor", "--kubeconfig", "{deaf}", "--timeout", "1s", said="no answer from the API server"),
    failed("API_SERVER_UNAVAILABLE", "console", "--kubeconfig", "{absent}", said="no usable kubeconfig"),
    failed("API_SERVER_UNAVAILABLE", "explain", "a/b", "--kubeconfig", "{absent}", said="no usable kubeconfig"),
    failed("API_SERVER_UNAVAILABLE", "explain", "a/b", "--kubeconfig", "{garbled}", said="no usable kubeconfig"),
    failed("API_SERVER_UNAVAILABLE", "explain", "a/b", "--kubeconfig", "{closed}", said=AWAY),
    failed(
        "TIMED_OUT", "explain", "a/b", "--kubeconfig", "{deaf}", "--timeout", "1s", said="no answer from the API server"
    ),
    failed("TIMED_OUT", "uninstall-check", "--kubeconfig", "{deaf}", "--timeout", "1s", said="within 1 s; --timeout"),
    failed("API_SERVER_UNAVAILABLE", "uninstall-check", "--kubeconfig", "{absent}", said="{absent} cannot be used"),
    failed("API_SERVER_UNAVAILABLE", "uninstall-check", "--kubeconfig", "{folder}", said="Is a directory"),
    failed("API_SERVER_UNAVAILABLE", "uninstall-check", "--kubeconfig", "{garbled}", said="{garbled}"),
    failed("API_SERVER_UNAVAILABLE", "uninstall-check", "--kubeconfig", "{file}", said="{file} cannot be used"),
    failed("API_SERVER_UNAVAILABLE", "uninstall-check", "--kubeconfig", "{closed}", said=AWAY),
    failed(
        "API_SERVER_UNAVAILABLE",
        "uninstall-check",
        "--kubeconfig",
        "{closed}",
        "--context",
        "b",
        said="Expected object with name b",
    ),
    Mistake(
        ("uninstall-check",), "{absent} cannot be used", "API_SERVER_UNAVAILABLE", 1, (("KUBECONFIG", "{absent}"),)
    ),
    Mistake(("uninstall-check",), AWAY, "API_SERVER_UNAVAILABLE", 1, (("KUBECONFIG", "{closed}"),)),
    Mistake(
        ("uninstall-check",),
        AWAY,
        "API_SERVER_UNAVAILABLE",
        1,
        (("KUBECONFIG", "{absent}:{closed}:{closed}"),),
    ),
    # Files.
    failed("UNUSABLE_DOCUMENT", "migrate", "spire", "{garbled}", said="{garbled} is neither YAML nor JSON"),
    failed("NOT_FOUND", "migrate", "csi-driver-spiffe", "{absent}", said="{absent}: No such file"),
    failed("IN_THE_WAY", "migrate", "spire", "{folder}", said="{folder}: Is a directory"),
    failed(
        "NOT_FOUND",
        "api",
        "validate",
        "jwt",
        "--audience",
        "a",
        "--socket",
        "{left}",
        "--svid-file",
        "{absent}",
        said="{absent}: No such file or directory",
    ),
    failed(
        "TOKEN_INVALID",
        "api",
        "validate",
        "jwt",
        "--audience",
        "a",
        "--socket",
        "{left}",
        "--svid-file",
        "/dev/zero",
        said="too long",
        code=5,
    ),
    failed("QUICKSTART_FAILED", "quickstart", "--dir", "{full}", said="is not empty and was not made by quickstart"),
    failed("QUICKSTART_FAILED", "quickstart", "--dir", "{file}/x", said="cannot use {file}/x"),
    failed("QUICKSTART_FAILED", "quickstart", "--dir", "/" + "a" * 120, said="is too long"),
)


@pytest.fixture
def base() -> Iterator[Path]:
    """A short path: sockets' are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def places(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, str]]:
    """Where mistakes lead, by name; settings and files of whoever runs the tests are not there."""
    for name in os.environ:
        if name.startswith(("PODSVID_", "KUBE", "SPIFFE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(base / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(base / "tmp"))
    for folder in ("home", "tmp", "folder", "full", "here"):
        (base / folder).mkdir()
    monkeypatch.chdir(base / "here")
    (base / "full" / "letter").touch()
    (base / "file").write_text("a word")
    (base / "garbled").write_text("{]")
    (base / "unknown").write_text("trust_domain: a\ntrustdomains: a")
    with (
        socket.socket(socket.AF_UNIX) as left,
        socket.socket() as closed,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        (base / "deaf").write_text(KUBECONFIG % deaf.getsockname()[1])
        # Bound, and nobody listens.
        left.bind(str(base / "left"))
        closed.bind(("127.0.0.1", 0))
        (base / "closed").write_text(KUBECONFIG % closed.getsockname()[1])
        yield {name: str(base / name) for name in ("absent", *os.listdir(base))}


def _everything(folder: Path) -> list[str]:
    return sorted(str(each) for each in folder.rglob("*"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: " ".join(each.line)[:60].encode("ascii", "replace"))
def test_a_mistake_is_one_clear_line_and_leaves_nothing(
    mistake: Mistake,
    places: Mapping[str, str],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in mistake.variables:
        monkeypatch.setenv(name, value.format(**places))
    before = _everything(base)
    code = main([each.format(**places) for each in mistake.line])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"podsvid: {mistake.reason}: ")
    assert mistake.said.format(**places) in err
    # One line, whatever was given, and of a length that somebody reads.
    assert err.index("\n") == len(err) - 1
    assert len(err) < 1600
    assert all(each.isprintable() for each in err[:-1])
    # Nobody reads what Python calls it.
    assert not re.search(r"\wPool\(|\w(Error|Exception)\b", err)
    assert code == mistake.code
    assert _everything(base) == before


@pytest.mark.parametrize(("line", "there"), [("doctor", False), ("console", False), ("explain a/b", True)])
def test_without_a_kubeconfig_nobody_is_sent_to_a_pod_that_cannot_do_the_same(
    line: str, there: bool, places: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--kubeconfig", places["absent"]]) == 1
    err = capsys.readouterr().err
    assert "authority show" not in err
    assert err.endswith("give --kubeconfig and --context\n") != there


def test_there_are_sixty() -> None:
    assert len(MISTAKES) >= 60
    assert {each.line[0] for each in MISTAKES if each.line} >= {
        "agent",
        "signer",
        "authority",
        "explain",
        "node",
        "api",
    }


def test_every_exit_code_is_in_the_table() -> None:
    told = {int(code) for codes in outcome.MEANINGS for code in codes.split(", ")}
    assert {each.code for each in MISTAKES} <= told
    assert set(outcome._CODES.values()) <= told


def test_help_has_the_table_and_fits_into_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 80
    words = " ".join(text.split())
    assert all(f"{codes} {meaning}" in words for codes, meaning in outcome.MEANINGS.items())
