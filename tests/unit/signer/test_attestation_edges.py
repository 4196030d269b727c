"""Attestation between its rules: half a binding, a pod that nobody can look at, what is remembered."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from signer.attestation import attestor as module
from signer.attestation.tokens import REVIEWS
from signer.cluster.kube import Object
from signer.errors import ApiUnavailable, Forbidden, Reason, Refused
from signer.model import PodClaim
from tests.unit.signer.test_attestation import OTHER, SETTINGS, WEB, Rig, rigged
from tests.unit.signer.test_attestation_outage import ready

NODE = "authentication.kubernetes.io/node-"


def reviewing(rig: Rig, change: Callable[[dict[str, Any]], None]) -> None:
    """From now on the API server's reviews are changed like that."""
    review = rig.site.kube.hooks[REVIEWS]

    def changed(body: Object) -> Object:
        answer = review(body)
        change(answer["status"]["user"])
        return answer

    rig.site.kube.hooks[REVIEWS] = changed


async def told() -> None:
    """Wait until the mirrors have what was put last."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("half", ["name", "uid"])
def test_half_of_a_node_is_none(half: str) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        caller = await rig.attestor.agent(rig.site.agent())
        reviewing(rig, lambda user: user["extra"].pop(NODE + half))
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(rig.site.agent("node-b"))
        assert caught.value.reason is Reason.AGENT_TOKEN_UNBOUND
        with pytest.raises(Refused) as caught:
            await rig.attestor.pod(caller, rig.site.token(claim), claim)
        assert caught.value.reason is Reason.POD_TOKEN_UNBOUND

    rigged(test)


@pytest.mark.parametrize("half", ["name", "uid"])
def test_nodes_are_the_same_when_both_halves_are(half: str) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        caller = await rig.attestor.agent(rig.site.agent())
        reviewing(rig, lambda user: user["extra"].update({NODE + half: ["another"]}))
        with pytest.raises(Refused) as caught:
            await rig.attestor.pod(caller, rig.site.token(claim), claim)
        assert caught.value.reason is Reason.POD_ON_OTHER_NODE
        assert "the agent that asks is on node-a" in str(caught.value)

    rigged(test)


@pytest.mark.parametrize("part", ["pod-name", "pod-uid"])
def test_half_of_a_pod_is_none(part: str) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        caller = await rig.attestor.agent(rig.site.agent())
        reviewing(rig, lambda user: user["extra"].pop(f"authentication.kubernetes.io/{part}"))
        for lie in (claim, PodClaim(claim.namespace, "", claim.uid), PodClaim(claim.namespace, claim.name, "")):
            with pytest.raises(Refused) as caught:
                await rig.attestor.pod(caller, rig.site.token(claim), lie)
            assert caught.value.reason is Reason.POD_TOKEN_UNBOUND

    rigged(test)


@pytest.mark.parametrize(
    "username",
    [
        "system:node:node-a",
        "system:serviceaccounts:podsvid:podsvid-agent",
        "system:serviceaccount:podsvid",
        "",
        "admin",
    ],
)
def test_who_is_no_service_account_is_no_agent(username: str) -> None:
    async def test(rig: Rig) -> None:
        reviewing(rig, lambda user: user.update(username=username))
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(rig.site.agent())
        assert caught.value.reason is Reason.AGENT_TOKEN_INVALID

    rigged(test)


@pytest.mark.parametrize("error", [ApiUnavailable, Forbidden])
def test_a_new_pod_that_cannot_be_looked_at_waits(error: type[Exception]) -> None:
    """Its token is good, but nobody says what kind of pod it is."""

    async def test(rig: Rig) -> None:
        async def failing(path: str) -> Object:
            raise error("cannot get pods")

        rig.site.kube.get = failing  # type: ignore[method-assign]
        claim = PodClaim("default", "new", "uid-new")
        token = rig.site.token(claim)
        with pytest.raises(Refused) as caught:
            await rig.attest(claim, token)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert caught.value.retry_after
        # Nor does what it is called for the words of another refusal hide that one.
        assert await rig.refused(claim, rig.site.token(claim, known=False)) is Reason.POD_TOKEN_INVALID

    rigged(test)


def test_the_words_of_a_refusal_cost_a_look_only_where_they_help() -> None:
    async def test(rig: Rig) -> None:
        site = rig.site
        rig.publish_keys()
        await rig.offline.refresh()
        gone = PodClaim("default", "gone", "gone-uid")
        reads = len(site.kube.reads)
        assert await rig.refused(gone, site.token(gone, life=-5)) is Reason.POD_TOKEN_EXPIRED
        assert await rig.refused(gone, site.token(gone, audience="x")) is Reason.POD_TOKEN_AUDIENCE
        nameless = PodClaim("default", "gone", "")
        assert await rig.refused(gone, rig.signed(site.token(nameless, known=False))) is Reason.POD_TOKEN_INVALID
        assert len(site.kube.reads) == reads

    rigged(test)


def test_an_identity_that_changed_is_the_one_that_goes_on() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        attested = await rig.attest(claim, rig.site.token(claim), rig.site.agent())
        rig.attestor.issued(attested, OTHER)
        rig.site.kube.denied.add(("create", REVIEWS))
        assert (await rig.attest(claim, token, agent)).held == OTHER

    rigged(test)


def test_a_pod_that_was_deleted_before_the_outage_does_not_go_on() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.remove(claim)
        await told()
        rig.site.kube.denied.add(("create", REVIEWS))
        with pytest.raises(Refused) as caught:
            await rig.attest(claim, token, agent)
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert caught.value.retry_after

    rigged(test)


def test_the_pods_that_were_served_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ISSUED", 2)

    async def test(rig: Rig) -> None:
        first, second, third = [await ready(rig, name) for name in ("first", "second", "third")]
        assert [*rig.attestor._issued] == [second[0].uid, third[0].uid]
        # Its renewal makes the second one newer than the third.
        rig.attestor.issued(await rig.attest(second[0], rig.site.token(second[0])), WEB)
        rig.attestor.issued(await rig.attest(first[0], rig.site.token(first[0])), WEB)
        rig.site.kube.denied.add(("create", REVIEWS))
        for claim, token, agent in (first, second):
            assert (await rig.attest(claim, token, agent)).degraded
        assert await rig.refused(*third) is Reason.API_SERVER_UNAVAILABLE

    rigged(test)


def test_a_signer_that_heard_of_nothing_yet_believes_nobody() -> None:
    async def run() -> None:
        rig = Rig()
        rig.publish_keys()
        await rig.offline.refresh()
        rig.site.kube.denied.add(("create", REVIEWS))
        with pytest.raises(Refused) as caught:
            await rig.attestor.agent(rig.signed(rig.site.agent()))
        assert caught.value.reason is Reason.API_SERVER_UNAVAILABLE
        assert caught.value.retry_after

    asyncio.run(run())


@pytest.mark.parametrize("quiet", [False, True])
def test_an_outage_begins_when_nothing_was_heard_any_more(quiet: bool) -> None:
    """Not with the last mint: in a quiet hour nobody asks for any, and the watch of pods tells that all is well."""

    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.clock.pass_by(minutes=9)
        if not quiet:
            rig.site.pod("another")
            await told()
        rig.site.clock.pass_by(minutes=1)
        rig.site.kube.denied.add(("create", REVIEWS))
        # To the very end of the limit.
        assert (await rig.attest(claim, token, agent)).degraded
        rig.site.clock.pass_by(minutes=9)
        if quiet:
            assert await rig.refused(claim, token, agent) is Reason.API_SERVER_UNAVAILABLE
            return
        assert (await rig.attest(claim, token, agent)).degraded
        rig.site.clock.pass_by(seconds=1)
        assert await rig.refused(claim, token, agent) is Reason.API_SERVER_UNAVAILABLE

    assert SETTINGS.outage_limit.total_seconds() == 600
    rigged(test)


def test_reviews_that_are_answered_are_a_sign_of_life_too() -> None:
    """Nothing changes in a quiet cluster, and its watches are silent."""

    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.clock.pass_by(minutes=9)
        await rig.attestor.agent(rig.site.agent())
        rig.site.clock.pass_by(minutes=9)
        rig.site.kube.denied.add(("create", REVIEWS))
        assert (await rig.attest(claim, token, agent)).degraded

    rigged(test)


def test_what_is_refused_in_an_outage_says_when_to_ask_again() -> None:
    async def test(rig: Rig) -> None:
        claim, token, agent = await ready(rig)
        rig.site.kube.denied.add(("create", REVIEWS))
        degraded = await rig.attest(claim, token, agent)
        degraded.check(WEB)
        with pytest.raises(Refused) as caught:
            degraded.check(OTHER)
        assert caught.value.retry_after
        new = rig.site.pod("new")
        with pytest.raises(Refused) as caught:
            await rig.attest(new, rig.signed(rig.site.token(new)), agent)
        assert caught.value.retry_after
        rig.site.clock.pass_by(minutes=11)
        with pytest.raises(Refused) as caught:
            await rig.attest(claim, token, agent)
        assert caught.value.retry_after

    rigged(test)
