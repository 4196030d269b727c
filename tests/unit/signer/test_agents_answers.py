"""What the signer's answers say: all that policy gave, each reason's code, and nothing to whom it is not for."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from signer.attestation.tokens import NOBODY, REVIEWS
from signer.authority.trust import Broadcast
from signer.errors import ERROR_DOMAIN, ApiUnavailable, Reason, Refused
from signer.front.budget import MAX_TOKEN
from signer.front.calls import MINT_DEADLINE
from signer.front.statuses import STATUS_CODES
from signer.model import LivePod, PodClaim, Sender
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_der
from svid.spiffeid import TrustDomain
from tests.signer_rig import START
from tests.unit.signer.door import (
    EVENTS,
    Aborted,
    Door,
    at_the_door,
    both_ways,
    call,
    lines,
    nothing,
    pod,
    refused,
    said,
)
from tests.unit.signer.test_minting import TTLS, csr

WEB = "spiffe://example.org/ns/default/sa/web"
ALL: dict[str, Any] = {"podSelector": {}, "namespaceSelector": {}}

# What a batch is answered, and what it leaves behind, is what single calls are.
__all__ = ["both_ways"]
pytestmark = pytest.mark.usefixtures("both_ways")


def test_an_answer_says_all_that_policy_gave() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        token = door.site.token(claim)
        door.policy("p", **ALL, hint="internal", federatesWith=["partner.test", "other.test"], x509TTL="120m")
        await door.told()
        answer = await door.x509(claim, token, ttl_seconds=600)
        (leaf,) = certificates_from_der(answer.chain)
        assert (answer.policy, answer.hint, answer.notice) == ("p", "internal", "")
        assert (sorted(answer.federates_with), answer.federates_with_all) == (["other.test", "partner.test"], False)
        assert answer.trust_sequence == door.state.sequence > 0
        ends = leaf.not_valid_after_utc
        assert ends - START == timedelta(minutes=10)
        start, end = (each.ToDatetime(START.tzinfo) for each in (answer.renew_from, answer.renew_until))
        assert START < start < end < ends
        long = await door.x509(claim, token, ttl_seconds=86400)
        assert certificates_from_der(long.chain)[0].not_valid_after_utc - START == timedelta(hours=2)
        assert long.notice == "ttl 1d was asked for, 2h is granted: policy p gives x509TTL 120m"

    at_the_door(test)


def test_what_is_mounted_by_sub_path_is_said_where_its_author_looks() -> None:
    """It never rotates, and everything said that all is well."""

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        path = "/api/v1/namespaces/default/pods/web"
        body = door.site.kube.objects[path]
        mount = {"name": "identity", "subPath": "tls.crt", "mountPath": "/tls.crt"}
        spec = {**body["spec"], "containers": [{"name": "app", "volumeMounts": [mount]}]}
        door.site.kube.put(path, {**body, "spec": spec})
        await door.told()
        answer = await door.x509(claim, door.site.token(claim))
        assert answer.notice.startswith("volume identity is mounted by subPath in container app: ")
        await door.x509(claim, door.site.token(claim))
        async with asyncio.timeout(10):
            while not (said := [each for path, each in door.site.kube.objects.items() if path.startswith(EVENTS)]):
                await asyncio.sleep(0.01)
        assert [(each["reason"], each["note"]) for each in said] == [
            ("SubPathMount", f"{answer.notice} (see docs/troubleshooting.md#subpathmount)")
        ]

    at_the_door(test)


@pytest.mark.parametrize(("given", "everybody"), [({}, True), ({"federatesWith": []}, False)])
def test_who_federates_with_nobody_is_not_told_to_do_so_with_everybody(given: dict[str, Any], everybody: bool) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        door.policy("p", **ALL, **given)
        await door.told()
        answer = await door.x509(claim, door.site.token(claim))
        assert (list(answer.federates_with), answer.federates_with_all) == ([], everybody)

    at_the_door(test)


@pytest.mark.parametrize(("seconds", "granted"), [(0, 60), (-5, 60), (-(2**63), 60), (2**63 - 1, 90), (1, 1)])
def test_any_wish_for_a_lifetime_is_bounded(seconds: int, granted: int) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.x509(claim, door.site.token(claim), ttl_seconds=seconds)
        (leaf,) = certificates_from_der(answer.chain)
        assert leaf.not_valid_after_utc - START == timedelta(minutes=granted)

    at_the_door(test)


def test_a_pods_author_chooses_no_longer_life_than_the_cluster_has_for_it() -> None:
    """`ttl: 999h` gave what the cluster's greatest lifetime is (24 h), with no policy that allows it."""

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.x509(claim, door.site.token(claim), ttl_seconds=999 * 3600, ttl="999h")
        (leaf,) = certificates_from_der(answer.chain)
        assert leaf.not_valid_after_utc - START == TTLS.x509_pod_max_ttl < TTLS.x509_max_ttl
        assert answer.notice.startswith("ttl 999h was asked for, 1h30m is granted: ")

    at_the_door(test)


