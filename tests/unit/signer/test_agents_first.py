"""What comes first at the signer's door: the caller is proven before its message is read, and few read at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from runtime.deadlines import Deadlines
from signer.attestation.tokens import NOBODY
from signer.errors import Reason, Refused
from signer.front import agents as module
from signer.front import limits
from signer.front.budget import HEADERS, MAX_REPORT, MINTS
from signer.front.calls import MESSAGE_SECONDS, Context, only
from signer.front.limits import REPORTS, REPORTS_AT_ONCE
from signer.model import SOON, Agent, AttestedPod, PodClaim, Sender
from signer.pb import signer_pb2
from tests.unit.signer.door import REQUEST, Call, Door, at_the_door, call, nothing, pod, refused, said


class Messages:
    """A call's messages as gRPC gives them, and how many were asked for."""

    def __init__(self, *messages: bytes) -> None:
        self._left = list(messages)
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.read += 1
            if not self._left:
                return
            yield self._left.pop(0)


def away(door: Door, kind: str) -> float:
    found = door.metrics.registry.get_sample_value("podsvid_signer_turned_away_total", {"kind": kind})
    return found or 0.0


@pytest.mark.parametrize("token", [None, "no.such.token"])
def test_nothing_is_read_of_who_is_no_agent_and_the_connection_pays(token: str | None) -> None:
    async def test(door: Door) -> None:
        messages = Messages(b"x")
        with refused(Reason.AGENT_TOKEN_INVALID if token else Reason.AGENT_TOKEN_MISSING):
            await door.service.mint_x509(messages, call(token))
        assert (messages.read, door.gate.strikes, door.gate.nodes) == (0, 1, [])
        with refused(Reason.AGENT_TOKEN_INVALID if token else Reason.AGENT_TOKEN_MISSING):
            await anext(aiter(door.service.watch_trust(messages, call(token))))
        assert (messages.read, door.gate.strikes) == (0, 2)

    at_the_door(test)


def test_an_agent_is_told_to_the_gate_and_has_one_message_read() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=door.site.token(claim), csr=REQUEST)
        messages = Messages(request.SerializeToString(), request.SerializeToString())
        assert (await door.service.mint_x509(messages, call(door.site.agent()))).chain
        assert (messages.read, door.gate.nodes, door.gate.strikes) == (1, ["uid-node-a"], 0)

    at_the_door(test)


def test_whoever_calls_too_often_is_not_read_for_a_while_and_is_answered_all_the_same() -> None:
    """To refuse takes time as well: a node that goes on would have all of it."""

    async def test(door: Door) -> None:
        agent = door.site.agent()
        claim = door.site.pod("web")
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=door.site.token(claim), csr=REQUEST)
        assert (await door.service.mint_x509(Messages(request.SerializeToString()), call(agent))).chain
        for _ in range(limits.CALLS_AT_ONCE):
            assert (door.gate.rests, away(door, "calls")) == ([], 0)
            stream = door.service.watch_trust(nothing(), call(agent))
            assert (await anext(aiter(stream))).bundles
        with refused(Reason.RATE_LIMITED):
            await door.service.mint_x509(Messages(request.SerializeToString()), call(agent))
        assert (door.gate.rests, away(door, "calls")) == ([1 / limits.CALLS, 2 / limits.CALLS], 2)

    at_the_door(test, lambda state: Door(state, rate=1, burst=1))


def test_an_outage_is_no_fault_of_the_caller() -> None:
    async def test(door: Door) -> None:
        async def away(token: str, sender: Sender = NOBODY) -> Agent:
            raise Refused(Reason.API_SERVER_UNAVAILABLE, "the API server is away")

        door.attestor.agent = away  # type: ignore[method-assign]
        with refused(Reason.API_SERVER_UNAVAILABLE):
            await door.service.mint_x509(Messages(b"x"), call(door.site.agent()))
        assert door.gate.strikes == 0

    at_the_door(test)


def test_where_there_is_no_room_for_an_agent_it_is_told_when_to_come_again() -> None:
    async def test(door: Door) -> None:
        door.gate.room = False
        messages = Messages(b"x")
        with refused(Reason.BUSY) as caught:
            await door.service.mint_x509(messages, call(door.site.agent()))
        assert (caught[0].retry, messages.read) == (SOON, 0)
        with refused(Reason.BUSY):
            await anext(aiter(door.service.watch_trust(nothing(), call(door.site.agent()))))
        assert door.agents.connected == 0

    at_the_door(test)


