"""Istio's CA API, call by call: who gets which certificate, every refusal, and what the proxy is told of it."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_csr

from signer.attestation.doubt import LIMITS
from signer.attestation.tokens import REVIEWS
from signer.authority.knowledge import Acks
from signer.authority.state import AuthorityState
from signer.cluster.events import QUEUE
from signer.errors import ApiUnavailable, Reason
from signer.front.audit import MAX_REFUSALS
from signer.front.budget import FOR_PROXIES, PROXY_MINTS, PROXY_MINTS_OF_NODE, held_for_proxies
from signer.front.calls import Context
from signer.front.istio import EVENTS_BEHIND, REFUSED
from signer.front.limits import SILENT_SECONDS
from signer.front.statuses import ISTIO_CODES
from signer.model import Agent, PodClaim, Sender, Standing
from signer.pb.istio_ca_pb2 import IstioCertificateRequest
from svid.certificates import serial_of
from svid.keys import KeyAlgorithm, public_bytes
from svid.spiffeid import SpiffeId
from svid.x509svid import check_x509_svid
from tests.signer_rig import AUDIENCE, START
from tests.unit.signer.istio_door import (
    OUTAGE,
    IstioDoor,
    ProxyCall,
    Refusal,
    at_istios_door,
    csr,
    lines,
    refused,
    spiffe,
)
from tests.unit.signer.test_lifecycle import advanced, first, life
from tests.unit.signer.test_minting import roomy

WEB = spiffe("default", "web")
HOUR = timedelta(hours=1)


def test_a_sidecar_gets_its_own_identity_and_the_roots_last(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        key = KeyAlgorithm.RSA_2048.generate()
        found = await door.ask(door.token(claim), csr(WEB, key=key), metadata={"CertSigner": ""})
        assert found.identity == WEB
        assert public_bytes(found.leaf.public_key()) == public_bytes(key.public_key())  # type: ignore[arg-type]
        assert len(found.elements) == 2
        assert all(each.count("BEGIN CERTIFICATE") == 1 for each in found.elements)
        assert door.state is not None
        assert found.roots == list(door.state.bundle.x509_authorities)
        assert check_x509_svid([found.leaf], door.state.bundle, START) == SpiffeId.parse(WEB)
        (line,) = lines(caplog)
        wanted = {
            "msg": "mint allowed",
            "kind": "istio",
            "node": "node-a",
            "pod": "default/web",
            "pod_uid": claim.uid,
            "service_account": "web",
            "spiffe_id": WEB,
            "policy": "(default)",
            "impersonated": "",
            "pods": 1,
            "serial": serial_of(found.leaf),
            "key_algorithm": "rsa-2048",
            "not_after": found.leaf.not_valid_after_utc.isoformat(),
        }
        assert {each: line.get(each) for each in wanted} == wanted
        assert door.mints("ok") == 1
        assert door.gate.nodes == [claim.uid]

    at_istios_door(test)


def rotating() -> AuthorityState:
    """One authority signs, and the next one is published."""
    state, _ = life().asked(first(), "x509", forced=False, now=START)
    return roomy(advanced(state, START, Acks(frozenset({"node-1"}), None)))


def test_while_another_authority_is_prepared_both_roots_are_in_the_last_element() -> None:
    state = rotating()

    async def test(door: IstioDoor) -> None:
        found = await door.ask(door.token(door.proxy()), csr(WEB))
        assert len(found.elements) == 2
        assert set(found.roots) == set(state.bundle.x509_authorities)
        assert len(found.roots) == 2

    at_istios_door(test, state=state)


@pytest.mark.parametrize(
    ("asked", "granted"),
    # SETTINGS have an hour usually, and half an hour more for who asks.
    [(0, HOUR), (86_400, 1.5 * HOUR), (600, timedelta(minutes=10)), (2**62, 1.5 * HOUR)],
)
def test_it_lives_as_long_as_is_asked_for_and_policy_grants(asked: int, granted: timedelta) -> None:
    async def test(door: IstioDoor) -> None:
        found = await door.ask(door.token(door.proxy()), seconds=asked)
        assert found.leaf.not_valid_after_utc - START == granted

    at_istios_door(test)


def test_a_policy_may_grant_a_day_and_less() -> None:
    async def test(door: IstioDoor) -> None:
        door.policy("long", x509TTL="4h")
        await door.told()
        found = await door.ask(door.token(door.proxy()), seconds=86_400)
        assert found.leaf.not_valid_after_utc - START == 4 * HOUR

    at_istios_door(test)


def test_policy_decides_names_and_keys() -> None:
    async def test(door: IstioDoor) -> None:
        door.policy("named", dnsNameTemplates=["{service_account}.example"], keyAlgorithms=["ec-p256"])
        await door.told()
        found = await door.ask(door.token(door.proxy()))
        assert [each.value for each in found.names if each.value != WEB] == ["web.example"]

    at_istios_door(test)


def test_nothing_of_the_certificate_request_is_taken_but_its_key() -> None:
    async def test(door: IstioDoor) -> None:
        found = await door.ask(door.token(door.proxy()), csr())
        assert found.identity == WEB
        assert [each.value for each in found.names] == [WEB]

    at_istios_door(test)


Broken = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


# What of pod, token and call is different, by the reason that it is refused for.
@pytest.mark.parametrize(
    ("reason", "pod", "token", "call"),
    [
        (Reason.POD_TOKEN_AUDIENCE, {}, {"audience": AUDIENCE}, {}),
        (Reason.POD_TOKEN_INVALID, {}, {"known": False}, {}),
        (Reason.POD_TOKEN_EXPIRED, {}, {"life": -1.0}, {}),
        (Reason.POD_TOKEN_UNBOUND, {}, {"node": None}, {}),
        (Reason.POD_ON_OTHER_NODE, {"node": "node-b"}, {}, {}),
        (Reason.SERVICE_ACCOUNT_MISMATCH, {"account": "other"}, {}, {}),
        (Reason.POD_FINISHED, {"phase": "Succeeded"}, {}, {}),
        (Reason.POD_FINISHED, {"phase": "Failed"}, {}, {}),
        (Reason.POD_IS_MIRROR, {"annotations": {"kubernetes.io/config.mirror": "x"}}, {}, {}),
        (Reason.POD_OVERSIZED, {"labels": {f"l{number}": "x" for number in range(500)}}, {}, {}),
        (Reason.NOT_ENTITLED, {}, {}, {"request": csr(spiffe("default", "other"))}),
        (Reason.NOT_ENTITLED, {}, {}, {"request": csr(spiffe("default", "web", "cluster.local"))}),
        (Reason.NOT_ENTITLED, {}, {}, {"request": csr(WEB, spiffe("default", "other"))}),
        (Reason.CSR_INVALID, {}, {}, {"request": ""}),
        (Reason.CSR_INVALID, {}, {}, {"request": "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"}),
        (Reason.INVALID_REQUEST, {}, {}, {"seconds": -1}),
        (Reason.BUSY, {}, {}, {"left": 0.0}),
    ],
)
def test_a_proxy_that_is_refused_is_told_nothing_of_it(
    reason: Reason, pod: dict[str, Any], token: dict[str, Any], call: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy(**pod)
        if token.get("life", 1.0) < 0:
            bearer = door.token(claim, life=10.0)
            door.site.clock.pass_by(seconds=11)
        else:
            bearer = door.token(claim, **token)
        await door.told()
        with refused(caplog, reason) as found:
            await door.ask(bearer, **call)
        (line,) = found
        assert bearer not in str(line)
        assert door.mints(reason.value) == 1

    at_istios_door(test)


def test_a_call_without_a_token_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        with refused(caplog, Reason.POD_TOKEN_MISSING) as found:
            await door.ask(None)
        assert (found[0]["node"], found[0]["claimed_pod"]) == ("", "")
        assert door.gate.strikes == 1
        assert door.gate.nodes == []

    at_istios_door(test)


def test_a_pod_that_is_gone_gets_nothing_nor_does_another_of_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        token = door.token(claim)
        door.site.remove(claim)
        await door.told()
        with refused(caplog, Reason.POD_NOT_FOUND):
            await door.ask(token)
        assert len(await door.events_of("default")) == 1
        door.proxy()
        await door.told()
        with refused(caplog, Reason.POD_UID_MISMATCH):
            await door.ask(token)
        # That event would stand at the other one.
        assert len(await door.events_of("default")) == 1

    at_istios_door(test)


def leaving(door: IstioDoor, claim: PodClaim, seconds: float) -> None:
    """It was deleted, and its time ends so long from now."""
    path = f"/api/v1/namespaces/{claim.namespace}/pods/{claim.name}"
    body = door.site.kube.objects[path]
    ends = door.site.clock.at + timedelta(seconds=seconds)
    body["metadata"] |= {"deletionTimestamp": f"{ends:%Y-%m-%dT%H:%M:%SZ}", "deletionGracePeriodSeconds": 30}
    door.site.kube.put(path, body)


def test_a_pod_that_ends_is_served_until_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        leaving(door, claim, 30.0)
        await door.told()
        assert (await door.ask(door.token(claim))).identity == WEB
        door.site.clock.pass_by(seconds=91)
        with refused(caplog, Reason.POD_FINISHED):
            await door.ask(door.token(claim))

    at_istios_door(test)


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.RSA_2048, KeyAlgorithm.EC_P384])
def test_a_key_that_policy_does_not_want_is_refused(algorithm: KeyAlgorithm, caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        door.policy("p256", keyAlgorithms=["ec-p256"])
        await door.told()
        with refused(caplog, Reason.KEY_ALGORITHM_DENIED):
            await door.ask(door.token(door.proxy()), csr(key=algorithm.generate()))

    at_istios_door(test)


def test_a_certificate_request_that_another_key_signed_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    one = load_pem_x509_csr(csr(WEB).encode()).public_bytes(Encoding.DER)
    forged = bytearray(one)
    forged[-1] ^= 1
    text = base64.encodebytes(bytes(forged)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"

    async def test(door: IstioDoor) -> None:
        with refused(caplog, Reason.PROOF_OF_POSSESSION):
            await door.ask(door.token(door.proxy()), pem)

    at_istios_door(test)


def test_a_policy_that_denies_refuses_and_the_pods_event_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        door.policy("no", deny=True)
        await door.told()
        with refused(caplog, Reason.POLICY_DENIED) as found:
            await door.ask(door.token(door.proxy()))
        ((pod, reason, note),) = await door.events_of("default")
        assert (pod, reason) == ("web", "IdentityRefused")
        assert note.startswith("POLICY_DENIED: ")
        assert found[0]["claimed_pod"] == "default/web"

    at_istios_door(test)


@pytest.mark.parametrize("template", ["/web", "/ns/{namespace}/sa/{service_account}/x", "/ns/{namespace}/pod/{pod}"])
def test_an_identity_that_istio_would_not_take_is_refused_here(template: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        door.policy("other", spiffeIDTemplate=template)
        await door.told()
        with refused(caplog, Reason.POLICY_UNUSABLE) as found:
            await door.ask(door.token(door.proxy()))
        assert "Istio takes only spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT" in found[0]["why"]

    at_istios_door(test)


@pytest.mark.parametrize(
    ("clusters", "said", "good"),
    [
        ((), "", True),
        ((), "Kubernetes", True),
        (("Kubernetes",), "", True),
        (("Kubernetes", "two"), "two", True),
        (("Kubernetes",), "two", False),
    ],
)
def test_a_cluster_is_refused_only_where_the_settings_name_others(
    clusters: tuple[str, ...], said: str, good: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(door: IstioDoor) -> None:
        token = door.token(door.proxy())
        headers = (("clusterid", said),) if said else ()
        if good:
            assert (await door.ask(token, headers=headers)).identity == WEB
            return
        with refused(caplog, Reason.CLUSTER_UNKNOWN):
            await door.ask(token, headers=headers)

    at_istios_door(test, lambda state: IstioDoor(state, *clusters))


def test_while_the_api_server_or_the_authorities_are_away_it_is_a_matter_of_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(door: IstioDoor) -> None:
        claim, other = door.proxy(), door.proxy("other")
        await door.told()
        token = door.token(claim)
        state, door.state = door.state, None
        with refused(caplog, Reason.AUTHORITY_UNAVAILABLE):
            await door.ask(token)
        door.state = state

        def away(body: Any) -> Any:
            raise ApiUnavailable("away")

        door.site.kube.hooks[REVIEWS] = away
        with refused(caplog, Reason.API_SERVER_UNAVAILABLE):
            await door.ask(door.token(other))
        assert await door.events_of("default") == []

    at_istios_door(test)


def test_every_reason_is_refused_for_good_or_for_a_while() -> None:
    assert set(ISTIO_CODES) == set(Reason)
    for_a_while = {each for each, code in ISTIO_CODES.items() if code is grpc.StatusCode.UNAVAILABLE}
    assert for_a_while == {
        Reason.API_SERVER_UNAVAILABLE,
        Reason.AUTHORITY_UNAVAILABLE,
        Reason.AUTHORITY_KEY_STORE_UNAVAILABLE,
        Reason.RECONNECT,
        Reason.RATE_LIMITED,
        Reason.BUSY,
        Reason.NAMESPACE_FULL,
        Reason.INTERNAL,
    }
    assert {code for each, code in ISTIO_CODES.items() if each not in for_a_while} == {grpc.StatusCode.UNAUTHENTICATED}


# A ztunnel's calls.


def test_a_ztunnel_gets_the_identity_of_pods_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy("web")
        door.proxy("web-2")
        door.policy("named", dnsNameTemplates=["{pod}.example"])
        await door.told()
        found = await door.impersonate(door.token(ztunnel), "default", "web")
        assert found.identity == WEB
        # A name would be one pod's, and the certificate is of both.
        assert [each.value for each in found.names] == [WEB]
        (line,) = lines(caplog)
        assert (line["node"], line["pod"], line["impersonated"]) == ("node-a", "istio-system/ztunnel-node-a", WEB)
        assert (line["spiffe_id"], line["pods"]) == (WEB, 2)

    at_istios_door(test)


def test_a_ztunnel_may_ask_for_itself() -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        await door.told()
        own = spiffe("istio-system", "ztunnel")
        assert (await door.ask(door.token(ztunnel), csr(own))).identity == own
        assert (await door.impersonate(door.token(ztunnel), "istio-system", "ztunnel")).identity == own

    at_istios_door(test)


@pytest.mark.parametrize(
    "pod",
    [
        {"node": "node-b"},
        {"account": "other"},
        {"namespace": "elsewhere"},
        {"phase": "Succeeded"},
        {"phase": "Failed"},
        {"annotations": {"kubernetes.io/config.mirror": "x"}},
        {"node": ""},
    ],
)
def test_for_an_account_without_a_live_pod_on_its_node_a_ztunnel_gets_nothing(
    pod: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy(**pod)
        await door.told()
        with refused(caplog, Reason.POD_NOT_FOUND) as found:
            await door.impersonate(door.token(ztunnel), "default", "web")
        assert (found[0]["impersonated"], found[0]["claimed_pod"]) == (WEB, "istio-system/ztunnel-node-a")
        ((name, reason, note),) = await door.events_of("istio-system")
        assert (name, reason) == ("ztunnel-node-a", "IdentityRefused")
        assert WEB in note
        assert await door.events_of("default") == []

    at_istios_door(test)


def test_a_pod_whose_time_is_over_counts_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel, claim = door.ztunnel(), door.proxy()
        leaving(door, claim, 30.0)
        await door.told()
        assert (await door.impersonate(door.token(ztunnel), "default", "web")).identity == WEB
        door.site.clock.pass_by(seconds=91)
        with refused(caplog, Reason.POD_NOT_FOUND):
            await door.impersonate(door.token(ztunnel), "default", "web")

    at_istios_door(test)


def test_for_pods_that_cannot_be_followed_for_a_minute_a_ztunnel_gets_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """outage_limit is hours in some clusters: pods that have left the node since would lend it their identities."""

    async def test(door: IstioDoor) -> None:
        ztunnel, mirror = door.ztunnel(), door.pods._mirror
        door.proxy()
        await door.told()
        token = door.token(ztunnel)
        mirror.lost_since = mirror.heard_at = door.site.clock.monotonic()
        door.site.clock.pass_by(seconds=59)
        assert (await door.impersonate(token, "default", "web")).identity == WEB
        door.site.clock.pass_by(seconds=2)
        with refused(caplog, Reason.API_SERVER_UNAVAILABLE):
            await door.impersonate(token, "default", "web")
        # Its own pod is one that it has proven to be.
        assert (await door.ask(token)).identity == spiffe("istio-system", "ztunnel")
        mirror.lost_since, mirror.heard_at = None, door.site.clock.monotonic()
        assert (await door.impersonate(token, "default", "web")).identity == WEB

    at_istios_door(test)


def test_a_ztunnel_that_is_earlier_than_the_pods_watch_event_waits_for_it() -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        await door.told()
        asking = asyncio.ensure_future(door.impersonate(door.token(ztunnel), "default", "web"))
        await asyncio.sleep(0.5)
        assert not asking.done()
        door.proxy()
        assert (await asking).identity == WEB

    at_istios_door(test)


@pytest.mark.parametrize("node", ["node-b", "node-a"])
def test_the_node_is_the_tokens_and_the_live_pods(node: str, caplog: pytest.LogCaptureFixture) -> None:
    """A ztunnel's token of another node, and a ztunnel that is said to be on another one."""

    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel(node)
        door.proxy(node="node-a")
        await door.told()
        if node == "node-a":
            assert (await door.impersonate(door.token(ztunnel, node=node), "default", "web")).identity == WEB
            return
        with refused(caplog, Reason.POD_NOT_FOUND):
            await door.impersonate(door.token(ztunnel, node="node-b"), "default", "web")
        with refused(caplog, Reason.POD_ON_OTHER_NODE):
            await door.impersonate(door.token(ztunnel, node="node-a"), "default", "web")

    at_istios_door(test)


