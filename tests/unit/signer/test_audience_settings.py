"""Which verifiers never acknowledge, by the settings; lifetimes that leave them no time are refused."""

import argparse
from datetime import timedelta

import pytest

from runtime.settings import InvalidSetting
from signer import config, istio_settings
from signer.audience_settings import FEDERATION, ISTIO, OIDC, POD_CERTIFICATES, audiences, renewed, settle, told
from signer.authority.timing import lifecycle_policy
from signer.config import SignerConfig
from signer.istio_settings import RENEWED

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
ISSUER = ("--jwt-issuer", "https://issuer.test")
FEDERATED, READ = ("--trust-audiences", "federation"), ("--trust-audiences", "oidc")


def loaded(*flags: str) -> SignerConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(["--trust-domain", "example.org", *flags]), {})


@pytest.mark.parametrize(
    ("flags", "on"),
    [
        ((), set()),
        (FEDERATED, {FEDERATION}),
        (READ, {OIDC}),
        (("--trust-audiences", "oidc,federation"), {FEDERATION, OIDC}),
        (ISSUER, {OIDC}),
        ((*ISSUER, *FEDERATED), {FEDERATION, OIDC}),
        ((*ISSUER, "--jwt-svids", "false"), set()),
        (("--pod-certificates", "true"), {POD_CERTIFICATES}),
        # Nobody can look up the keys of such a one.
        (("--jwt-issuer", "https://issuer.test/?x"), set()),
    ],
)
def test_who_is_on(flags: tuple[str, ...], on: set[str]) -> None:
    assert audiences(loaded(*flags)) == on


def test_who_needs_how_long() -> None:
    seven = loaded("--bundle-hint", "7m")
    assert settle(FEDERATION, "x509", seven) == settle(FEDERATION, "jwt", seven) == 35 * MINUTE
    assert settle(OIDC, "jwt", seven) == DAY + 7 * MINUTE
    assert settle(OIDC, "jwt", loaded(*READ, "--jwt-key-period", "2d")) == DAY + 5 * MINUTE
    assert settle(OIDC, "x509", seven) == timedelta(0)
    assert settle(POD_CERTIFICATES, "x509", seven) == 10 * MINUTE
    assert settle(POD_CERTIFICATES, "jwt", seven) == timedelta(0)
    assert told(POD_CERTIFICATES, seven) == timedelta(0)


def test_an_issuer_with_short_periods_starts_as_before_and_waits_for_half_of_one() -> None:
    assert settle(OIDC, "jwt", loaded(*ISSUER, "--jwt-key-period", "12h")) == DAY / 4
    assert settle(OIDC, "jwt", loaded(*ISSUER, "--jwt-key-period", "9d")) == DAY + 5 * MINUTE


def test_the_hint_is_five_minutes_and_bounded() -> None:
    assert loaded().bundle_hint == 5 * MINUTE
    assert loaded("--bundle-hint", "1m").bundle_hint == MINUTE
    assert loaded("--bundle-hint", "1d").bundle_hint == DAY
    for hint in ("59s", "1d1s", "0s"):
        with pytest.raises(InvalidSetting, match="from 1m to 1d"):
            loaded("--bundle-hint", hint)


@pytest.mark.parametrize(
    ("flags", "names", "sentence"),
    [
        (
            (*FEDERATED, "--bundle-hint", "1d", "--authority-ttl", "26d15h59m59s"),
            ("bundle_hint", "authority_ttl"),
            r"for 5d \(5 times bundle_hint\) .* set authority_ttl to 26d16h or more, or lower bundle_hint$",
        ),
        (
            (*FEDERATED, "--bundle-hint", "10m", "--jwt-key-period", "1h39m59s"),
            ("bundle_hint", "jwt_key_period"),
            r"for 50m \(5 times bundle_hint\) .* set jwt_key_period to 1h40m or more, or lower bundle_hint$",
        ),
        (
            (*READ, "--jwt-key-period", "1d23h59m59s"),
            ("trust_audiences", "jwt_key_period"),
            "for 1d .* set jwt_key_period to 2d or more$",
        ),
        (
            (
                *(*ISSUER, "--jwt-key-period", "1d23h59m59s", "--oidc-listen", "127.0.0.1:1"),
                *("--oidc-cert-file", "/a", "--oidc-key-file", "/b"),
            ),
            ("oidc_listen", "jwt_key_period"),
            "for 1d .* set jwt_key_period to 2d or more$",
        ),
        ((*READ, "--jwt-svids", "false"), ("trust_audiences", "jwt_svids"), "leave oidc out$"),
        (
            ("--pod-certificates", "true", "--x509-ttl", "30m", "--x509-max-ttl", "59m59s"),
            ("pod_certificates", "x509_max_ttl"),
            "lives for less than an hour: set x509_max_ttl to 1h or more",
        ),
        (("--trust-audiences", "hosts"), ("--trust-audiences",), "one of federation, oidc"),
    ],
)
def test_what_leaves_them_no_time_is_refused(flags: tuple[str, ...], names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence) as refused:
        loaded(*flags)
    (fault,) = refused.value.faults
    assert all(name in fault for name in names)


