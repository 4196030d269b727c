"""PodCertificateRequests at a real API server: what a replica makes of each, by the chart's permissions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from svid.keys import public_bytes, public_key_of
from tests.go_tools import Progress
from tests.pod_certificates import TYPES, body, instant, leaf, outcome, pod_of, source, spiffe_id

from .alone import POLICIES, TRUST_DOMAIN, Alone, api_server
from .api import ApiError, KubeApi, Object
from .certificates import REQUESTS, ask, decided, kubelet
from .signing import NAMESPACE
from .test_alone_life import _namespace, _object, replica, until
from .waiting import wait_for

pytestmark = pytest.mark.timeout(600)
PODS = "/api/v1/namespaces/default/pods"
ID = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/web"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("signer.front.turns.FIRST", 0.5)
    monkeypatch.setattr("signer.front.pod_certificates.ABSENT_SECONDS", 0.5)
    monkeypatch.setattr("signer.front.pod_certificates.LOOK_SECONDS", 0.5)


@pytest.fixture(scope="module")
def alone(built: None, tmp_path_factory: pytest.TempPathFactory, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path_factory.mktemp("alone"), progress) as found:
        found.api.apply([_namespace(NAMESPACE)])
        found.install("podCertificates.enabled=true")
        found.api.apply(
            [
                _namespace("default"),
                _object("Node", "node-a"),
                _object("ServiceAccount", "web", namespace="default"),
                _object("ServiceAccount", "other", namespace="default"),
            ]
        )
        yield found


class Site:
    """Its pods, and who asks for them."""

    def __init__(self, alone: Alone) -> None:
        self.alone = alone
        self.node = alone.api.get("/api/v1/nodes/node-a")
        self.kubelet = kubelet(alone, "node-a")

    def account(self, name: str = "web") -> Object:
        return self.alone.api.get(f"/api/v1/namespaces/default/serviceaccounts/{name}")

    def pod(self, name: str, account: str = "web", *sources: Object) -> Object:
        return self.alone.api.create(PODS, pod_of(name, account, "node-a", *(sources or (source(),))))

    def ask(self, request: Object, by: KubeApi | None = None) -> Object:
        return ask(self.alone, by or self.kubelet, request)

    async def answer(self, request: Object) -> Object:
        found: list[Object] = []

        def answered() -> bool:
            status = decided(self.alone.api, request)
            found.extend([status] if status else [])
            return status is not None

        await until(answered)
        assert found, self.events()
        return found[-1]

    def events(self) -> list[tuple[str, str]]:
        events = self.alone.api.get("/apis/events.k8s.io/v1/namespaces/default/events")["items"]
        return [(each["reason"], each["note"]) for each in events]


def test_each_kind_of_key_is_certified_for_the_live_pod(alone: Alone, tmp_path: Path) -> None:
    site = Site(alone)

    async def run() -> None:
        async with replica(alone, tmp_path, "--pod-certificates", "true"):
            pod = site.pod("web")
            keys = {each: each.generate() for each in TYPES}
            asked = [site.ask(body(pod, site.account(), site.node, key)) for key in keys.values()]
            for request, key in zip(asked, keys.values(), strict=True):
                status = await site.answer(request)
                assert outcome(status) == ("Issued", "Issued")
                certificate = leaf(status)
                assert spiffe_id(certificate) == ID
                assert public_bytes(public_key_of(certificate)) == public_bytes(key.public_key())
                begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
                assert ends - begins == HOUR
                assert begins + timedelta(minutes=10) <= instant(status["beginRefreshAt"])
            # The shortest that may be asked for is all of it.
            short = site.ask(body(pod, site.account(), site.node, maxExpirationSeconds=3600))
            assert outcome(await site.answer(short))[0] == "Issued"

    asyncio.run(run())


def test_what_nothing_mends_is_denied_and_all_else_waits(alone: Alone, tmp_path: Path) -> None:
    site = Site(alone)

    async def run() -> None:
        async with replica(alone, tmp_path, "--pod-certificates", "true", "--require-policy", "true"):
            pod = site.pod("mended")
            waits = site.ask(body(pod, site.account(), site.node))
            await until(lambda: [each for each in site.events() if each[0] == "PodCertificatePending"])
            ((_, note),) = [each for each in site.events() if each[0] == "PodCertificatePending"]
            assert note.startswith("POLICY_DENIED: no WorkloadIdentity")
            assert decided(alone.api, waits) is None
            policies = f"{POLICIES}/namespaces/default/workloadidentities"
            allowed: Object = {"serviceAccounts": ["web"]}
            alone.api.create(policies, policy("allows", allowed))
            assert outcome(await site.answer(waits))[0] == "Issued"
            unknown = {"example.org/path": "/ns/default/sa/admin"}
            annotated = site.ask(body(pod, site.account(), site.node, unverifiedUserAnnotations=unknown))
            assert outcome(await site.answer(annotated)) == ("Denied", "InvalidUnverifiedUserAnnotations")
            # It waits for a policy, too, until there is one that says no.
            other = site.ask(body(site.pod("other", "other"), site.account("other"), site.node))
            alone.api.create(policies, policy("denies", {"serviceAccounts": ["other"], "deny": True}))
            assert outcome(await site.answer(other)) == ("Denied", "POLICY_DENIED")

    asyncio.run(run())


def policy(name: str, spec: Object) -> Object:
    return _object("WorkloadIdentity", name, "podsvid.io/v1alpha1", "default", spec=spec)


def test_a_forged_request_gets_the_live_pods_identity_or_nothing(alone: Alone, tmp_path: Path) -> None:
    site = Site(alone)
    forger = alone.api
    pod, plain = site.pod("forged"), forger.create(PODS, pod_of("plain", "web", "node-a"))
    account, other = site.account(), site.account("other")

    def refused() -> bool | str:
        try:
            forger.create(f"{REQUESTS}?dryRun=All", body(pod, account, site.node))
        except ApiError as error:
            return "only the kubelet of a pod's node" in str(error) or str(error)
        return "taken"

    wait_for("the admission policy", refused, progress=alone.progress)
    # As in a cluster without that policy.
    bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    forger.delete(f"{bindings}/podsvid-pod-certificates")

    async def run() -> None:
        async with replica(alone, tmp_path, "--pod-certificates", "true"):
            own = site.ask(body(pod, account, site.node), forger)
            assert spiffe_id(leaf(await site.answer(own))) == ID
            for request, reason in (
                (body(pod, other, site.node), "SERVICE_ACCOUNT_MISMATCH"),
                (body(pod, account, site.node, nodeName="node-b"), "POD_ON_OTHER_NODE"),
                (body(pod, account, site.node, podUID="another"), "POD_UID_MISMATCH"),
                (body(pod, account, site.node, podName="plain"), "POD_UID_MISMATCH"),
                (body(pod, account, site.node, podName="nobody", podUID="nobody"), "POD_NOT_FOUND"),
                (body(plain, account, site.node), "POD_WITHOUT_CERTIFICATE_SOURCE"),
            ):
                status = await site.answer(site.ask(request, forger))
                assert outcome(status) == ("Denied", reason)
                assert "certificateChain" not in status
            # An account of before: kubelet's next request may name the one of now.
            waits = site.ask(body(pod, account, site.node, serviceAccountUID="another"), forger)
            await until(lambda: [each for each in site.events() if each[1].startswith("SERVICE_ACCOUNT_REPLACED")])
            assert decided(alone.api, waits) is None

    asyncio.run(run())


def test_the_api_may_come_later(alone: Alone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(alone)
    site.pod("early")

    async def run() -> None:
        alone.restart(
            "--runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=false",
            "--feature-gates=PodCertificateRequest=false",
        )
        async with replica(alone, tmp_path, "--pod-certificates", "true"):
            absent = "pod_certificates is on, and the API server has none"
            await until(lambda: [each for each in caplog.messages if each.startswith(absent)])
            await asyncio.to_thread(alone.restart)
            found = site.ask(body(alone.api.get(f"{PODS}/early"), site.account(), site.node))
            assert outcome(await site.answer(found))[0] == "Issued"
            assert len([each for each in caplog.messages if each.startswith(absent)]) == 1

    asyncio.run(run())
