"""Floods of bad tokens, and new keys of the cluster: who brings good ones is served all the time."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import jwt
import looptime
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from signer.attestation.doubt import LIMITS
from signer.attestation.tokens import JWKS, JWKS_SECONDS, REFRESH_PAUSE, REVIEWS, OfflineTokens, TokenReviews
from signer.cluster.kube import Object
from signer.errors import Reason, Refused
from signer.model import Agent, PodClaim, Sender, Standing
from tests.signer_rig import AUDIENCE
from tests.unit.signer.door import Door, at_the_door, both_ways, call, said
from tests.unit.signer.door import refused as aborted
from tests.unit.signer.test_attestation import WEB, Rig

SHARED = Sender(Standing.STRANGER, "198.51.100.1")
HONEST = Sender(Standing.STRANGER, "192.0.2.1")
# Of the flood; and when in it the cluster's key is rotated.
SECONDS, ROTATED = 50, 25

# What a batch is answered, and what it leaves behind, is what single calls are.
__all__ = ["both_ways"]
pytestmark = pytest.mark.usefixtures("both_ways")


def agent_of(node: str) -> Sender:
    return Sender(Standing.AGENT, f"uid-{node}")


class Keys:
    """The API server's keys of tokens, which are rotated."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}

    def add(self, name: str) -> None:
        self._keys[name] = ec.generate_private_key(ec.SECP256R1())
        public = {
            name: jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True) for name, key in self._keys.items()
        }
        found = [{**each, "kid": name, "alg": "ES256"} for name, each in public.items()]
        self._rig.site.kube.put(JWKS, {"keys": found})

    def signed(self, token: str, name: str, known: bool = True) -> str:
        """As the API server signs it; `known`: and takes it."""
        claims = jwt.decode(token, options={"verify_signature": False})
        found = jwt.encode(claims, self._keys[name], algorithm="ES256", headers={"kid": name})
        if known:
            self._rig.site.known(token, found)
        return found


def told(what: Counter[Any]) -> Callable[..., None]:
    def count(*result: object) -> None:
        what[result if len(result) > 1 else result[0]] += 1

    return count


class Flooded(Rig):
    """With what is counted, and time that passes for all together."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = Keys(self)
        self.results: Counter[Any] = Counter()
        self.reads: Counter[Any] = Counter()
        kube, clock = self.site.kube, self.site.clock
        self.offline = OfflineTokens(kube, AUDIENCE, clock, told(self.reads))
        self.reviews = TokenReviews(kube, AUDIENCE, self.offline, clock, told=told(self.results))
        self.attestor._offline, self.attestor._reviews = self.offline, self.reviews
        self._numbers = iter(range(10**9))

    @property
    def key_reads(self) -> int:
        return self.site.kube.reads.count(JWKS)

    async def pass_by(self, seconds: float) -> None:
        self.site.clock.pass_by(seconds=seconds)
        await asyncio.sleep(seconds)

    def bad(self) -> Iterator[str]:
        """No two alike: made-up keys, none, false signatures of known ones."""
        while True:
            number = next(self._numbers)
            yield made_up({"kid": f"made-up-{number}"}, number)
            yield made_up({}, number)
            yield made_up({"kid": "k1", "alg": "ES256"}, number)

    async def flood(self, number: int, *senders: Sender) -> None:
        """So many bad ones of each, at the same time."""
        bad = self.bad()
        calls = [self.attestor.agent(next(bad), sender) for sender in senders for _ in range(number)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, Refused) for each in found), found
        assert {each.reason for each in found if isinstance(each, Refused)} <= {
            Reason.BUSY,
            Reason.AGENT_TOKEN_INVALID,
        }

    async def flood_pods(self, number: int, agent: Agent, claim: PodClaim) -> Counter[Reason]:
        """So many bad pod tokens of one agent."""
        bad = self.bad()
        calls = [self.attestor.pod(agent, next(bad), claim) for _ in range(number)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        return Counter(each.reason for each in found if isinstance(each, Refused))


def made_up(head: Object, number: object) -> str:
    parts = (head, {"n": number})
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts) + ".x"


def flooded(test: Callable[[Flooded], Awaitable[None]], following: bool = True) -> None:
    async def run() -> None:
        rig = Flooded()
        rig.keys.add("k1")
        loops = [asyncio.create_task(rig.pods.run())]
        if following:
            loops.append(asyncio.create_task(rig.offline.run()))
        await rig.pods.wait_synced()
        await asyncio.sleep(0)
        try:
            await test(rig)
        finally:
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def test_a_good_agent_and_its_pod_are_served_all_the_time_while_others_bring_bad_tokens() -> None:
    """From many addresses, from the agent's own address, and as an agent; by a key that was read and by a newer one."""
    crowd = [Sender(Standing.STRANGER, f"203.0.113.{number}") for number in range(8)]

    async def test(rig: Flooded) -> None:
        site, web = rig.site, rig.site.pod("web")
        robber = await rig.attestor.agent(rig.keys.signed(site.agent("robbed"), "k1"), HONEST)
        began = site.reviews
        for second in range(SECONDS):
            # The new key is used from the first second that it is published.
            if second == ROTATED:
                rig.keys.add("k2")
            name = "k1" if second < ROTATED else "k2"
            await rig.flood(60, SHARED)
            await rig.flood(20, *crowd)
            await rig.flood_pods(80, robber, web)
            agent = rig.keys.signed(site.agent(), name)
            proven = await rig.attestor.agent(agent, HONEST)
            pod = rig.keys.signed(site.token(web), name)
            assert (await rig.attestor.pod(proven, pod, web)).pod.name == "web"
            # Who shares the attackers' address, with nothing else to be told by, waits for the keys to be read.
            if second < ROTATED or second > ROTATED + REFRESH_PAUSE:
                assert await rig.attestor.agent(rig.keys.signed(site.agent(), name), SHARED)
            await rig.pass_by(1)
        stranger, node = LIMITS[Standing.STRANGER].all, LIMITS[Standing.AGENT].each
        assert stranger is not None
        most = stranger.at_once + node.at_once + SECONDS * (stranger.a_second + node.a_second)
        # The good ones, and the first of each who was quiet until then.
        assert site.reviews - began <= most + 3 * SECONDS + len([SHARED, *crowd])
        assert rig.key_reads <= SECONDS / REFRESH_PAUSE + 1
        assert {"accepted", "refused", "forged", "busy_stranger", "busy_agent"} <= rig.results.keys()

    flooded(test)


