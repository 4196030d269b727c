"""The agent's authority against a whole signer replica over TLS: real calls, an API server in memory."""

import asyncio
import json
import logging
import random
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.authority import batches, connection
from agent.authority.connection import SignerSettings
from agent.authority.protocol import JwtRequest, Minted, MintRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AgentError, AuthorityDamaged, AuthorityRefused, AuthorityUnavailable
from csi.model import PodRef, PodToken
from runtime.clock import SystemClock
from signer.model import PodClaim
from svid.authority import X509Authority
from svid.identity import Trust
from svid.jwtsvid import check_jwt_svid
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from svid.x509svid import check_x509_svid
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import AUDIENCE, Serving, Site, serving


@pytest.fixture(autouse=True, params=["single", "batch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each mint by a call of its own, and in a batch with another like it; the sizes of the batches."""
    sizes: list[int] = []
    if request.param == "single":
        return sizes
    alone, take = SignerAuthority.mint_x509, batches.Batches._take

    async def together(self: SignerAuthority, wanted: MintRequest) -> Minted:
        both = [alone(self, replace(wanted, renewal=True)) for _ in range(2)]
        first, _ = await asyncio.gather(*both, return_exceptions=True)
        if isinstance(first, BaseException):
            raise first
        return first

    def taken(self: batches.Batches) -> Any:
        found = take(self)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(connection, "YOUNG_SECONDS", 0.0)
    monkeypatch.setattr(SignerAuthority, "mint_x509", together)
    monkeypatch.setattr(batches.Batches, "_take", taken)
    return sizes


def passed_on(token: str) -> PodToken:
    """As kubelet hands tokens to a driver."""
    return PodToken(json.dumps({AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}))


def request(claim: PodClaim, token: PodToken | None, **wishes: Any) -> MintRequest:
    key = wishes.pop("key", None) or KeyAlgorithm.EC_P256.generate()
    return MintRequest(PodRef(claim.namespace, claim.name, claim.uid, "web"), token, key, **wishes)


class Rig:
    def __init__(self, signer: Serving, folder: Path) -> None:
        self.signer = signer
        self.site = signer.site
        self.folder = folder
        self.agents = 0
        self.authority = self.another(self.site.agent())

    def another(self, token: str, **changes: Any) -> SignerAuthority:
        settings = self.signer.settings(token, self.folder)
        self.agents += 1
        changes.setdefault("run_dir", self.folder / f"run-{self.agents}")
        found = SignerAuthority(
            SignerSettings(**{**{n: getattr(settings, n) for n in settings.__slots__}, **changes}),
            SystemClock(),
            random.Random(3),
        )
        found.load()
        return found


def rigged(test: Callable[[Rig], Awaitable[None]], *flags: str) -> None:
    async def run(folder: Path) -> None:
        site = Site(datetime.now(UTC).replace(microsecond=0))
        async with serving(site, folder, SystemClock(), *flags) as signer:
            rig = Rig(signer, folder)
            following = asyncio.create_task(rig.authority.run())
            try:
                await rig.authority.wait_answered()
                await test(rig)
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))


@pytest.mark.parametrize("algorithm", ["ml-dsa-44", "ml-dsa-87"])
def test_below_an_ml_dsa_authority_whatever_openssl_python_has(algorithm: str) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web-1")
        minted = await rig.authority.mint_x509(request(claim, passed_on(rig.site.token(claim))))
        assert check_x509_svid(minted.chain, minted.trust.bundle, datetime.now(UTC)) == minted.spiffe_id

    rigged(test, "--authority-algorithm", algorithm)


def trust(authority: SignerAuthority) -> Trust:
    found = authority.trust.current
    assert found is not None
    return found


async def refused(authority: SignerAuthority, wanted: MintRequest, kind: type[AgentError]) -> str:
    with pytest.raises(kind) as caught:
        await authority.mint_x509(wanted)
    return str(caught.value)


