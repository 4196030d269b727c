"""Reviews and the cluster's keys: what is kept, for how long, who shares it, and what a failure leaves as it was."""

import asyncio
import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from signer.attestation.outage import PAUSE
from signer.attestation.tokens import JWKS, REVIEWS, TokenRefused
from signer.cluster.kube import Object
from signer.errors import ApiUnavailable, Forbidden, Reason, Refused
from tests.signer_rig import AUDIENCE
from tests.unit.signer.test_attestation import STRANGER, Rig, rigged, unsigned


def forged(rig: Rig, token: str, key: ec.EllipticCurvePrivateKey | None = None, **changes: object) -> str:
    claims = {**jwt.decode(token, options={"verify_signature": False}), **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key or rig.key, algorithm="ES256", headers={"kid": "k1"})


def test_a_review_counts_for_its_seconds_and_is_then_asked_for_again() -> None:
    async def test(rig: Rig) -> None:
        token = rig.site.token(rig.site.pod("web"))
        await rig.reviews.verify(token)
        rig.site.clock.pass_by(seconds=9.999)
        await rig.reviews.verify(token)
        assert rig.site.reviews == 1
        rig.site.clock.pass_by(seconds=0.001)
        await rig.reviews.verify(token)
        assert rig.site.reviews == 2

    rigged(test)


def test_an_answer_is_one_tokens_and_not_one_of_the_same_claims() -> None:
    """Whoever changes the signature of a token that was reviewed has another token."""

    async def test(rig: Rig) -> None:
        token = rig.site.token(rig.site.pod("web"))
        await rig.reviews.verify(token)
        head, claims, _ = token.split(".")
        for other in (f"{head}.{claims}.Zm9yZ2Vk", f"e30.{claims}.eHh4"):
            with pytest.raises(TokenRefused):
                await rig.reviews.verify(other)
        assert [*rig.reviews._known] == [hashlib.sha256(token.encode()).digest()]

    rigged(test)


def test_a_token_that_is_refused_later_is_forgotten() -> None:
    async def test(rig: Rig) -> None:
        token = rig.site.token(rig.site.pod("web"))
        await rig.reviews.verify(token)
        rig.site.clock.pass_by(seconds=10)
        rig.site._users.clear()
        with pytest.raises(TokenRefused):
            await rig.reviews.verify(token)
        assert not rig.reviews._known

    rigged(test)


def test_who_gives_up_takes_the_answer_from_nobody_else() -> None:
    async def test(rig: Rig) -> None:
        token, create, answer = rig.site.token(rig.site.pod("web")), rig.site.kube.create, asyncio.Event()

        async def slow(path: str, body: Object) -> Object:
            await answer.wait()
            return await create(path, body)

        rig.site.kube.create = slow  # type: ignore[method-assign]
        impatient, patient = (asyncio.ensure_future(rig.reviews.verify(token)) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        answer.set()
        assert (await patient).pod_name == "web"
        assert rig.site.reviews == 1

    rigged(test)


@pytest.mark.parametrize("error", [Forbidden, ApiUnavailable])
def test_who_may_not_review_or_gets_no_answer_waits_and_hears_why(error: type[Exception]) -> None:
    async def test(rig: Rig) -> None:
        token = rig.site.token(rig.site.pod("web"))

        def failing(body: Object) -> Object:
            raise error("no")

        review, rig.site.kube.hooks[REVIEWS] = rig.site.kube.hooks[REVIEWS], failing
        with pytest.raises(ApiUnavailable, match="apply its RBAC" if error is Forbidden else "no"):
            await rig.reviews.verify(token)
        rig.site.kube.hooks[REVIEWS] = review
        # Only one that is away is left alone for a moment; and not a moment longer.
        if error is ApiUnavailable:
            rig.site.clock.pass_by(seconds=PAUSE - 0.001)
            with pytest.raises(ApiUnavailable, match="a moment ago"):
                await rig.reviews.verify(token)
            rig.site.clock.pass_by(milliseconds=1)
        assert (await rig.reviews.verify(token)).pod_name == "web"
        assert (await rig.reviews.verify(rig.site.token(rig.site.pod("other")))).pod_name == "other"

    rigged(test)


def test_the_api_server_is_asked_for_our_audience_and_no_other() -> None:
    async def test(rig: Rig) -> None:
        asked: list[Object] = []
        review = rig.site.kube.hooks[REVIEWS]

        def listening(body: Object) -> Object:
            asked.append(body)
            return review(body)

        rig.site.kube.hooks[REVIEWS] = listening
        token = rig.site.token(rig.site.pod("web"))
        await rig.reviews.verify(token)
        (body,) = asked
        assert body["spec"] == {"token": token, "audiences": [AUDIENCE]}
        assert (body["apiVersion"], body["kind"]) == ("authentication.k8s.io/v1", "TokenReview")

    rigged(test)


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("[invalid bearer token, pod web has been deleted]", True),
        ('serviceaccounts "web" not found', True),
        ("token eyJhbGciOi.secret.x is bad", False),
    ],
)
def test_of_what_the_api_server_says_only_what_is_harmless_is_passed_on(why: str, told: bool) -> None:
    async def test(rig: Rig) -> None:
        rig.site.kube.hooks[REVIEWS] = lambda body: {"status": {"authenticated": False, "error": why}}
        with pytest.raises(TokenRefused) as caught:
            await rig.reviews.verify(unsigned({}))
        assert ("bound to an object that is gone" in str(caught.value)) is told
        assert why not in str(caught.value)

    rigged(test)