@pytest.mark.parametrize("ztunnels", [frozenset(), frozenset({("istio-system", "another")})])
def test_who_is_no_ztunnel_impersonates_nobody(
    ztunnels: frozenset[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel, other = door.ztunnel(), door.proxy("other", account="other")
        door.proxy()
        await door.told()
        for token in (door.token(ztunnel), door.token(other, account="other")):
            with refused(caplog, Reason.IMPERSONATION_DENIED):
                await door.impersonate(token, "default", "web")

    at_istios_door(test, lambda state: IstioDoor(state, ztunnels=ztunnels))


def test_an_account_of_the_ztunnels_name_in_another_namespace_is_no_ztunnel(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        false = door.proxy("false", account="ztunnel")
        door.proxy()
        await door.told()
        with refused(caplog, Reason.IMPERSONATION_DENIED):
            await door.impersonate(door.token(false, account="ztunnel"), "default", "web")

    at_istios_door(test)


@pytest.mark.parametrize(
    "wanted",
    [
        "spiffe://example.org/ns/default/sa/web/more",
        "spiffe://example.org/ns/default",
        "spiffe://example.org/default/web",
        "spiffe://cluster.local/ns/default/sa/web",
        "spiffe://EXAMPLE.org/ns/default/sa/web",
        "ns/default/sa/web",
        "spiffe://example.org/ns/../sa/web",
        "spiffe://example.org/ns//sa/web",
        7.0,
        "",
        None,
        ["spiffe://example.org/ns/default/sa/web"],
    ],
)
def test_what_is_no_identity_of_istios_is_not_looked_for(wanted: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy()
        await door.told()
        with refused(caplog, Reason.INVALID_REQUEST):
            await door.ask(door.token(ztunnel), metadata={"ImpersonatedIdentity": wanted})

    at_istios_door(test)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"deny": True}, Reason.POLICY_DENIED),
        ({"spiffeIDTemplate": "/ns/{namespace}/sa/other"}, Reason.POLICY_UNUSABLE),
        ({"x509TTL": "2m"}, Reason.POLICY_UNUSABLE),
        ({"keyAlgorithms": ["ec-p384"]}, Reason.POLICY_UNUSABLE),
    ],
)
def test_where_one_of_the_pods_gets_another_thing_a_ztunnel_gets_nothing(
    spec: dict[str, Any], reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy("web")
        door.proxy("web-2", labels={"app": "two"})
        door.policy("two", podSelector={"matchLabels": {"app": "two"}}, **spec)
        await door.told()
        with refused(caplog, reason):
            await door.impersonate(door.token(ztunnel), "default", "web")
        # On another node it decides nothing.
        other = door.ztunnel("node-b")
        door.proxy("web-3", node="node-b")
        await door.told()
        assert (await door.impersonate(door.token(other, node="node-b"), "default", "web")).identity == WEB

    at_istios_door(test)


def test_what_all_of_them_get_must_be_what_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy()
        door.policy("other", spiffeIDTemplate="/ns/{namespace}/sa/other")
        await door.told()
        with refused(caplog, Reason.NOT_ENTITLED):
            await door.impersonate(door.token(ztunnel), "default", "web")
        # Without a URI in the certificate request, too.
        with refused(caplog, Reason.NOT_ENTITLED):
            await door.impersonate(door.token(ztunnel), "default", "web", request=csr())

    at_istios_door(test)


def test_a_pod_that_nobody_may_decide_by_leaves_the_ztunnel_with_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy("web")
        door.proxy("wide", labels={f"l{number}": "x" for number in range(500)})
        await door.told()
        with refused(caplog, Reason.POD_OVERSIZED):
            await door.impersonate(door.token(ztunnel), "default", "web")

    at_istios_door(test)


def test_the_ztunnel_is_attested_before_it_asks_for_others(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy()
        token = door.token(ztunnel)
        door.site.remove(ztunnel)
        await door.told()
        with refused(caplog, Reason.POD_NOT_FOUND) as found:
            await door.impersonate(token, "default", "web")
        assert "istio-system/ztunnel-node-a" in found[0]["why"]

    at_istios_door(test)


# Bounds.


def test_bad_tokens_of_a_proxy_are_reviewed_as_seldom_as_a_strangers(caplog: pytest.LogCaptureFixture) -> None:
    most = int(LIMITS[Standing.PROXY].each.at_once)
    assert most < LIMITS[Standing.AGENT].each.at_once
    assert LIMITS[Standing.PROXY].all == LIMITS[Standing.STRANGER].all

    async def test(door: IstioDoor) -> None:
        door.gate.senders["unix-abstract:00001"] = Sender(Standing.AGENT, "its pod's uid")
        for number in range(most):
            with refused(caplog, Reason.POD_TOKEN_AUDIENCE):
                await door.ask(door.token(door.proxy(f"web-{number}"), audience=AUDIENCE))
        with refused(caplog, Reason.BUSY):
            await door.ask(door.token(door.proxy("one-more"), audience=AUDIENCE))
        assert door.site.reviews == most

    at_istios_door(test)


def test_a_pod_that_asks_without_end_is_refused_before_its_node_is(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        one, other = door.proxy("web"), door.proxy("other")
        await door.told()
        for _ in range(2):
            await door.ask(door.token(one))
        for _ in range(5):
            with refused(caplog, Reason.RATE_LIMITED) as found:
                await door.ask(door.token(one))
        assert "this pod asks for more" in found[0]["why"]
        assert (await door.ask(door.token(other))).identity == WEB
        with refused(caplog, Reason.RATE_LIMITED) as found:
            await door.ask(door.token(other))
        assert "this node asks for more" in found[0]["why"]

    at_istios_door(test, lambda state: IstioDoor(state, of_pod=(1, 2, 9), of_node=(1, 3, 9)))


def test_calls_that_say_nothing_take_nothing_of_their_nodes_others(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        tokens = [door.token(door.proxy(f"silent-{number}")) for number in range(8)]
        silent = [door.silent(each) for each in tokens for _ in range(4)]
        other = door.token(door.proxy("other"))
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in silent)
        for _ in range(4):
            assert (await door.ask(other)).identity == WEB
        await ended(silent)

    at_istios_door(test, lambda state: IstioDoor(state, of_pod=(2, 20, 4), of_node=(1000, 1000, 2)))


def test_where_calls_that_say_nothing_have_all_places_they_lose_them_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(door: IstioDoor) -> None:
        tokens = [door.token(door.proxy(f"silent-{number}")) for number in range(PROXY_MINTS_OF_NODE // 4)]
        silent = [door.silent(each) for each in tokens for _ in range(4)]
        other = door.token(door.proxy("other"))
        await asyncio.sleep(0.01)
        with refused(caplog, Reason.BUSY):
            await door.ask(other)
        # Of their node only.
        assert (await door.ask(door.token(door.proxy("far", node="far"), node="far"))).identity == WEB
        await asyncio.sleep(SILENT_SECONDS)
        assert (await door.ask(other)).identity == WEB
        await ended(silent)

    at_istios_door(test, lambda state: IstioDoor(state, of_pod=(2, 20, 4)))


def test_a_replica_has_so_many_calls_of_proxies_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        silent = []
        for node in range(PROXY_MINTS // PROXY_MINTS_OF_NODE):
            token = door.token(door.proxy(f"silent-{node}", node=f"n{node}"), node=f"n{node}")
            silent += [door.silent(token) for _ in range(PROXY_MINTS_OF_NODE)]
        token = door.token(door.proxy())
        await asyncio.sleep(0.01)
        with refused(caplog, Reason.BUSY) as found:
            await door.ask(token)
        assert "its fill of proxies' calls" in found[0]["why"]
        await ended(silent)

    at_istios_door(test)


async def ended(calls: "list[asyncio.Future[Any]]") -> None:
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


def test_calls_that_are_refused_cost_their_nodes_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        for _ in range(5):
            with refused(caplog, Reason.CSR_INVALID):
                await door.ask(door.token(claim), "no certificate request")
        assert (await door.ask(door.token(door.proxy("other")))).identity == WEB

    at_istios_door(test, lambda state: IstioDoor(state, of_node=(1, 1, 9)))


def test_refusals_by_policy_cost_their_nodes_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        for _ in range(5):
            with refused(caplog, Reason.NOT_ENTITLED):
                await door.ask(door.token(claim), csr(spiffe("default", "another")))
        door.proxy("denied", labels={"app": "denied"})
        door.policy("no", podSelector={"matchLabels": {"app": "denied"}}, deny=True)
        await door.told()
        with refused(caplog, Reason.POLICY_DENIED):
            await door.ask(door.token(door.proxy("denied", labels={"app": "denied"})))
        assert (await door.ask(door.token(door.proxy("other")))).identity == WEB
        with refused(caplog, Reason.RATE_LIMITED):
            await door.ask(door.token(door.proxy("other")))

    at_istios_door(test, lambda state: IstioDoor(state, of_node=(1, 1, 9)))


def test_a_policy_that_changes_while_a_call_waits_for_its_turn_counts(caplog: pytest.LogCaptureFixture) -> None:
    """It was decided before its turn as well, and nothing is signed by that."""

    async def test(door: IstioDoor) -> None:
        token, turn = door.token(door.proxy()), door.service._pace.turn

        async def late(node: str) -> None:
            door.policy("no", deny=True)
            await door.told()
            await turn(node)

        door.service._pace.turn = late  # type: ignore[method-assign]
        with refused(caplog, Reason.POLICY_DENIED):
            await door.ask(token)

    at_istios_door(test)


def test_a_call_whose_caller_gave_up_is_not_looked_at_and_not_signed(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        token = door.token(door.proxy())
        with refused(caplog, Reason.BUSY):
            await door.ask(token, left=0.0)
        assert door.site.reviews == 0
        context = ProxyCall(("authorization", f"Bearer {token}"))
        context.left = 9.0

        async def late() -> AsyncIterator[bytes]:
            context.left = 0.0
            yield IstioCertificateRequest(csr=csr()).SerializeToString()

        with refused(caplog, Reason.BUSY):
            await door.service.create_certificate(late(), cast(Context, context))

    at_istios_door(test)


def test_pods_that_were_not_followed_for_long_prove_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        token = door.token(door.proxy())
        door.pods.outdated = lambda limit: limit == OUTAGE  # type: ignore[method-assign]
        with refused(caplog, Reason.API_SERVER_UNAVAILABLE):
            await door.ask(token)

    at_istios_door(test)


def test_events_of_proxies_leave_room_for_those_of_agents(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        said: list[int] = []
        door.events.refused = lambda *args: said.append(args[3])  # type: ignore[method-assign]
        with refused(caplog, Reason.CSR_INVALID):
            await door.ask(door.token(door.proxy()), "no certificate request")
        assert said == [EVENTS_BEHIND]
        assert QUEUE >= 4 * EVENTS_BEHIND

    at_istios_door(test)


def test_a_ztunnel_has_a_nodes_share_that_the_nodes_pods_cannot_take(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        pods = [door.proxy(f"web-{number}") for number in range(11)]
        await door.told()
        for each in pods[:10]:
            await door.ask(door.token(each))
        with refused(caplog, Reason.RATE_LIMITED):
            await door.ask(door.token(pods[10]))
        token = door.token(ztunnel)
        for _ in range(10):
            await door.impersonate(token, "default", "web")

    at_istios_door(test, lambda state: IstioDoor(state, of_pod=(1, 1, 1), of_node=(1, 10, 9)))


def test_a_ztunnel_that_asks_without_end_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        ztunnel = door.ztunnel()
        door.proxy()
        await door.told()
        token = door.token(ztunnel)
        for _ in range(2):
            await door.impersonate(token, "default", "web")
        with refused(caplog, Reason.RATE_LIMITED):
            await door.impersonate(token, "default", "web")

    at_istios_door(test, lambda state: IstioDoor(state, of_node=(1, 2, 9)))


def test_where_there_is_no_room_for_a_connection_it_is_a_matter_of_time(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        door.gate.room = False
        with refused(caplog, Reason.BUSY):
            await door.ask(door.token(claim))

    at_istios_door(test)


def test_refusals_of_proxies_hide_none_of_their_nodes_agent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        door.policy("no", deny=True)
        await door.told()
        for _ in range(MAX_REFUSALS + 5):
            with pytest.raises(Refusal):
                await door.ask(door.token(claim))
        assert len([each for each in lines(caplog) if each["msg"] == "mint refused"]) == MAX_REFUSALS
        audit = door.service._audit
        audit.refused("x509", Agent("node-a", "u", "a", "b", START), claim, Reason.POLICY_DENIED, "no", 0.0)
        assert lines(caplog)[-1]["kind"] == "x509"

    at_istios_door(test)


def test_what_proxies_can_make_a_replica_hold_is_bounded() -> None:
    assert sum(held_for_proxies().values()) < FOR_PROXIES


def test_the_bug_of_a_call_is_a_matter_of_time_too(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: IstioDoor) -> None:
        claim = door.proxy()
        door.policies.entitlement = lambda pod: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(Refusal) as caught:
            await door.ask(door.token(claim))
        assert (caught.value.code, caught.value.text) == (grpc.StatusCode.UNAVAILABLE, REFUSED)

    at_istios_door(test)
