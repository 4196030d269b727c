"""What the signer's answers are believed for, with a channel in between that answers what a test decides."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.authority import signer as signer_authority
from agent.authority.connection import SignerSettings
from agent.authority.protocol import JwtRequest, MintRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AuthorityRefused, AuthorityUnavailable
from csi.model import PodRef, PodToken
from signer.pb import signer_pb2
from svid.certificates import to_der
from svid.identity import Trust
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.renewal import RenewalWindow
from tests.fake_authority import HOUR, SPIFFE_ID, TRUST_DOMAIN, StepClock, bundle_of, root

AUDIENCE = "signer.podsvid.io"
POD = PodRef("default", "web-1", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111", "web")


class CannedCalls:
    """Instead of agent.authority.calls.Calls: the answer is there already."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.asked: list[tuple[str, Any]] = []

    async def call(self, method: str, message: Any, parse: Callable[[bytes], Any], *_: Any, **__: Any) -> Any:
        self.asked.append((method, message))
        return parse(self.answer.SerializeToString())

    async def mint_x509(self, message: Any, *_: Any, **__: Any) -> Any:
        return await self.call("MintX509SVID", message, signer_pb2.MintX509SVIDResponse.FromString)


class Scene:
    """A signer's client whose signer says what `calls.answer` is."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = StepClock()
        self.x509 = root(self.clock.at)
        self.jwt_key = JwtSigningKey.create(JwtAlgorithm.ES256)
        self.calls = CannedCalls()
        monkeypatch.setattr(signer_authority, "Calls", lambda *_: self.calls)
        monkeypatch.setattr(signer_authority, "TRUST_SECONDS", 0.02)
        settings = SignerSettings("127.0.0.1:1", base / "bundle", base / "token", AUDIENCE, TRUST_DOMAIN, run_dir=base)
        self.authority = SignerAuthority(settings, self.clock, random.Random(1))
        self.trust = Trust(bundle_of(self.x509, self.jwt_key, sequence=100))
        self.authority.trust.publish(self.trust)

    def token(self, ends: timedelta = timedelta(minutes=5)) -> PodToken:
        expiry = f"{self.clock.at + ends:%Y-%m-%dT%H:%M:%SZ}"
        return PodToken(json.dumps({AUDIENCE: {"token": "abc", "expirationTimestamp": expiry}}))

    def window(self, answer: Any, start: timedelta, end: timedelta) -> Any:
        answer.renew_from.FromDatetime(self.clock.at + start)
        answer.renew_until.FromDatetime(self.clock.at + end)
        return answer

    async def mint(self, **changed: Any) -> Any:
        """With an answer that is good but for `changed`."""
        request = MintRequest(POD, self.token(), KeyAlgorithm.EC_P256.generate())
        start, end = changed.pop("window", (HOUR * 0.4, HOUR * 0.5))
        good: dict[str, Any] = {
            "spiffe_id": str(SPIFFE_ID),
            "chain": to_der(self.x509.issue(request.public_key, SPIFFE_ID, ttl=HOUR, now=self.clock.at)),
            "trust_sequence": 100,
        }
        self.calls.answer = self.window(signer_pb2.MintX509SVIDResponse(**(good | changed)), start, end)
        return await self.authority.mint_x509(request)

    async def mint_jwt(self, **changed: Any) -> Any:
        start, end = changed.pop("window", (HOUR * 0.4, HOUR * 0.5))
        token = self.jwt_key.issue(SPIFFE_ID, ["api"], ttl=HOUR, now=self.clock.at).token
        good: dict[str, Any] = {"token": token, "reusable": True}
        answer = signer_pb2.MintJWTSVIDResponse(**(good | changed))
        self.calls.answer = self.window(answer, start, end)
        return await self.authority.mint_jwt(JwtRequest(POD, self.token(), SPIFFE_ID, ("api",)))


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def run(minting: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await minting

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["x509", "jwt"])
@pytest.mark.parametrize(
    ("window", "kept"),
    [
        ((HOUR * 0.4, HOUR * 0.5), True),
        # By this clock that has begun: it would be due as soon as it is there.
        ((timedelta(0), HOUR * 0.5), False),
        ((-HOUR, -HOUR / 2), False),
        # The SVID would end before its renewal.
        ((HOUR * 0.4, HOUR), False),
        ((HOUR * 0.4, HOUR * 1000), False),
        ((HOUR * 500, HOUR * 1000), False),
    ],
)
def test_a_renewal_window_is_the_signers_where_it_lies_within_the_svids_life(
    at: Scene, kind: str, window: tuple[timedelta, timedelta], kept: bool
) -> None:
    minted = run(at.mint(window=window) if kind == "x509" else at.mint_jwt(window=window))
    start, end = window
    wanted = RenewalWindow(at.clock.at + start, at.clock.at + end)
    assert minted.renewal == (wanted if kept else RenewalWindow.of(at.clock.at, at.clock.at + HOUR))


@pytest.mark.parametrize("kind", ["x509", "jwt"])
def test_a_window_that_ends_before_it_starts_makes_the_answer_unusable(at: Scene, kind: str) -> None:
    backwards = (HOUR * 0.5, HOUR * 0.4)
    with pytest.raises(AuthorityRefused, match="the signer's answer cannot be used"):
        run(at.mint(window=backwards) if kind == "x509" else at.mint_jwt(window=backwards))


@pytest.mark.parametrize(
    "changed",
    [
        {"spiffe_id": "https://example.org/ns/default"},
        {"spiffe_id": ""},
        {"spiffe_id": "spiffe://example.org/../web"},
        {"chain": b""},
        {"chain": b"0\x03\x02\x01\x01"},
        {"federates_with": ["Not A Domain"]},
        {"federates_with": ["partner.test", ""]},
    ],
)
def test_an_answer_that_cannot_be_read_is_refused(at: Scene, changed: dict[str, Any]) -> None:
    with pytest.raises(AuthorityRefused, match="the signer's answer cannot be used"):
        run(at.mint(**changed))


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "eyJhbGciOiJub25lIn0.e30."])
def test_a_jwt_svid_that_cannot_be_read_is_refused(at: Scene, token: str) -> None:
    with pytest.raises(AuthorityRefused, match="the signer's answer cannot be used"):
        run(at.mint_jwt(token=token))


def test_nobodys_bundles_are_nobodys_and_everybodys_are_everybodys(at: Scene) -> None:
    assert run(at.mint()).federates_with == ()
    assert run(at.mint(federates_with_all=True)).federates_with is None
    assert run(at.mint(federates_with_all=True, federates_with=["partner.test"])).federates_with is None
    found = run(at.mint(federates_with=["partner.test"])).federates_with
    assert [each.name for each in found] == ["partner.test"]


def test_what_is_said_of_a_token_is_handed_on(at: Scene) -> None:
    assert run(at.mint_jwt()).reusable
    assert not run(at.mint_jwt(reusable=False)).reusable


def test_an_svid_whose_trust_is_late_is_asked_for_again_and_one_that_is_no_good_is_not(at: Scene) -> None:
    known = at.x509

    async def play() -> None:
        # Its trust is there: whether it verifies is for the workloads to say, and no reason to wait.
        at.x509 = root(at.clock.at)
        assert (await at.mint(trust_sequence=100)).trust == at.trust
        with pytest.raises(AuthorityUnavailable, match=r"^TRUST_BEHIND: "):
            await at.mint(trust_sequence=101)
        at.x509 = known
        assert (await at.mint(trust_sequence=101)).trust == at.trust

    run(play())


@pytest.mark.parametrize("ends", [timedelta(seconds=1), timedelta(0), -timedelta(seconds=1), timedelta(days=-1)])
def test_whether_a_pods_token_has_ended_is_for_the_signer_to_say(at: Scene, ends: timedelta) -> None:
    """A pod that ends gets no other, and serves on."""
    request = JwtRequest(POD, at.token(ends), SPIFFE_ID, ("api",))
    run(at.mint_jwt())
    at.calls.asked.clear()
    run(at.authority.mint_jwt(request))
    ((method, sent),) = at.calls.asked
    assert (method, sent.pod_token) == ("MintJWTSVID", "abc")


def test_the_token_of_this_signers_audience_is_sent_and_no_other(at: Scene) -> None:
    ends = f"{at.clock.at + HOUR:%Y-%m-%dT%H:%M:%SZ}"
    tokens = {name: {"token": f"for-{name}", "expirationTimestamp": ends} for name in (AUDIENCE, "vault", "")}
    run(at.mint())
    run(at.authority.mint_x509(MintRequest(POD, PodToken(json.dumps(tokens)), KeyAlgorithm.EC_P256.generate())))
    assert at.calls.asked[-1][1].pod_token == f"for-{AUDIENCE}"
    del tokens[AUDIENCE]
    with pytest.raises(AuthorityUnavailable, match=r"^POD_TOKEN_MISSING: ") as missing:
        run(at.authority.mint_x509(MintRequest(POD, PodToken(json.dumps(tokens)), KeyAlgorithm.EC_P256.generate())))
    assert len(at.calls.asked) == 2
    assert "for-" not in str(missing.value)