def test_a_clipped_wish_is_told_to_the_pod_once_and_to_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim, other = door.site.pod("web"), door.site.pod("other")
        for _ in range(3):
            await door.x509(claim, door.site.token(claim), ttl_seconds=999 * 3600, ttl="999h")
            await door.x509(other, door.site.token(other), ttl_seconds=3600, ttl="1h")
        await asyncio.sleep(60)
        (event,) = [body for path, body in door.site.kube.objects.items() if path.startswith(EVENTS)]
        assert (event["type"], event["reason"], event["regarding"]["uid"]) == ("Normal", "TtlClipped", claim.uid)
        assert event["note"].startswith("ttl 999h was asked for, 1h30m is granted: ")
        told = [line.get("ttl_clipped") for line in lines(caplog)]
        first = event["note"].removesuffix(" (see docs/troubleshooting.md#ttlclipped)")
        assert told == [first, None] * 3
        # It is a wish of another kind: the lifetime is the policy's now.
        door.policy("p", **ALL, x509TTL="2h")
        await door.told()
        await door.x509(claim, door.site.token(claim), ttl_seconds=999 * 3600, ttl="999h")
        assert await events(door) == [first, "ttl 999h was asked for, 2h is granted: policy p gives x509TTL 2h"]

    at_the_door(test)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("600m", "600m"),
        ("10h", "10h"),
        # An agent of before the field, and what an agent would make people read.
        ("", "10h"),
        ("9h", "10h"),
        ("600m\n", "10h"),
        ("\x1b[31m600m", "10h"),
        ("as your admin: run this", "10h"),
        ("0" * 40_000 + "600m", "10h"),
        ("600m\u202e", "10h"),
    ],
)
def test_a_wish_is_shown_as_it_was_written_where_that_says_the_same(written: str, shown: str) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.x509(claim, door.site.token(claim), ttl_seconds=36000, ttl=written)
        assert answer.notice.startswith(f"ttl {shown} was asked for, 1h30m is granted: ")

    at_the_door(test)


def test_what_is_written_beside_no_wish_is_none() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.x509(claim, door.site.token(claim), ttl="0s")
        (leaf,) = certificates_from_der(answer.chain)
        assert (leaf.not_valid_after_utc - START, answer.notice) == (TTLS.x509_ttl, "")
        answer = await door.x509(claim, door.site.token(claim), ttl="10h")
        assert (answer.notice, len(answer.chain)) == ("", len(answer.chain))

    at_the_door(test)


def test_a_jwts_answer_says_when_to_renew_it_and_whether_it_is_for_others() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.jwt(claim, door.site.token(claim), WEB, "a")
        start, end = (each.ToDatetime(START.tzinfo) for each in (answer.renew_from, answer.renew_until))
        assert START < start < end < START + timedelta(minutes=5)
        assert answer.reusable

    at_the_door(test)
    at_the_door(only_for_one, lambda state: Door(state, jwt_id=True))


