"""What only a batch can get wrong: items that hold up or answer for each other, and what one call may ask for."""

import asyncio
import gc
import itertools
import logging
from typing import Any

import pytest

from signer.errors import Reason, Refused
from signer.front import agents, batch, budget, limits
from signer.front.calls import MESSAGE_SECONDS, MINT_DEADLINE
from signer.model import PodClaim
from signer.pb import signer_pb2
from tests.unit.signer.door import (
    REQUEST,
    Aborted,
    Door,
    at_the_door,
    batch_of,
    call,
    lines,
    nothing,
    outcome,
    pod,
    refused,
    said,
)


def wanted(door: Door, claim: PodClaim, token: str | None = None, **fields: Any) -> signer_pb2.MintX509SVIDRequest:
    fields = {"csr": REQUEST, **fields}
    token = door.site.token(claim) if token is None else token
    return signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=token, **fields)


def pods(door: Door, count: int) -> list[PodClaim]:
    return [door.site.pod(f"web-{number}", account=f"account-{number}") for number in range(count)]


def token(door: Door, claim: PodClaim) -> str:
    return door.site.token(claim, account=claim.name.replace("web", "account"))


def test_each_is_minted_for_its_own_pod_and_leaves_its_own_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claims = pods(door, budget.BATCH)
        requests = [wanted(door, each, token(door, each)) for each in claims]
        # One brings another's token, one a bad request, one is of another node.
        requests[3].pod_token = requests[4].pod_token
        requests[5].csr = b"rubbish"
        there = door.site.pod("there", node="node-b")
        requests[7] = wanted(door, there, door.site.token(there, node="node-b"))
        found = await door.batch(door.site.agent(), *requests)
        bad = {3: "POD_TOKEN_REPLAYED", 5: "CSR_INVALID", 7: "POD_ON_OTHER_NODE"}
        for number, each in enumerate(found):
            if number in bad:
                assert isinstance(each, Aborted)
                assert each.reason == bad[number]
            else:
                assert isinstance(each, signer_pb2.MintX509SVIDResponse)
                assert each.spiffe_id == f"spiffe://example.org/ns/default/sa/account-{number}"
        allowed = {each["pod_uid"] for each in lines(caplog) if each["msg"] == "mint allowed"}
        assert allowed == {each.uid for number, each in enumerate(claims) if number not in bad}
        told = {each["claimed_pod"]: each["reason"] for each in lines(caplog) if each["msg"] == "mint refused"}
        assert told == {
            "default/web-3": "POD_TOKEN_REPLAYED",
            "default/web-5": "CSR_INVALID",
            "default/there": "POD_ON_OTHER_NODE",
        }
        assert door.mints("x509", "ok") == budget.BATCH - 3
        assert door.mints("x509", "CSR_INVALID") == 1
        # The agent is proven once.
        assert door.gate.nodes == ["uid-node-a"]

    at_the_door(test)


def test_who_is_no_agent_has_nothing_read_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        request = wanted(door, claim)
        for bad, reason in (("no.such.token", "AGENT_TOKEN_INVALID"), (door.site.token(claim), "AGENT_DENIED")):
            with refused(Reason[reason]):
                await door.batch(bad, request, request)
            (line,) = lines(caplog)
            assert (line["kind"], line["reason"], line["claimed_pod"]) == ("x509", reason, "")
            caplog.clear()
        assert door.gate.strikes == 2
        assert door.mints("x509", "AGENT_DENIED") == 1

    at_the_door(test)


@pytest.mark.parametrize("count", [0, budget.BATCH + 1])
def test_a_batch_has_so_many_items(count: int) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        reviews = door.site.reviews
        with refused(Reason.INVALID_REQUEST):
            await door.batch(door.site.agent(), *[wanted(door, claim)] * count)
        assert door.site.reviews == reviews + 1  # the agent's own
        found = door.metrics.registry.get_sample_value("podsvid_signer_turned_away_total", {"kind": "message"})
        assert found == 1

    at_the_door(test)