def test_doubt_is_bounded_whatever_the_clock_does() -> None:
    async def test(rig: Rig) -> None:
        async def refusals() -> int:
            before = rig.site.reviews
            bad = (rig.reviews.verify(unsigned({"n": number})) for number in range(int(STRANGER.at_once) + 50))
            found = await asyncio.gather(*bad, return_exceptions=True)
            busy = [each for each in found if isinstance(each, Refused)]
            assert all(each.reason is Reason.BUSY and each.retry_after for each in busy)
            return rig.site.reviews - before

        assert await refusals() == STRANGER.at_once
        # Set back, it takes nothing away; a long quiet time gives no more than what there was at first.
        rig.site.clock.set_by(days=-1)
        assert await refusals() == 0
        rig.site.clock.pass_by(seconds=1)
        assert await refusals() == STRANGER.a_second
        rig.site.clock.pass_by(days=3)
        assert await refusals() == STRANGER.at_once

    rigged(test)


def test_in_doubt_a_token_of_the_clusters_keys_must_be_one_for_us() -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        await asyncio.gather(
            *(rig.reviews.verify(unsigned({"n": number})) for number in range(int(STRANGER.at_once))),
            return_exceptions=True,
        )
        reviews = rig.site.reviews
        token = rig.site.token(rig.site.pod("web"))
        stranger = ec.generate_private_key(ec.SECP256R1())
        for bad, fault in (
            (forged(rig, token, stranger), "INVALID"),
            (forged(rig, token, exp=1), "EXPIRED"),
            (forged(rig, token, aud=["other"]), "AUDIENCE"),
        ):
            with pytest.raises(TokenRefused) as caught:
                await rig.reviews.verify(bad)
            assert caught.value.fault == fault
        assert rig.site.reviews == reviews

    rigged(test)


def test_keys_stay_while_they_cannot_be_read_and_go_when_the_cluster_drops_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(rig: Rig) -> None:
        token = rig.signed(rig.site.token(rig.site.pod("web")))
        rig.publish_keys()
        await rig.offline.refresh()
        good = rig.site.kube.objects[JWKS]

        def warnings() -> int:
            return sum(each.name == "podsvid.tokens" for each in caplog.records)

        unusable: tuple[Object, ...] = ({"keys": []}, {"keys": "x"}, {"keys": [{"kty": "nonsense"}]}, {})
        for broken in unusable:
            rig.site.kube.put(JWKS, broken)
            await rig.offline.refresh()
            assert rig.offline.verify(token).pod_name == "web", broken
        assert warnings() == 1
        rig.site.kube.put(JWKS, good)
        await rig.offline.refresh()
        rig.site.kube.down = True
        await rig.offline.refresh()
        assert rig.offline.verify(token).pod_name == "web"
        # Each outage is told of once.
        assert warnings() == 2
        rig.site.kube.down = False
        other = ec.generate_private_key(ec.SECP256R1())
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(other.public_key(), as_dict=True)
        rig.site.kube.put(JWKS, {"keys": [{**jwk, "kid": "k2", "alg": "ES256"}]})
        await rig.offline.refresh()
        with pytest.raises(TokenRefused):
            rig.offline.verify(token)
        assert not rig.offline.knows_key_of(token)

    rigged(test)


def test_each_token_names_its_own_key_whatever_the_one_before_named() -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        known, unknown = rig.signed(rig.site.token(rig.site.pod("web"))), rig.site.token(rig.site.pod("other"))
        for _ in range(2):
            assert rig.offline.knows_key_of(known)
            assert not rig.offline.knows_key_of(unknown)
        # What a token names is kept, never whether there is that key.
        assert rig.offline.knows_key_of(known)
        rig.site.kube.put(JWKS, {"keys": [{**rig.site.kube.objects[JWKS]["keys"][0], "kid": "newer"}]})
        await rig.offline.refresh()
        assert not rig.offline.knows_key_of(known)

    rigged(test)


