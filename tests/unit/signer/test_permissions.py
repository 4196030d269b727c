"""The chart's RBAC has exactly the verbs that code uses: a whole replica does everything it ever does, under it."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from agent.authority.protocol import MintRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AgentError
from podsvid import authority as authority_command
from podsvid import uninstall_check
from runtime.clock import SystemClock
from signer.attestation.tokens import JWKS
from signer.cluster.kube import KubeApi
from signer.front.certificate_requests import GROUP
from signer.model import PodClaim
from tests import permissions, pod_certificates
from tests.fake_kube import FakeKube
from tests.node.test_signer_authority import passed_on, request
from tests.permissions import Call, Guarded, Permission, call_of
from tests.ports import free_port
from tests.signer_rig import DRIVER, Serving, Site, serving

# Everything switched on, as the chart renders it: tests/cluster/test_chart.py holds that it is so.
RENDERED = Path(__file__).parents[2] / "cluster" / "golden" / "everything.yaml"
OLD = datetime(2020, 1, 1, tzinfo=UTC)
CTB = "/apis/certificates.k8s.io/v1/clustertrustbundles"
OURS = {"app.kubernetes.io/managed-by": "podsvid"}
TAINT = {"key": "podsvid.io/agent-not-ready", "effect": "NoSchedule"}
PATIENCE = 60.0
CLUSTER_KEY = ec.generate_private_key(ec.SECP256R1())
LEAVING = "/api/v1/namespaces/default/pods/leaving"
# The API server asks by itself whether the signer may speak for the bundles that it writes.
ATTEST = Call("attest", "certificates.k8s.io", "signers", "", "podsvid.io/spiffe")
# And whether it may decide what kubelet asks of it.
SIGN = Call("sign", "certificates.k8s.io", "signers", "", "podsvid.io/spiffe")
DECIDED = f"{GROUP}/v1beta1/namespaces/default/podcertificaterequests/req-1"


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("signer.authority.acknowledgements.WRITE_SECONDS", 0.05)
    monkeypatch.setattr("signer.authority.acknowledgements.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("signer.publishing.config_maps.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("signer.daemon.REFRESH_SECONDS", 0.05)
    monkeypatch.setattr("signer.telling.REFRESH_SECONDS", 0.05)


def shipped(account: str) -> list[Permission]:
    return permissions.permissions(yaml.safe_load_all(RENDERED.read_text()), account)


def world(site: Site) -> None:
    """Something to do for each of the signer's loops."""
    kube = site.kube
    for name in ("default", "podsvid", "stale"):
        kube.put(f"/api/v1/namespaces/{name}", {"metadata": {"name": name, "labels": {"wanted": "yes"}}})
    kube.put("/api/v1/namespaces/elsewhere", {"metadata": {"name": "elsewhere"}})
    # Published once: here it is out of date, there it is not wanted any more.
    for name in ("stale", "elsewhere"):
        for published in ("podsvid-bundle", "istio-ca-root-cert"):
            path = f"/api/v1/namespaces/{name}/configmaps/{published}"
            kube.put(path, {"metadata": {"labels": OURS}, "data": {"ca.crt": "old"}})
    for domain in ("example.org", "gone.test"):
        spec = {"trustBundle": "old", "signerName": "podsvid.io/spiffe"}
        kube.put(f"{CTB}/podsvid.io:spiffe:{domain}", {"metadata": {"labels": OURS}, "spec": spec})
    data = {"version": "1", "identity": "gone", "written_at": OLD.isoformat(), "nodes": "{}"}
    labels = {"podsvid.io/agents-of": "gone"}
    kube.put(
        "/api/v1/namespaces/podsvid/configmaps/podsvid-agents-gone", {"metadata": {"labels": labels}, "data": data}
    )
    policies = "/apis/podsvid.io/v1alpha1"
    kube.put(f"{policies}/namespaces/default/workloadidentities/a", {"spec": {}})
    kube.put(f"{policies}/clusterworkloadidentities/b", {"spec": {}})
    # Nobody is there, and its status says so.
    partner = {"trustDomain": "partner.test", "bundleEndpointURL": "https://127.0.0.1:1/"}
    profile = {"bundleEndpointProfile": {"type": "https_web"}}
    kube.put(f"{policies}/federatedtrustdomains/partner", {"spec": {**partner, **profile}})
    kube.put("/api/v1/nodes/node-a", {"spec": {"taints": [TAINT]}})
    kube.put("/apis/storage.k8s.io/v1/csinodes/node-a", {"spec": {"drivers": [{"name": DRIVER}]}})
    jwk = jwt.algorithms.ECAlgorithm.to_jwk(CLUSTER_KEY.public_key(), as_dict=True)
    kube.put(JWKS, {"keys": [{**jwk, "kid": "k1", "alg": "ES256"}]})
    kube.put("/api/v1/namespaces/default/serviceaccounts/web", {"metadata": {"uid": "sa-web"}})
    certified = site.pod("certified", driver=None)
    spec = kube.objects["/api/v1/namespaces/default/pods/certified"]["spec"]
    spec["volumes"] = [{"name": "identity", "projected": {"sources": [pod_certificates.source()]}}]
    account, node = {"metadata": {"name": "web", "uid": "sa-web"}}, {"metadata": {"name": "node-a", "uid": "uid-node"}}
    pod = {"metadata": {"name": "certified", "uid": certified.uid}}
    kube.put(DECIDED, {"spec": pod_certificates.body(pod, account, node)["spec"]})
    site.pod("leaving")
    ends = f"{site.clock.at + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}"
    kube.objects[LEAVING]["metadata"] |= {"deletionTimestamp": ends, "deletionGracePeriodSeconds": 1200}


