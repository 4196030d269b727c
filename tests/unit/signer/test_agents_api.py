"""The signer's door, call by call: each check's call is missed when it goes, and every answer leaves its line."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from signer.attestation.tokens import REVIEWS
from signer.authority.acknowledgements import MAX_STREAMS
from signer.authority.passed_on import Wanted
from signer.authority.trust import Broadcast
from signer.errors import Reason
from signer.front.agents import STREAM_LIFE, TOKEN_MARGIN
from signer.front.budget import MAX_TOKEN
from signer.model import PodClaim
from signer.pb import signer_pb2
from svid.certificates import certificates_from_der, serial_of
from tests.unit.runtime.test_stopping import Loses
from tests.unit.signer.door import (
    EVENTS,
    REQUEST,
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

# What a batch is answered, and what it leaves behind, is what single calls are.
__all__ = ["both_ways"]
pytestmark = pytest.mark.usefixtures("both_ways")


def test_what_is_allowed_leaves_a_line_that_says_all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        answer = await door.x509(claim, door.site.token(claim))
        leaf = certificates_from_der(answer.chain)[0]
        (line,) = lines(caplog)
        wanted = {
            "msg": "mint allowed",
            "kind": "x509",
            "node": "node-a",
            "agent_pod_uid": "agent-uid-node-a",
            "pod": "default/web",
            "pod_uid": claim.uid,
            "service_account": "web",
            "policy": "(default)",
            "spiffe_id": "spiffe://example.org/ns/default/sa/web",
            "degraded": False,
            "ended_token": False,
            "serial": serial_of(leaf),
            "key_algorithm": "ec-p256",
            "not_before": leaf.not_valid_before_utc.isoformat(),
            "not_after": leaf.not_valid_after_utc.isoformat(),
        }
        assert {key: line.get(key) for key in wanted} == wanted
        assert line["seconds"] >= 0
        assert door.mints("x509", "ok") == 1
        await door.jwt(claim, door.site.token(claim), answer.spiffe_id, "one", "two")
        found = lines(caplog)[1]
        assert (found["msg"], found["kind"], found["pod_uid"]) == ("mint allowed", "jwt", claim.uid)
        assert sorted(found["audiences"]) == ["one", "two"]
        assert found["not_after"] > door.site.clock.at.isoformat()
        assert door.mints("jwt", "ok") == 1

    at_the_door(test)


@pytest.mark.parametrize("kind", ["x509", "jwt"])
def test_what_is_refused_leaves_a_line_and_says_what_was_claimed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        token = door.site.token(door.site.pod("other"))
        with refused(Reason.POD_TOKEN_REPLAYED) as caught:
            if kind == "x509":
                await door.x509(claim, token)
            else:
                await door.jwt(claim, token, "spiffe://example.org/ns/default/sa/web", "a")
        (line,) = lines(caplog)
        wanted = {
            "msg": "mint refused",
            "kind": kind,
            "node": "node-a",
            "agent_pod_uid": "agent-uid-node-a",
            "claimed_pod": "default/web",
            "claimed_pod_uid": claim.uid,
            "reason": "POD_TOKEN_REPLAYED",
            "why": caught[0].message,
        }
        assert {key: line.get(key) for key in wanted} == wanted
        assert door.mints(kind, "POD_TOKEN_REPLAYED") == 1
        assert not any(token in str(value) for value in line.values())

    at_the_door(test)


def test_a_caller_without_a_good_token_is_refused_before_anything_else_is_looked_at() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=door.site.token(claim), csr=REQUEST)
        bad = {
            Reason.AGENT_TOKEN_MISSING: [call(None), call(door.site.agent(), "Basic"), call("")],
            Reason.AGENT_TOKEN_INVALID: [call("no.such.token")],
            Reason.AGENT_DENIED: [call(door.site.token(claim))],
            Reason.INVALID_REQUEST: [call("x" * (MAX_TOKEN + 1))],
        }
        for reason, calls in bad.items():
            for each in calls:
                with refused(reason):
                    await door.service.mint_x509(said(request), each)
                with refused(reason):
                    await anext(aiter(door.service.watch_trust(nothing(), each)))
        assert door.agents.connected == 0

    at_the_door(test)


def test_a_pod_token_is_bounded_before_it_is_looked_at() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        reviews = door.site.reviews
        with refused(Reason.INVALID_REQUEST):
            await door.x509(claim, "x" * (MAX_TOKEN + 1))
        assert door.site.reviews <= reviews + 1  # the agent's own

    at_the_door(test)


def test_a_pod_of_another_node_gets_nothing() -> None:
    async def test(door: Door) -> None:
        there = door.site.pod("there", node="node-b")
        with refused(Reason.POD_ON_OTHER_NODE):
            await door.x509(there, door.site.token(there, node="node-b"))

    at_the_door(test)


def test_policy_is_asked_for_every_pod_and_its_word_stands() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        door.policy("no", podSelector={}, namespaceSelector={}, deny=True)
        await door.told()
        with refused(Reason.POLICY_DENIED):
            await door.x509(claim, door.site.token(claim))
        with refused(Reason.POLICY_DENIED):
            await door.jwt(claim, door.site.token(claim), "spiffe://example.org/ns/default/sa/web", "a")

    at_the_door(test)


def test_a_refusal_that_its_author_can_mend_is_an_event_of_the_pod_and_others_are_not() -> None:
    async def test(door: Door) -> None:
        claim, door.site.clock.at = door.site.pod("web"), door.site.clock.at
        token = door.site.token(claim)
        with refused(Reason.DNS_NAME_DENIED) as caught:
            await door.x509(claim, token, dns_names=["payments.svc"])
        with refused(Reason.CSR_INVALID):
            await door.x509(claim, token, csr=b"rubbish")
        await asyncio.sleep(60)
        found = [body for path, body in door.site.kube.objects.items() if path.startswith(EVENTS)]
        (event,) = found
        assert event["regarding"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "default",
            "name": "web",
            "uid": claim.uid,
        }
        assert (event["type"], event["reason"]) == ("Warning", "IdentityRefused")
        where = " (see docs/troubleshooting.md#dns_name_denied)"
        assert event["note"] == f"DNS_NAME_DENIED: {caught[0].message}{where}"

    at_the_door(test)


def test_each_node_has_its_own_allowance_of_mints() -> None:
    async def test(door: Door) -> None:
        claim, there = door.site.pod("web"), door.site.pod("there", node="node-b")
        token, other = door.site.token(claim), door.site.token(there, node="node-b")
        agent, elsewhere = door.site.agent(), door.site.agent("node-b")
        for _ in range(3):
            await door.x509(claim, token, agent)
        with refused(Reason.RATE_LIMITED) as caught:
            await door.x509(claim, token, agent)
        assert caught[0].retry == timedelta(seconds=1)
        for _ in range(3):
            await door.x509(there, other, elsewhere)
        with refused(Reason.RATE_LIMITED):
            await door.x509(there, other, elsewhere)
        door.site.clock.pass_by(seconds=1)
        await door.x509(claim, token, agent)
        # JWT-SVIDs count as well.
        with refused(Reason.RATE_LIMITED):
            await door.jwt(claim, token, "spiffe://example.org/ns/default/sa/web", "a", agent=agent)

    at_the_door(test, lambda state: Door(state, rate=1, burst=3))


def test_each_node_has_its_own_mints_in_flight() -> None:
    async def test(door: Door) -> None:
        claim, there = door.site.pod("web"), door.site.pod("there", node="node-b")
        asked, answer = asyncio.Event(), asyncio.Event()
        attest = door.attestor.pod

        async def slow(agent: Any, token: str, wanted: PodClaim) -> Any:
            if wanted == claim:
                asked.set()
                await answer.wait()
            return await attest(agent, token, wanted)

        door.attestor.pod = slow  # type: ignore[method-assign, assignment]
        first_one = asyncio.ensure_future(door.x509(claim, door.site.token(claim)))
        await asked.wait()
        with refused(Reason.BUSY) as caught:
            await door.x509(claim, door.site.token(claim))
        assert caught[0].retry
        await door.x509(there, door.site.token(there, node="node-b"), door.site.agent("node-b"))
        answer.set()
        assert (await first_one).chain
        await door.x509(claim, door.site.token(claim))  # the slot was given back

    at_the_door(test, lambda state: Door(state, concurrent=1))


def test_in_an_outage_a_pod_is_renewed_as_what_it_was_and_as_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        site = door.site
        claim = site.pod("web")
        token, agent = site.token(claim), site.agent()
        signed, caller = door.signed(token), door.signed(agent)
        await door.offline.refresh()
        await door.x509(claim, token, agent)
        site.kube.denied.add(("create", REVIEWS))
        again = await door.x509(claim, signed, caller)
        assert again.spiffe_id == "spiffe://example.org/ns/default/sa/web"
        assert lines(caplog)[-1]["degraded"] is True
        assert door.mints("x509", "degraded") == 1
        # Policies go on to be followed, and this one would make it somebody else.
        door.policy("other", podSelector={}, namespaceSelector={}, spiffeIDTemplate="/other")
        await door.told()
        with refused(Reason.API_SERVER_UNAVAILABLE):
            await door.x509(claim, signed, caller)
        with refused(Reason.API_SERVER_UNAVAILABLE):
            await door.jwt(claim, signed, "spiffe://example.org/other", "a", agent=caller)

    at_the_door(test)


def test_a_pod_that_never_had_an_identity_gets_none_in_an_outage() -> None:
    async def test(door: Door) -> None:
        site = door.site
        claim = site.pod("web")
        signed, caller = door.signed(site.token(claim)), door.signed(site.agent())
        await door.offline.refresh()
        site.kube.denied.add(("create", REVIEWS))
        with refused(Reason.API_SERVER_UNAVAILABLE):
            await door.x509(claim, signed, caller)

    at_the_door(test)


def test_a_surprise_is_told_to_the_pod_that_got_its_svid() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        for name in ("a", "b"):
            door.policy(name, podSelector={}, namespaceSelector={}, spiffeIDTemplate=f"/{name}")
        await door.told()
        await door.x509(claim, door.site.token(claim))
        await asyncio.sleep(60)
        (event,) = [body for path, body in door.site.kube.objects.items() if path.startswith(EVENTS)]
        assert (event["type"], event["reason"]) == ("Normal", "PolicySurprise")

    at_the_door(test)


def test_a_bug_says_nothing_of_itself_to_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")

        def broken(pod: Any) -> Any:
            raise KeyError("a secret of somebody")

        door.policies.entitlement = broken  # type: ignore[method-assign]
        with refused(Reason.INTERNAL) as caught:
            await door.x509(claim, door.site.token(claim))
        assert "secret" not in caught[0].message
        assert lines(caplog)[-1]["reason"] == "INTERNAL"
        assert any(each.levelno == logging.ERROR and each.exc_info for each in caplog.records)

    at_the_door(test)


@pytest.mark.parametrize("wrong", [0, -3600, 3600])
def test_a_trust_stream_ends_before_its_agents_token_does_and_is_opened_again(wrong: float) -> None:
    """By the API server's clock, or a signer that is an hour ahead would be asked again by all agents each second."""

    async def test(door: Door) -> None:
        door.witness.heard(door.site.clock.at)
        door.site.clock.set_by(seconds=wrong)
        for life, most in ((600.0, 600.0 - TOKEN_MARGIN.total_seconds()), (7200.0, STREAM_LIFE.total_seconds())):
            stream = door.service.watch_trust(nothing(), call(door.site.agent(life=life)))
            began = asyncio.get_running_loop().time()
            assert (await anext(stream)).sequence == door.state.sequence
            assert door.agents.connected == 1
            with refused(Reason.RECONNECT):
                await anext(stream)
            lasted = asyncio.get_running_loop().time() - began
            assert lasted <= most + 1
            assert lasted >= min(most, STREAM_LIFE.total_seconds() / 2) - 1
            assert door.agents.connected == 0

    at_the_door(test)