def test_a_nodes_rate_counts_items() -> None:
    async def test(door: Door) -> None:
        claims = pods(door, 5)
        found = await door.batch(door.site.agent(), *(wanted(door, each, token(door, each)) for each in claims))
        reasons = [each.reason if isinstance(each, Aborted) else "" for each in found]
        assert sorted(reasons) == ["", "", "", "RATE_LIMITED", "RATE_LIMITED"]
        assert all(each.retry for each in found if isinstance(each, Aborted))
        there = door.site.pod("there", node="node-b")
        request = wanted(door, there, door.site.token(there, node="node-b"))
        (answer,) = await door.batch(door.site.agent("node-b"), request)
        assert isinstance(answer, signer_pb2.MintX509SVIDResponse)

    at_the_door(test, lambda state: Door(state, rate=1, burst=3))


def test_a_nodes_calls_count_items_and_its_connection_rests() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        await door.batch(door.site.agent(), *[wanted(door, claim)] * (limits.CALLS_AT_ONCE + 1))
        assert door.gate.rests == []
        await door.batch(door.site.agent(), wanted(door, claim))
        assert door.gate.rests

    at_the_door(test, lambda state: Door(state, rate=1, burst=1))


class Held:
    """The door's attestor, which makes some pods wait until they are let go."""

    def __init__(self, door: Door, *claims: PodClaim) -> None:
        self.go = asyncio.Event()
        self.asked: list[str] = []
        self._attest = door.attestor.pod
        self._claims = claims
        door.attestor.pod = self.pod  # type: ignore[method-assign]

    async def pod(self, agent: Any, token: str, claim: PodClaim) -> Any:
        self.asked.append(claim.name)
        if claim in self._claims:
            await self.go.wait()
        return await self._attest(agent, token, claim)


def test_a_slow_item_is_answered_last_and_the_others_at_once() -> None:
    async def test(door: Door) -> None:
        claims = pods(door, 6)
        held = Held(door, claims[2])
        message = batch_of(*(wanted(door, each, token(door, each)) for each in claims))
        stream = aiter(door.service.mint_x509s(said(message), call(door.site.agent())))
        found: list[int] = []
        while len(found) < 5:
            found += [each.item for each in (await anext(stream)).outcomes]
        assert sorted(found) == [0, 1, 3, 4, 5]
        held.go.set()
        (last,) = (await anext(stream)).outcomes
        assert isinstance(outcome(last), signer_pb2.MintX509SVIDResponse)
        assert last.item == 2
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    at_the_door(test)


def test_so_many_items_are_under_way_at_once_and_none_are_begun_for_who_does_not_read() -> None:
    async def test(door: Door) -> None:
        claims = pods(door, budget.BATCH)
        held = Held(door, claims[0])
        message = batch_of(*(wanted(door, each, token(door, each)) for each in claims))
        stream = aiter(door.service.mint_x509s(said(message), call(door.site.agent())))
        await anext(stream)
        held.go.set()
        await asyncio.sleep(1)
        # What it has been handed and what waits for it are among those.
        assert len(held.asked) == budget.BATCH_AT_ONCE
        assert [each async for each in stream]
        assert len(held.asked) == budget.BATCH

    at_the_door(test)


def test_an_item_that_takes_too_long_ends_alone_and_a_batch_that_is_not_read_ends() -> None:
    async def test(door: Door) -> None:
        claims = pods(door, 3)
        Held(door, claims[1])
        requests = [wanted(door, each, token(door, each)) for each in claims]
        began = asyncio.get_running_loop().time()
        found = await door.batch(door.site.agent(), *requests)
        assert asyncio.get_running_loop().time() - began == pytest.approx(MINT_DEADLINE)
        assert [each.reason if isinstance(each, Aborted) else "" for each in found] == [
            "",
            "API_SERVER_UNAVAILABLE",
            "",
        ]

        async def unread() -> None:
            async for _ in door.service.mint_x509s(said(batch_of(*requests)), call(door.site.agent())):
                await asyncio.Event().wait()

        began = asyncio.get_running_loop().time()
        with pytest.raises(asyncio.CancelledError):
            await unread()
        assert asyncio.get_running_loop().time() - began == pytest.approx(MINT_DEADLINE + MESSAGE_SECONDS)
        gc.collect()
        await asyncio.sleep(0.1)
        assert door.mints("x509", "BUSY") == 1

    at_the_door(test)


