"""After all other tests of this folder: what podsvid's accounts asked of the API server, by its own audit log.

Its name comes last: pytest goes by names, and what the others did is what is looked at.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import permissions
from tests.permissions import Call, Permission

from . import chart
from .alone import audited
from .cluster import Cluster
from .signing import NAMESPACE, TRUST_DOMAIN

pytestmark = pytest.mark.timeout(600)
HERE = Path(__file__)
# Permissions that this cluster gives no occasion for; test_alone_life.py has each of them.
NO_OCCASION = {
    "delete certificates.k8s.io/clustertrustbundles": "no test of this cluster has another trust domain",
    "attest certificates.k8s.io/signers podsvid.io/spiffe": "the API server asks itself; test_alone_life.py has it",
    "sign certificates.k8s.io/signers podsvid.io/spiffe": "the same",
    "delete configmaps podsvid-bundle": "no test takes a namespace out of the selected ones",
    "delete configmaps in podsvid": "what a replica left behind is removed after an hour",
    "get podsvid.io/federatedtrustdomains": "no test of this cluster has one; test_federation.py has",
    "update podsvid.io/federatedtrustdomains/status": "the same",
    "get pods": "whether a pod's first mint comes before its watch event is a race",
}


def shipped(account: str, *values: str) -> list[Permission]:
    usual = (f"trustDomain={TRUST_DOMAIN}", "startupTaint.enabled=true", "podCertificates.enabled=true")
    return permissions.permissions(chart.render(*usual, *values, namespace=NAMESPACE), account)


def whole_run(request: pytest.FixtureRequest) -> bool:
    """Whether every other file of this folder has run, whole, before."""
    ran = {item.path for item in request.session.items}
    chosen = request.config.option.keyword or request.config.option.markexpr
    named = any("::" in str(each) for each in request.config.args)
    return ran >= set(HERE.parent.glob("test_*.py")) and not chosen and not named


def asked(cluster: Cluster, account: str) -> set[Call]:
    return {call for call, _ in audited(cluster.audit_log, account)}


@pytest.mark.parametrize("account", ["podsvid-signer", "podsvid-uninstall-guard", "podsvid-agent"])
def test_nobody_asks_for_what_the_chart_does_not_give(cluster: Cluster, account: str) -> None:
    # Also the status is no proof: while podsvid is taken away, its permissions go before its pods. And for a while the
    # authorities are below an issuer of cert-manager, if it is built.
    given = shipped(account, "signer.certManager.issuerName=podsvid-ca")
    assert permissions.denied(given, asked(cluster, account)) == []


def test_every_permission_is_used(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    if not whole_run(request):
        pytest.skip("some files of this folder did not run: what they use would count as unused")
    if request.session.testsfailed:
        pytest.skip("a test that failed may have used less than it does")
    left = permissions.unused(shipped("podsvid-signer"), asked(cluster, "podsvid-signer"))
    assert set(left) - set(NO_OCCASION) == set(), "no code needs these permissions, or no test uses them"
    assert permissions.unused(shipped("podsvid-uninstall-guard"), asked(cluster, "podsvid-uninstall-guard")) == []
