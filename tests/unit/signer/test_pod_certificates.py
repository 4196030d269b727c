"""PodCertificateRequests as a replica decides them: issued, denied for good, or tried again later."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from runtime.clock import SystemClock
from signer.cluster.kube import Object
from signer.front.certificate_requests import GROUP, OF_NODE, OF_POD
from signer.front.pod_certificates import DENIED
from signer.model import PodClaim
from svid.certificates import serial_of
from svid.keys import KeyAlgorithm, public_bytes, public_key_of
from tests.pod_certificates import body, csr, instant, leaf, outcome, source, spiffe_id
from tests.signer_rig import Serving, Site, serving
from tests.support import ROOT

PATIENCE = 60.0
REQUESTS = f"{GROUP}/v1beta1/podcertificaterequests"
NODE = {"metadata": {"name": "node-a", "uid": "uid-node"}}
POLICIES = "/apis/podsvid.io/v1alpha1/namespaces/default/workloadidentities"
ID = "spiffe://example.org/ns/default/sa/web"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("signer.front.turns.FIRST", 0.05)
    monkeypatch.setattr("signer.front.turns.MOST", 0.2)
    monkeypatch.setattr("signer.front.pod_certificates.ABSENT_SECONDS", 0.05)
    monkeypatch.setattr("signer.front.pod_certificates.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("signer.front.pod_certificates.AGAIN_SECONDS", 0.05)
    monkeypatch.setattr("signer.cluster.mirror.FIRST_RETRY", 0.05)
    monkeypatch.setattr("signer.cluster.events.SPACING", 0.0)


class Asking:
    """An API server with accounts and pods, and kubelets that ask."""

    def __init__(self) -> None:
        self.site = Site(datetime.now(UTC).replace(microsecond=0))
        self.kube = self.site.kube
        for name in ("web", "other"):
            self.kube.put(f"/api/v1/namespaces/default/serviceaccounts/{name}", {"metadata": {"uid": f"sa-{name}"}})
        self.made = 0

    def pod(self, name: str = "web", *sources: Object, **more: Any) -> PodClaim:
        claim = self.site.pod(name, driver=None, **more)
        path = f"/api/v1/namespaces/default/pods/{name}"
        found = self.kube.objects[path]
        found["spec"]["volumes"] = [{"name": "identity", "projected": {"sources": list(sources or (source(),))}}]
        self.kube.put(path, found)
        return claim

    def ask(self, claim: PodClaim, account: str = "web", *, key: Any = None, **change: Any) -> str:
        """The request's path."""
        self.made += 1
        pod = {"metadata": {"name": claim.name, "uid": claim.uid}}
        asked = body(pod, {"metadata": {"name": account, "uid": f"sa-{account}"}}, NODE, key, **change)
        path = f"{GROUP}/v1beta1/namespaces/default/podcertificaterequests/req-{self.made}"
        self.kube.put(path, {"spec": asked["spec"]})
        return path

    def delete(self, name: str, ends_in: timedelta) -> None:
        """It is asked to end, and somebody does not confirm that it has."""
        path = f"/api/v1/namespaces/default/pods/{name}"
        found = self.kube.objects[path]
        ends = self.site.clock.at + ends_in
        found["metadata"].update(deletionTimestamp=f"{ends:%Y-%m-%dT%H:%M:%SZ}", deletionGracePeriodSeconds=30)
        self.kube.put(path, found)

    def status(self, path: str) -> Object:
        found: Object = self.kube.objects[path].get("status") or {}
        return found

    async def decided(self, path: str) -> Object:
        await until(lambda: bool(self.status(path)))
        return self.status(path)

    def events(self, reason: str) -> list[str]:
        """Their notes, without where to read about them."""
        found = [each["note"] for each in self.kube.objects.values() if each.get("reason") == reason]
        return [each.partition(" (see docs/")[0] for each in found]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


