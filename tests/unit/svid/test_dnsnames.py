"""Which DNS names a pod may have: patterns of the operator, values of the pod, wishes of its author."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svid import dnsnames


def allows(patterns: list[str], name: str, namespace: str = "shop", service_account: str = "web") -> bool:
    return dnsnames.allows(patterns, name, namespace=namespace, service_account=service_account, pod="web-0")


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("pattern", "name", "granted"),
    [
        ("{service_account}.{namespace}.svc", "web.shop.svc", True),
        ("{service_account}.{namespace}.svc", "api.shop.svc", False),
        ("{pod}.db.{namespace}.svc.cluster.local", "web-0.db.shop.svc.cluster.local", True),
        ("*.{namespace}.svc", "anything.shop.svc", True),
        ("*.{namespace}.svc", "any.thing.shop.svc", False),
        ("*.{namespace}.svc", ".shop.svc", False),
        ("*.{namespace}.svc", "shop.svc", False),
        ("*.{namespace}.svc", "x.shop.svc.evil.test", False),
        ("fixed.example.test", "fixed.example.test", True),
        ("fixed.example.test", "fixedXexample.test", False),
    ],
)
def test_patterns(pattern: str, name: str, granted: bool) -> None:
    assert allows([pattern], name) is granted


def test_nothing_is_allowed_by_default() -> None:
    assert not allows([], "web.shop.svc")


def test_a_dot_in_the_pods_own_names_makes_no_new_labels() -> None:
    sly = "admin.payments"
    assert not allows(["{service_account}.example.test"], "admin.payments.example.test", service_account=sly)
    assert allows(["{service_account}.example.test", "*.shop.svc"], "a.shop.svc", service_account=sly)


@given(LABELS, LABELS, st.lists(LABELS, min_size=1, max_size=4))
def test_a_pod_never_gets_a_name_below_another_namespace(namespace: str, other: str, labels: list[str]) -> None:
    name = ".".join([*labels, other, "svc"])
    granted = allows(["*.{namespace}.svc"], name, namespace)
    assert granted == (len(labels) == 1 and namespace == other)


def test_the_signers_own_name_is_nobodys() -> None:
    for name in (dnsnames.SIGNER_NAME, "podsvid.internal", "x.y.podsvid.internal"):
        assert not allows([name, "*.podsvid.internal"], name)
    assert allows(["notpodsvid.internal"], "notpodsvid.internal")


def test_what_else_the_signer_is_called_is_no_workloads_and_no_wildcard_over_it_either() -> None:
    own = ("podsvid-istio.podsvid.svc", "podsvid-istio.podsvid.svc.cluster.local")
    for name in (*own, "*.podsvid.svc", "*.podsvid.svc.cluster.local"):
        assert dnsnames.is_reserved(name, own)
        assert not dnsnames.is_reserved(name)
    for name in ("a.podsvid.svc", "podsvid.svc", "*.svc", "x.podsvid-istio.podsvid.svc", "*.podsvid-istio.podsvid.svc"):
        assert not dnsnames.is_reserved(name, own)
