"""The table of docs/upstream.md: what a failure of the CA above is to running and new pods, to rotation, to people."""

import asyncio
import base64
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from signer.authority.acknowledgements import Agents
from signer.authority.lifecycle import Life
from signer.authority.rotation import Rotation
from signer.authority.state import AuthorityState
from signer.authority.store import SecretStore
from signer.cluster.leader import Leader
from signer.errors import SignerError
from signer.metrics import Metrics
from signer.model import Agent
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from signer.upstream.remote import Denied, Elsewhere, UpstreamAway
from signer.upstream.roots import RootSet
from svid.authority import X509Authority
from svid.certificates import to_pem
from svid.errors import IssuanceRefused
from svid.keys import PrivateKey, PublicKey, key_to_pem
from svid.x509svid import check_x509_svid
from tests.meanwhile import before
from tests.signer_rig import START, Apart
from tests.unit.signer.said import abandonments, all_read, sources
from tests.unit.signer.test_lifecycle import KEY, POLICY, TD, TTL, WEB, stages
from tests.unit.signer.test_requests import RemoteCa
from tests.unit.signer.test_rotation import PATH, Cluster, loop, passes, until
from tests.unit.signer.test_upstream_revoked import fingerprint
from tests.unit.signer.test_upstream_roots import ONE, TWO, Source, interval, named, trusted
from tests.unit.signer.test_upstream_trial import FENCE, Above, Ca, authority, marked, usual

DAY = timedelta(days=1)
Leaf = tuple[x509.Certificate, ...]


class Signer:
    """One replica that leads, below a CA at hand or elsewhere; `source` names its roots."""

    def __init__(
        self, cluster: Cluster, above: Any = None, remote: RemoteCa | None = None, source: Source | None = None
    ) -> None:
        self.cluster = cluster
        if remote is not None:
            remote.clock = cluster.clock
        self.leader = Leader(
            cluster.kube,
            "podsvid",
            "lease",
            f"signer-{random.random()}",
            timedelta(seconds=15),
            Apart(cluster.clock, lambda: cluster.monotonic),
            random.Random(1),
        )
        self.agents = Agents(cluster.kube, "podsvid", "signer", cluster.clock)
        self.rotation = Rotation(
            SecretStore(cluster.kube, "podsvid", "authority", TD),
            abandonments(cluster.kube, cluster.clock),
            Life(POLICY, Elsewhere(remote.name) if remote is not None else above, TD),
            self.leader,
            self.agents,
            sources(lambda: cluster.live),
            Metrics(),
            cluster.clock,
            random.Random(1),
            remote,
            source.roots if source is not None else None,
        )
        self.told: list[str] = []
        self.rotation.requests.refused = self.told.append

    async def open(self) -> None:
        await all_read(self.agents)
        await self.leader.attempt()
        await self.rotation.open()

    @property
    def state(self) -> AuthorityState:
        return self.cluster.stored

    @property
    def people_see(self) -> str:
        return "\n".join(self.rotation.next_steps(self.state))

    def pod(self) -> Leaf:
        """What a new one gets; what it gets is accepted."""
        found = self.state.active_x509.issue(KEY, WEB, ttl=TTL, now=self.cluster.clock.now())
        self.runs(found)
        return found

    def runs(self, leaf: Leaf) -> None:
        """A running one's is accepted."""
        assert check_x509_svid(leaf, self.state.bundle, self.cluster.clock.now()) == WEB

    def agents_have_it(self) -> None:
        self.agents.connect(Agent("a", "u", "agent", "p", START))
        self.agents.acknowledged("a", self.state.sequence, {}, self.state.digest)


def below(above: Any = None, **more: Any) -> tuple[Signer, Any]:
    cluster = Cluster()
    above = above or usual(ONE)
    return Signer(cluster, above, **more), above


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.0)


def fails(above: Above, error: SignerError) -> Callable[[], None]:
    """It answers so from now on; until what is returned is called."""
    answer = above.answer

    def failing(key: PrivateKey, end: Any) -> X509Authority:
        raise error

    def mended() -> None:
        above.answer = answer

    above.answer = failing
    return mended


def half_a_life(at: Signer) -> None:
    at.cluster.clock.pass_by(seconds=POLICY.authority_ttl.total_seconds() / 2 + 1)


def test_away_at_the_first_start() -> None:
    async def run() -> None:
        ca = RemoteCa()
        ca.fails = UpstreamAway("nobody answers")
        at = Signer(Cluster(), remote=ca)
        async with loop(_for_ever(at.open())):
            await until(lambda: "nobody answers" in at.rotation.requests.first_awaited)
            assert at.rotation.state is None, "no new pod gets anything"
            asked = at.state.request
            assert asked is not None
            assert at.rotation.requests.first_awaited.startswith("waits for the first certificate of CA elsewhere")
            ca.fails = None
            at.cluster.clock.pass_by(seconds=10)
            await until(lambda: at.rotation.state is not None)
            assert ca.issued == [asked.id]
            at.pod()

    asyncio.run(run())


