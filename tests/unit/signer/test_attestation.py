"""Who asks, and for which pod: each check with its own reason, and what goes on without the API server."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from signer.attestation.accounts import Accounts
from signer.attestation.attestor import AttestationSettings, Attestor
from signer.attestation.doubt import LIMITS
from signer.attestation.pods import MOST_OF_NAMESPACE, Pods
from signer.attestation.tokens import (
    JWKS,
    REVIEWS,
    OfflineTokens,
    TokenRefused,
    TokenReviews,
)
from signer.cluster.kube import Object
from signer.cluster.witness import Witness
from signer.errors import ApiUnavailable, Forbidden, Reason, Refused
from signer.model import AttestedPod, PodClaim, Standing
from svid.spiffeid import SpiffeId
from tests.signer_rig import AUDIENCE, DRIVER, Site

WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
OTHER = SpiffeId.parse("spiffe://example.org/ns/default/sa/other")
STRANGER = LIMITS[Standing.STRANGER].each
SETTINGS = AttestationSettings("podsvid", "podsvid-agent", frozenset({DRIVER}), timedelta(minutes=10))


class Rig:
    def __init__(self, most: int = MOST_OF_NAMESPACE) -> None:
        self.site = Site()
        clock = self.site.clock
        self.pods = Pods(self.site.kube, clock, ("podsvid", "podsvid-agent"), most)
        self.witness = Witness(clock)
        self.offline = OfflineTokens(self.site.kube, AUDIENCE, self.witness)
        self.reviews = TokenReviews(self.site.kube, AUDIENCE, self.offline, self.witness)
        accounts = Accounts(self.site.kube)
        self.attestor = Attestor(SETTINGS, self.reviews, self.offline, self.pods, accounts, self.witness)
        self.key = ec.generate_private_key(ec.SECP256R1())

    async def attest(self, claim: PodClaim, token: str, agent: str | None = None) -> AttestedPod:
        caller = await self.attestor.agent(agent or self.site.agent())
        return await self.attestor.pod(caller, token, claim)

    async def refused(self, claim: PodClaim, token: str, agent: str | None = None) -> Reason:
        with pytest.raises(Refused) as caught:
            await self.attest(claim, token, agent)
        assert not any(each and each in str(caught.value) for each in (token, agent))
        return caught.value.reason

    def publish_keys(self) -> None:
        jwk = {**jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": "k1", "alg": "ES256"}
        self.site.kube.put(JWKS, {"keys": [jwk]})

    def signed(self, token: str) -> str:
        """The same claims as a token of the cluster's key."""
        claims = jwt.decode(token, options={"verify_signature": False})
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": "k1"})


def rigged(test: Callable[[Rig], Awaitable[None]], most: int = MOST_OF_NAMESPACE) -> None:
    async def run() -> None:
        rig = Rig(most)
        following = asyncio.create_task(rig.pods.run())
        await rig.pods.wait_synced()
        try:
            await test(rig)
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    asyncio.run(run())


def test_agents() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        found = await rig.attestor.agent(site.agent("node-b"))
        assert (found.node_name, found.node_uid, found.pod_name) == ("node-b", "uid-node-b", "agent-node-b")
        claim = PodClaim("podsvid", "agent", "u")
        agent: dict[str, Any] = {"account": "podsvid-agent", "namespace": "podsvid"}
        for token, reason in (
            (site.token(claim, **agent, known=False), Reason.AGENT_TOKEN_INVALID),
            (site.token(claim, **agent, audience="other"), Reason.AGENT_TOKEN_AUDIENCE),
            (site.token(claim, **agent, life=-1), Reason.AGENT_TOKEN_EXPIRED),
            (site.token(claim, **agent, node=None), Reason.AGENT_TOKEN_UNBOUND),
            (site.token(None, **agent), Reason.AGENT_TOKEN_UNBOUND),
            (site.token(claim, account="podsvid-agent", namespace="other"), Reason.AGENT_DENIED),
            (site.token(claim, account="web", namespace="podsvid"), Reason.AGENT_DENIED),
            ("rubbish", Reason.AGENT_TOKEN_INVALID),
        ):
            with pytest.raises(Refused) as caught:
                await rig.attestor.agent(token)
            assert caught.value.reason is reason, caught.value

    rigged(test)


