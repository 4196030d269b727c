"""The signer at a real API server with the permissions that are shipped: what it signs, and all that it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from signer.pb import signer_pb2
from svid.certificates import certificates_from_der
from svid.keys import KeyAlgorithm
from tests.go_tools import Progress

from . import signing
from .alone import events
from .api import ApiError, KubeApi, Object
from .cluster import Cluster
from .fleet import forget
from .signing import AUDIENCE, NAMESPACE, Refusal, SignerClient, SignerProcess, request_for, spiffe_id_in
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)
# PODSVID_LONG=1 takes the figure of the issue.
MINTS = 10_000 if os.environ.get("PODSVID_LONG") else 300
ACCOUNT = "signed"
SPIFFE_ID = f"spiffe://{signing.TRUST_DOMAIN}/ns/default/sa/{ACCOUNT}"
NODES = ("node-a", "node-b")
# Seconds: of the pod that is deleted, and for which the API server takes a token that has ended.
GRACE, LEEWAY = 1200, 60


@dataclass(frozen=True)
class Site:
    """A signer, two nodes with an agent each, and a pod on each node."""

    cluster: Cluster
    signer: SignerProcess
    client: SignerClient
    agents: dict[str, Object]
    pods: dict[str, Object]
    # A pod of node-a that is deleted and has its grace period yet, and its last token, which has ended since.
    leaving: Object
    last_token: str

    @property
    def api(self) -> KubeApi:
        return self.cluster.api

    def agent_token(self, node: str = "node-a", audience: str = AUDIENCE) -> str:
        return self.api.token("podsvid-agent", NAMESPACE, audience, self.agents[node])

    def pod_token(self, pod: Object, audience: str = AUDIENCE, account: str = ACCOUNT) -> str:
        return self.api.token(account, "default", audience, pod)

    def mint(self, node: str = "node-a", pod: Object | None = None) -> signer_pb2.MintX509SVIDResponse:
        pod = pod or self.pods[node]
        return self.client.mint(self.agent_token(node), self.pod_token(pod), pod)


@pytest.fixture(scope="module")
def site(cluster: Cluster, progress: Progress) -> Iterator[Site]:
    signing.install(cluster, progress)
    signing.account(cluster, ACCOUNT)
    signing.account(cluster, "other")
    for node in NODES:
        signing.node(cluster, node)
    agents = {
        node: signing.pod(cluster, f"agent-{node}", node, "podsvid-agent", namespace=NAMESPACE, driver=None)
        for node in NODES
    }
    pods = {node: signing.pod(cluster, f"pod-{node}", node, ACCOUNT) for node in NODES}
    leaving = signing.pod(cluster, "pod-leaving", "node-a", ACCOUNT)
    last_token = signing.expired_token(cluster, ACCOUNT, "default", AUDIENCE, leaving, time.time() + 10)
    cluster.api.delete("/api/v1/namespaces/default/pods/pod-leaving", grace_seconds=GRACE)
    flags = ("--x509-min-ttl", "10s", "--acknowledge-within", "2s", "--node-rate", "100", "--node-burst", "100")
    with signing.signer_process(cluster, progress, "signer-1", *flags) as process:
        client = SignerClient(process.address, signing.published_roots(cluster, progress))
        try:
            yield Site(cluster, process, client, agents, pods, leaving, last_token)
        finally:
            client.close()
            # Rotations of other tests would wait for the agents.
            with suppress(ApiError):  # its test has done so
                forget(cluster, "default", "pod-leaving")
            for each in (*pods.values(), *agents.values()):
                forget(cluster, each["metadata"]["namespace"], each["metadata"]["name"])


def refused(site: Site, agent_token: str, pod_token: str, pod: Object, csr: bytes | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        site.client.mint(agent_token, pod_token, pod, csr=csr)
    assert not any(token and token in caught.value.message for token in (agent_token, pod_token))
    return caught.value


def test_a_pod_gets_the_identity_of_its_service_account(site: Site) -> None:
    answer = site.mint()
    assert answer.spiffe_id == spiffe_id_in(answer) == SPIFFE_ID
    assert answer.policy == "(default)"
    line = site.signer.audit()[-1]
    assert (line["event"], line["spiffe_id"], line["node"]) == ("mint allowed", SPIFFE_ID, "node-a")
    assert line["pod_uid"] == site.pods["node-a"]["metadata"]["uid"]
    jwt = site.client.mint_jwt(
        site.agent_token(), site.pod_token(site.pods["node-a"]), site.pods["node-a"], SPIFFE_ID, "api"
    )
    assert jwt.token.count(".") == 2


def test_the_request_names_nobody(site: Site) -> None:
    pod = site.pods["node-a"]
    key = KeyAlgorithm.EC_P256.generate()
    wanted = request_for(key, spiffe_id=f"spiffe://{signing.TRUST_DOMAIN}/ns/kube-system/sa/admin")
    answer = site.client.mint(site.agent_token(), site.pod_token(pod), pod, csr=wanted)
    assert spiffe_id_in(answer) == SPIFFE_ID


def test_agents_that_are_refused(site: Site) -> None:
    pod = site.pods["node-a"]
    token = site.pod_token(pod)
    assert refused(site, "", token, pod).reason == "AGENT_TOKEN_MISSING"
    assert refused(site, "not.a.token", token, pod).reason == "AGENT_TOKEN_INVALID"
    wrong = site.agent_token(audience="https://kubernetes.default.svc")
    assert refused(site, wrong, token, pod).reason == "AGENT_TOKEN_AUDIENCE"
    unbound = site.api.token("podsvid-agent", NAMESPACE, AUDIENCE)
    assert refused(site, unbound, token, pod).reason == "AGENT_TOKEN_UNBOUND"
    # A pod's own token in the place of the agent's: any pod can ask for one of that audience.
    found = refused(site, token, token, pod)
    assert (found.reason, found.code) == ("AGENT_DENIED", grpc.StatusCode.PERMISSION_DENIED)


def test_pod_tokens_that_are_refused(site: Site) -> None:
    agent, pod = site.agent_token(), site.pods["node-a"]
    assert refused(site, agent, "", pod).reason == "POD_TOKEN_MISSING"
    assert refused(site, agent, "not.a.token", pod).reason == "POD_TOKEN_INVALID"
    assert refused(site, agent, site.pod_token(pod, audience="elsewhere"), pod).reason == "POD_TOKEN_AUDIENCE"
    unbound = site.api.token(ACCOUNT, "default", AUDIENCE)
    assert refused(site, agent, unbound, pod).reason == "POD_TOKEN_UNBOUND"
    # A changed signature.
    token = site.pod_token(pod)
    head, _, signature = token.rpartition(".")
    forged = f"{head}.{signature[::-1]}"
    assert refused(site, agent, forged, pod).reason == "POD_TOKEN_INVALID"


def test_a_token_is_good_for_its_own_pod_only(site: Site) -> None:
    first, second = site.pods["node-a"], signing.pod(site.cluster, "second", "node-a", "other")
    agent = site.agent_token()
    assert refused(site, agent, site.pod_token(first), second).reason == "POD_TOKEN_REPLAYED"
    # Nor does the claim's uid help: the token says whose it is.
    lying = {"metadata": {**second["metadata"], "uid": first["metadata"]["uid"]}}
    assert refused(site, agent, site.pod_token(first), lying).reason == "POD_TOKEN_REPLAYED"
    assert site.client.mint(agent, site.pod_token(second, account="other"), second).spiffe_id.endswith("/sa/other")


def test_a_pod_of_another_node(site: Site) -> None:
    there = site.pods["node-b"]
    assert refused(site, site.agent_token("node-a"), site.pod_token(there), there).reason == "POD_ON_OTHER_NODE"
    assert site.mint("node-b").spiffe_id == SPIFFE_ID


def test_pods_that_are_gone_finished_or_no_clients_of_the_driver(site: Site) -> None:
    agent = site.agent_token()
    gone = signing.pod(site.cluster, "gone", "node-a", ACCOUNT)
    token = site.pod_token(gone)
    site.client.mint(agent, token, gone)
    site.api.delete("/api/v1/namespaces/default/pods/gone", grace_seconds=0)

    def reason() -> str:
        # The pod is still served while it is there, and a verified token for some seconds after.
        try:
            site.client.mint(agent, token, gone)
        except Refusal as refusal:
            return refusal.reason
        return ""

    wait_for("the deleted pod to be refused", lambda: reason() == "POD_NOT_FOUND", progress=print)
    again = signing.pod(site.cluster, "gone", "node-a", ACCOUNT)
    assert reason() == "POD_UID_MISMATCH"
    assert site.client.mint(agent, site.pod_token(again), again).spiffe_id == SPIFFE_ID

    finished = signing.pod(site.cluster, "finished", "node-a", ACCOUNT)
    token = site.pod_token(finished)
    site.api.patch("/api/v1/namespaces/default/pods/finished/status", {"status": {"phase": "Succeeded"}})
    wait_for(
        "the finished pod to be refused",
        lambda: _reason(site, agent, token, finished) == "POD_FINISHED",
        progress=print,
    )
    for name, driver in (("without-driver", None), ("other-driver", "csi.other.io")):
        pod = signing.pod(site.cluster, name, "node-a", ACCOUNT, driver=driver)
        assert refused(site, agent, site.pod_token(pod), pod).reason == "POD_WITHOUT_DRIVER"


def test_a_token_that_has_expired(site: Site) -> None:
    """The API server gives none that is shorter than ten minutes; so one with a signature of its own time is made."""
    pod = site.pods["node-a"]
    assert refused(site, site.agent_token(), _expired(site, pod), pod).reason == "POD_TOKEN_EXPIRED"


def test_keys_that_are_refused(site: Site) -> None:
    agent, pod = site.agent_token(), site.pods["node-a"]
    token = site.pod_token(pod)
    weak = rsa.generate_private_key(65537, 1024)
    assert refused(site, agent, token, pod, request_for(weak)).reason == "KEY_WEAK"
    odd = ec.generate_private_key(ec.SECP521R1())
    assert refused(site, agent, token, pod, request_for(odd)).reason == "KEY_WEAK"
    key, thief = KeyAlgorithm.EC_P256.generate(), KeyAlgorithm.EC_P256.generate()
    stolen = request_for(key, signed_by=thief)
    assert refused(site, agent, token, pod, stolen).reason == "PROOF_OF_POSSESSION"
    assert refused(site, agent, token, pod, b"\x30\x00").reason == "CSR_INVALID"
    assert refused(site, agent, token, pod, b"").reason == "CSR_INVALID"


def test_policies(site: Site) -> None:
    agent = site.agent_token()
    policies = "/apis/podsvid.io/v1alpha1/namespaces/default/workloadidentities"
    body = {
        "apiVersion": "podsvid.io/v1alpha1",
        "kind": "WorkloadIdentity",
        "metadata": {"name": "teams", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "billing"}},
            "spiffeIDTemplate": "/ns/{namespace}/app/{labels['app']}",
            "x509TTL": "30s",
        },
    }
    site.api.create(policies, body)
    pod = signing.pod(site.cluster, "billing", "node-a", ACCOUNT, labels={"app": "billing"})

    def given() -> str:
        return site.client.mint(agent, site.pod_token(pod), pod).spiffe_id

    wanted = f"spiffe://{signing.TRUST_DOMAIN}/ns/default/app/billing"
    wait_for("the policy to count", lambda: given() == wanted, progress=print)
    assert site.mint().spiffe_id == SPIFFE_ID
    # What leaves the namespace's prefix, or is no template, is refused when it is applied.
    for template in ("/ns/kube-system/sa/admin", "/admin", "/ns/{namespace}/{nothing}", "/ns/{namespace}/../x"):
        wrong = {**body, "metadata": {"name": "wrong", "namespace": "default"}, "spec": {"spiffeIDTemplate": template}}
        with pytest.raises(ApiError) as caught:
            site.api.create(policies, wrong)
        assert caught.value.status == 422, template
    deny = {
        "apiVersion": "podsvid.io/v1alpha1",
        "kind": "ClusterWorkloadIdentity",
        "metadata": {"name": "no-billing"},
        "spec": {"podSelector": {"matchLabels": {"app": "billing"}}, "deny": True},
    }
    explained = _explain(site, "default/billing")
    assert f"pod default/billing: {wanted}\npolicy: default/teams\n" in explained
    said = "does not match: default/teams: podSelector wants app=billing, and the pod has no label app"
    assert said in _explain(site, "default/pod-node-a")
    site.api.create("/apis/podsvid.io/v1alpha1/clusterworkloadidentities", deny)
    token = site.pod_token(pod)
    wait_for(
        "the denial to count",
        lambda: _reason(site, agent, token, pod) == "POLICY_DENIED",
        progress=print,
    )
    wait_for(
        "the denial in the pod's events",
        lambda: "POLICY_DENIED" in _events(site, "billing"),
        progress=print,
    )
    site.api.delete("/apis/podsvid.io/v1alpha1/clusterworkloadidentities/no-billing")

    def matched() -> bool:
        return bool(site.api.get(f"{policies}/teams").get("status", {}).get("podsMatched") == 1)

    wait_for("the policy's status", matched, progress=print)
    site.api.delete(f"{policies}/teams")


def test_a_node_that_asks_too_much(site: Site, progress: Progress) -> None:
    """Its own limit: the other node's pods do not notice."""
    flags = ("--node-rate", "1", "--node-burst", "2")
    with signing.signer_process(site.cluster, progress, "signer-strict", *flags) as strict:
        client = SignerClient(strict.address, signing.published_roots(site.cluster, progress))
        try:
            here = replace(site, signer=strict, client=client)
            agent, pod = here.agent_token(), here.pods["node-a"]
            token = here.pod_token(pod)

            def ask(number: int) -> Refusal | None:
                try:
                    client.mint(agent, token, pod)
                except Refusal as refusal:
                    return refusal
                return None

            # By the first the connection is an agent's.
            assert ask(0) is None
            # As many at once as a connection takes: one by one, a slow machine would ask no faster than it may.
            with ThreadPoolExecutor(10) as asking:
                found = [refusal for refusal in asking.map(ask, range(10)) if refusal is not None]
            assert found
            for each in found:
                assert (each.reason, each.code) == ("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED)
                assert each.retry_seconds is not None
            assert here.mint("node-b").spiffe_id == SPIFFE_ID
        finally:
            client.close()


def test_an_svid_costs_no_write(site: Site, progress: Progress) -> None:
    """Counted by the API server itself, in its audit log."""
    tokens = [(site.agent_token(node), site.pod_token(site.pods[node]), site.pods[node]) for node in NODES]

    def writes() -> Counter[str]:
        found: Counter[str] = Counter()
        for event in events(site.cluster.audit_log):
            if event["verb"] not in ("get", "list", "watch"):
                found[f"{event['verb']} {event['objectRef']['resource']}"] += 1
        return found

    before, minted = writes(), 0
    while minted < MINTS:
        try:
            site.client.mint(*tokens[minted % len(NODES)])
            minted += 1
        except Refusal as refusal:
            assert refusal.reason == "RATE_LIMITED", refusal
            time.sleep(refusal.retry_seconds or 0.1)
    after = writes() - before
    progress(f"{minted} mints, the signer's calls that are no reads: {dict(after)}")
    # Reviews are calls that store nothing; the lease is renewed by the clock.
    assert set(after) <= {"create tokenreviews", "update leases"}


def test_the_agent_may_do_nothing_else(site: Site) -> None:
    """Its service account, at the API server itself."""
    rights = site.api.as_token(site.api.token("podsvid-agent", NAMESPACE))
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": NAMESPACE},
    }
    rules = rights.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)["status"]["resourceRules"]
    # What every service account may do: read published trust, where the API server has such objects, and ask about
    # itself.
    allowed = {
        (group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if (resource, set(rule["verbs"])) != ("clustertrustbundles", {"get", "list", "watch"})
    }
    assert {group for group, _ in allowed} <= {"authorization.k8s.io", "authentication.k8s.io"}, allowed
    assert all(resource.startswith("self") for _, resource in allowed), allowed
    for path in (
        "/api/v1/pods",
        f"/api/v1/namespaces/{NAMESPACE}/secrets/podsvid-authority",
        "/api/v1/namespaces/default/configmaps",
        "/api/v1/nodes/node-a",
        "/apis/podsvid.io/v1alpha1/clusterworkloadidentities",
    ):
        with pytest.raises(ApiError) as caught:
            rights.get(path)
        assert caught.value.status == 403, path
    for path, body in (
        ("/apis/authentication.k8s.io/v1/tokenreviews", {"kind": "TokenReview", "spec": {"token": "x"}}),
        (f"/api/v1/namespaces/default/serviceaccounts/{ACCOUNT}/token", {"kind": "TokenRequest", "spec": {}}),
        ("/api/v1/namespaces/default/events", {"kind": "Event"}),
    ):
        with pytest.raises(ApiError) as caught:
            rights.create(path, body)
        assert caught.value.status == 403, path


def test_root_on_node_a_gets_nothing_of_node_b(site: Site) -> None:
    """Everything that exists on node A, in every combination, for each pod of node B."""
    mine = [site.pods["node-a"], signing.pod(site.cluster, "third", "node-a", ACCOUNT)]
    agent = site.agent_token("node-a")
    tokens = ["", agent, *(site.pod_token(pod) for pod in mine), site.api.token("podsvid-agent", NAMESPACE)]
    theirs = [site.pods["node-b"], site.agents["node-b"]]
    claims = [
        *theirs,
        *({"metadata": {**there["metadata"], "uid": here["metadata"]["uid"]}} for there in theirs for here in mine),
    ]
    minted = []
    for first in tokens:
        for second in tokens:
            for claim in claims:
                try:
                    minted.append(site.client.mint(first, second, claim))
                except Refusal as refusal:
                    assert refusal.reason not in ("", "INTERNAL"), refusal
                    if refusal.reason == "RATE_LIMITED":
                        time.sleep(refusal.retry_seconds or 0.1)
    assert minted == []
    # The same tokens are good for what is on node A.
    assert site.client.mint(agent, site.pod_token(mine[1]), mine[1]).spiffe_id == SPIFFE_ID


def _explain(site: Site, pod: str) -> str:
    """`podsvid explain`: what it prints."""
    command = [sys.executable, "-m", "podsvid", "explain", pod, "--socket", str(site.signer.admin_socket)]
    done = subprocess.run(command, cwd=signing.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _reason(site: Site, agent: str, token: str, pod: Object) -> str:
    try:
        site.client.mint(agent, token, pod)
    except Refusal as refusal:
        return refusal.reason
    return ""


def _events(site: Site, pod: str) -> str:
    found = site.api.get("/api/v1/namespaces/default/events")["items"]
    return "\n".join(
        f"{each.get('reason')} {each.get('message')}" for each in found if each["involvedObject"].get("name") == pod
    )


def test_a_pod_that_is_deleted_goes_on_by_its_last_token_to_the_end_of_its_grace_period(site: Site) -> None:
    """The last test here: by now its token has ended for the API server as well."""
    path = "/api/v1/namespaces/default/pods/pod-leaving"
    until = datetime.fromisoformat(site.api.get(path)["metadata"]["deletionTimestamp"])
    ended = jwt.decode(site.last_token, options={"verify_signature": False})["exp"]
    assert until.timestamp() - GRACE <= ended
    time.sleep(max(ended + LEEWAY + 2 - time.time(), 0.0))
    review = {"spec": {"token": site.last_token, "audiences": [AUDIENCE]}}
    reviewed = site.api.create("/apis/authentication.k8s.io/v1/tokenreviews", review)
    assert not reviewed["status"].get("authenticated"), "its token is good still"
    answer = site.client.mint(site.agent_token(), site.last_token, site.leaving)
    assert answer.spiffe_id == SPIFFE_ID
    ends = certificates_from_der(answer.chain)[0].not_valid_after_utc
    assert until <= ends <= until + timedelta(seconds=60)
    # Neither another node, nor another pod, nor one that is there; nor this one once it is gone.
    assert refused(site, site.agent_token("node-b"), site.last_token, site.leaving).reason == "POD_ON_OTHER_NODE"
    other = site.pods["node-a"]
    assert refused(site, site.agent_token(), site.last_token, other).reason == "POD_TOKEN_REPLAYED"
    assert refused(site, site.agent_token(), _expired(site, other), other).reason == "POD_TOKEN_EXPIRED"
    forget(site.cluster, "default", "pod-leaving")
    assert site.api.find(path) is None
    # The signer hears of it a moment later.
    wait_for(
        "the pod that is gone to be refused",
        lambda: (
            _reason(site, site.agent_token(), site.last_token, site.leaving) in ("POD_NOT_FOUND", "POD_TOKEN_EXPIRED")
        ),
        progress=print,
    )


def _expired(site: Site, pod: Object) -> str:
    return signing.expired_token(site.cluster, ACCOUNT, "default", AUDIENCE, pod)
