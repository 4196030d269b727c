"""Who decides how long an SVID lives: the cluster, a policy, and within their bounds the pod's author."""

import argparse
import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.settings import InvalidSetting
from signer import config, ttls
from signer.model import Entitlement, TtlLimits
from svid.spiffeid import SpiffeId

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
WEB = SpiffeId.parse("spiffe://example.org/ns/shop/sa/web")
DEFAULT = Entitlement(WEB)
# The chart's defaults: an hour, a day at most, and a pod's author gets no more than what is usual.
LIMITS = TtlLimits(HOUR, MINUTE, HOUR, 24 * HOUR, 5 * MINUTE, HOUR)

PODS = "the cluster's limit for what a pod asks for (x509_pod_max_ttl); a policy with x509TTL may allow more"


def by(ttl: timedelta | None, text: str = "") -> Entitlement:
    return Entitlement(WEB, "shop/p", x509_ttl=ttl, x509_ttl_text=text)


@pytest.mark.parametrize(
    ("entitlement", "limits", "wish", "written", "got", "said"),
    [
        (DEFAULT, LIMITS, HOUR, "60m", HOUR, ""),
        (DEFAULT, LIMITS, MINUTE, "", MINUTE, ""),
        (
            *(DEFAULT, LIMITS, 999 * HOUR, "999h", HOUR),
            f"ttl 999h was asked for, 1h is granted: {PODS}",
        ),
        (
            *(by(None), LIMITS, HOUR + timedelta(seconds=1), "", HOUR),
            f"ttl 1h1s was asked for, 1h is granted: {PODS}",
        ),
        (by(8 * HOUR, "480m"), LIMITS, 7 * HOUR, "7h", 7 * HOUR, ""),
        (
            *(by(8 * HOUR, "480m"), LIMITS, 999 * HOUR, "999h", 8 * HOUR),
            "ttl 999h was asked for, 8h is granted: policy shop/p gives x509TTL 480m",
        ),
        (
            *(by(48 * HOUR, "2d"), LIMITS, 999 * HOUR, "999h", 24 * HOUR),
            "ttl 999h was asked for, 1d is granted: no SVID of this cluster lives longer (x509_max_ttl)",
        ),
        (
            *(DEFAULT, replace(LIMITS, x509_pod_max_ttl=24 * HOUR), 999 * HOUR, "999h", 24 * HOUR),
            "ttl 999h was asked for, 1d is granted: no SVID of this cluster lives longer (x509_max_ttl)",
        ),
        (
            *(DEFAULT, LIMITS, timedelta(seconds=1), "1s", MINUTE),
            "ttl 1s was asked for, 1m is granted: no SVID of this cluster lives shorter (x509_min_ttl)",
        ),
        # A policy below the cluster's least: its wish and no wish get the same.
        (
            *(by(timedelta(seconds=5), "5s"), LIMITS, HOUR, "1h", MINUTE),
            "ttl 1h was asked for, 1m is granted: policy shop/p gives x509TTL 5s",
        ),
    ],
)
def test_what_a_pods_author_gets(
    entitlement: Entitlement, limits: TtlLimits, wish: timedelta, written: str, got: timedelta, said: str
) -> None:
    assert ttls.granted(limits, entitlement, wish, written) == (got, said)


TTLS = st.timedeltas(timedelta(seconds=2), timedelta(days=90))


@given(st.lists(TTLS, min_size=4, max_size=4), st.none() | TTLS, st.timedeltas(timedelta(0), timedelta(days=36500)))
def test_no_wish_is_above_what_policy_or_cluster_say(
    four: list[timedelta], policy: timedelta | None, wish: timedelta
) -> None:
    least, usual, pod, most = sorted(four)
    limits = TtlLimits(usual, least, pod, most, MINUTE, HOUR)
    entitlement = by(policy)
    got, said = ttls.granted(limits, entitlement, wish)
    assert least <= got <= most
    assert got <= max(least, pod if policy is None else policy)
    assert (got == wish) == (said == "")
    assert least <= ttls.usual(limits, entitlement) <= most
    # What there is without asking can be asked for.
    assert ttls.granted(limits, entitlement, ttls.usual(limits, entitlement)) == (ttls.usual(limits, entitlement), "")


