"""The bounds of what goes on without the API server, each on its own; and reviews that are odd."""

import asyncio
from typing import Any

import jwt
import looptime
import pytest

from signer.attestation.tokens import REVIEW_SECONDS, REVIEWS, OfflineTokens, TokenReviews
from signer.errors import ApiUnavailable, Reason, Refused
from signer.model import PodClaim
from tests.signer_rig import AUDIENCE, Site
from tests.unit.signer.test_attestation import WEB, Rig, rigged


async def ready(rig: Rig, name: str = "web") -> tuple[PodClaim, str, str]:
    """A pod that has its identity, its token and its agent's, both by the cluster's key."""
    rig.publish_keys()
    await rig.offline.refresh()
    claim = rig.site.pod(name)
    agent, token = rig.site.agent(), rig.site.token(claim)
    rig.attestor.issued(await rig.attest(claim, token, agent), WEB)
    return claim, rig.signed(token), rig.signed(agent)


def of_node(rig: Rig, token: str, uid: str) -> str:
    """The same token, of a node of that name and another uid."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    node = {**claims["kubernetes.io"]["node"], "uid": uid}
    changed = {**claims, "kubernetes.io": {**claims["kubernetes.io"], "node": node}}
    return jwt.encode(changed, rig.key, algorithm="ES256", headers={"kid": "k1"})


def test_a_node_that_was_made_anew_under_its_name_is_another_node() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.kube.denied.add(("create", REVIEWS))
        assert (await rig.attest(claim, token, agent)).degraded
        # The agent of the new node, with the token of a pod of the old one, and the other way round.
        assert await rig.refused(claim, token, of_node(rig, agent, "anew")) is Reason.POD_ON_OTHER_NODE
        assert await rig.refused(claim, of_node(rig, token, "anew"), agent) is Reason.POD_ON_OTHER_NODE

    rigged(test)


def test_a_pod_that_waits_is_told_what_keeps_tokens_from_being_reviewed() -> None:
    """The API server may well be there: a signer whose role lacks that said that it was away."""

    async def test(rig: Rig) -> None:
        _, _, agent = await ready(rig)
        new = rig.site.pod("new")
        rig.site.kube.denied.add(("create", REVIEWS))
        with pytest.raises(Refused, match=r"the signer may not review tokens: .*; apply its RBAC") as caught:
            await rig.attest(new, rig.signed(rig.site.token(new)), agent)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert "is away" not in str(caught.value)

    rigged(test)


def test_a_pod_alone_is_refused_beyond_the_outage_limit() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.kube.denied.add(("create", REVIEWS))
        caller = await rig.attestor.agent(agent)
        assert (await rig.attestor.pod(caller, token, claim)).degraded
        rig.site.clock.pass_by(minutes=11)
        with pytest.raises(Refused, match="away for longer than outage_limit"):
            await rig.attestor.pod(caller, token, claim)

    rigged(test)


def test_an_agent_alone_is_refused_beyond_the_outage_limit() -> None:
    async def test(rig: Rig) -> None:
        _, _, agent = await ready(rig)
        rig.site.kube.down = True
        await rig.attestor.agent(agent)
        rig.site.clock.pass_by(minutes=11)
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(agent)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert caught.value.retry_after

    rigged(test)


def test_a_pod_is_refused_beyond_the_outage_limit_though_its_agent_was_let_pass_before() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.kube.down = True
        caller = await rig.attestor.agent(agent)
        assert (await rig.attestor.pod(caller, token, claim)).degraded
        rig.site.clock.pass_by(minutes=11)
        with pytest.raises(Refused) as caught:
            await rig.attestor.pod(caller, token, claim)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE

    rigged(test)


def test_a_pod_that_is_remembered_is_looked_at_again() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.kube.denied.add(("create", REVIEWS))
        rig.site.pod("web", uid=claim.uid, phase="Succeeded")
        for _ in range(20):
            await asyncio.sleep(0)
        assert await rig.refused(claim, token, agent) is Reason.POD_FINISHED

    rigged(test)


def test_a_signer_that_may_not_read_pods_is_told_to_whom_it_keeps_waiting() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        claim = PodClaim("default", "unseen", "uid-unseen")
        caller = await rig.attestor.agent(site.agent())
        site.kube.denied.add(("get", "/api/v1/namespaces/default/pods/unseen"))
        with pytest.raises(Refused, match=r"may not read pods.*apply its RBAC") as caught:
            await rig.attestor.pod(caller, site.token(claim), claim)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE

    rigged(test)


@pytest.mark.parametrize("name", ["pod-name", "pod-uid", "node-name", "node-uid"])
def test_a_review_that_names_two_of_something_names_none(name: str) -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        review = site.kube.hooks[REVIEWS]

        def doubled(body: Any) -> Any:
            answer = review(body)
            extra = answer["status"]["user"]["extra"]
            key = f"authentication.kubernetes.io/{name}"
            extra[key] = [*extra[key], "another"]
            return answer

        claim = site.pod("web")
        token, caller = site.token(claim), await rig.attestor.agent(site.agent())
        site.kube.hooks[REVIEWS] = doubled
        with pytest.raises(Refused) as caught:
            await rig.attestor.pod(caller, token, claim)
        assert caught.value.reason is Reason.POD_TOKEN_UNBOUND

    rigged(test)


def test_a_review_without_an_answer_ends_and_the_next_one_does_not_wait_for_it() -> None:
    async def run() -> None:
        site = Site()

        async def never(path: str, body: Any) -> Any:
            await asyncio.Event().wait()

        site.kube.create = never  # type: ignore[method-assign]
        reviews = TokenReviews(site.kube, AUDIENCE, OfflineTokens(site.kube, AUDIENCE, site.clock), site.clock)
        began = asyncio.get_running_loop().time()
        token = site.agent()
        for most in (REVIEW_SECONDS, 0.0):
            with pytest.raises(ApiUnavailable):
                await reviews.verify(token)
            assert asyncio.get_running_loop().time() - began <= most + 0.1
            began = asyncio.get_running_loop().time()

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(asyncio.wait_for(run(), 1000))
    finally:
        loop.close()


def lost(rig: Rig) -> None:
    """Pods cannot be followed any more, and all else is answered."""
    rig.pods._mirror.lost_since = rig.site.clock.monotonic()


def test_pods_that_cannot_be_followed_are_not_served_for_ever_by_what_they_were() -> None:
    """Tokens are reviewed as ever: a pod that finished, or has other labels by now, would not be known."""

    async def test(rig: Rig) -> None:
        claim, _, _ = await ready(rig)
        token, agent = rig.site.token(claim), rig.site.agent()
        lost(rig)
        rig.site.clock.pass_by(minutes=10)
        assert not (await rig.attest(claim, token, agent)).degraded
        rig.site.clock.pass_by(seconds=1)
        caller = await rig.attestor.agent(agent)
        with pytest.raises(Refused, match="pods could not be followed for longer") as caught:
            await rig.attestor.pod(caller, token, claim)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert caught.value.retry_after
        rig.pods._mirror.lost_since = None
        assert not (await rig.attest(claim, token, agent)).degraded

    rigged(test)


def test_nor_in_an_outage_that_is_younger() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        lost(rig)
        rig.site.clock.pass_by(minutes=11)
        await rig.attestor.agent(rig.site.agent())
        rig.site.kube.denied.add(("create", REVIEWS))
        caller = await rig.attestor.agent(agent)
        with pytest.raises(Refused, match="pods could not be followed for longer"):
            await rig.attestor.pod(caller, token, claim)

    rigged(test)