def test_a_batch_that_takes_too_long_is_told_when_to_come_again_and_leaves_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(batch, "MINT_DEADLINE", 1.0)
    monkeypatch.setattr(batch, "MESSAGE_SECONDS", 0.0)

    async def test(door: Door) -> None:
        claims = pods(door, 3)
        Held(door, *claims)
        requests = [wanted(door, each, token(door, each)) for each in claims]
        with refused(Reason.BUSY) as caught:
            await door.batch(door.site.agent(), *requests)
        assert caught[0].retry
        assert door.mints("x509", "BUSY") == 1
        assert "BUSY" in {each.get("reason") for each in lines(caplog)}

    at_the_door(test)


@pytest.mark.parametrize("scarce", ["BATCHES", "MINTS"])
def test_batches_whose_answers_nobody_takes_give_their_places_to_others(
    monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    monkeypatch.setattr(agents, scarce, 2)

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        given = asyncio.Event()

        async def unread() -> None:
            async for _ in door.service.mint_x509s(said(batch_of(wanted(door, claim))), call(door.site.agent())):
                given.set()
                await asyncio.Event().wait()

        reading = [asyncio.ensure_future(unread()) for _ in range(2)]
        await given.wait()
        there = door.site.pod("there", node="node-b")
        request = wanted(door, there, door.site.token(there, node="node-b"))
        with refused(Reason.BUSY):
            await door.batch(door.site.agent("node-b"), request)
        await asyncio.sleep(2 * limits.SILENT_SECONDS)
        (answer,) = await door.batch(door.site.agent("node-b"), request)
        assert isinstance(answer, signer_pb2.MintX509SVIDResponse)
        await asyncio.sleep(0.1)
        assert [each.done() for each in reading] == [True, False]
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    at_the_door(test)


def test_batches_that_say_nothing_give_their_places_among_the_mints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "MINTS", 2)

    async def test(door: Door) -> None:
        waiting = [
            asyncio.ensure_future(anext(aiter(door.service.mint_x509s(nothing(), call(door.site.agent())))))
            for _ in range(2)
        ]
        await door.told()
        await asyncio.sleep(2 * limits.SILENT_SECONDS)
        there = door.site.pod("there", node="node-b")
        request = wanted(door, there, door.site.token(there, node="node-b"))
        (answer,) = await door.batch(door.site.agent("node-b"), request)
        assert isinstance(answer, signer_pb2.MintX509SVIDResponse)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    at_the_door(test)


def test_an_item_that_fails_unexpectedly_ends_no_other() -> None:
    async def test(door: Door) -> None:
        mint, count = door.service._mints.x509, itertools.count()

        async def broken(asked: Any) -> Any:
            if next(count) == 1:
                raise ValueError("a bug")
            return await mint(asked)

        door.service._mints.x509 = broken  # type: ignore[method-assign]
        claims = pods(door, 3)
        found = await door.batch(door.site.agent(), *(wanted(door, each, token(door, each)) for each in claims))
        assert [each.reason if isinstance(each, Aborted) else "" for each in found] == ["", "INTERNAL", ""]

    at_the_door(test)


def test_who_has_hung_up_has_nothing_looked_at() -> None:
    async def test(door: Door) -> None:
        reviews = door.site.reviews
        hung_up = call(door.site.agent())
        hung_up.time_remaining = lambda: 0.0  # type: ignore[method-assign]
        with refused(Reason.BUSY):
            async for _ in door.service.mint_x509s(said(batch_of(wanted(door, door.site.pod("web")))), hung_up):
                pass
        assert door.site.reviews == reviews

    at_the_door(test)


def test_refused_items_leave_nothing_to_the_collector() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        requests = [wanted(door, claim, csr=b"rubbish")] * 5
        await door.batch(door.site.agent(), *requests)
        gc.collect()
        gc.disable()
        try:
            await door.batch(door.site.agent(), *requests)
            await asyncio.sleep(0.1)
            assert [each for each in gc.get_objects() if isinstance(each, Refused)] == []
        finally:
            gc.enable()

    at_the_door(test)