def test_pods() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        good = site.pod("good")
        attested = await rig.attest(good, site.token(good))
        assert (attested.pod.name, attested.agent.node_name, attested.degraded) == ("good", "node-a", False)

        assert await rig.refused(good, "") is Reason.POD_TOKEN_MISSING
        assert await rig.refused(good, "rubbish") is Reason.POD_TOKEN_INVALID
        assert await rig.refused(good, site.token(good, audience="x")) is Reason.POD_TOKEN_AUDIENCE
        assert await rig.refused(good, site.token(good, life=-5)) is Reason.POD_TOKEN_EXPIRED
        assert await rig.refused(good, site.token(None)) is Reason.POD_TOKEN_UNBOUND
        assert await rig.refused(good, site.token(good, node=None)) is Reason.POD_TOKEN_UNBOUND
        other = site.pod("other")
        assert await rig.refused(other, site.token(good)) is Reason.POD_TOKEN_REPLAYED
        assert await rig.refused(PodClaim("default", "good", other.uid), site.token(good)) is Reason.POD_TOKEN_REPLAYED
        assert await rig.refused(good, site.token(good), site.agent("node-b")) is Reason.POD_ON_OTHER_NODE
        # The token and the live object disagree.
        moved = site.pod("moved", node="node-b")
        assert await rig.refused(moved, site.token(moved)) is Reason.POD_ON_OTHER_NODE
        foreign = site.pod("foreign", account="admin")
        assert await rig.refused(foreign, site.token(foreign)) is Reason.SERVICE_ACCOUNT_MISMATCH
        static = site.pod("static", annotations={"kubernetes.io/config.mirror": "x"})
        assert await rig.refused(static, site.token(static)) is Reason.POD_IS_MIRROR
        # It does mount the driver, but what else it says of itself is more than anybody looks at.
        big = site.pod("big", labels={f"l{number}": "" for number in range(129)})
        assert await rig.refused(big, site.token(big)) is Reason.POD_OVERSIZED
        for phase in ("Succeeded", "Failed"):
            done = site.pod(phase.lower(), phase=phase)
            assert await rig.refused(done, site.token(done)) is Reason.POD_FINISHED
        for name, driver in (("none", None), ("another", "csi.other.io")):
            without = site.pod(name, driver=driver)
            assert await rig.refused(without, site.token(without)) is Reason.POD_WITHOUT_DRIVER

    rigged(test)


def test_a_pod_that_is_gone_or_another_one_by_now() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        gone = PodClaim("default", "gone", "gone-uid")
        assert await rig.refused(gone, site.token(gone)) is Reason.POD_NOT_FOUND
        rig.publish_keys()
        await rig.offline.refresh()

        def refused(claim: PodClaim) -> str:
            return rig.signed(site.token(claim, known=False))

        # The API server refuses the token of a deleted pod without saying so; the person is told.
        assert await rig.refused(gone, refused(gone)) is Reason.POD_NOT_FOUND
        again = site.pod("gone")
        assert await rig.refused(gone, refused(gone)) is Reason.POD_UID_MISMATCH
        assert await rig.refused(again, refused(again)) is Reason.POD_TOKEN_INVALID

    rigged(test)


def test_an_agent_hears_of_no_pods_whose_tokens_it_made_up() -> None:
    """Whether a pod is there is the same answer, for a token that nobody signed, or that is of another node's pod."""

    async def test(rig: Rig) -> None:
        site = rig.site
        rig.publish_keys()
        await rig.offline.refresh()
        there, elsewhere = site.pod("there"), site.pod("elsewhere", node="node-b")
        caller = await rig.attestor.agent(site.agent())
        said = set()
        for claim in (there, elsewhere, PodClaim("default", "there", "x"), PodClaim("nowhere", "none", "x")):
            made_up = site.token(claim, known=False)
            others = rig.signed(site.token(claim, node="node-b", known=False))
            for token in (made_up, others):
                with pytest.raises(Refused) as caught:
                    await rig.attestor.pod(caller, token, claim)
                said.add((caught.value.reason, str(caught.value)))
        assert {reason for reason, _ in said} == {Reason.POD_TOKEN_INVALID}
        assert len(said) == 1

    rigged(test)


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("podsvid/secrets/podsvid-authority?x=", "y"),
        ("default", "../../../secrets/x"),
        ("..", "x"),
        ("default", "a?watch=true"),
        ("default", "a%2fb"),
        ("default", "a\n"),
        ("default", ""),
    ],
)
def test_a_token_that_proves_nothing_chooses_no_path_at_the_api_server(namespace: str, name: str) -> None:
    async def test(rig: Rig) -> None:
        lying = PodClaim(namespace, name, "uid")
        before = len(rig.site.kube.reads)
        await rig.refused(rig.site.pod("good"), rig.site.token(lying, known=False))
        with pytest.raises(Refused) as caught:
            await rig.pods.look(lying)
        assert caught.value.reason is Reason.POD_NOT_FOUND
        assert rig.site.kube.reads[before:] == []

    rigged(test)