def test_keys_are_read_soon_after_a_token_of_an_unknown_one_and_not_more_often() -> None:
    async def test(rig: Flooded) -> None:
        assert (rig.key_reads, rig.reads) == (1, {("start", True): 1})
        for _ in range(600):
            await rig.flood(1, SHARED)
            await rig.pass_by(0.1)
        assert 6 <= rig.key_reads <= 7
        assert rig.reads.keys() == {("start", True), ("unknown_key", True)}
        # Tokens of keys that were read, and those that name none, are no reason.
        await rig.pass_by(REFRESH_PAUSE)
        before = rig.key_reads
        for number in range(int(JWKS_SECONDS) - 30):
            for head in ({"kid": "k1"}, {}, {"kid": ""}, {"kid": None}, {"kid": ["x"]}):
                with pytest.raises(Refused):
                    await rig.attestor.agent(made_up(head, number), HONEST)
            await rig.pass_by(1)
        assert rig.key_reads == before
        await rig.pass_by(30)
        assert (rig.key_reads, rig.reads[("time", True)]) == (before + 1, 1)

    flooded(test)


def test_a_new_key_of_the_cluster_is_followed_within_seconds() -> None:
    async def test(rig: Flooded) -> None:
        await rig.pass_by(100)
        rig.keys.add("k2")
        first = rig.keys.signed(rig.site.agent(), "k2")
        # The first that names it is reviewed, as nobody else can tell; and has the key read at once.
        assert await rig.attestor.agent(first, HONEST)
        assert rig.results == {"accepted": 1}
        await asyncio.sleep(0)
        assert rig.offline.verify(first).pod_name == "agent-node-a"
        # One that comes while keys are read, or just afterwards, is not forgotten.
        rig.keys.add("k3")
        second = rig.keys.signed(rig.site.agent(), "k3")
        assert await rig.attestor.agent(second, HONEST)
        await rig.pass_by(REFRESH_PAUSE)
        assert rig.offline.verify(second)
        assert rig.reads == {("start", True): 1, ("unknown_key", True): 2}

    flooded(test)


def test_a_key_that_is_missed_while_keys_are_read_has_them_read_again() -> None:
    async def test(rig: Flooded) -> None:
        get, answer = rig.site.kube.get, asyncio.Event()

        async def slow(path: str) -> Object:
            found = await get(path)
            await answer.wait()
            return found

        rig.site.kube.get = slow  # type: ignore[method-assign]
        reading = asyncio.create_task(rig.offline.run())
        await asyncio.sleep(0)
        rig.keys.add("k2")
        token = rig.keys.signed(rig.site.agent(), "k2")
        assert not rig.offline.knows_key_of(token)
        answer.set()
        await rig.pass_by(REFRESH_PAUSE + 0.1)
        assert rig.offline.verify(token)
        reading.cancel()

    flooded(test, following=False)