@pytest.mark.parametrize(
    "flags",
    [
        (*FEDERATED, "--bundle-hint", "1d", "--authority-ttl", "26d16h"),
        (*FEDERATED, "--bundle-hint", "10m", "--jwt-key-period", "1h40m"),
        (*READ, "--jwt-key-period", "2d"),
        ("--pod-certificates", "true", "--x509-max-ttl", "1h", "--authority-ttl", "4h"),
        # Of who is not on nothing is asked, and readers of keys read no X.509 authorities.
        ("--bundle-hint", "1d", "--authority-ttl", "4d", "--jwt-key-period", "1h"),
        (*READ, "--authority-ttl", "4d"),
        (*FEDERATED, "--bundle-hint", "1d", "--jwt-svids", "false", "--jwt-key-period", "1h"),
    ],
)
def test_what_leaves_them_just_enough_is_taken(flags: tuple[str, ...]) -> None:
    assert loaded(*flags)


PROXIES = ("--istio-listen", "127.0.0.1:8446")


def test_proxies_are_waited_for_as_long_as_they_take_to_renew() -> None:
    by = loaded(*PROXIES, "--x509-max-ttl", "10h")
    assert audiences(by) == {ISTIO}
    assert settle(ISTIO, "x509", by) == timedelta(hours=5, minutes=30)
    assert settle(ISTIO, "jwt", by) == timedelta(0)
    assert told(ISTIO, by) == timedelta(0)
    (each,) = lifecycle_policy(by).audiences
    assert (each.name, each.renewed, renewed(FEDERATION)) == (ISTIO, RENEWED, 0.0)


@pytest.mark.parametrize(
    ("flags", "names", "why"),
    [
        ((*PROXIES, "--istio-audience", "signer.podsvid.io"), ("istio_audience", "audience"), "choose another"),
        ((*PROXIES, "--istio-names", ""), ("istio_listen", "istio_names"), "name one at least"),
        (
            (*PROXIES, "--istio-root-config-map", "podsvid-bundle"),
            ("istio_root_config_map", "bundle_config_map"),
            "rename one",
        ),
    ],
)
def test_what_of_the_port_for_proxies_contradicts_itself(
    flags: tuple[str, ...], names: tuple[str, ...], why: str
) -> None:
    with pytest.raises(InvalidSetting, match=why) as caught:
        loaded(*flags)
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["signer.podsvid.internal", "a b", "*.mesh", "{pod}.mesh", "UPPER.example"])
def test_names_of_the_port_for_proxies_are_dns_names_and_not_the_signers(text: str) -> None:
    with pytest.raises(InvalidSetting):
        loaded(*PROXIES, "--istio-names", text)


def test_nobody_gets_certificates_for_others_unless_he_is_named() -> None:
    """Whoever lands a pod of istio-system/ztunnel in a cluster without ambient would speak for a node's pods."""
    found = istio_settings.of(loaded(*PROXIES))
    assert found is not None
    assert found.ztunnels == frozenset()
    named = istio_settings.of(loaded(*PROXIES, "--istio-ztunnels", "istio-system/ztunnel"))
    assert named is not None
    assert named.ztunnels == {("istio-system", "ztunnel")}


@pytest.mark.parametrize("text", ["ztunnel", "a/b/c", "/ztunnel", "istio-system/"])
def test_a_ztunnel_is_a_namespace_and_an_account(text: str) -> None:
    with pytest.raises(InvalidSetting, match="NAMESPACE/ACCOUNT"):
        loaded(*PROXIES, "--istio-ztunnels", text)