def test_a_jwts_lifetime_is_the_policys_up_to_the_clusters() -> None:
    assert ttls.jwt(LIMITS, DEFAULT) == 5 * MINUTE
    assert ttls.jwt(LIMITS, replace(DEFAULT, jwt_ttl=10 * MINUTE)) == 10 * MINUTE
    assert ttls.jwt(LIMITS, replace(DEFAULT, jwt_ttl=2 * HOUR)) == HOUR


def load(*flags: str) -> config.SignerConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(["--trust-domain", "example.org", *flags]), {})


def test_without_the_setting_a_pods_author_gets_no_more_than_is_usual() -> None:
    assert load().ttls == LIMITS
    assert load("--x509-ttl", "30m").ttls.x509_pod_max_ttl == 30 * MINUTE
    assert load("--x509-pod-max-ttl", "4h").ttls.x509_pod_max_ttl == 4 * HOUR


@pytest.mark.parametrize("text", ["1h", "1h1s", "24h"])
def test_it_may_be_what_is_between_the_others(text: str) -> None:
    assert load("--x509-pod-max-ttl", text).x509_pod_max_ttl is not None


@pytest.mark.parametrize(("text", "other"), [("59m59s", "x509_ttl"), ("24h1s", "x509_max_ttl"), ("2s", "x509_ttl")])
def test_a_bound_of_wishes_that_contradicts_the_others_is_refused_with_what_to_do(text: str, other: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load("--x509-pod-max-ttl", text)
    for word in (
        f"x509_pod_max_ttl from --x509-pod-max-ttl is {text!r}",
        f"{other} by default",
        "or leave it out for x509_ttl",
    ):
        assert word in str(caught.value)


def test_limits_are_not_mixed_up() -> None:
    flags = ("--x509-min-ttl", "2m", "--x509-ttl", "3m", "--x509-pod-max-ttl", "4m", "--x509-max-ttl", "5m")
    found = load(*flags, "--jwt-ttl", "6m", "--jwt-max-ttl", "7m").ttls
    assert found == TtlLimits(3 * MINUTE, 2 * MINUTE, 4 * MINUTE, 5 * MINUTE, 6 * MINUTE, 7 * MINUTE)
    for wrong in itertools.permutations(range(2, 5)):
        least, usual, most = (f"{each}m" for each in wrong)
        if wrong != (2, 3, 4):
            with pytest.raises(InvalidSetting):
                load("--x509-min-ttl", least, "--x509-ttl", usual, "--x509-max-ttl", most)


@pytest.mark.parametrize(
    ("x509", "jwt", "said"),
    [
        ((None, ""), (None, ""), ""),
        ((24 * HOUR, "24h"), (HOUR, "60m"), ""),
        ((MINUTE, "60s"), (timedelta(seconds=2), "2s"), ""),
        ((48 * HOUR, "48h"), (None, ""), "x509TTL 48h is above x509_max_ttl: 1d is granted"),
        ((timedelta(seconds=59), "59s"), (None, ""), "x509TTL 59s is below x509_min_ttl: 1m is granted"),
        ((None, ""), (2 * HOUR, "120m"), "jwtTTL 120m is above jwt_max_ttl: 1h is granted"),
        (
            *((48 * HOUR, ""), (2 * HOUR, "")),
            "x509TTL 2d is above x509_max_ttl: 1d is granted; jwtTTL 2h is above jwt_max_ttl: 1h is granted",
        ),
    ],
)
def test_what_of_a_policys_lifetimes_nobody_gets(
    x509: tuple[timedelta | None, str], jwt: tuple[timedelta | None, str], said: str
) -> None:
    assert ttls.clipped(LIMITS, x509, jwt) == said


@given(TTLS, TTLS)
def test_a_policys_lifetime_is_said_to_be_clipped_where_it_is(x509: timedelta, jwt: timedelta) -> None:
    entitlement = Entitlement(WEB, "shop/p", x509_ttl=x509, jwt_ttl=jwt)
    granted = (ttls.usual(LIMITS, entitlement), ttls.jwt(LIMITS, entitlement))
    assert bool(ttls.clipped(LIMITS, (x509, ""), (jwt, ""))) == (granted != (x509, jwt))