def run(asking: Asking, do: Callable[[Serving], Awaitable[None]], *flags: str) -> None:
    async def whole(folder: Path) -> None:
        async with serving(asking.site, folder, SystemClock(), "--pod-certificates", "true", *flags) as signer:
            await do(signer)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(whole(Path(folder)))


def test_a_request_becomes_a_certificate_within_the_api_servers_rules() -> None:
    asking = Asking()
    claim = asking.pod()

    async def do(_: Serving) -> None:
        for key, most in ((KeyAlgorithm.EC_P384.generate(), 3600), (KeyAlgorithm.ED25519.generate(), 90000)):
            status = await asking.decided(asking.ask(claim, key=key, maxExpirationSeconds=most))
            assert outcome(status) == ("Issued", "Issued")
            found = leaf(status)
            assert spiffe_id(found) == ID
            assert public_bytes(public_key_of(found)) == public_bytes(key.public_key())
            begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
            assert (instant(status["notBefore"]), instant(status["notAfter"])) == (begins, ends)
            assert ends - begins == HOUR
            assert begins + 10 * MINUTE <= instant(status["beginRefreshAt"]) <= ends - 10 * MINUTE
            assert "BEGIN CERTIFICATE" in status["certificateChain"]

    run(asking, do)


def test_each_decision_is_a_line_of_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asking = Asking()
    claim = asking.pod()

    def lines(event: str) -> list[dict[str, Any]]:
        found = [each for each in caplog.records if each.name == "podsvid.audit" and each.getMessage() == event]
        return [vars(each) for each in found if vars(each)["kind"] == "pod_certificate"]

    async def do(_: Serving) -> None:
        issued = leaf(await asking.decided(asking.ask(claim)))
        (line,) = lines("mint allowed")
        assert (line["request"], line["pod"], line["node"], line["agent_pod_uid"]) == (
            *("req-1", "default/web", "node-a"),
            "",
        )
        assert (line["spiffe_id"], line["serial"]) == (ID, serial_of(issued))
        await asking.decided(asking.ask(claim, nodeName="node-b"))
        (line,) = lines("mint refused")
        assert (line["request"], line["claimed_pod"], line["node"]) == ("req-2", "default/web", "node-b")
        assert line["reason"] == "POD_ON_OTHER_NODE"

    run(asking, do)


def test_a_longer_life_that_policy_gives_is_bounded_by_the_request() -> None:
    asking = Asking()
    claim = asking.pod()

    async def do(_: Serving) -> None:
        for most, lives in ((7200, 2 * HOUR), (86400, 4 * HOUR)):
            found = leaf(await asking.decided(asking.ask(claim, maxExpirationSeconds=most)))
            assert found.not_valid_after_utc - found.not_valid_before_utc == lives

    run(asking, do, "--x509-ttl", "4h", "--authority-ttl", "30d")


def test_a_certificate_request_of_the_newer_version_is_read_as_well() -> None:
    asking = Asking()
    claim, key = asking.pod(), KeyAlgorithm.EC_P256.generate()
    asking.kube.missing.add(REQUESTS)

    async def do(_: Serving) -> None:
        path = asking.ask(claim, key=key, stubPKCS10Request=csr(key), pkixPublicKey=None, proofOfPossession=None)
        newer = path.replace("v1beta1", "v1")
        asking.kube.put(newer, {"spec": asking.kube.objects[path]["spec"]})
        assert outcome(await asking.decided(newer))[0] == "Issued"

    run(asking, do)


