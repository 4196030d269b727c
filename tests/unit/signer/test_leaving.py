"""A pod that is deleted and serves on: kubelet brings it no more tokens, and its last one does until it has ended."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from signer.attestation.pods import read_pod
from signer.attestation.tokens import REVIEWS, TokenRefused
from signer.cluster.kube import Object
from signer.cluster.objects import Pod, PodMetadata
from signer.errors import Reason, Refused
from signer.model import AFTERWARDS, OUTAGE_RETRY, Leaving, PodClaim
from svid.certificates import certificates_from_der
from tests.signer_rig import START
from tests.unit.signer.door import Door, at_the_door, lines, refused
from tests.unit.signer.test_attestation import Rig, rigged

TOKEN_LIFE, GRACE = 600.0, 7200
WEB = "spiffe://example.org/ns/default/sa/web"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/web"


def deleted(there: Rig | Door, claim: PodClaim, *, asked: float = 300, grace: int = GRACE, **changes: Any) -> None:
    """Somebody deletes the pod at that second."""
    path = f"/api/v1/namespaces/{claim.namespace}/pods/{claim.name}"
    body: Object = there.site.kube.objects[path]
    ends = f"{at(asked + grace):%Y-%m-%dT%H:%M:%SZ}"
    metadata = {**body["metadata"], "deletionTimestamp": ends, "deletionGracePeriodSeconds": grace}
    there.site.kube.put(path, {**body, "metadata": metadata, **changes})
    there.site.kube.put(ACCOUNT, {"metadata": {"uid": "sa-web"}})


async def told(rig: Rig, claim: PodClaim) -> None:
    async with asyncio.timeout(10):
        while (known := rig.pods.known(claim.uid)) is None or known.leaving is None:
            await asyncio.sleep(0)


def ending(test: Callable[[Rig, PodClaim, str], Awaitable[None]], life: float = TOKEN_LIFE) -> None:
    """A pod, its last token, and the cluster's keys at hand. It is second 0."""

    async def run(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        claim = rig.site.pod("web")
        await test(rig, claim, rig.signed(rig.site.token(claim, life=life)))

    rigged(run)


def test_its_last_token_serves_until_its_grace_period_is_over() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        attested = await rig.attest(claim, token)
        assert (attested.pod.uid, attested.agent.node_name) == (claim.uid, "node-a")
        assert attested.until == at(300 + GRACE) + AFTERWARDS
        assert not attested.degraded
        rig.site.clock.pass_by(seconds=300 + GRACE - TOKEN_LIFE - 2)
        assert (await rig.attest(claim, token)).until == at(300 + GRACE) + AFTERWARDS
        rig.site.clock.pass_by(seconds=1)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_EXPIRED

    ending(test)


@pytest.mark.parametrize("wrong", [-3600, -120, -60, 60, 120, 3600])
def test_its_end_comes_by_the_clock_that_dated_it(wrong: float) -> None:
    """The API server's, and not by that of a signer which is wrong; so do the ends of tokens."""

    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        clock = rig.site.clock
        rig.witness.heard(clock.at)
        clock.set_by(seconds=wrong)
        deleted(rig, claim)
        await told(rig, claim)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_INVALID, "it has not ended"
        clock.pass_by(seconds=TOKEN_LIFE + 1)
        assert (await rig.attest(claim, token)).until == at(300 + GRACE) + AFTERWARDS
        clock.pass_by(seconds=300 + GRACE - TOKEN_LIFE - 2)
        await rig.attest(claim, token)
        clock.pass_by(seconds=1)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_EXPIRED

    ending(test)


@pytest.mark.parametrize("wrong", [-3600, -120, 120, 3600])
def test_a_new_token_is_good_while_the_api_server_is_away_whatever_this_clock_says(wrong: float) -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        rig.witness.heard(rig.site.clock.at)
        rig.site.clock.set_by(seconds=wrong)
        claims = jwt.decode(token, options={"verify_signature": False})
        new = jwt.encode(
            {**claims, "nbf": int(rig.site.clock.at.timestamp())}, rig.key, algorithm="ES256", headers={"kid": "k1"}
        )
        assert rig.offline.verify(new).pod_uid == claim.uid
        rig.site.clock.pass_by(seconds=TOKEN_LIFE)
        with pytest.raises(TokenRefused, match="expired"):
            rig.offline.verify(new)

    ending(test)


def test_while_its_token_is_good_nothing_is_other_than_before() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        assert (await rig.attest(claim, rig.site.token(claim))).until is None

    ending(test)


def test_a_pod_that_is_not_deleted_gets_nothing_for_it_and_nobody_is_asked() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        agent = rig.site.agent()
        rig.site.kube.reads.clear()
        assert await rig.refused(claim, token, agent) is Reason.POD_TOKEN_EXPIRED
        assert rig.site.kube.reads == []

    ending(test)


def test_a_token_that_had_ended_before_the_pod_was_deleted_is_worth_nothing() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim, asked=TOKEN_LIFE + 1)
        await told(rig, claim)
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 2)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_EXPIRED

    ending(test)


