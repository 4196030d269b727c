"""Nothing that an authority answers reaches a pod before it verifies: one that is wrong, or lies, is refused."""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import looptime
import pytest
from cryptography import x509

from agent.authority.protocol import JwtRequest, Minted, MintedJwt, MintRequest
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.metrics import Metrics
from agent.workload.issuer import MINT_DEADLINE, Issuer
from csi.model import Issued, JwtFile, PodRef, PodToken, Volume, VolumeOptions
from runtime.blocking import Blocking
from svid import leaves
from svid.bundle import TrustBundle
from svid.identity import MAX_HINT_BYTES, Trust
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, public_bytes
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fake_authority import HOUR, SPIFFE_ID, TRUST_DOMAIN, FakeAuthority, StepClock, bundle_of, root
from tests.workload_rig import slow_work

POD = PodRef("default", "web-1", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111", "web")
TOKEN = PodToken("the pod's token")
VOLUME = Volume("csi-1", "/target", ("below",), POD, None)
OTHER = SpiffeId.from_segments(TRUST_DOMAIN, "ns", "default", "sa", "admin")
PARTNER, STRANGER = TrustDomain("partner.test"), TrustDomain("stranger.test")


def read_extensions() -> int:
    """How many certificates' extensions there are as objects."""
    gc.collect()
    return sum(isinstance(each, x509.Extensions) for each in gc.get_objects())


class Scene:
    """An issuer over an authority."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.clock = StepClock()
        self.authority = FakeAuthority(self.clock)
        self.metrics = Metrics()
        self.issuer = Issuer(self.authority, slow_work(Blocking(executor)), self.clock, random.Random(1), self.metrics)

    @property
    def minted_jwts(self) -> float | None:
        return self.metrics.registry.get_sample_value("podsvid_jwt_svids_minted_total")

    async def mint_x509(self, volume: Volume, token: PodToken) -> Issued:
        return await self.issuer.mint_x509(volume, token, await self.issuer.key(volume, renewal=False))

    async def mint_all(self, volume: Volume, token: PodToken) -> Issued:
        return await self.issuer.mint_all(volume, token, await self.issuer.key(volume, renewal=False))

    async def mint_jwt(self, *audiences: str) -> MintedJwt:
        return await self.issuer.mint_jwt(VOLUME, TOKEN, SPIFFE_ID, audiences or ("api",), for_file=False)


def on_stage(play: Callable[[Scene], Awaitable[Any]]) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await play(Scene(executor))

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_good_answer_is_handed_on_with_an_instant_from_its_window() -> None:
    async def play(at: Scene) -> None:
        options = VolumeOptions((("ttl", "30m"),), ttl=timedelta(minutes=30), dns_names=("web.default.svc",))
        issued = await at.mint_x509(replace(VOLUME, options=options), TOKEN)
        (asked,) = at.authority.asked
        assert (asked.pod, asked.token, asked.ttl, asked.dns_names) == (POD, TOKEN, options.ttl, options.dns_names)
        assert asked.ttl_text == "30m"
        svid = issued.identity.default
        assert svid.spiffe_id == SPIFFE_ID
        assert svid.private_key is asked.key
        assert issued.identity.bundle == bundle_of(at.authority.x509, at.authority.jwt_key)
        assert (issued.notice, issued.policy) == ("noticed", "shop/web")
        assert issued.window == RenewalWindow.of(at.clock.at, at.clock.at + HOUR)
        assert issued.window.start <= issued.renew_at <= issued.window.end
        # One instant each, or all volumes of a node come back together.
        others = {(await at.mint_x509(VOLUME, TOKEN)).renew_at for _ in range(8)}
        assert len(others | {issued.renew_at}) == 9

    on_stage(play)


def test_nothing_of_what_was_read_in_a_certificate_is_kept_with_it() -> None:
    async def play(at: Scene) -> None:
        kept = [await at.mint_x509(VOLUME, TOKEN)]
        before = read_extensions()
        kept += [await at.mint_x509(VOLUME, TOKEN) for _ in range(4)]
        assert read_extensions() == before
        assert len({each.identity.default.serial for each in kept}) == 5

    on_stage(play)


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048])
def test_each_svid_has_a_new_key_of_the_kind_that_was_asked_for(algorithm: KeyAlgorithm) -> None:
    async def play(at: Scene) -> None:
        volume = replace(VOLUME, options=VolumeOptions(key_algorithm=algorithm))
        identities = [(await at.mint_x509(volume, TOKEN)).identity for _ in range(2)]
        first, second = (public_bytes(each.default.private_key.public_key()) for each in identities)
        assert first != second
        assert isinstance(identities[0].default.private_key, type(algorithm.generate()))

    on_stage(play)


def of_another_key(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    key = KeyAlgorithm.EC_P256.generate().public_key()
    return replace(minted, chain=at.authority.x509.issue(key, SPIFFE_ID, ttl=HOUR, now=at.clock.at))


def of_an_authority_that_nobody_trusts(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    stranger = root(at.clock.at)
    return replace(minted, chain=stranger.issue(asked.public_key, SPIFFE_ID, ttl=HOUR, now=at.clock.at))


def with_a_bundle_of_another_authority(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, trust=Trust(bundle_of(root(at.clock.at))))


def for_somebody_else_than_it_says(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, spiffe_id=OTHER)


def for_somebody_else_than_the_certificate_says(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, chain=at.authority.x509.issue(asked.public_key, OTHER, ttl=HOUR, now=at.clock.at))


def that_its_authority_wrote_wrongly_and_did_not_read(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    """An authority reads the first of its leaves in a second only; the others are verified here."""
    with pytest.MonkeyPatch.context() as patch:
        at.authority.x509.issue(asked.public_key, SPIFFE_ID, ttl=HOUR, now=at.clock.at)
        patch.setattr(leaves, "_URI", 0x81)
        chain = at.authority.x509.issue(asked.public_key, SPIFFE_ID, ttl=HOUR, now=at.clock.at, verified_later=True)
    return replace(minted, chain=chain)


def that_is_not_signed_by_the_key_of_its_authority(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    """Nor is the signature of those verified where they are made."""
    authority = replace(at.authority.x509)
    authority.issue(asked.public_key, SPIFFE_ID, ttl=HOUR, now=at.clock.at)
    object.__setattr__(authority, "private_key", KeyAlgorithm.EC_P256.generate())
    chain = authority.issue(asked.public_key, SPIFFE_ID, ttl=HOUR, now=at.clock.at, verified_later=True)
    return replace(minted, chain=chain)


def that_has_ended(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    began = at.clock.at - 2 * HOUR
    return replace(minted, chain=at.authority.x509.issue(asked.public_key, SPIFFE_ID, ttl=HOUR, now=began))


def without_a_chain(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, chain=())


def with_the_root_instead_of_a_leaf(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, chain=at.authority.x509.chain)


def of_a_foreign_trust_domain(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    foreign = root(at.clock.at, PARTNER)
    name = SpiffeId.from_segments(PARTNER, "ns", "default", "sa", "web")
    return replace(minted, spiffe_id=name, chain=foreign.issue(asked.public_key, name, ttl=HOUR, now=at.clock.at))


def with_its_own_domain_among_the_federated(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, trust=replace(minted.trust, federated=(bundle_of(root(at.clock.at)),)))


def with_two_bundles_of_one_domain(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    partners = tuple(bundle_of(root(at.clock.at, PARTNER)) for _ in range(2))
    return replace(minted, trust=replace(minted.trust, federated=partners))


def with_a_hint_that_is_too_long(at: Scene, asked: MintRequest, minted: Minted) -> Minted:
    return replace(minted, hint="é" * (MAX_HINT_BYTES // 2) + "x")


@pytest.mark.parametrize(
    ("bent", "why"),
    [
        (of_another_key, "private key does not match"),
        (of_an_authority_that_nobody_trusts, "does not lead to an authority"),
        (with_a_bundle_of_another_authority, "does not lead to an authority"),
        (for_somebody_else_than_it_says, "certificate is for .*/web, not for .*/admin"),
        (for_somebody_else_than_the_certificate_says, "certificate is for .*/admin, not for .*/web"),
        (that_its_authority_wrote_wrongly_and_did_not_read, "0 URI SANs"),
        (that_is_not_signed_by_the_key_of_its_authority, "does not lead to an authority"),
        (that_has_ended, "certificate expired"),
        (without_a_chain, "chain is empty"),
        (with_the_root_instead_of_a_leaf, "leaf SPIFFE ID has no path"),
        (of_a_foreign_trust_domain, "of another trust domain"),
        (with_its_own_domain_among_the_federated, "own trust domain is among the federated"),
        (with_two_bundles_of_one_domain, "two federated bundles are of one trust domain"),
        (with_a_hint_that_is_too_long, "hint is longer"),
    ],
)
def test_an_x509_svid_is_refused(bent: Callable[[Scene, MintRequest, Minted], Minted], why: str) -> None:
    async def play(at: Scene) -> None:
        at.authority.bend = lambda asked, minted: bent(at, asked, minted)
        with pytest.raises(AuthorityRefused, match=f"answered with an unusable SVID: .*{why}"):
            await at.mint_x509(VOLUME, TOKEN)
        # Nor does the volume's first mint take another way.
        with pytest.raises(AuthorityRefused, match=why):
            await at.mint_all(VOLUME, TOKEN)

    on_stage(play)


@pytest.mark.parametrize(
    ("granted", "wanted"), [(None, {PARTNER, STRANGER}), ((PARTNER,), {PARTNER}), ((), set()), ((TRUST_DOMAIN,), set())]
)
def test_a_pod_gets_the_bundles_of_those_it_federates_with_and_no_others(
    granted: tuple[TrustDomain, ...] | None, wanted: set[TrustDomain]
) -> None:
    async def play(at: Scene) -> None:
        foreign = tuple(TrustBundle(each, root(at.clock.at, each).chain) for each in (PARTNER, STRANGER))
        at.authority.bend = lambda _, minted: replace(
            minted, federates_with=granted, trust=replace(minted.trust, federated=foreign)
        )
        identity = (await at.mint_x509(VOLUME, TOKEN)).identity
        assert {each.trust_domain for each in identity.federated} == wanted
        assert identity.federates_with == granted

    on_stage(play)


def test_a_good_jwt_svid_is_handed_on_and_counted() -> None:
    async def play(at: Scene) -> None:
        minted = await at.mint_jwt("api", "db")
        assert minted.svid.audiences == ("api", "db")
        assert minted.renewal == RenewalWindow.of(at.clock.at, at.clock.at + HOUR)
        assert at.authority.asked_jwt == [JwtRequest(POD, TOKEN, SPIFFE_ID, ("api", "db"))]
        assert at.minted_jwts == 1

    on_stage(play)


def jwt_of_a_key_that_nobody_publishes(at: Scene, asked: JwtRequest) -> Any:
    key = JwtSigningKey.create(JwtAlgorithm.ES256)
    return key.issue(asked.spiffe_id, asked.audiences, ttl=HOUR, now=at.clock.at)


def jwt_with_a_borrowed_key_id(at: Scene, asked: JwtRequest) -> Any:
    key = replace(JwtSigningKey.create(JwtAlgorithm.ES256), key_id=at.authority.jwt_key.key_id)
    return key.issue(asked.spiffe_id, asked.audiences, ttl=HOUR, now=at.clock.at)


def jwt_for_somebody_else(at: Scene, asked: JwtRequest) -> Any:
    return at.authority.jwt_key.issue(OTHER, asked.audiences, ttl=HOUR, now=at.clock.at)


def jwt_of_a_foreign_trust_domain(at: Scene, asked: JwtRequest) -> Any:
    name = SpiffeId.from_segments(PARTNER, "ns", "default", "sa", "web")
    return at.authority.jwt_key.issue(name, asked.audiences, ttl=HOUR, now=at.clock.at)


def jwt_for_more(at: Scene, asked: JwtRequest) -> Any:
    return at.authority.jwt_key.issue(asked.spiffe_id, (*asked.audiences, "bank"), ttl=HOUR, now=at.clock.at)


def jwt_for_fewer(at: Scene, asked: JwtRequest) -> Any:
    return at.authority.jwt_key.issue(asked.spiffe_id, asked.audiences[:1], ttl=HOUR, now=at.clock.at)


def jwt_for_others(at: Scene, asked: JwtRequest) -> Any:
    return at.authority.jwt_key.issue(asked.spiffe_id, ("bank",), ttl=HOUR, now=at.clock.at)


@pytest.mark.parametrize(
    ("bent", "why"),
    [
        (jwt_of_a_key_that_nobody_publishes, "unusable JWT-SVID: trust domain example.org has no ES256 key"),
        (jwt_with_a_borrowed_key_id, "unusable JWT-SVID: signature does not match"),
        (jwt_for_somebody_else, "a JWT-SVID for spiffe://example.org/ns/default/sa/admin"),
        (jwt_of_a_foreign_trust_domain, "unusable JWT-SVID: no trust bundle"),
        (jwt_for_more, "or other audiences"),
        (jwt_for_fewer, "or other audiences"),
        (jwt_for_others, "unusable JWT-SVID: token is not for this audience"),
    ],
)
def test_a_jwt_svid_is_refused(bent: Callable[[Scene, JwtRequest], Any], why: str) -> None:
    async def play(at: Scene) -> None:
        at.authority.bend_jwt = lambda asked, minted: replace(minted, svid=bent(at, asked))
        with pytest.raises(AuthorityRefused, match=why) as refused:
            await at.mint_jwt("api", "db")
        assert at.minted_jwts == 0
        assert "eyJ" not in str(refused.value), "a token stands in a text"
        files = (JwtFile("a.jwt", ("api",)), JwtFile("b.jwt", ("db",)))
        if bent is not jwt_for_fewer:  # for one audience that is what was asked for
            with pytest.raises(AuthorityRefused, match=why):
                await at.mint_all(replace(VOLUME, options=VolumeOptions(jwt_files=files)), TOKEN)

    on_stage(play)


def test_what_a_jwt_svid_says_of_itself_is_not_believed_its_token_is_read() -> None:
    async def play(at: Scene) -> None:
        def bend(asked: JwtRequest, minted: MintedJwt) -> MintedJwt:
            stolen = at.authority.jwt_key.issue(OTHER, asked.audiences, ttl=HOUR, now=at.clock.at)
            return replace(minted, svid=replace(minted.svid, token=stolen.token))

        at.authority.bend_jwt = bend
        with pytest.raises(AuthorityRefused, match="/sa/admin"):
            await at.mint_jwt("api")

    on_stage(play)


def test_a_volumes_tokens_are_each_for_their_files_audience_and_its_identity() -> None:
    async def play(at: Scene) -> None:
        files = (JwtFile("a.jwt", ("api",)), JwtFile("b.jwt", ("db",)))
        issued = await at.mint_all(replace(VOLUME, options=VolumeOptions(jwt_files=files)), TOKEN)
        found = {name: (each.spiffe_id, each.audiences) for name, each in issued.contents.jwt_svids.items()}
        assert found == {"a.jwt": (SPIFFE_ID, ("api",)), "b.jwt": (SPIFFE_ID, ("db",))}
        assert issued.notice == "noticed"

    on_stage(play)


def test_a_file_for_several_audiences_holds_one_token_for_all_of_them() -> None:
    async def play(at: Scene) -> None:
        file = JwtFile("a.jwt", ("api", "db"))
        issued = await at.mint_all(replace(VOLUME, options=VolumeOptions(jwt_files=(file,))), TOKEN)
        svid = issued.contents.jwt_svids["a.jwt"]
        assert svid.audiences == ("api", "db")
        bundle = bundle_of(at.authority.x509, at.authority.jwt_key)
        assert at.issuer.still_good(svid, file, bundle) == svid
        # For more than the file is for it is of use to whom it is not meant for; for less it is refused somewhere.
        for other in (("api",), ("db",), ("api", "db", "sts")):
            assert at.issuer.still_good(svid, JwtFile("a.jwt", other), bundle) is None
        at.authority.bend_jwt = lambda asked, minted: replace(minted, svid=jwt_for_fewer(at, asked))
        with pytest.raises(AuthorityRefused, match="audiences"):
            await at.mint_all(replace(VOLUME, options=VolumeOptions(jwt_files=(file,))), TOKEN)

    on_stage(play)


@pytest.mark.parametrize("kind", ["x509", "jwt"])
def test_an_authority_that_never_answers_is_unavailable_at_the_deadline(kind: str) -> None:
    async def play(at: Scene) -> None:
        at.authority.go_on.clear()
        with pytest.raises(AuthorityUnavailable, match=f"no SVID within {MINT_DEADLINE:g} s"):
            await (at.mint_x509(VOLUME, TOKEN) if kind == "x509" else at.mint_jwt())
        assert asyncio.get_running_loop().time() == pytest.approx(MINT_DEADLINE)

    on_stage(play)


def test_a_token_read_from_a_file_is_good_for_its_audience_by_a_key_that_is_still_published() -> None:
    async def play(at: Scene) -> None:
        svid = (await at.mint_jwt("api")).svid
        # It was read with that one; the newest counts.
        bundle = bundle_of(at.authority.x509, at.authority.jwt_key)
        assert at.issuer.still_good(svid, JwtFile("a.jwt", ("api",)), bundle) == svid
        assert at.issuer.still_good(svid, JwtFile("a.jwt", ("db",)), bundle) is None
        at.clock.at += HOUR
        assert at.issuer.still_good(svid, JwtFile("a.jwt", ("api",)), bundle) is None
        at.clock.at -= HOUR
        at.authority.trust.publish(Trust(bundle_of(at.authority.x509, JwtSigningKey.create(JwtAlgorithm.ES256))))
        assert at.issuer.still_good(svid, JwtFile("a.jwt", ("api",)), bundle) is None

    on_stage(play)