def test_reviews_are_kept_for_seconds_and_refusals_are_not() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        good = site.pod("good")
        token, agent = site.token(good), site.agent()
        await rig.attest(good, token, agent)
        await asyncio.gather(*(rig.attest(good, token, agent) for _ in range(20)))
        assert site.reviews == 2
        site.clock.pass_by(seconds=11)
        # Twenty that come at once share one review of each token.
        await asyncio.gather(*(rig.attest(good, token, agent) for _ in range(20)))
        assert site.reviews == 4
        refused = site.token(good, known=False)
        for _ in range(3):
            await rig.refused(good, refused, agent)
        assert site.reviews == 7

    rigged(test)


def test_an_api_server_that_knows_no_audiences_is_not_believed() -> None:
    """One that ignores `spec.audiences` says of any token that it is authentic."""

    async def test(rig: Rig) -> None:
        claim = rig.site.pod("good")
        token = rig.site.token(claim)
        answered = rig.site.kube.hooks[REVIEWS]

        def answering(audiences: list[str] | None) -> Callable[[Object], Object]:
            return lambda body: {"status": {**answered(body)["status"], "audiences": audiences}}

        for audiences in ([], None, ["https://kubernetes.default.svc"]):
            rig.site.kube.hooks[REVIEWS] = answering(audiences)
            with pytest.raises(TokenRefused) as caught:
                await rig.reviews.verify(token)
            assert caught.value.fault == "AUDIENCE"

    rigged(test)


def unsigned(claims: object) -> str:
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in (b"{}", _json(claims), b"x"))


def _json(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize(
    "token",
    ["", " ", "a", "a.b", "a..c", "a.b.c.d", "a.b.c\n", "a b.c.d", "é.b.c", "x" * 16_000],
)
def test_what_cannot_be_a_token_costs_no_review(token: str) -> None:
    """An empty one the API server answers with an error, which would pass for an outage."""

    async def test(rig: Rig) -> None:
        with pytest.raises(TokenRefused) as caught:
            await rig.reviews.verify(token)
        assert caught.value.fault == "INVALID"
        assert (rig.site.reviews, rig.site.kube.writes) == (0, [])

    rigged(test)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 10**400},
        {"exp": -(10**400)},
        b'{"exp": 1e999, "aud": 5}',
        b'{"exp": NaN}',
        {"exp": [1], "aud": {"a": 1}},
        {"aud": 5},
        {"aud": [AUDIENCE, None]},
        {"kubernetes.io": 7, "sub": []},
        [],
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_a_refused_token_says_of_itself_breaks_nothing(claims: object) -> None:
    async def test(rig: Rig) -> None:
        assert await rig.refused(rig.site.pod("good"), unsigned(claims)) is Reason.POD_TOKEN_INVALID
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(unsigned(claims))
        assert caught.value.reason is Reason.AGENT_TOKEN_INVALID

    rigged(test)


def test_a_flood_of_bad_tokens_is_no_flood_at_the_api_server() -> None:
    """Nor does it keep out those that the cluster's keys signed."""

    async def test(rig: Rig) -> None:
        site = rig.site
        rig.publish_keys()
        await rig.offline.refresh()
        stranger = ec.generate_private_key(ec.SECP256R1())
        bad = [unsigned({"n": number}) for number in range(500)]
        forged = [jwt.encode({"n": number}, stranger, "ES256", {"kid": "k1"}) for number in range(500)]
        found = await asyncio.gather(*map(rig.attestor.agent, [*bad, *forged]), return_exceptions=True)
        reasons = Counter(each.reason for each in found if isinstance(each, Refused))
        assert site.reviews == STRANGER.at_once
        assert reasons == {
            Reason.BUSY: 500 - STRANGER.at_once,
            Reason.AGENT_TOKEN_INVALID: 500 + STRANGER.at_once,
        }
        assert all(each.retry_after for each in found if isinstance(each, Refused) and each.reason is Reason.BUSY)
        # An honest agent, whose token the API server knows as well.
        agent = rig.signed(site.agent())
        site.known(site.agent(), agent)
        assert (await rig.attestor.agent(agent)).node_name == "node-a"
        # In the next second some are asked about again, as the keys that were read may be old ones.
        site.clock.pass_by(seconds=1)
        before = site.reviews
        await asyncio.gather(*(rig.attestor.agent(token) for token in bad), return_exceptions=True)
        assert site.reviews - before == STRANGER.a_second

    rigged(test)