def test_a_grace_period_that_was_shortened_counts_as_it_is_now() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        # Not told to the mirror yet: it is looked at where it is.
        metadata = rig.site.kube.objects["/api/v1/namespaces/default/pods/web"]["metadata"]
        metadata.update(deletionTimestamp=f"{at(360):%Y-%m-%dT%H:%M:%SZ}", deletionGracePeriodSeconds=60)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_EXPIRED

    ending(test)


def test_what_the_mirror_has_not_heard_of_is_seen() -> None:
    """A pod that is gone, finished or another by now, though its end was not told yet."""

    async def gone(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        path = f"/api/v1/namespaces/default/pods/{claim.name}"
        body = rig.site.kube.objects.pop(path)  # no event
        assert await rig.refused(claim, token) is Reason.POD_NOT_FOUND
        rig.site.kube.objects[path] = {**body, "metadata": {**body["metadata"], "uid": "another"}}
        assert await rig.refused(claim, token) is Reason.POD_UID_MISMATCH
        rig.site.kube.objects[path] = {**body, "status": {"phase": "Failed"}}
        assert await rig.refused(claim, token) is Reason.POD_FINISHED
        rig.site.kube.objects[path] = {**body, "spec": {**body["spec"], "serviceAccountName": "admin"}}
        assert await rig.refused(claim, token) is Reason.SERVICE_ACCOUNT_MISMATCH
        rig.site.kube.objects[path] = {**body, "spec": {**body["spec"], "nodeName": "node-b"}}
        assert await rig.refused(claim, token) is Reason.POD_ON_OTHER_NODE
        rig.site.kube.objects[path] = {**body, "spec": {**body["spec"], "volumes": []}}
        assert await rig.refused(claim, token) is Reason.POD_WITHOUT_DRIVER
        live = {key: value for key, value in body["metadata"].items() if not key.startswith("deletion")}
        rig.site.kube.objects[path] = {**body, "metadata": live}
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_EXPIRED
        rig.site.kube.objects[path] = body
        await rig.attest(claim, token)

    ending(gone)


def test_with_its_service_account_goes_its_identity() -> None:
    """As with a token that is good: whoever deletes it takes identities away."""

    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        await rig.attest(claim, token)
        kube = rig.site.kube
        kube.objects[ACCOUNT]["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_INVALID
        kube.remove(ACCOUNT)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_INVALID
        kube.put(ACCOUNT, {"metadata": {"uid": "another"}})
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_INVALID
        kube.denied.add(("get", ACCOUNT))
        assert await rig.refused(claim, token) is Reason.API_SERVER_UNAVAILABLE

    ending(test)


def test_a_token_that_is_refused_for_what_it_is_gets_nothing_for_its_pods_end() -> None:
    """It is good for a while, and the API server does not take it."""

    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        assert await rig.refused(claim, token) is Reason.POD_TOKEN_INVALID

    ending(test)


def test_it_is_proof_of_that_pod_on_that_node_and_of_nothing_else() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        site = rig.site
        other = site.pod("other")
        elsewhere = rig.signed(site.token(claim, node="node-b", life=TOKEN_LIFE))
        foreign = rig.signed(site.token(claim, audience="vault", life=TOKEN_LIFE))
        unbound = rig.signed(site.token(claim, node=None, life=TOKEN_LIFE))
        account = rig.signed(site.token(None, life=TOKEN_LIFE))
        claims = jwt.decode(token, options={"verify_signature": False})
        stranger = ec.generate_private_key(ec.SECP256R1())
        forged = jwt.encode(claims, stranger, algorithm="ES256", headers={"kid": "k1"})
        unknown = jwt.encode(claims, stranger, algorithm="ES256", headers={"kid": "k2"})
        for each in (claim, other):
            deleted(rig, each)
            await told(rig, each)
        site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        assert await rig.refused(claim, token, site.agent("node-b")) is Reason.POD_ON_OTHER_NODE
        assert await rig.refused(other, token) is Reason.POD_TOKEN_REPLAYED
        assert await rig.refused(PodClaim("default", "web", other.uid), token) is Reason.POD_TOKEN_REPLAYED
        assert await rig.refused(claim, elsewhere) is Reason.POD_ON_OTHER_NODE
        assert await rig.refused(claim, unbound) is Reason.POD_TOKEN_UNBOUND
        assert await rig.refused(claim, account) is Reason.POD_TOKEN_UNBOUND
        assert await rig.refused(claim, foreign) in (Reason.POD_TOKEN_EXPIRED, Reason.POD_TOKEN_AUDIENCE)
        assert await rig.refused(claim, forged) is Reason.POD_TOKEN_EXPIRED
        assert await rig.refused(claim, unknown) is Reason.POD_TOKEN_EXPIRED
        # An agent is no pod: its own ended token opens nothing.
        late = rig.signed(site.agent(life=-1))
        assert await rig.refused(claim, token, late) is Reason.AGENT_TOKEN_EXPIRED

    ending(test)


def test_it_waits_for_the_api_server() -> None:
    async def test(rig: Rig, claim: PodClaim, token: str) -> None:
        deleted(rig, claim)
        await told(rig, claim)
        agent = rig.site.agent()
        caller = await rig.attestor.agent(agent)
        rig.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        rig.site.kube.denied.add(("create", REVIEWS))
        assert (await rig.attestor.pod(caller, token, claim)).until, "the pod itself can be seen"
        rig.site.kube.down = True
        with pytest.raises(Refused) as caught:
            await rig.attestor.pod(caller, token, claim)
        assert (caught.value.reason, caught.value.retry_after) == (Reason.API_SERVER_UNAVAILABLE, OUTAGE_RETRY)

    ending(test)


@pytest.mark.parametrize(
    ("ends", "grace", "found"),
    [
        ("2030-01-01T01:00:00Z", 3600, (0, 3600)),
        ("2030-01-01T01:00:00+01:00", 0, (0, 0)),
        ("2030-01-01T01:00:00Z", None, (3600, 3600)),
        ("2030-01-01T01:00:00Z", -5, (3600, 3600)),
        ("2030-01-01T01:00:00Z", 2**62, None),
        ("soon", 30, None),
        ("", 30, None),
        (None, 30, None),
    ],
)
def test_when_a_pod_ends(ends: str | None, grace: int | None, found: tuple[float, float] | None) -> None:
    metadata = PodMetadata(
        name="web", namespace="default", uid="u", deletion_timestamp=ends, deletion_grace_period_seconds=grace
    )
    pod = read_pod(Pod(metadata=metadata))
    assert pod is not None
    assert pod.leaving == (None if found is None else Leaving(at(found[0]), at(found[1])))


def test_what_it_gets_ends_with_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        token = door.signed(door.site.token(claim, life=TOKEN_LIFE))
        await door.offline.refresh()
        deleted(door, claim, grace=1200)
        await door.told()
        door.site.clock.pass_by(seconds=TOKEN_LIFE + 1)
        latest = at(1500) + AFTERWARDS
        answer = await door.x509(claim, token)
        leaf = certificates_from_der(answer.chain)[0]
        assert answer.spiffe_id == WEB
        assert leaf.not_valid_after_utc == latest
        assert answer.renew_until.ToDatetime(latest.tzinfo) < latest
        assert lines(caplog)[-1]["ended_token"] is True
        claims = jwt.decode((await door.jwt(claim, token, WEB, "api")).token, options={"verify_signature": False})
        assert at(TOKEN_LIFE) < datetime.fromtimestamp(claims["exp"], START.tzinfo) <= latest
        door.site.clock.pass_by(seconds=890)
        claims = jwt.decode((await door.jwt(claim, token, WEB, "api")).token, options={"verify_signature": False})
        assert datetime.fromtimestamp(claims["exp"], START.tzinfo) == latest
        door.site.clock.pass_by(seconds=10)
        with refused(Reason.POD_TOKEN_EXPIRED):
            await door.x509(claim, token)

    at_the_door(test)


def test_where_too_little_is_left_by_this_clock_it_waits() -> None:
    """A signer that is ahead by more than what it gets afterwards: never a refusal for good, nor one that has ended."""

    async def test(door: Door) -> None:
        claim = door.site.pod("web")
        token = door.signed(door.site.token(claim, life=TOKEN_LIFE))
        await door.offline.refresh()
        deleted(door, claim, grace=1200)
        await door.told()
        door.witness.heard(door.site.clock.at)
        door.site.clock.set_by(seconds=90)
        door.site.clock.pass_by(seconds=1500 - 40)
        leaf = certificates_from_der((await door.x509(claim, token)).chain)[0]
        assert leaf.not_valid_after_utc == at(1500) + AFTERWARDS
        door.site.clock.pass_by(seconds=20)
        with refused(Reason.POD_TOKEN_EXPIRED):
            await door.x509(claim, token)
        with refused(Reason.POD_TOKEN_EXPIRED):
            await door.jwt(claim, token, WEB, "api")

    at_the_door(test)