def test_what_nothing_mends_is_denied_and_once() -> None:
    asking = Asking()
    claim, plain = asking.pod(), asking.site.pod("plain")
    done = asking.pod("done", phase="Succeeded")
    static = asking.pod("static", annotations={"kubernetes.io/config.mirror": "x"})
    nobody = PodClaim("default", "nobody", "uid-nobody")

    async def do(_: Serving) -> None:
        for path, reason in (
            (asking.ask(claim, "other"), "SERVICE_ACCOUNT_MISMATCH"),
            (asking.ask(claim, serviceAccountName="other"), "SERVICE_ACCOUNT_MISMATCH"),
            (asking.ask(claim, nodeName="node-b"), "POD_ON_OTHER_NODE"),
            (asking.ask(claim, podName="plain"), "POD_UID_MISMATCH"),
            (asking.ask(nobody), "POD_NOT_FOUND"),
            (asking.ask(plain), "POD_WITHOUT_CERTIFICATE_SOURCE"),
            (asking.ask(done), "POD_FINISHED"),
            (asking.ask(static), "POD_IS_MIRROR"),
            (asking.ask(claim, proofOfPossession="AAAA"), "PROOF_OF_POSSESSION"),
            (asking.ask(claim, unverifiedUserAnnotations={"a.b/c": "d"}), "InvalidUnverifiedUserAnnotations"),
        ):
            status = await asking.decided(path)
            assert outcome(status) == ("Denied", reason)
            assert set(status) == {"conditions"}
            assert asking.kube.writes.count(("patch", f"{path}/status")) == 1

    run(asking, do)


def test_of_a_pod_whose_source_is_another_signers_nobody_asked() -> None:
    asking = Asking()
    claim = asking.pod("web", source(signerName="other.example/signer"))

    async def do(_: Serving) -> None:
        status = await asking.decided(asking.ask(claim))
        assert outcome(status) == ("Denied", "POD_WITHOUT_CERTIFICATE_SOURCE")

    run(asking, do)


def test_a_service_account_that_was_made_anew_is_waited_for() -> None:
    """Kubelet asks no more for a pod that was denied, and the next request names the account of then."""
    asking = Asking()
    claim = asking.pod()
    account = "/api/v1/namespaces/default/serviceaccounts/web"

    async def do(signer: Serving) -> None:
        asking.kube.remove(account)
        path = asking.ask(claim)
        await until(lambda: bool(asking.events("PodCertificatePending")))
        assert asking.events("PodCertificatePending")[0].startswith(
            "SERVICE_ACCOUNT_REPLACED: service account default/web of pod default/web is gone, or being deleted: make"
        )
        # What kubelet saw just before.
        created = asking.site.clock.at - timedelta(seconds=50)
        asking.kube.put(account, {"metadata": {"uid": "sa-new", "creationTimestamp": f"{created:%Y-%m-%dT%H:%M:%SZ}"}})
        await put_off(signer)
        assert asking.status(path) == {}
        assert outcome(await asking.decided(asking.ask(claim, serviceAccountUID="sa-new")))[0] == "Issued"
        # A request of before gets nothing by it.
        await put_off(signer)
        assert asking.status(path) == {}

    run(asking, do)


def test_an_account_that_was_there_long_before_the_request_was_not_made_anew_after_it() -> None:
    """Who may make requests, and names an account that never was, has it denied and no place for ever."""
    asking = Asking()
    claim = asking.pod()
    created = asking.site.clock.at - timedelta(seconds=70)
    put = {"metadata": {"uid": "sa-web", "creationTimestamp": f"{created:%Y-%m-%dT%H:%M:%SZ}"}}
    asking.kube.put("/api/v1/namespaces/default/serviceaccounts/web", put)

    async def do(_: Serving) -> None:
        status = await asking.decided(asking.ask(claim, serviceAccountUID="never"))
        assert outcome(status) == ("Denied", "SERVICE_ACCOUNT_MISMATCH")
        message = status["conditions"][0]["message"]
        assert message.startswith(f"service account default/web of pod default/web has been there since {created:%Y-}")

    run(asking, do)


def test_a_key_of_no_kind_that_is_signed_is_refused_in_the_same_words_everywhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    asking = Asking()
    claim = asking.pod()

    async def do(_: Serving) -> None:
        status = await asking.decided(asking.ask(claim, key=ec.generate_private_key(ec.SECP521R1())))
        assert outcome(status) == ("Denied", "UnsupportedKeyType")
        message = status["conditions"][0]["message"]
        assert message.endswith(f"; {documented('KEY_WEAK')}")
        (line,) = [vars(each) for each in caplog.records if each.getMessage() == "mint refused"]
        assert (line["reason"], line["why"]) == ("KEY_WEAK", message)

    run(asking, do)