def test_good_tokens_cost_no_credit() -> None:
    async def test(rig: Rig) -> None:
        good = rig.site.pod("good")
        for _ in range(3):
            await asyncio.gather(*(rig.reviews.verify(rig.site.token(good)) for _ in range(int(STRANGER.at_once))))
        # Nor does an API server that is away.
        rig.site.kube.down = True
        for _ in range(3):
            asked = (rig.reviews.verify(rig.site.token(good)) for _ in range(int(STRANGER.at_once)))
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(each, ApiUnavailable) for each in found)
            rig.site.clock.pass_by(seconds=2)

    rigged(test)


def test_no_error_quotes_a_token_that_the_api_server_quotes() -> None:
    async def test(rig: Rig) -> None:
        token = rig.site.token(rig.site.pod("good"))

        def failing(kind: type[Exception]) -> Callable[[Object], Object]:
            def answer(body: Object) -> Object:
                raise kind(f"spec.token: Invalid value: {body['spec']['token']}")

            return answer

        for kind in (Forbidden, ApiUnavailable):
            rig.site.kube.hooks[REVIEWS] = failing(kind)
            with pytest.raises(ApiUnavailable) as caught:
                await rig.reviews.verify(token)
            assert "Invalid value: (the token)" in str(caught.value)
            assert token not in str(caught.value)

    rigged(test)


def test_the_cache_is_bounded_and_ends_with_the_token() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        reviews = TokenReviews(site.kube, AUDIENCE, rig.offline, site.clock, limit=3)
        good = site.pod("good")
        for _ in range(10):
            await reviews.verify(site.token(good))
        assert len(reviews._known) == 3
        short = site.token(good, life=2)
        await reviews.verify(short)
        site.clock.pass_by(seconds=3)
        with pytest.raises(TokenRefused) as caught:
            await reviews.verify(short)
        assert caught.value.fault == "EXPIRED"

    rigged(test)


def test_without_the_api_server_only_what_has_an_identity_goes_on_and_not_for_ever() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        rig.publish_keys()
        await rig.offline.refresh()
        old, new = site.pod("old"), site.pod("new")
        agent, token, fresh = site.agent(), site.token(old), site.token(new)
        rig.attestor.issued(await rig.attest(old, token, agent), WEB)
        agent, token, fresh = rig.signed(agent), rig.signed(token), rig.signed(fresh)
        site.kube.down = True
        found = await rig.attest(old, token, agent)
        assert found.degraded
        assert await rig.refused(new, fresh, agent) is Reason.API_SERVER_UNAVAILABLE
        # Neither a token that the cluster's key did not sign, nor one of another node, nor one for another pod.
        forged = jwt.encode(jwt.decode(token, options={"verify_signature": False}), "secret" * 8, algorithm="HS256")
        assert await rig.refused(old, forged, agent) is Reason.POD_TOKEN_INVALID
        elsewhere = rig.signed(site.agent("node-b"))
        assert await rig.refused(old, token, elsewhere) is Reason.POD_ON_OTHER_NODE
        assert await rig.refused(old, fresh, agent) is Reason.POD_TOKEN_REPLAYED
        # A degraded answer does not prolong itself.
        rig.attestor.issued(found, WEB)
        site.clock.pass_by(minutes=11)
        assert await rig.refused(old, token, agent) is Reason.API_SERVER_UNAVAILABLE

    rigged(test)