async def only_for_one(door: Door) -> None:
    claim = door.site.pod("web")
    assert not (await door.jwt(claim, door.site.token(claim), WEB, "a")).reusable


def test_a_jwt_is_signed_for_the_pods_own_identity_only() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        for other in ("", "spiffe://example.org/ns/default/sa/admin", f"{WEB}/", "spiffe://partner.test/ns/a/sa/b"):
            with refused(Reason.NOT_ENTITLED):
                await door.jwt(claim, door.site.token(claim), other, "a")

    at_the_door(test)


def test_each_reason_has_its_code() -> None:
    """What callers do depends on it: who is denied must not ask again, who may wait must not give up."""
    own = {
        grpc.StatusCode.UNAUTHENTICATED: {
            Reason.AGENT_TOKEN_MISSING,
            Reason.AGENT_TOKEN_INVALID,
            Reason.AGENT_TOKEN_EXPIRED,
            Reason.AGENT_TOKEN_AUDIENCE,
            Reason.AGENT_TOKEN_UNBOUND,
            # Istio's proxies are told nothing else, whatever they are refused for.
            Reason.IMPERSONATION_DENIED,
            Reason.CLUSTER_UNKNOWN,
        },
        grpc.StatusCode.INVALID_ARGUMENT: {
            Reason.INVALID_REQUEST,
            Reason.CSR_INVALID,
            Reason.PROOF_OF_POSSESSION,
            Reason.KEY_WEAK,
        },
        grpc.StatusCode.UNAVAILABLE: {
            Reason.POD_TOKEN_EXPIRED,
            Reason.API_SERVER_UNAVAILABLE,
            Reason.AUTHORITY_UNAVAILABLE,
            Reason.AUTHORITY_KEY_STORE_UNAVAILABLE,
            Reason.RECONNECT,
        },
        grpc.StatusCode.RESOURCE_EXHAUSTED: {Reason.RATE_LIMITED, Reason.BUSY, Reason.NAMESPACE_FULL},
        grpc.StatusCode.UNIMPLEMENTED: {Reason.JWT_DISABLED},
        grpc.StatusCode.INTERNAL: {Reason.INTERNAL},
    }
    listed = {reason: code for code, reasons in own.items() for reason in reasons}
    assert {reason: listed.get(reason, grpc.StatusCode.PERMISSION_DENIED) for reason in Reason} == STATUS_CODES


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_ends_the_call_with_its_code_reason_and_text(reason: Reason) -> None:
    async def test(door: Door) -> None:
        async def denied(token: str, sender: Sender = NOBODY) -> Any:
            raise Refused(reason, "because", retry_after=timedelta(seconds=1.5))

        door.attestor.agent = denied  # type: ignore[method-assign]
        claim = door.site.pod("web")
        with refused(reason) as caught:
            await door.x509(claim, "")
        (found,) = caught
        assert (found.code, found.message, found.domain) == (STATUS_CODES[reason], "because", ERROR_DOMAIN)
        assert found.retry == timedelta(seconds=1.5)
        with refused(reason):
            await anext(aiter(door.service.watch_trust(nothing(), call(door.site.agent()))))

    at_the_door(test)


def weak() -> bytes:
    return csr(rsa.generate_private_key(3, 2048))


@pytest.mark.parametrize(
    ("reason", "policy", "fields"),
    [
        (Reason.POLICY_DENIED, {"deny": True}, {}),
        (Reason.POLICY_UNUSABLE, {"spiffeIDTemplate": "/{labels['absent']}"}, {}),
        (Reason.KEY_ALGORITHM_DENIED, {"keyAlgorithms": ["ed25519"]}, {}),
        (Reason.KEY_WEAK, {}, {"csr": weak()}),
        (Reason.DNS_NAME_DENIED, {}, {"dns_names": ["payments.svc"]}),
    ],
)
def test_what_the_pods_author_can_mend_is_an_event(
    reason: Reason, policy: dict[str, Any], fields: dict[str, Any]
) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        door.policy("p", **ALL, **policy)
        await door.told()
        with refused(reason) as caught:
            await door.x509(claim, door.site.token(claim), **fields)
        assert caught[0].code is STATUS_CODES[reason]
        assert await events(door) == [f"{reason.value}: {caught[0].message}"]

    at_the_door(test)