def test_streams_that_began_together_do_not_end_together() -> None:
    async def test(door: Door) -> None:
        async def life() -> float:
            stream = door.service.watch_trust(nothing(), call(door.site.agent(life=7200.0)))
            with suppress(Aborted):
                async for _ in stream:
                    pass
            return asyncio.get_running_loop().time()

        ends = await asyncio.gather(*(life() for _ in range(8)))
        assert max(ends) - min(ends) > STREAM_LIFE.total_seconds() / 20

    at_the_door(test)


def test_an_agent_is_told_each_trust_once_and_its_word_is_heard() -> None:
    async def test(door: Door) -> None:
        saying: asyncio.Queue[signer_pb2.WatchTrustRequest] = asyncio.Queue()

        async def requests() -> AsyncIterator[bytes]:
            while True:
                yield (await saying.get()).SerializeToString()

        stream = door.service.watch_trust(requests(), call(door.site.agent()))
        sequence = (await anext(stream)).sequence
        door.agents.know(Wanted.of(door.state))
        ours = door.state.active_x509_id
        use = [signer_pb2.AuthorityUse(authority_id=name, svids=3) for name in (ours, "a1")]
        digest = door.state.bundle.digest()
        saying.put_nowait(signer_pb2.WatchTrustRequest(acknowledged_sequence=sequence, in_use=use, digest=digest))
        following = asyncio.ensure_future(anext(stream))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not following.done()
        assert door.agents.summary(Wanted.of(door.state), frozenset({"node-a"})) == (frozenset(), {ours: 3})
        saying.put_nowait(signer_pb2.WatchTrustRequest(acknowledged_sequence=sequence, digest=bytes(32)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert door.agents.summary(Wanted.of(door.state), frozenset({"node-a"})) == (frozenset({"node-a"}), {})
        door.trust.publish(Broadcast.of(door.state, ()))
        assert (await following).sequence == sequence
        await stream.aclose()  # type: ignore[attr-defined]
        assert door.agents.connected == 0

    at_the_door(test)


def test_one_node_has_only_so_many_streams(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        streams = [door.service.watch_trust(nothing(), call(door.site.agent())) for _ in range(MAX_STREAMS)]
        for each in streams:
            await anext(each)
        with refused(Reason.BUSY):
            await anext(door.service.watch_trust(nothing(), call(door.site.agent())))
        line = lines(caplog)[-1]
        assert (line["kind"], line["reason"]) == ("trust", "BUSY")
        assert (line["node"], line["agent_pod_uid"], line["claimed_pod"]) == ("node-a", "agent-uid-node-a", "")
        streams.append(door.service.watch_trust(nothing(), call(door.site.agent("node-b"))))
        await anext(streams[-1])
        for each in streams:
            await each.aclose()  # type: ignore[attr-defined]
        assert door.agents.connected == 0

    at_the_door(test)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_stream_whose_agent_goes_on_being_heard_ends_all_the_same(cancelled: bool) -> None:
    async def test(door: Door) -> None:
        heard = Loses()

        async def requests() -> AsyncIterator[bytes]:
            await heard.run()
            yield b""

        stream = door.service.watch_trust(requests(), call(door.site.agent()))
        await anext(stream)
        await asyncio.sleep(0)
        async with asyncio.timeout(100):
            closing = asyncio.ensure_future(stream.aclose())  # type: ignore[attr-defined]
            await asyncio.sleep(1)
            assert not closing.done()
            if cancelled:
                closing.cancel()
                # Whoever ends a call is not told that it ended by itself.
                with pytest.raises(asyncio.CancelledError):
                    await closing
            await asyncio.wait([closing])
        assert heard.ended
        assert door.agents.connected == 0

    at_the_door(test)