def test_without_the_api_server_a_pod_goes_on_as_what_it_was_and_on_its_node() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        rig.publish_keys()
        await rig.offline.refresh()
        pod = site.pod("web")
        agent, token = site.agent(), site.token(pod)
        attested = await rig.attest(pod, token, agent)
        attested.check(OTHER)  # the API server is there: policy alone decides
        rig.attestor.issued(attested, WEB)
        site.kube.down = True
        degraded = await rig.attest(pod, rig.signed(token), rig.signed(agent))
        degraded.check(WEB)
        with pytest.raises(Refused) as caught:
            degraded.check(OTHER)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        # A node of the same name that was made anew: its pod's token would be one of another pod.
        again = {**jwt.decode(token, options={"verify_signature": False})}
        again["kubernetes.io"] = {**again["kubernetes.io"], "node": {"name": "node-a", "uid": "another"}}
        mine = {**jwt.decode(agent, options={"verify_signature": False})}
        mine["kubernetes.io"] = {**mine["kubernetes.io"], "node": {"name": "node-a", "uid": "another"}}
        found = await rig.refused(
            pod, *(jwt.encode(each, rig.key, algorithm="ES256", headers={"kid": "k1"}) for each in (again, mine))
        )
        assert found is Reason.API_SERVER_UNAVAILABLE

    rigged(test)


def test_an_api_server_that_only_reviews_no_tokens_does_not_prolong_its_outage() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        rig.publish_keys()
        await rig.offline.refresh()
        pod = site.pod("web")
        agent, token = site.agent(), site.token(pod)
        rig.attestor.issued(await rig.attest(pod, token, agent), WEB)
        agent, token = rig.signed(agent), rig.signed(token)
        site.kube.denied.add(("create", REVIEWS))
        for minutes in range(10):
            assert (await rig.attest(pod, token, agent)).degraded
            site.clock.pass_by(minutes=1)
            # The watch of pods goes on all the time.
            site.pod(f"other-{minutes}")
            while rig.pods.last_contact != site.clock.now():
                await asyncio.sleep(0)
        assert (await rig.attest(pod, token, agent)).degraded
        site.clock.pass_by(seconds=1)
        assert await rig.refused(pod, token, agent) is Reason.API_SERVER_UNAVAILABLE
        site.kube.denied.clear()
        fresh, mine = site.token(pod), site.agent()
        assert not (await rig.attest(pod, fresh, mine)).degraded
        # The next outage has its own bound.
        site.kube.denied.add(("create", REVIEWS))
        assert (await rig.attest(pod, token, agent)).degraded

    rigged(test)


@pytest.mark.parametrize("head", [{"alg": "none"}, {"alg": "HS256", "kid": "k1"}, {"alg": "ES256", "kid": "unknown"}])
def test_offline_verification_takes_the_clusters_signatures_only(head: dict[str, str]) -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        good = rig.site.pod("good")
        claims = jwt.decode(rig.site.token(good), options={"verify_signature": False})
        key: Any = {"HS256": "x" * 32, "ES256": rig.key}.get(head["alg"])
        forged = jwt.encode(claims, key, algorithm=head["alg"], headers=head)
        with pytest.raises(TokenRefused) as caught:
            rig.offline.verify(forged)
        assert caught.value.fault == "INVALID"

    rigged(test)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"aud": ["other"]}, "AUDIENCE"),
        ({"exp": 1}, "EXPIRED"),
        ({"nbf": 4_000_000_000}, "INVALID"),
        ({"sub": "system:serviceaccount:kube-system:admin"}, "INVALID"),
        ({"kubernetes.io": None}, "INVALID"),
        ({"exp": None}, "INVALID"),
    ],
)
def test_offline_claims(change: dict[str, object], fault: str) -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        good = rig.site.pod("good")
        token = rig.signed(rig.site.token(good))
        assert rig.offline.verify(token).pod_uid == good.uid
        claims = {**jwt.decode(token, options={"verify_signature": False}), **change}
        claims = {key: value for key, value in claims.items() if value is not None}
        with pytest.raises(TokenRefused) as caught:
            rig.offline.verify(jwt.encode(claims, rig.key, algorithm="ES256", headers={"kid": "k1"}))
        assert caught.value.fault == fault

    rigged(test)


def test_a_hanging_api_server_is_asked_now_and_then_only() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        good = site.pod("good")
        site.kube.down = True
        token = site.token(good)
        for _ in range(5):
            with pytest.raises(ApiUnavailable):
                await rig.reviews.verify(token)
        site.kube.down = False
        with pytest.raises(ApiUnavailable):
            await rig.reviews.verify(token)
        site.clock.pass_by(seconds=3)
        assert (await rig.reviews.verify(token)).pod_uid == good.uid
        assert site.reviews == 1

    rigged(test)