def test_a_call_has_few_headers() -> None:
    async def test(door: Door) -> None:
        token = ("authorization", f"Bearer {door.site.agent()}")
        many: Context = Call(*(("a", "") for _ in range(HEADERS)), token)  # type: ignore[assignment]
        with refused(Reason.INVALID_REQUEST):
            await door.service.mint_x509(Messages(b"x"), many)
        assert (door.gate.strikes, door.site.reviews) == (1, 0)

    at_the_door(test)


@pytest.mark.parametrize("message", [None, b"\xff\xff\xff"])
def test_a_message_that_is_none_is_refused(message: bytes | None) -> None:
    async def test(door: Door) -> None:
        with refused(Reason.INVALID_REQUEST):
            await door.service.mint_jwt(Messages(*([message] if message else [])), call(door.site.agent()))
        assert away(door, "message") == 1

    at_the_door(test)


def test_a_message_that_does_not_come_is_not_waited_for_long() -> None:
    async def test(door: Door) -> None:
        began = asyncio.get_running_loop().time()
        with refused(Reason.INVALID_REQUEST):
            await door.service.mint_x509(nothing(), call(door.site.agent()))
        assert asyncio.get_running_loop().time() - began == pytest.approx(MESSAGE_SECONDS)

    at_the_door(test)


def test_a_replica_reads_so_many_messages_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MINTS", 2)

    async def test(door: Door) -> None:
        waiting = [
            asyncio.ensure_future(door.service.mint_x509(nothing(), call(door.site.agent(f"node-{number}"))))
            for number in range(2)
        ]
        await door.told()
        messages = Messages(b"x")
        with refused(Reason.BUSY) as caught:
            await door.service.mint_x509(messages, call(door.site.agent("node-c")))
        assert (caught[0].retry, messages.read, away(door, "mints")) == (SOON, 0, 1)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        claim = door.site.pod("web")
        assert (await door.x509(claim, door.site.token(claim))).chain

    at_the_door(test)


def test_calls_that_say_nothing_make_room_for_those_who_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MINTS", 4)
    monkeypatch.setattr(limits, "SILENT_SECONDS", 0.0)

    async def test(door: Door) -> None:
        def silent(node: str) -> "asyncio.Future[Any]":
            return asyncio.ensure_future(door.service.mint_x509(nothing(), call(door.site.agent(node))))

        oldest, *others = [silent(node) for node in ("node-x", "node-y", "node-y", "node-y")]
        await door.told()
        claim = door.site.pod("web")
        assert (await door.x509(claim, door.site.token(claim))).chain
        # Of the one that has most of them, the oldest; the others wait as before.
        with refused(Reason.BUSY) as caught:
            await others[0]
        assert caught[0].retry is not None
        assert [each.done() for each in (oldest, *others)] == [False, True, False, False]
        # None for one more of that node.
        others.append(silent("node-y"))
        await door.told()
        with refused(Reason.BUSY):
            await silent("node-y")
        for each in (oldest, *others):
            each.cancel()
        await asyncio.gather(oldest, *others, return_exceptions=True)
        assert door.service._places._free == 4

    at_the_door(test)


@pytest.mark.parametrize("late", [False, True])
def test_wherever_a_mint_is_ended_it_gives_back_all_that_it_had(late: bool) -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=door.site.token(claim), csr=REQUEST)
        mints = door.service._mints

        async def slowly() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
            yield request.SerializeToString()

        ended = 0
        while True:
            minting = asyncio.ensure_future(door.service.mint_x509(slowly(), call(door.site.agent())))
            for _ in range(ended + 1):
                await asyncio.sleep(0)
            if late:
                for each in [*mints._patience._begun]:
                    each.end()
            else:
                minting.cancel()
            await asyncio.wait([minting])
            assert door.service._places._free == MINTS
            assert not door.service._places._places
            assert all(each.running == 0 for each in door.limits._nodes.values())
            assert not mints._patience._begun
            assert not mints._callers.patience._begun
            if not minting.cancelled() and minting.exception() is None:
                break
            ended += 1
        assert ended > 5

    at_the_door(test, lambda state: Door(state, rate=1000, burst=1000))


def test_a_call_whose_time_is_over_can_lose_its_place_still() -> None:
    async def run() -> None:
        place = limits.Place("a")
        asked = only(signer_pb2.MintX509SVIDRequest, nothing(), Deadlines(0.0), place, given_up=lambda: None)
        waiting = asyncio.ensure_future(asked)
        # Its timer has gone off, and it has not heard of that yet.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert place.silent_since is not None
        place.lose()
        with pytest.raises(Refused):
            await waiting

    asyncio.run(run())