async def _for_ever(work: Any) -> None:
    await work
    await asyncio.Event().wait()


def test_away_later() -> None:
    async def run() -> None:
        at, above = below()
        await at.open()
        mended = fails(above, UpstreamUnusable("nobody answers"))
        half_a_life(at)
        leaf, asked, active = at.pod(), above.asked, at.state.active_x509_id
        async with loop(at.rotation.run()):
            await until(lambda: "nobody answers" in at.people_see)
            assert "tried again at" in at.people_see
            assert at.rotation.waiting_since is not None
            before_it = [slot.id for slot in at.state.jwt]
            await at.rotation.step("rotate", "jwt", "", forced=True)
            await until(lambda: not {slot.id for slot in at.state.jwt} & set(before_it))
            await passes()
            assert above.asked == asked + 1
            at.runs(leaf)
            at.pod()
            mended()
            at.cluster.clock.pass_by(minutes=1)
            await until(lambda: at.state.active_x509_id != active)
        at.runs(leaf)

    asyncio.run(run())


def test_away_until_the_active_one_ends() -> None:
    async def run() -> None:
        at, above = below()
        await at.open()
        at.cluster.live = frozenset({"a"})
        mended = fails(above, UpstreamUnusable("nobody answers"))
        ends = at.state.active_x509.not_after
        at.cluster.clock.pass_by(seconds=(ends - START - timedelta(minutes=10)).total_seconds())
        assert at.pod()[0].not_valid_after_utc == ends, "it ends with it, and lives no hour"
        at.cluster.clock.pass_by(minutes=11)
        async with loop(at.rotation.run()):
            await until(lambda: "nobody answers" in at.people_see)
            with pytest.raises(IssuanceRefused):
                at.pod()
            mended()
            at.cluster.clock.pass_by(minutes=2)
            # No agent has acknowledged it.
            await until(lambda: at.state.active_x509.not_after > ends)
        at.pod()

    asyncio.run(run())


def test_slow() -> None:
    async def run() -> None:
        ca = RemoteCa()
        at = Signer(Cluster(), remote=ca)
        await at.open()
        leaf = at.pod()
        ca.thinks = True
        await at.rotation.step("rotate", "x509", "", forced=False)
        async with loop(at.rotation.run()), loop(at.rotation.ask_above()):
            await until(lambda: "nobody has approved it" in at.people_see)
        await at.leader.release()
        at.cluster.clock.pass_by(seconds=60)
        two = Signer(at.cluster, remote=ca)
        await two.open()
        async with loop(two.rotation.run()), loop(two.rotation.ask_above()):
            await until(lambda: "nobody has approved it" in two.people_see)
            assert "waits for a certificate of CA elsewhere, wanted since 2030-01-01T00:00:00Z" in two.people_see
            two.runs(leaf)
            two.pod()
            ca.thinks = False
            two.cluster.clock.pass_by(minutes=1)
            await until(lambda: len(two.state.x509) == 2)
        assert len(ca.submitted) == 2

    asyncio.run(run())


def test_denied() -> None:
    async def run() -> None:
        ca = RemoteCa()
        at = Signer(Cluster(), remote=ca)
        await at.open()
        leaf = at.pod()
        ca.bend = lambda issued: Denied("not under this name", permanent=True)
        await at.rotation.step("rotate", "x509", "", forced=False)
        async with loop(at.rotation.run()), loop(at.rotation.ask_above()):
            await until(lambda: at.told != [])
            await until(lambda: at.state.request is None)
            await passes()
            assert "not under this name" in at.told[0]
            assert "asked again at" in at.people_see
            at.runs(leaf)
            at.pod()
            assert len(ca.submitted) == 2
            at.cluster.clock.pass_by(minutes=75)
            await until(lambda: len(ca.submitted) == 3)
        assert len(set(ca.submitted)) == 3

    asyncio.run(run())


@pytest.mark.parametrize("life", [DAY, 1000 * DAY], ids=["shorter", "longer"])
def test_another_life_than_asked_for(life: timedelta) -> None:
    async def run() -> None:
        given = Above(
            lambda key, end: authority(
                ONE.below(marked(key), key, life=end - POLICY.authority_ttl - START + life), roots=[ONE]
            )
        )
        at, _ = below(given)
        await at.open()
        leaf, active = at.pod(), at.state.active_x509_id
        due = min(life, POLICY.authority_ttl) / 2
        assert f"x509: prepare a new authority at {START + due:%Y-%m-%dT%H:%M:%SZ}" in at.people_see
        at.cluster.clock.pass_by(seconds=due.total_seconds() - 1)
        async with loop(at.rotation.run()):
            await passes()
            assert at.state.active_x509_id == active
            at.cluster.clock.pass_by(seconds=1)
            await until(lambda: at.state.active_x509_id != active)
        assert leaf[0].issuer != at.pod()[0].issuer
        assert at.state.active_x509.not_after == at.cluster.clock.now() + life

    asyncio.run(run())


