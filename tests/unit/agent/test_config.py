"""Settings: flags over environment over file over defaults; every refusal names key, value and what is accepted."""

import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from agent import config
from agent.errors import InvalidSetting

TD = ("--trust-domain", "example.org")


def load(*flags: str, environment: dict[str, str] | None = None) -> config.AgentConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(flags), environment or {})


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("trust_domain: file.org\nx509_ttl: 2h\nlog_format: text\n", encoding="utf-8")
    environment = {"PODSVID_X509_TTL": "3h", "PODSVID_TRUST_DOMAIN": "environment.org"}
    found = load("--config", str(file), "--trust-domain", "flag.org", environment=environment)
    assert str(found.trust_domain) == "flag.org"
    assert found.x509_ttl == timedelta(hours=3)
    assert found.log_format == "text"
    assert found.driver_names == (config.DriverName("csi.podsvid.io", "podsvid"),)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "trust_domain is missing"),
        (("--trust-domain", "UP"), "trust_domain from --trust-domain is 'UP'; accepted: a trust domain name"),
        ((*TD, "--x509-ttl", "60"), "x509_ttl from --x509-ttl is '60'; accepted: a duration"),
        ((*TD, "--x509-ttl", "1s"), "accepted: a duration from 2s to 90d"),
        ((*TD, "--authority", "vault"), "accepted: one of embedded, file"),
        ((*TD, "--authority", "file"), "needs ca_cert_file and ca_key_file"),
        ((*TD, "--kubelet-root", "relative"), "accepted: an absolute path"),
        ((*TD, "--kubelet-root", "/a/../b"), "accepted: an absolute path"),
        ((*TD, "--kubelet-root", "/" + "a" * 60), "too long"),
        ((*TD, "--metrics-listen", "9099"), "accepted: HOST:PORT"),
        ((*TD, "--driver-name", "1podsvid"), "accepted: driver names"),
        ((*TD, "--driver-name", "a/b"), "accepted: driver names"),
        ((*TD, "--node-name", "a/b"), "accepted: a node name"),
        ((*TD, "--config", "/does/not/exist"), "cannot be read"),
    ],
)
def test_refusals(flags: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence.replace("(", r"\(")):
        load(*flags)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trust_domian: a", "no setting; accepted: .*trust_domain"),
        ("x509_ttl: 60", "put it in quotes"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_are_strict(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSetting, match=sentence):
        load(*TD, "--config", str(file))