def test_while_its_pod_is_not_let_pass_a_proof_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, verified = Asking(), list[object]()
    monkeypatch.setattr("signer.front.pod_certificates.proven", verified.append)
    path = asking.ask(asking.pod())
    asking.kube.remove("/api/v1/namespaces/default/serviceaccounts/web")

    async def do(signer: Serving) -> None:
        await put_off(signer)
        assert (asking.status(path), verified) == ({}, [])

    run(asking, do)


def test_a_policy_that_is_missing_may_come_and_a_key_that_it_does_not_want_is_denied() -> None:
    asking = Asking()
    claim = asking.pod()

    async def do(_: Serving) -> None:
        path = asking.ask(claim)
        await until(lambda: bool(asking.events("PodCertificatePending")))
        assert asking.events("PodCertificatePending")[0].startswith("POLICY_DENIED: no WorkloadIdentity")
        assert asking.status(path) == {}
        asking.kube.put(f"{POLICIES}/a", {"spec": {"keyAlgorithms": ["ec-p384", "rsa-3072"]}})
        status = await asking.decided(path)
        assert outcome(status) == ("Denied", "UnsupportedKeyType")
        message = status["conditions"][0]["message"]
        assert message.endswith(f"this one is ec-p256; {documented('KEY_ALGORITHM_DENIED')} or RSA3072")
        # Of a volume such a pod's author knows nothing.
        assert "volumeAttributes" not in message

    run(asking, do, "--require-policy", "true")


def test_a_policy_that_denies_is_final() -> None:
    asking = Asking()
    path = asking.ask(asking.pod())

    async def do(signer: Serving) -> None:
        await put_off(signer)
        asking.kube.put(f"{POLICIES}/a", {"spec": {"deny": True}})
        assert outcome(await asking.decided(path)) == ("Denied", "POLICY_DENIED")

    run(asking, do, "--require-policy", "true")