async def events(door: Door) -> list[str]:
    """The notes of what was told to pods, without where to read about it."""
    await asyncio.sleep(60)
    notes = [body["note"] for path, body in door.site.kube.objects.items() if path.startswith(EVENTS)]
    assert all(" (see docs/troubleshooting.md#" in each for each in notes)
    return [each.partition(" (see docs/")[0] for each in notes]


def test_a_pod_that_lacks_the_volume_is_told() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web", driver=None)
        with refused(Reason.POD_WITHOUT_DRIVER):
            await door.x509(claim, door.site.token(claim))
        (note,) = await events(door)
        assert note.startswith("POD_WITHOUT_DRIVER: ")

    at_the_door(test)


def test_what_a_caller_only_claims_is_no_event_of_somebody_elses_pod() -> None:
    """Else whoever has some token could write into any pod's events."""

    async def test(door: Door) -> None:
        site = door.site
        victim, there = site.pod("victim"), site.pod("there", node="node-b")
        attempts: list[tuple[Reason, PodClaim, str, dict[str, Any]]] = [
            (Reason.POD_TOKEN_REPLAYED, victim, site.token(site.pod("mine")), {}),
            (Reason.POD_ON_OTHER_NODE, there, site.token(there, node="node-b"), {}),
            (Reason.POD_TOKEN_MISSING, victim, "", {}),
            (Reason.POD_TOKEN_INVALID, victim, site.token(victim, known=False), {}),
            (Reason.POD_TOKEN_EXPIRED, victim, site.token(victim, life=-5), {}),
            (Reason.INVALID_REQUEST, victim, "x" * (MAX_TOKEN + 1), {}),
            (Reason.AGENT_DENIED, victim, site.token(victim), {"agent": site.token(victim)}),
            (Reason.AGENT_TOKEN_INVALID, victim, site.token(victim), {"agent": "no.such.token"}),
        ]
        for reason, claim, token, more in attempts:
            with refused(reason):
                await door.x509(claim, token, **more)
        assert await events(door) == []

    at_the_door(test)


def test_a_mint_that_takes_too_long_ends_and_may_be_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        attest = door.attestor.pod

        async def never(*_: Any) -> Any:
            await asyncio.Event().wait()

        door.attestor.pod = never  # type: ignore[method-assign, assignment]
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(10 * MINT_DEADLINE):
            with refused(Reason.API_SERVER_UNAVAILABLE) as caught:
                await door.x509(claim, door.site.token(claim))
        assert loop.time() - began == pytest.approx(MINT_DEADLINE)
        assert caught[0].retry
        assert lines(caplog)[-1]["reason"] == "API_SERVER_UNAVAILABLE"
        door.attestor.pod = attest  # type: ignore[method-assign]
        assert (await door.x509(claim, door.site.token(claim))).chain  # its slot was given back

    at_the_door(test, lambda state: Door(state, concurrent=1))


def test_an_api_server_that_fails_on_the_way_is_no_bug_of_the_signer(caplog: pytest.LogCaptureFixture) -> None:
    async def test(door: Door) -> None:
        async def away(token: str, sender: Sender = NOBODY) -> Any:
            raise ApiUnavailable("the API server is down")

        door.attestor.agent = away  # type: ignore[method-assign]
        claim = door.site.pod("web")
        with refused(Reason.API_SERVER_UNAVAILABLE) as caught:
            await door.x509(claim, door.site.token(claim))
        assert caught[0].retry
        assert [each for each in caplog.records if each.levelname == "ERROR"] == []

    at_the_door(test)