def test_times_are_compared_to_the_second() -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        token = rig.site.token(rig.site.pod("web"))
        now = int(rig.site.clock.now().timestamp())
        assert rig.offline.verify(forged(rig, token, exp=now + 1)).expires_at == datetime.fromtimestamp(now + 1, UTC)
        with pytest.raises(TokenRefused) as caught:
            rig.offline.verify(forged(rig, token, exp=now))
        assert caught.value.fault == "EXPIRED"
        # The API server's clock may be a little ahead of ours.
        rig.offline.verify(forged(rig, token, nbf=now + 30))
        with pytest.raises(TokenRefused) as caught:
            rig.offline.verify(forged(rig, token, nbf=now + 31))
        assert caught.value.fault == "INVALID"

    rigged(test)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": "soon"},
        {"exp": 10**400},
        {"sub": 7},
        {"sub": "system:serviceaccount:other:web"},
        {"sub": "system:serviceaccount:default:other"},
        {"sub": "web"},
        {"kubernetes.io": []},
        {"kubernetes.io": {"namespace": "default", "serviceaccount": "web"}},
    ],
)
def test_claims_that_do_not_fit_are_refused_without_a_word_of_the_token(changes: dict[str, Any]) -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        token = forged(rig, rig.site.token(rig.site.pod("web")), **changes)
        with pytest.raises(TokenRefused) as caught:
            rig.offline.verify(token)
        assert caught.value.fault == "INVALID"
        assert token not in str(caught.value)

    rigged(test)


def head(text: bytes) -> str:
    """A token whose first part that is."""
    return f"{base64.urlsafe_b64encode(text).decode().rstrip('=')}.e30.eHh4"


# Forms that readers of JSON differ in; each names the cluster's key to one that takes it.
HEADS = [
    b'\xef\xbb\xbf{"kid":"k1"}',
    '{"kid":"k1"}'.encode("utf-16"),
    b'{"kid":"k1","x":NaN}',
    b'{"kid":"k1","x":"\xff"}',
    b'{"kid":"k1","x":"\\ud800"}',
    b'{"kid":"k1"}{}',
    b'{"kid":"k1","kid":1}',
    b'{"kid":["k1"]}',
    b'["k1"]',
    b'{"kid":"k1","x":' + b"9" * 5000 + b"}",
    b'{"kid":"k1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


@pytest.mark.parametrize(
    "rubbish", ["", "x", "a.b.c", "e30.e30.x", "é.é.é", "." * 50, "\ud800.e30.x", *map(head, HEADS)]
)
def test_rubbish_is_refused_offline_too(rubbish: str) -> None:
    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        assert not rig.offline.knows_key_of(rubbish)
        with pytest.raises(TokenRefused) as caught:
            rig.offline.verify(rubbish)
        assert caught.value.fault == "INVALID"
        with pytest.raises(TokenRefused) as caught:
            await rig.reviews.verify(rubbish)
        assert caught.value.fault == "INVALID"

    rigged(test)


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "ES384", "ES512", "PS256", "EdDSA", "HS256", "none", "", "x"])
def test_a_key_is_for_its_own_kind_of_signature(algorithm: str) -> None:
    """Whatever the header says, which is the caller's word."""

    async def test(rig: Rig) -> None:
        rig.publish_keys()
        await rig.offline.refresh()
        _, claims, signature = rig.signed(rig.site.token(rig.site.pod("web"))).split(".")
        head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "kid": "k1"}).encode()).rstrip(b"=").decode()
        for last in (signature, ""):
            with pytest.raises(TokenRefused) as caught:
                rig.offline.verify(f"{head}.{claims}.{last}")
            assert caught.value.fault == "INVALID"

    rigged(test)


def test_a_token_without_an_end_is_never_remembered() -> None:
    """Legacy ones: they live until somebody deletes their Secret."""

    async def test(rig: Rig) -> None:
        token = unsigned({"sub": "system:serviceaccount:default:web"})
        rig.site.known(rig.site.token(None), token)
        rig.site.kube.hooks[REVIEWS] = lambda body: {
            "status": {
                "authenticated": True,
                "audiences": [AUDIENCE],
                "user": {"username": "system:serviceaccount:default:web", "uid": "u"},
            }
        }
        for _ in range(2):
            found = await rig.reviews.verify(token)
            assert found.expires_at == datetime.fromtimestamp(0, UTC)
            assert (found.pod_uid, found.node_uid) == ("", "")
        assert rig.site.kube.writes == [("create", REVIEWS)] * 2

    rigged(test)