def test_a_replica_has_so_many_trust_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRUST_STREAMS", 1)

    async def test(door: Door) -> None:
        first = door.service.watch_trust(nothing(), call(door.site.agent()))
        await anext(aiter(first))
        with refused(Reason.BUSY) as caught:
            await anext(aiter(door.service.watch_trust(nothing(), call(door.site.agent("node-b")))))
        assert (caught[0].retry, away(door, "streams"), door.agents.connected) == (SOON, 1, 1)
        await first.aclose()  # type: ignore[attr-defined]
        second = door.service.watch_trust(nothing(), call(door.site.agent("node-b")))
        await anext(aiter(second))
        await second.aclose()  # type: ignore[attr-defined]

    at_the_door(test)


def test_a_report_is_bounded_before_it_is_looked_at_and_its_stream_ends_with_a_reason() -> None:
    async def test(door: Door) -> None:
        report = signer_pb2.WatchTrustRequest(acknowledged_sequence=7, agent_version="x" * MAX_REPORT)
        stream = aiter(door.service.watch_trust(said(report), call(door.site.agent())))
        with refused(Reason.INVALID_REQUEST):
            while True:
                await anext(stream)
        assert (away(door, "report"), door.agents.connected) == (1, 0)

    at_the_door(test)


def test_a_node_says_so_much_a_second_over_all_of_its_streams() -> None:
    """What it says faster waits with it: nothing here grows, and other nodes are heard."""

    async def test(door: Door) -> None:
        heard: list[str] = []
        door.agents.acknowledged = lambda node, *_: heard.append(node)  # type: ignore[method-assign]
        report = signer_pb2.WatchTrustRequest().SerializeToString()
        floods = [Messages(*[report] * 100) for _ in range(2)]
        streams = [door.service.watch_trust(each, call(door.site.agent())) for each in floods]
        reading = [asyncio.ensure_future(_all(each)) for each in streams]
        await asyncio.sleep(0.01)
        at_once = int(REPORTS_AT_ONCE)
        assert heard == ["node-a"] * at_once
        assert sum(each.read for each in floods) <= at_once + 2
        other = asyncio.ensure_future(_all(door.service.watch_trust(Messages(report), call(door.site.agent("node-b")))))
        await asyncio.sleep(0.01)
        assert heard.count("node-b") == 1
        for _ in range(100):
            door.site.clock.pass_by(seconds=0.01)
            await asyncio.sleep(0.01)
        assert at_once + REPORTS - 2 <= heard.count("node-a") <= at_once + REPORTS + 2
        for each in (*reading, other):
            each.cancel()
        await asyncio.gather(*reading, other, return_exceptions=True)

    at_the_door(test)


async def _all(stream: AsyncIterator[signer_pb2.WatchTrustResponse]) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("late", [True, False])
def test_a_call_whose_caller_waits_no_more_costs_nothing(late: bool) -> None:
    """Under pressure calls come to their turn late: to work for those would make the others late, too."""

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=door.site.token(claim), csr=REQUEST)
        messages = Messages(request.SerializeToString())
        waiting = Call(("authorization", f"Bearer {door.site.agent()}"))
        waiting.left = 0.0 if late else 0.001
        if not late:
            assert (await door.service.mint_x509(messages, cast(Context, waiting))).chain
            return
        with refused(Reason.BUSY) as caught:
            await door.service.mint_x509(messages, cast(Context, waiting))
        assert caught[0].retry
        assert (messages.read, door.site.reviews, door.gate.strikes) == (0, 0, 0)
        assert door.mints("x509", "BUSY") == 1

    at_the_door(test)


def test_what_took_longer_than_its_caller_waits_is_not_signed() -> None:
    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        waiting = Call(("authorization", f"Bearer {door.site.agent()}"))
        attest = door.attestor.pod

        async def slow(agent: Agent, token: str, wanted: PodClaim) -> AttestedPod:
            waiting.left = 0.0
            return await attest(agent, token, wanted)

        door.attestor.pod = slow  # type: ignore[method-assign, assignment]
        request = signer_pb2.MintX509SVIDRequest(pod=pod(claim), pod_token=door.site.token(claim), csr=REQUEST)
        waiting.left = 1.0
        with refused(Reason.BUSY):
            await door.service.mint_x509(said(request), cast(Context, waiting))
        assert door.mints("x509", "ok") == 0

    at_the_door(test)