def test_a_call_that_the_agent_gives_up_is_given_up_and_frees_its_slot(caplog: pytest.LogCaptureFixture) -> None:
    """It is no refusal: nobody is there who could read one."""
    caplog.set_level("INFO")

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        attest, asked = door.attestor.pod, asyncio.Event()

        async def never(*_: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

        door.attestor.pod = never  # type: ignore[method-assign, assignment]
        minting = asyncio.ensure_future(door.x509(claim, door.site.token(claim)))
        await asked.wait()
        minting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await minting
        assert lines(caplog) == []
        door.attestor.pod = attest  # type: ignore[method-assign]
        assert (await door.x509(claim, door.site.token(claim))).chain

    at_the_door(test, lambda state: Door(state, concurrent=1))


def test_a_bugs_text_is_in_no_line_of_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test(door: Door) -> None:
        def broken(_: Any) -> Any:
            raise KeyError("a secret of somebody")

        door.policies.entitlement = broken  # type: ignore[method-assign, assignment]
        claim = door.site.pod("web")
        with refused(Reason.INTERNAL) as caught:
            await door.x509(claim, door.site.token(claim))
        assert caught[0].code is grpc.StatusCode.INTERNAL
        (line,) = lines(caplog)
        assert "secret" not in str(line)
        assert line["seconds"] >= 0
        assert await events(door) == []

    at_the_door(test)


def test_a_pod_whose_request_was_refused_has_no_identity_to_go_on_with() -> None:
    async def test(door: Door) -> None:
        site = door.site
        claim = site.pod("web")
        token, agent = site.token(claim), site.agent()
        signed, caller = door.signed(token), door.signed(agent)
        await door.offline.refresh()
        with refused(Reason.CSR_INVALID):
            await door.x509(claim, token, agent, csr=b"rubbish")
        site.kube.denied.add(("create", REVIEWS))
        with refused(Reason.API_SERVER_UNAVAILABLE):
            await door.x509(claim, signed, caller)

    at_the_door(test)


def test_a_node_that_is_over_its_limit_costs_no_review_of_its_pods_tokens() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        agent = door.site.agent()
        await door.x509(claim, door.site.token(claim), agent)
        reviews = door.site.reviews
        for _ in range(5):
            with refused(Reason.RATE_LIMITED):
                await door.x509(claim, door.site.token(claim), agent)
        assert door.site.reviews == reviews

    at_the_door(test, lambda state: Door(state, rate=1, burst=1))


def test_the_longest_token_is_looked_at() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        with refused(Reason.POD_TOKEN_INVALID):
            await door.x509(claim, "x" * MAX_TOKEN)
        with refused(Reason.AGENT_TOKEN_INVALID):
            await door.x509(claim, "", agent="x" * MAX_TOKEN)

    at_the_door(test)


def test_traces_have_only_callers_that_are_agents_and_no_token() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        token, agent = door.site.token(claim), door.site.agent()
        with refused(Reason.AGENT_TOKEN_INVALID):
            await door.x509(claim, token, "no.such.token")
        with refused(Reason.AGENT_DENIED):
            await door.x509(claim, token, door.site.token(claim))
        assert door.spans.said == []
        await door.x509(claim, token, agent)
        assert [name for name, _ in door.spans.said] == ["attest, decide, sign", "attest the pod", "decide", "sign"]
        assert door.spans.said[0][1] == {
            "k8s.node.name": "node-a",
            "podsvid.svid": "x509",
            "podsvid.spiffe_id": WEB,
            "podsvid.policy": "(default)",
        }
        assert token not in str(door.spans.said)
        assert agent not in str(door.spans.said)

    at_the_door(test)


def test_an_agent_that_ends_its_stream_ends_it() -> None:
    async def test(door: Door) -> None:
        over = asyncio.Event()

        async def requests() -> AsyncIterator[bytes]:
            await over.wait()
            for _ in ():
                yield b""

        before = asyncio.all_tasks()
        stream = door.service.watch_trust(requests(), call(door.site.agent()))
        await anext(stream)
        ending = asyncio.ensure_future(anext(stream, None))
        over.set()
        async with asyncio.timeout(5):
            assert await ending is None
        await door.told()
        assert asyncio.all_tasks() - before == set()
        assert door.agents.connected == 0

    at_the_door(test)


@pytest.mark.parametrize("how", ["closed", "cancelled", "out of time"])
def test_a_stream_that_ends_leaves_nothing_running(how: str) -> None:
    async def test(door: Door) -> None:
        before = asyncio.all_tasks()
        stream = door.service.watch_trust(nothing(), call(door.site.agent()))
        await anext(stream)
        if how == "closed":
            await stream.aclose()  # type: ignore[attr-defined]
        elif how == "cancelled":
            waiting = asyncio.ensure_future(anext(stream))
            await door.told()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            with pytest.raises(Aborted):
                await anext(stream)
        await door.told()
        assert asyncio.all_tasks() - before == set()

    at_the_door(test)


def test_a_token_that_is_about_to_end_still_gets_the_trust_once() -> None:
    async def test(door: Door) -> None:
        for life in (30.0, 60.0, 60.5):
            stream = door.service.watch_trust(nothing(), call(door.site.agent(life=life)))
            assert (await anext(stream)).sequence == door.state.sequence
            began = asyncio.get_running_loop().time()
            with refused(Reason.RECONNECT) as caught:
                await anext(stream)
            assert caught[0].code is grpc.StatusCode.UNAVAILABLE
            assert asyncio.get_running_loop().time() - began <= 1.0

    at_the_door(test)


def test_new_trust_reaches_every_stream() -> None:
    async def test(door: Door) -> None:
        streams = [
            door.service.watch_trust(nothing(), call(door.site.agent(node))) for node in ("node-a", "node-a", "node-b")
        ]
        for each in streams:
            assert [found.trust_domain for found in (await anext(each)).bundles] == ["example.org"]
        door.trust.publish(Broadcast.of(door.state, (TrustBundle(TrustDomain("partner.test")),)))
        for each in streams:
            told = await anext(each)
            assert [found.trust_domain for found in told.bundles] == ["example.org", "partner.test"]
            await each.aclose()  # type: ignore[attr-defined]

    at_the_door(test)


@pytest.mark.parametrize("field", ["namespace", "name", "uid"])
def test_every_part_of_the_claim_is_compared(field: str) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        lie = {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid, field: "other"}
        with refused(Reason.POD_TOKEN_REPLAYED):
            await door.x509(PodClaim(**lie), door.site.token(claim))
        request = signer_pb2.MintX509SVIDRequest(pod_token=door.site.token(claim))
        assert request.pod == pod(PodClaim("", "", ""))
        with refused(Reason.POD_TOKEN_REPLAYED):
            await door.service.mint_x509(said(request), call(door.site.agent()))

    at_the_door(test)


def test_wished_names_are_in_the_certificate() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.x509(claim, door.site.token(claim), dns_names=["web.default.svc"])
        (leaf,) = certificates_from_der(answer.chain)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["web.default.svc"]

    at_the_door(test)


def test_a_policy_called_default_gives_nothing_that_the_default_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        assert (await door.x509(claim, door.site.token(claim), dns_names=["web.default.svc"])).policy == "(default)"
        door.policy("default", **ALL)
        await door.told()
        # The signer's own patterns are for pods that no policy matches, whatever the policy is called.
        with refused(Reason.DNS_NAME_DENIED):
            await door.x509(claim, door.site.token(claim), dns_names=["web.default.svc"])
        assert (await door.x509(claim, door.site.token(claim))).policy == "default"
        assert [line.get("policy") for line in lines(caplog)] == ["(default)", None, "default"]
        known = door.policies.explain(LivePod("default", "web", claim.uid, "node-a", "web"))
        assert (known.policy, known.matched) == ("default", ("default",))

    at_the_door(test)