def test_minting(both_ways: list[int]) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        token = passed_on(rig.site.token(claim))
        assert rig.authority.contact.connected
        key = KeyAlgorithm.EC_P384.generate()
        minted = await rig.authority.mint_x509(request(claim, token, key=key, ttl=timedelta(minutes=5)))
        now = datetime.now(UTC)
        assert check_x509_svid(minted.chain, minted.trust.bundle, now) == minted.spiffe_id
        assert str(minted.spiffe_id) == "spiffe://example.org/ns/default/sa/web"
        assert minted.chain[0].public_key() == key.public_key()
        assert minted.chain[0].not_valid_after_utc - now <= timedelta(minutes=5)
        assert now < minted.renewal.start < minted.renewal.end < minted.chain[0].not_valid_after_utc
        jwt = await rig.authority.mint_jwt(JwtRequest(request(claim, token).pod, token, minted.spiffe_id, ("a", "b")))
        bundle = trust(rig.authority).bundle
        assert check_jwt_svid(jwt.svid.token, {bundle.trust_domain: bundle}, "b", now).spiffe_id == minted.spiffe_id
        capped = await rig.authority.mint_x509(request(claim, token, ttl=timedelta(hours=999), ttl_text="999h"))
        assert capped.notice.startswith("ttl 999h was asked for, 1h is granted: ")

    rigged(test)
    assert both_ways in ([], [2, 2])


def test_refusals_reach_the_pod_with_their_reason() -> None:
    async def test(rig: Rig) -> None:
        claim, there = rig.site.pod("web"), rig.site.pod("there", node="node-b")
        token = passed_on(rig.site.token(claim))
        elsewhere = passed_on(rig.site.token(there, node="node-b"))
        said = await refused(rig.authority, request(there, elsewhere), AuthorityRefused)
        assert said.startswith("POD_ON_OTHER_NODE: ")
        said = await refused(rig.authority, request(claim, token, dns_names=("payments.svc",)), AuthorityRefused)
        assert said.startswith("DNS_NAME_DENIED: ")
        said = await refused(
            rig.authority, request(claim, token, dns_names=("signer.podsvid.internal",)), AuthorityRefused
        )
        assert said.startswith("DNS_NAME_DENIED: ")
        said = await refused(rig.authority, request(claim, None), AuthorityUnavailable)
        assert said.startswith("POD_TOKEN_MISSING: ")
        assert "tokenRequests" in said
        said = await refused(rig.authority, request(claim, PodToken('{"other": {}}')), AuthorityUnavailable)
        assert said.startswith("POD_TOKEN_MISSING: ")
        late = passed_on(rig.site.token(claim, life=-5))
        said = await refused(rig.authority, request(claim, late), AuthorityUnavailable)
        assert said.startswith("POD_TOKEN_EXPIRED: ")
        # An agent whose own token is bad: that may be mended, so kubelet tries again.
        stranger = rig.another("no.agent.token")
        assert (await refused(stranger, request(claim, token), AuthorityUnavailable)).startswith(
            "AGENT_TOKEN_INVALID: "
        )
        missing = rig.another("x", token_file=Path("/nonexistent/token"))
        assert (await refused(missing, request(claim, token), AuthorityUnavailable)).startswith("AGENT_TOKEN_MISSING: ")

    rigged(test)


def test_the_signer_must_prove_itself() -> None:
    async def test(rig: Rig) -> None:
        other = X509Authority.create(
            TrustDomain("example.org"),
            algorithm=KeyAlgorithm.EC_P256,
            lifetime=timedelta(days=1),
            now=datetime.now(UTC),
        )
        file = rig.folder / "other.pem"
        file.write_bytes(other.bundle.to_pem())
        fooled = rig.another(rig.site.agent(), bundle_file=file)
        watching = asyncio.create_task(fooled.run())
        async with asyncio.timeout(60):
            while "SIGNER_NOT_TRUSTED" not in fooled.contact.last_error:
                await asyncio.sleep(0.01)
        assert not fooled.contact.connected
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        with pytest.raises(AuthorityDamaged, match="ConfigMap podsvid-bundle"):
            rig.another("x", bundle_file=rig.folder / "absent")

    rigged(test)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_only_tls_1_3_is_spoken(tmp_path: Path, workers: str) -> None:
    """In processes of their own, as the command starts them: grpc reads its settings when it is imported."""
    with process(tmp_path, 1, 1, free_port(), "--workers", workers) as (_, site):
        for version, accepted in (("-tls1_3", True), ("-tls1_2", False)):
            command = ["openssl", "s_client", "-connect", site["address"], "-alpn", "h2", version]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            assert (b"Cipher is (NONE)" not in done.stdout) is accepted, done.stdout[-600:]