def test_a_batch_that_is_given_up_leaves_nothing_behind() -> None:
    async def test(door: Door) -> None:
        claims = pods(door, 3)
        held = Held(door, *claims)
        message = batch_of(*(wanted(door, each, token(door, each)) for each in claims))

        async def read() -> None:
            async for _ in door.service.mint_x509s(said(message), call(door.site.agent())):
                pass

        before = asyncio.all_tasks()
        for _ in range(2 * limits.BATCHES):
            held.asked.clear()
            reading = asyncio.ensure_future(read())
            while len(held.asked) < 3:
                await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert asyncio.all_tasks() == before
        assert door.service._places._free == budget.MINTS
        held.go.set()
        # And its slots are free: there are three.
        assert len([each async for each in door.service.mint_x509s(said(message), call(door.site.agent()))]) > 0

    at_the_door(test, lambda state: Door(state, concurrent=3))


def test_one_node_has_few_batches_at_once_and_each_has_a_place() -> None:
    async def test(door: Door) -> None:
        agent = door.site.agent()
        waiting = [
            asyncio.ensure_future(anext(aiter(door.service.mint_x509s(nothing(), call(agent)))))
            for _ in range(limits.BATCHES)
        ]
        await door.told()
        assert door.service._places._free == budget.MINTS - limits.BATCHES
        claim = door.site.pod("web")
        with refused(Reason.BUSY) as caught:
            await door.batch(agent, wanted(door, claim))
        assert caught[0].retry
        # Its single mints go on, and so does who is elsewhere.
        assert (await door.x509(claim, door.site.token(claim))).chain
        there = door.site.pod("there", node="node-b")
        (answer,) = await door.batch(
            door.site.agent("node-b"), wanted(door, there, door.site.token(there, node="node-b"))
        )
        assert isinstance(answer, signer_pb2.MintX509SVIDResponse)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        (answer,) = await door.batch(agent, wanted(door, claim))
        assert isinstance(answer, signer_pb2.MintX509SVIDResponse)

    at_the_door(test)


def test_a_replica_has_so_many_batches_at_once_and_those_that_say_nothing_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents, "BATCHES", 2)
    monkeypatch.setattr(limits, "SILENT_SECONDS", 0.5)

    async def test(door: Door) -> None:
        def silent() -> "asyncio.Future[Any]":
            return asyncio.ensure_future(anext(aiter(door.service.mint_x509s(nothing(), call(door.site.agent())))))

        waiting = [silent() for _ in range(2)]
        await door.told()
        there = door.site.pod("there", node="node-b")
        request = wanted(door, there, door.site.token(there, node="node-b"))
        with refused(Reason.BUSY) as caught:
            await door.batch(door.site.agent("node-b"), request)
        assert caught[0].retry
        found = door.metrics.registry.get_sample_value("podsvid_signer_turned_away_total", {"kind": "batches"})
        assert found == 1
        await asyncio.sleep(1)
        (answer,) = await door.batch(door.site.agent("node-b"), request)
        assert isinstance(answer, signer_pb2.MintX509SVIDResponse)
        assert [each.done() for each in waiting] == [True, False]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    at_the_door(test)


def test_each_item_is_in_the_trace_of_who_wants_it() -> None:
    async def test(door: Door) -> None:
        callers: list[Any] = []
        span = door.spans.span

        def noted(name: str, facts: Any = None, caller: Any = ()) -> Any:
            callers.append((name, tuple(caller)))
            return span(name, facts or {}, caller)

        door.spans.span = noted  # type: ignore[method-assign]
        claim = door.site.pod("web")
        message = batch_of(wanted(door, claim), wanted(door, claim))
        message.items[1].traceparent = "00-aa-bb-01"
        assert [each async for each in door.service.mint_x509s(said(message), call(door.site.agent()))]
        told = [caller for name, caller in callers if name == "attest, decide, sign"]
        assert sorted(told) == [(), (("traceparent", "00-aa-bb-01"),)]

    at_the_door(test)