def test_about_to_end() -> None:
    async def run() -> None:
        ending = Ca.root("ending", life=timedelta(hours=8))
        at, _ = below(usual(ending))
        await at.open()
        leaf = at.pod()
        at.cluster.clock.pass_by(minutes=4 * 60 + 1)
        async with loop(at.rotation.run()):
            await until(lambda: "UPSTREAM_CERTIFICATE_REFUSED" in at.people_see)
            await passes()
        assert (stages(at.state), trusted(at.state)) == (["active"], {"ending"})
        assert "2030-01-01T08:00:00Z" in at.people_see
        assert leaf[0].not_valid_after_utc < at.state.active_x509.not_after
        at.cluster.clock.pass_by(minutes=3 * 60 + 30)
        assert at.pod()[0].not_valid_after_utc == START + timedelta(hours=8)

    asyncio.run(run())


def stranger(key: PrivateKey, end: Any) -> X509Authority:
    return authority(Ca.root("other").below(marked(key), key, life=end - START), roots=[ONE])


def tight(key: PrivateKey, end: Any) -> X509Authority:
    above = ONE.below("tight", path_length=0)
    return authority(above.below(marked(key), key, life=end - START), above, roots=[ONE])


def fenced(key: PrivateKey, end: Any) -> X509Authority:
    return authority(ONE.below(marked(key), key, life=end - START, more=[(FENCE, True)]), roots=[ONE])


def gap(key: PrivateKey, end: Any) -> X509Authority:
    return authority(ONE.below("middle").below(marked(key), key, life=end - START), roots=[ONE])


@pytest.mark.parametrize("wrong", [stranger, tight, fenced, gap])
def test_a_chain_that_cannot_serve(wrong: Callable[[PrivateKey, Any], X509Authority]) -> None:
    async def run() -> None:
        at, above = below()
        await at.open()
        known = at.state
        above.answer = wrong
        half_a_life(at)
        leaf = at.pod()
        async with loop(at.rotation.run()):
            await until(lambda: "UPSTREAM_CERTIFICATE_REFUSED" in at.people_see)
            await passes()
        assert (stages(at.state), at.state.bundle.x509_authorities) == (["active"], known.bundle.x509_authorities)
        at.runs(leaf)
        at.pod()

    asyncio.run(run())


def test_a_new_root_is_named() -> None:
    async def run() -> None:
        source = Source(ONE, TWO)
        at, above = below(source=source)
        await at.open()
        at.cluster.live = frozenset({"a"})
        leaf = at.pod()
        async with loop(at.rotation.run()), loop(at.rotation.ask_above()):
            await until(lambda: trusted(at.state) == {"one", "two"})
            assert [each.certificate for each in at.state.roots][-1] == TWO.certificate
            at.runs(leaf)
            at.pod()
            above.answer = usual(TWO).answer
            await at.rotation.step("rotate", "x509", "", forced=False)
            await until(lambda: stages(at.state) == ["active", "prepared"])
            await passes()
            assert stages(at.state) == ["active", "prepared"]
            # The replica has just begun to lead.
            assert f"activate {at.state.x509[1].id} when it is known who has it" in at.people_see
            at.agents_have_it()
            await until(lambda: stages(at.state) == ["old", "active"])
        at.runs(leaf)
        at.pod()

    asyncio.run(run())


def test_a_root_is_swapped_without_notice() -> None:
    async def run() -> None:
        source = Source(ONE)
        at, above = below(source=source)
        await at.open()
        at.cluster.live = frozenset({"a"})
        above.answer, source.says = usual(TWO).answer, named(TWO)
        async with loop(at.rotation.run()), loop(at.rotation.ask_above()):
            await until(lambda: at.rotation.roots.refuses)
            assert trusted(at.state) == {"one"}
            assert "podsvid authority rotate" in at.people_see
            at.pod()
            half_a_life(at)
            await until(lambda: stages(at.state) == ["active", "prepared"])
            assert trusted(at.state) == {"one", "two"}
            leaf = at.pod()
            await passes()
            assert stages(at.state) == ["active", "prepared"]
            at.agents_have_it()
            await until(lambda: stages(at.state) == ["old", "active"])
        at.runs(leaf)
        at.pod()

    asyncio.run(run())