def test_trust_is_followed_and_acknowledged() -> None:
    async def test(rig: Rig) -> None:
        rotation = rig.signer.replica._rotation
        before = trust(rig.authority)
        assert rotation.state is not None
        assert before.bundle.sequence == rotation.state.sequence
        # The agent's node counts as live by its pod.
        claim = rig.site.pod("agent-a", account="podsvid-agent", namespace="podsvid", driver=None)
        assert claim
        async with asyncio.timeout(60):
            while rotation.live_nodes() != {"node-a"}:
                await asyncio.sleep(0.02)
            await rotation.step("prepare", "x509", "", forced=False)
            version = 0
            while len(trust(rig.authority).bundle.x509_authorities) != 2:
                version = await rig.authority.trust.wait_beyond(version)
            state = rotation.state
            assert rotation.acks(state).waiting == {"node-a"}
            old = state.active_x509_id
            rig.authority.hold(trust(rig.authority), {old: 5})
            while rotation.acks(state).waiting:
                await asyncio.sleep(0.02)
            assert rotation.acks(state).in_use == {old: 5}
            # Nobody lacks it any more: the leader signs with it.
            while not rig.authority.early_renewals.current:
                await asyncio.sleep(0.02)
        (early,) = rig.authority.early_renewals.current
        assert early.authority_id == old

    rigged(test)


def test_nothing_is_written_for_an_svid() -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web")
        token = passed_on(rig.site.token(claim))
        await rig.authority.mint_x509(request(claim, token))
        # What else is under way: reviews, the lease, and the bundle that each namespace gets once.
        others = ("tokenreviews", "leases", "namespaces/default/configmaps")

        def writes() -> list[tuple[str, str]]:
            return [each for each in rig.site.kube.writes if not any(name in each[1] for name in others)]

        # What it publishes once, at its start, it may publish after the first SVID.
        async with asyncio.timeout(60):
            while not any("clustertrustbundles" in path for _, path in writes()):
                await asyncio.sleep(0.01)
        before = writes()
        for _ in range(50):
            await rig.authority.mint_x509(request(claim, token))
        assert writes() == before

    rigged(test)


def test_one_node_cannot_take_the_signer_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")

    async def test(rig: Rig) -> None:
        claim, there = rig.site.pod("web"), rig.site.pod("there", node="node-b")
        token, elsewhere = passed_on(rig.site.token(claim)), passed_on(rig.site.token(there, node="node-b"))
        file = rig.folder / "token-of-node-b"
        file.write_text(rig.site.agent("node-b"))
        other = rig.another(rig.site.agent(), token_file=file)
        following = asyncio.create_task(other.run())
        async with asyncio.timeout(60):
            while not trust(other).proven:
                await asyncio.sleep(0.01)
        flood = [asyncio.ensure_future(rig.authority.mint_x509(request(claim, token))) for _ in range(200)]
        # While the one floods, and as often as its own limits allow.
        for _ in range(10):
            assert (await other.mint_x509(request(there, elsewhere))).chain
        answers = await asyncio.gather(*flood, return_exceptions=True)
        following.cancel()
        failures = [str(each) for each in answers if isinstance(each, BaseException)]
        assert {each.partition(": ")[0] for each in failures} <= {"RATE_LIMITED", "BUSY"}
        # The agent waits as it was told and is served in the end, as far as its deadline goes.
        assert len(failures) < 200
        # An agent asks again until it is served: only the signer's own log tells whom it turned away.
        refused = [vars(each) for each in caplog.records if each.getMessage() == "mint refused"]
        assert {each["node"] for each in refused} == {"node-a"}
        assert {each["reason"] for each in refused} <= {"RATE_LIMITED", "BUSY"}

    rigged(test, "--node-rate", "20", "--node-burst", "20", "--node-concurrency", "8")
