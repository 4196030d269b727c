"""Settings: flags over environment over file over defaults; every refusal names key, value and what is accepted."""

import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from agent import config
from runtime.settings import InvalidSetting

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
        ((*TD, "--authority", "file"), "ca_cert_file is not set: this authority needs it"),
        ((*TD, "--kubelet-root", "relative"), "accepted: an absolute path"),
        ((*TD, "--kubelet-root", "/a/../b"), "accepted: an absolute path"),
        ((*TD, "--kubelet-root", "/" + "a" * 60), "too long"),
        ((*TD, "--metrics-listen", "9099"), "accepted: HOST:PORT"),
        ((*TD, "--signer-address", "fd00::1:8443"), "accepted: HOST:PORT"),
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
        ("trust_domian: a", "no setting; did you mean trust_domain"),
        ("x509_ttl: 60", "is '60'; accepted: a duration"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_are_strict(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSetting, match=sentence):
        load(*TD, "--config", str(file))


@pytest.mark.spec("C-116", "FED-12")
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("partner.test=/a,partner.test=/b", "partner.test=/b': it has a name twice"),
        ("example.org=/a", "is the own trust domain"),
        ("partner.test", "accepted: TRUST-DOMAIN=FILE"),
        ("PARTNER.test=/a", "accepted: a trust domain name"),
        ("partner.test=a", "accepted: an absolute path"),
    ],
)
def test_federated_bundles_that_contradict(value: str, sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence):
        load("--trust-domain", "example.org", "--federated-bundles", value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--driver-names", ""), "driver_names is empty"),
        (("--driver-names", "a.test,a.test"), "has a name twice"),
        (("--driver-names", "a.test=windows"), "profile out of podsvid, spire, cert-manager"),
        (
            ("--sds-bundle-name", "default"),
            "sds_svid_name by default is 'default' and sds_bundle_name from --sds-bundle-name is 'default'",
        ),
        (("--jwt-algorithm", "HS256"), "accepted: one of RS256"),
        (("--jwt-issuer", "http://issuer.test"), "https:// URL"),
        (("--dns-names", "*.{cluster}.test"), "DNS names in lower case"),
        (("--dns-names", "*"), "DNS names in lower case"),
        (("--socket-rate", "0"), "a number from 1"),
        (("--socket-connections", "x"), "a number from 1"),
        (("--jwt-key-period", "1m"), "1h to 3650d"),
    ],
)
def test_surface_settings_that_are_refused(flags: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load("--trust-domain", "example.org", *flags)
    assert sentence in str(caught.value)


SIGNER = ("--authority", "signer", "--signer-address", "a:1", "--signer-bundle", "/b", "--agent-token-file", "/t")
FILES = ("--authority", "file", "--ca-cert-file", "/c", "--ca-key-file", "/k")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ("--signer-address", "a:1"),
            "authority by default is 'embedded' and signer_address from --signer-address is 'a:1'",
        ),
        (("--authority", "embedded", "--signer-bundle", "/b"), "a CA that nobody else trusts: choose authority signer"),
        ((*FILES, "--agent-token-file", "/t"), "it is for authority signer: choose that, or leave it out"),
        (("--ca-cert-file", "/c"), "it is for authority file: choose that, or leave it out"),
        ((*SIGNER, "--ca-key-file", "/k"), "it is for authority file"),
        *(
            ((*SIGNER, flag, value), "the signer decides that: set it there, and leave it out here")
            for flag, value in (
                ("--x509-ttl", "1h"),
                ("--x509-min-ttl", "1m"),
                ("--x509-max-ttl", "1h"),
                ("--jwt-ttl", "5m"),
                ("--jwt-svids", "true"),
                ("--jwt-jti", "false"),
                ("--jwt-issuer", "https://issuer.test"),
                ("--jwt-algorithm", "ES256"),
                ("--jwt-key-period", "30d"),
                ("--dns-names", "a.test"),
                ("--federated-bundles", "b.test=/b"),
            )
        ),
        ((*FILES, "--jwt-key-period", "30d"), "it is for authority embedded"),
        ((*FILES, "--jwt-bundle-file", "/j"), "its keys go beside that one"),
        ((*FILES, "--jwt-svids"), "JWT-SVIDs need that key"),
        (("--x509-ttl", "2h", "--x509-max-ttl", "1h"), "set it to 2h or more"),
        (("--x509-ttl", "2h", "--x509-min-ttl", "3h"), "the shortest lifetime is above the usual one"),
        (("--x509-max-ttl", "2h", "--x509-min-ttl", "3h"), "the longest lifetime is below the shortest"),
        (("--state-dir", "/run/podsvid/state"), "a reboot empties the one"),
        (("--run-dir", "/" + "a" * 100), "its sockets would take 113 bytes"),
        (("--metrics-listen", ":9099", "--health-listen", "127.0.0.1:9099"), "both are one port"),
        (("--metrics-listen", "a.test:1", "--health-listen", "a.test:1"), "both are one port"),
        (("--metrics-listen", "localhost:1", "--health-listen", "127.0.0.1:1"), "both are one port"),
        (("--metrics-listen", "[::]:1", "--health-listen", "0.0.0.0:1"), "both are one port"),
    ],
)
def test_what_contradicts_each_other_is_refused(flags: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load("--trust-domain", "example.org", *flags)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        SIGNER,
        (*SIGNER, "--signer-audience", "a", "--state-dir", "/s"),
        FILES,
        (*FILES, "--jwt-key-file", "/j", "--jwt-bundle-file", "/b", "--jwt-svids"),
        (*FILES, "--x509-ttl", "30s", "--jwt-svids", "false"),
        # The shortest lifetime by default gives way to a usual one that is shorter.
        ("--x509-ttl", "30s"),
        ("--metrics-listen", "127.0.0.1:9099", "--health-listen", "127.0.0.2:9099"),
        ("--metrics-listen", ":0", "--health-listen", ":0"),
        ("--sds-svid-name", "", "--sds-bundle-name", ""),
    ],
)
def test_what_goes_together_is_taken(flags: tuple[str, ...]) -> None:
    load("--trust-domain", "example.org", *flags)


def test_lists_in_yaml_and_profiles_by_name(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        "trust_domain: example.org\ndriver_names: [csi.podsvid.io, csi.spiffe.io, x.test=cert-manager]\n",
        encoding="utf-8",
    )
    found = load("--config", str(path))
    assert [(each.name, each.profile) for each in found.driver_names] == [
        ("csi.podsvid.io", "podsvid"),
        ("csi.spiffe.io", "spire"),
        ("x.test", "cert-manager"),
    ]


def test_maps_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        "trust_domain: example.org\ndriver_names:\n  csi.podsvid.io:\n  x.test: cert-manager\n"
        "federated_bundles: {partner.test: /etc/partner.json}\n",
        encoding="utf-8",
    )
    found = load("--config", str(path))
    assert [(each.name, each.profile) for each in found.driver_names] == [
        ("csi.podsvid.io", "podsvid"),
        ("x.test", "cert-manager"),
    ]
    assert [(str(domain), str(file)) for domain, file in found.federated_bundles] == [
        ("partner.test", "/etc/partner.json")
    ]