def test_where_keys_cannot_be_read_senders_are_told_apart() -> None:
    """Nothing can be proven then: who brings bad ones pays, by its address or its node."""

    async def test(rig: Flooded) -> None:
        site, web = rig.site, rig.site.pod("web")
        robber = await rig.attestor.agent(site.agent("robbed"), HONEST)
        for _ in range(60):
            await rig.flood(100, SHARED, Sender(Standing.STRANGER, "203.0.113.7"))
            reasons = await rig.flood_pods(100, robber, web)
            assert reasons[Reason.BUSY]
            honest = await rig.attestor.agent(site.agent(), HONEST)
            again = await rig.attestor.agent(site.agent(), agent_of("node-a"))
            assert honest.node_uid == again.node_uid
            assert await rig.attestor.pod(honest, site.token(web), web)
            await rig.pass_by(1)
        assert rig.reads[("unknown_key", False)] >= 5
        assert rig.reads.keys() == {("start", False), ("unknown_key", False)}
        assert rig.key_reads <= 7

    async def unreadable(rig: Flooded) -> None:
        rig.site.kube.denied.add(("get", JWKS))
        reading = asyncio.create_task(rig.offline.run())
        try:
            await test(rig)
        finally:
            reading.cancel()

    flooded(unreadable, following=False)


def test_a_pods_token_is_its_agents_to_pay_for_and_an_agents_token_its_senders() -> None:
    async def test(rig: Flooded) -> None:
        site, web = rig.site, rig.site.pod("web")
        robber = await rig.attestor.agent(site.agent("robbed"), SHARED)
        node = LIMITS[Standing.AGENT].each
        assert await rig.flood_pods(200, robber, web) == {
            Reason.BUSY: 200 - node.at_once,
            Reason.POD_TOKEN_INVALID: node.at_once,
        }
        # It is the node's, whichever way it comes; the address is not the node's.
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(site.agent("robbed"), agent_of("robbed"))
        assert (caught.value.reason, caught.value.retry_after is not None) == (Reason.BUSY, True)
        await rig.attestor.agent(site.agent("robbed"), SHARED)
        # And the other way round.
        await rig.flood(200, HONEST)
        with pytest.raises(Refused):
            await rig.attestor.agent(site.agent(), HONEST)
        honest = await rig.attestor.agent(site.agent(), SHARED)
        assert await rig.attestor.pod(honest, site.token(web), web)

    async def unread(rig: Flooded) -> None:
        rig.site.kube.denied.add(("get", JWKS))
        await test(rig)

    flooded(unread, following=False)


def test_a_signed_token_that_is_refused_again_and_again_is_no_flood_and_hurts_nobody_else() -> None:
    """That of a pod that is gone: the cluster signed it, and does not take it any more."""

    async def test(rig: Flooded) -> None:
        site = rig.site
        robber = await rig.attestor.agent(rig.keys.signed(site.agent("robbed"), "k1"), HONEST)
        gone = PodClaim("default", "gone", "uid-gone")
        token = rig.keys.signed(site.token(gone, node="robbed"), "k1", known=False)
        before = site.reviews
        reasons: Counter[Reason] = Counter()
        for _ in range(300):
            with pytest.raises(Refused) as caught:
                await rig.attestor.pod(robber, token, gone)
            reasons[caught.value.reason] += 1
        most = LIMITS[Standing.AGENT].each.at_once + LIMITS[Standing.PROVEN].each.at_once
        assert site.reviews - before == reasons[Reason.POD_NOT_FOUND] == most
        assert reasons[Reason.BUSY] == 300 - most == rig.results["busy_proven"]
        # Not even another pod of that node.
        other = site.pod("other", node="robbed")
        assert await rig.attestor.pod(robber, rig.keys.signed(site.token(other, node="robbed"), "k1"), other)

    flooded(test)


def test_a_forged_token_costs_the_api_server_no_look_at_its_pod() -> None:
    async def test(rig: Flooded) -> None:
        site, web = rig.site, rig.site.pod("web")
        robber = await rig.attestor.agent(rig.keys.signed(site.agent("robbed"), "k1"), HONEST)
        await rig.flood_pods(300, robber, web)
        stranger = ec.generate_private_key(ec.SECP256R1())
        claims = jwt.decode(site.token(web), options={"verify_signature": False})
        before = len(site.kube.reads), site.reviews
        for number in range(100):
            forged = jwt.encode({**claims, "n": number}, stranger, algorithm="ES256", headers={"kid": "k1"})
            with pytest.raises(Refused) as caught:
                await rig.attestor.pod(robber, forged, web)
            assert caught.value.reason is Reason.POD_TOKEN_INVALID
        assert (len(site.kube.reads), site.reviews) == before
        assert rig.results["forged"] >= 100

    flooded(test)