def test_a_policy_that_denies_and_cannot_be_read_is_not() -> None:
    """What it selects nobody knows, and kubelet asks no more for a pod that was denied."""
    asking = Asking()
    path = asking.ask(asking.pod())
    asking.kube.put(
        f"{POLICIES}/a",
        {"spec": {"deny": True, "podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}},
    )

    async def do(signer: Serving) -> None:
        await until(lambda: bool(asking.events("PodCertificatePending")) or bool(asking.status(path)))
        assert asking.status(path) == {}
        asking.kube.put(f"{POLICIES}/a", {"spec": {}})
        assert outcome(await asking.decided(path))[0] == "Issued"

    run(asking, do)


def test_what_is_denied_by_policies_that_are_followed_no_more_may_be_no_longer_so() -> None:
    asking = Asking()
    claim = asking.pod()
    asking.kube.put(f"{POLICIES}/a", {"spec": {"deny": True}})

    async def do(signer: Serving) -> None:
        mirror = signer.replica._policies._namespaced
        mirror.lost_since = time.monotonic()
        path = asking.ask(claim)
        await put_off(signer)
        assert asking.status(path) == {}
        mirror.lost_since = None
        assert outcome(await asking.decided(path)) == ("Denied", "POLICY_DENIED")

    run(asking, do)


def test_a_pod_that_was_deleted_gets_nothing_once_its_time_is_over() -> None:
    asking = Asking()
    claim = asking.pod()
    asking.delete("web", timedelta(seconds=-50))

    async def do(signer: Serving) -> None:
        assert outcome(await asking.decided(asking.ask(claim)))[0] == "Issued"
        asking.delete("web", timedelta(seconds=-70))
        seen = signer.replica._pods
        await until(lambda: (found := seen.known(claim.uid)) is not None and found.leaving is not None)
        status = await asking.decided(asking.ask(claim))
        assert outcome(status) == ("Denied", "POD_FINISHED")
        assert "was deleted" in status["conditions"][0]["message"]

    run(asking, do)


def test_a_dns_name_that_policy_does_not_give_waits_for_it() -> None:
    asking = Asking()
    claim = asking.pod()

    async def do(_: Serving) -> None:
        path = asking.ask(claim, unverifiedUserAnnotations={"podsvid.io/dns-names": "web.example.org"})
        await until(lambda: bool(asking.events("PodCertificatePending")))
        assert asking.events("PodCertificatePending") == [
            "DNS_NAME_DENIED: 'web.example.org' is not among the DNS names that policy (default) gives this pod; "
            + documented("DNS_NAME_DENIED")
        ]
        assert asking.status(path) == {}
        cluster_wide = "/apis/podsvid.io/v1alpha1/clusterworkloadidentities"
        asking.kube.put(f"{cluster_wide}/a", {"spec": {"dnsNameTemplates": ["web.example.org"]}})
        assert outcome(await asking.decided(path))[0] == "Issued"

    run(asking, do)


def documented(reason: str) -> str:
    """How docs/refusals.md says that it ends, for a podCertificate source."""
    text = (ROOT / "docs" / "refusals.md").read_text().partition("## What a podCertificate source is told")[2]
    (found,) = re.findall(rf"^\| `{reason}` \| (.*) \|$", text, re.MULTILINE)
    return str(found)


async def put_off(signer: Serving) -> None:
    """Some request has been tried, and again."""

    def tries() -> float:
        name = "podsvid_signer_pod_certificate_decisions_total"
        return signer.replica.metrics.registry.get_sample_value(name, {"result": "put_off"}) or 0.0

    before = tries()
    await until(lambda: tries() > before + 1)


def test_trouble_with_the_api_server_denies_nobody() -> None:
    asking = Asking()
    claim = asking.pod()

    async def do(signer: Serving) -> None:
        for denied in (("patch", REQUESTS.rpartition("/")[0]), ("get", "/api/v1/namespaces/default/serviceaccounts")):
            asking.kube.denied.add(denied)
            path = asking.ask(claim)
            await put_off(signer)
            assert asking.status(path) == {}
            asking.kube.denied.clear()
            assert outcome(await asking.decided(path))[0] == "Issued"

    run(asking, do)


def test_what_was_changed_meanwhile_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking()
    path = asking.ask(asking.pod())
    patch = asking.kube.patch
    tried: list[str] = []

    async def late(where: str, what: Object) -> Object:
        if where == f"{path}/status" and not tried:
            tried.append(where)
            asking.kube.put(path, asking.kube.objects[path])
        return await patch(where, what)

    monkeypatch.setattr(asking.kube, "patch", late)

    async def do(_: Serving) -> None:
        assert outcome(await asking.decided(path))[0] == "Issued"
        assert asking.kube.writes.count(("patch", f"{path}/status")) == 2

    run(asking, do)


def test_the_api_may_go_and_come_again(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking()
    claim = asking.pod()
    both = {REQUESTS, REQUESTS.replace("v1beta1", "v1")}
    asking.kube.missing |= both

    def absent() -> int:
        return sum(each.startswith("pod_certificates is on, and the API server has none") for each in caplog.messages)

    async def do(_: Serving) -> None:
        await until(lambda: absent() == 1)
        looked = len(asking.kube.reads)
        await until(lambda: len(asking.kube.reads) > looked + 4)
        assert absent() == 1
        asking.kube.missing -= both
        assert outcome(await asking.decided(asking.ask(claim)))[0] == "Issued"

    run(asking, do)


def test_off_nobody_looks() -> None:
    asking = Asking()
    path = asking.ask(asking.pod())

    async def whole(folder: Path) -> None:
        async with serving(asking.site, folder, SystemClock()) as signer:
            await until(lambda: signer.replica._leader.leading)
            await asyncio.sleep(0.05)
            assert not signer.replica._pods.named("default", "web").pod_certificate  # type: ignore[union-attr]

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(whole(Path(folder)))
    assert asking.status(path) == {}
    assert not [each for each in asking.kube.reads if "podcertificaterequests" in each]


def test_a_crowd_is_served_whole_and_beyond_its_places_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.front.certificate_requests.MOST", 20)
    monkeypatch.setattr("signer.front.certificate_requests.OF_NODE", 20)
    monkeypatch.setattr("signer.front.pod_certificates.RATE", 1000.0)
    asking = Asking()
    claim = asking.pod()
    paths = [asking.ask(claim) for _ in range(60)]
    random.Random(1).shuffle(paths)

    async def do(_: Serving) -> None:
        for each in paths:
            assert outcome(await asking.decided(each))[0] == "Issued"

    run(asking, do)


def test_all_pods_of_a_node_have_their_places_together() -> None:
    assert 110 * OF_POD <= OF_NODE


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(("of_node", "most"), [(8, 100), (8, 16)])
def test_who_waits_for_what_he_does_not_get_keeps_out_nobody_and_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch, where: str, of_node: int, most: int
) -> None:
    """Pods with as many sources as have places, of which each asks for a DNS name that no policy gives."""
    monkeypatch.setattr("signer.front.certificate_requests.MOST", most)
    monkeypatch.setattr("signer.front.certificate_requests.OF_NODE", of_node)
    monkeypatch.setattr("signer.front.pod_certificates.RATE", 1000.0)
    asking = Asking()
    unknown = {"podsvid.io/dns-names": "web.example.org"}
    waiting = [
        asking.ask(asking.pod(f"{node}-{number}", node=node), nodeName=node, unverifiedUserAnnotations=unknown)
        for node in ("node-a", "node-b")
        for number in range(of_node // OF_POD)
        for _ in range(OF_POD)
    ]
    nodes = ("node-a", "node-b", "node-c")

    def ask() -> list[str]:
        return [asking.ask(asking.pod(f"innocent-{node}", node=node), nodeName=node) for node in nodes]

    # In a list they come after all the others.
    innocent = ask() if where == "before" else []

    async def do(signer: Serving) -> None:
        if where == "after":
            await put_off(signer)
            innocent.extend(ask())
        for each in innocent:
            assert outcome(await asking.decided(each))[0] == "Issued"
        assert [each for each in waiting if asking.status(each)] == []
        asking.kube.put(
            "/apis/podsvid.io/v1alpha1/clusterworkloadidentities/a", {"spec": {"dnsNameTemplates": ["web.example.org"]}}
        )
        for each in waiting:
            assert outcome(await asking.decided(each))[0] == "Issued"

    run(asking, do)


def test_a_flood_of_proofs_is_verified_one_after_another_and_others_have_their_turns_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a proof costs is for who asks to choose, and the same loop answers agents."""
    monkeypatch.setattr("signer.front.pod_certificates.RATE", 1000.0)
    asking, turns, verified = Asking(), 0, list[int]()

    def bad(*_: object) -> None:
        verified.append(turns)
        raise InvalidSignature

    monkeypatch.setattr("signer.front.certificate_request._verify", bad)
    paths = [asking.ask(claim) for claim in map(asking.pod, "abcdefghijkl") for _ in range(OF_POD)]

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def do(_: Serving) -> None:
        going_on = asyncio.ensure_future(others())
        for each in paths:
            assert outcome(await asking.decided(each)) == ("Denied", "PROOF_OF_POSSESSION")
        going_on.cancel()
        # Read, they are not looked at; and decided at once, no two are in one turn.
        assert len(verified) == len(set(verified)) == len(paths)

    run(asking, do)


def test_failed_is_never_said() -> None:
    assert "Failed" not in DENIED.values()