def leaving(site: Site) -> MintRequest:
    """For a pod that is deleted, by a token that ended since."""
    claim = PodClaim("default", "leaving", site.kube.objects[LEAVING]["metadata"]["uid"])
    claims = jwt.decode(site.token(claim, life=-5), options={"verify_signature": False})
    return request(claim, passed_on(jwt.encode(claims, CLUSTER_KEY, algorithm="ES256", headers={"kid": "k1"})))


async def until(true: Callable[[], bool]) -> None:
    """Wait for it, or for long: the test says what is missing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0.05)


def unused(given: Iterable[Permission], calls: set[Call]) -> list[str]:
    written = any(each.resource == "clustertrustbundles" and each.verb in ("create", "update") for each in calls)
    signed = any(each.resource == "podcertificaterequests/status" for each in calls)
    return permissions.unused(given, calls | ({ATTEST} if written else set()) | ({SIGN} if signed else set()))


async def asked(signer: Serving, folder: Path) -> None:
    """A mint, a refusal, and an administrator's step."""
    site = signer.site
    authority = SignerAuthority(signer.settings(site.agent(), folder), SystemClock(), random.Random(3))
    authority.load()
    following = asyncio.create_task(authority.run())
    try:
        await authority.wait_answered()
        claim = site.pod("web")
        await authority.mint_x509(request(claim, passed_on(site.token(claim))))
        with pytest.raises(AgentError, match="DNS_NAME_DENIED"):
            await authority.mint_x509(request(claim, passed_on(site.token(claim)), dns_names=("a.svc",)))
        # One that is deleted and serves on, by its last token.
        await authority.mint_x509(leaving(site))
        # One that no watch told of is looked up.
        nobody = PodClaim("default", "nobody", "uid-nobody")
        with pytest.raises(AgentError, match="POD_NOT_FOUND"):
            await authority.mint_x509(request(nobody, passed_on(site.token(nobody))))
        # Published, taken away by somebody, and published again with the next change.
        own = f"{CTB}/podsvid.io:spiffe:example.org"
        await until(lambda: ("replace", own) in site.kube.writes)
        site.kube.remove(own)
        parser = argparse.ArgumentParser()
        authority_command.add_arguments(parser)
        parsed = parser.parse_args(["prepare", "--socket", str(folder / "a.sock")])
        assert await asyncio.to_thread(authority_command.run, parsed) == 0
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def lived(given: list[Permission], do: Callable[[Serving, Path], Any]) -> Guarded:
    """What a replica asked of the API server under these permissions."""
    site = Site(datetime.now(UTC).replace(microsecond=0))
    world(site)
    guarded = Guarded(site.kube, given)
    site.kube = cast(FakeKube, guarded)

    async def run(folder: Path) -> None:
        flags = ("--bundle-namespaces", "wanted=yes", "--startup-taint", "true", "--pod-certificates", "true")
        async with serving(site, folder, SystemClock(), *flags, "--istio-listen", f"127.0.0.1:{free_port()}") as signer:
            await do(signer, folder)
            await until(lambda: not unused(given, guarded.calls))

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))
    return guarded