@pytest.mark.parametrize(
    "head",
    [
        b'{"kid": "' + b"x" * 100_000 + b'"}',
        b'{"kid": ' + b"[" * 50_000,
        b'{"kid": ' + b"1" * 5_000 + b"}",
        b'{"kid": {"kid": "k1"}}',
        b'{"kid": ["k1"]}',
        b'{"kid": "k1", "x": ' + b"[" * 50_000,
        b'["kid", "k1"]',
        b'"k1"',
        b"\xff\xfe",
        b"",
    ],
)
def test_whatever_a_token_says_of_its_key_it_is_only_refused(head: bytes) -> None:
    async def test(rig: Flooded) -> None:
        start = base64.urlsafe_b64encode(head).rstrip(b"=").decode() or "e"
        for number in range(int(LIMITS[Standing.STRANGER].each.at_once) + 5):
            token = f"{start}.e30.{number}x"
            assert not rig.offline.knows_key_of(token)
            with pytest.raises(Refused) as caught:
                await rig.attestor.agent(token, HONEST)
            assert caught.value.reason in (Reason.AGENT_TOKEN_INVALID, Reason.BUSY)
        await rig.pass_by(60)
        assert rig.key_reads <= 2

    flooded(test)


def test_in_an_outage_a_token_of_a_newer_key_waits_and_is_not_called_false() -> None:
    """As while the API server starts anew, with that key: agents would be closed for what they cannot help."""

    async def test(rig: Flooded) -> None:
        site, web = rig.site, rig.site.pod("web")
        agent, token = (rig.keys.signed(each, "k1") for each in (site.agent(), site.token(web)))
        rig.attestor.issued(await rig.attest(web, token, agent), WEB)
        await rig.pass_by(20)
        site.kube.down = True
        rig.keys.add("k2")
        fresh, mine = (rig.keys.signed(each, "k2") for each in (site.token(web), site.agent()))
        for pod, caller in ((fresh, agent), (token, mine), (made_up({"kid": "x"}, 1), agent)):
            with pytest.raises(Refused, match="key was not read") as caught:
                await rig.attest(web, pod, caller)
            assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
            assert caught.value.retry_after
        assert (await rig.attest(web, token, agent)).degraded
        site.kube.down = False
        await rig.pass_by(3)
        assert not (await rig.attest(web, fresh, mine)).degraded

    flooded(test)


def count(door: Door, result: str) -> float:
    found = door.metrics.registry.get_sample_value("podsvid_signer_token_reviews_total", {"result": result})
    return found or 0.0


def test_the_service_tells_callers_apart_and_counts_what_became_of_their_tokens() -> None:
    async def test(door: Door) -> None:
        site, web = door.site, door.site.pod("web")
        site.kube.denied.add(("get", JWKS))
        most = int(LIMITS[Standing.STRANGER].each.at_once)
        for number in range(most):
            with aborted(Reason.AGENT_TOKEN_INVALID):
                await door.service.mint_x509(said(), call(made_up({"kid": "x"}, number)))
        with aborted(Reason.BUSY):
            await door.x509(web, site.token(web))
        assert [count(door, each) for each in ("accepted", "refused", "busy_stranger")] == [0, most, 1]
        # The same agent, from elsewhere.
        door.gate.senders["unix-abstract:00001"] = Sender(Standing.STRANGER, "192.0.2.2")
        assert (await door.x509(web, site.token(web))).chain
        assert count(door, "accepted") == 2
        # And its connection once it is known.
        door.gate.senders["unix-abstract:00001"] = agent_of("node-a")
        assert (await door.x509(web, site.token(web))).chain
        site.kube.hooks[REVIEWS] = lambda body: {}
        for number in range(int(LIMITS[Standing.AGENT].each.at_once)):
            with aborted(Reason.AGENT_TOKEN_INVALID):
                await door.service.mint_x509(said(), call(made_up({"kid": "x"}, number)))
        with aborted(Reason.BUSY):
            await door.service.mint_x509(said(), call(made_up({"kid": "x"}, "last")))
        assert count(door, "busy_agent") == 1
        site.kube.down = True
        before = door.gate.strikes
        door.gate.senders.clear()
        site.clock.pass_by(minutes=2)
        with aborted(Reason.API_SERVER_UNAVAILABLE):
            await door.x509(web, site.token(web), made_up({"kid": "x"}, "away"))
        assert (count(door, "unanswered"), door.gate.strikes) == (1, before)

    at_the_door(test)