@pytest.mark.parametrize("empty", [False, True], ids=["unreadable", "empty"])
def test_roots_that_cannot_be_read(empty: bool) -> None:
    async def run() -> None:
        source = Source(ONE, TWO)
        at, _ = below(source=source)
        await at.open()
        leaf = at.pod()
        async with loop(at.rotation.ask_above()):
            await until(lambda: trusted(at.state) == {"one", "two"})
            if empty:
                source.says = RootSet(complete=True)
            else:
                source.fails = UpstreamAway("nobody answers")
            interval(at.cluster)
            await until(lambda: at.rotation.roots.refuses)
            assert "x509: roots of the CA above: " in at.people_see
            interval(at.cluster)
            await passes()
        assert trusted(at.state) == {"one", "two"}
        at.runs(leaf)
        at.pod()
        await at.rotation.step("prepare", "x509", "", forced=False)
        assert stages(at.state) == ["active", "prepared"]

    asyncio.run(run())


def test_the_leader_dies_between() -> None:
    """A CA that makes a certificate of each request that it gets."""

    async def run() -> None:
        ca = RemoteCa(at_once=True)
        at = Signer(Cluster(), remote=ca)
        await at.open()
        leaf, first = at.pod(), list(ca.issued)
        await at.rotation.step("prepare", "x509", "", forced=False)

        def dies() -> None:
            raise asyncio.CancelledError

        before(at.cluster.kube, "replace", dies, "secrets")
        dying = asyncio.create_task(at.rotation.ask_above())
        await until(lambda: len(ca.issued) == len(first) + 1)
        await passes()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        assert at.state.request is not None
        await at.leader.release()
        two = Signer(at.cluster, remote=ca)
        await two.open()
        async with loop(two.rotation.ask_above()):
            await until(lambda: len(two.state.x509) == 2)
        assert len(ca.issued) == len(first) + 2
        assert len(set(ca.issued)) == len(first) + 1, "of the same key"
        two.runs(leaf)
        two.pod()
        assert "given up" not in two.people_see

    asyncio.run(run())


def test_a_login_that_is_refused() -> None:
    async def run() -> None:
        ca = RemoteCa()
        at = Signer(Cluster(), remote=ca)
        await at.open()
        leaf = at.pod()
        ca.fails = UpstreamUnusable("403: permission denied")
        await at.rotation.step("rotate", "x509", "", forced=False)
        async with loop(at.rotation.run()), loop(at.rotation.ask_above()):
            await until(lambda: "UPSTREAM_UNUSABLE: 403: permission denied" in at.people_see)
            at.runs(leaf)
            at.pod()
            ca.fails = None
            at.cluster.clock.pass_by(seconds=10)
            await until(lambda: len(at.state.x509) == 2)

    asyncio.run(run())


def test_its_root_is_stolen() -> None:
    async def run() -> None:
        at, above = below()
        await at.open()
        leaf = at.pod()
        await at.rotation.step("revoke_upstream", "x509", fingerprint(ONE), forced=False)
        async with loop(at.rotation.run()):
            await until(lambda: "leads to no root but one that was revoked" in at.people_see)
            assert f"x509: stop trusting the revoked root {fingerprint(ONE)} when another authority" in at.people_see
            at.runs(leaf)
            at.pod()
            above.answer = usual(TWO).answer
            at.cluster.clock.pass_by(minutes=2)
            await until(lambda: trusted(at.state) == {"two"})
        at.pod()

    asyncio.run(run())


class Token:
    """Holds the CA's key; `there`: whether it can be asked. It counts what it was asked for."""

    def __init__(self) -> None:
        self.there, self.asked = True, 0

    def of(self, public: PublicKey) -> PrivateKey:
        self.asked += 1
        if not self.there:
            raise UpstreamUnusable("no token is there")
        return ONE.key


def by_token(folder: Path, token: Token) -> FileUpstream:
    (folder / "ca.crt").write_bytes(to_pem([ONE.certificate]))
    return FileUpstream(folder / "ca.crt", token)


def test_a_token_that_is_away(tmp_path: Path) -> None:
    async def run() -> None:
        token = Token()
        at, _ = below(by_token(tmp_path, token))
        await at.open()
        token.there = False
        half_a_life(at)
        leaf = at.pod()
        async with loop(at.rotation.run()):
            await until(lambda: "UPSTREAM_UNUSABLE: no token is there" in at.people_see)
            await passes()
            assert token.asked == 2
            at.runs(leaf)
            at.pod()
            token.there = True
            at.cluster.clock.pass_by(minutes=1)
            await until(lambda: len(at.state.x509) == 2)
        secret = base64.b64decode(at.cluster.kube.objects[PATH]["data"]["state.json"]).decode()
        assert "PRIVATE KEY" in secret, "the authority's own"
        lines = key_to_pem(ONE.key).decode().splitlines()[1:-1]
        assert not any(line in secret for line in lines)

    asyncio.run(run())