def test_the_signer_may_do_what_it_does_and_nothing_else() -> None:
    given = shipped("podsvid-signer")
    guarded = lived(given, asked)
    assert sorted(map(str, guarded.refused)) == [], "the chart does not allow these calls"
    assert unused(given, guarded.calls) == [], "no code needs these permissions"


def test_the_uninstall_guard_may_list_and_nothing_else() -> None:
    given = shipped("podsvid-uninstall-guard")
    guarded = Guarded(Site().kube, given)
    api = cast(KubeApi, guarded)

    async def run() -> None:
        await uninstall_check.in_use(api, frozenset({DRIVER}))
        await uninstall_check.policies_left(api)

    asyncio.run(run())
    assert permissions.unused(given, guarded.calls) == []
    assert not any(each.resource == "secrets" for each in given)


def test_agents_have_no_permissions() -> None:
    assert shipped("podsvid-agent") == []


@pytest.mark.parametrize(
    ("verb", "path", "query", "expected"),
    [
        ("get", "/api/v1/namespaces/a", {}, Call("get", "", "namespaces", "", "a")),
        ("list", "/api/v1/pods", {"limit": "500"}, Call("list", "", "pods")),
        ("get", "/api/v1/namespaces/a/pods/b", {}, Call("get", "", "pods", "a", "b")),
        ("update", "/apis/g/v1/namespaces/a/xs/b/status", {}, Call("update", "g", "xs/status", "a", "b")),
        ("update", "/apis/g/v1/xs/b/status", {}, Call("update", "g", "xs/status", "", "b")),
        ("list", "/api/v1/configmaps", {"fieldSelector": "metadata.name=b"}, Call("list", "", "configmaps", "", "b")),
        ("get", "/openid/v1/jwks", {}, Call("get", path="/openid/v1/jwks")),
    ],
)
def test_calls_are_seen_as_rbac_sees_them(verb: str, path: str, query: dict[str, str], expected: Call) -> None:
    assert call_of(verb, path, query) == expected


def test_what_is_denied_and_what_is_unused_is_named() -> None:
    rules = [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["get", "update"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
        {"nonResourceURLs": ["/x"], "verbs": ["get"]},
    ]
    subject = {"kind": "ServiceAccount", "name": "one"}
    documents = [
        {"kind": "Role", "metadata": {"name": "r", "namespace": "n"}, "rules": rules},
        {
            "kind": "RoleBinding",
            "metadata": {"name": "r", "namespace": "n"},
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [subject],
        },
    ]
    given = permissions.permissions(documents, "one")
    assert permissions.permissions(documents, "two") == []
    named = Call("get", "", "configmaps", "n", "a")
    calls = [named, Call("get", "", "configmaps", "m", "a"), Call("update", "", "configmaps", "n", "b")]
    assert permissions.denied(given, calls) == ["get configmaps m/a", "update configmaps n/b"]
    # What the narrower one allows is no use of the wider.
    assert permissions.unused(given, calls) == ["get /x", "get configmaps in n", "update configmaps a in n"]
    assert permissions.unused(given, [*calls, Call("get", "", "configmaps", "n", "b")]) == [
        "get /x",
        "update configmaps a in n",
    ]
