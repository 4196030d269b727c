"""What signers take for agreement: not the silence of agents that they cannot see, nor numbers of another past."""

import asyncio
import base64
import copy
import json
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.authority.protocol import MintRequest
from agent.authority.signer import SignerAuthority
from csi.model import PodRef, PodToken
from runtime.clock import SystemClock
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.slots import Stage
from signer.authority.state import AuthorityState, sequence_at
from signer.cluster.decoding import Kept, Page
from signer.cluster.kube import Object
from svid.identity import Trust
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from svid.x509svid import check_x509_svid
from tests.fake_signer import authority
from tests.signer_rig import AUDIENCE, Serving, Site, serving

SECRET = "/api/v1/namespaces/podsvid/secrets/podsvid-authority"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/podsvid/leases/podsvid-signer"
BUNDLE = "/api/v1/namespaces/podsvid/configmaps/podsvid-bundle"
PODS, MAPS = "/api/v1/pods", "/api/v1/namespaces/podsvid/configmaps"
TD = TrustDomain("example.org")
NODES = frozenset(f"node-{number}" for number in range(5))


@pytest.fixture(params=[1, 2], ids=["one-process", "workers"])
def served_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the replica itself, or by workers, as where its container has two cores."""
    monkeypatch.setattr("signer.worker_settings.limit", lambda: float(request.param))


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("signer.cluster.leader.RENEW", 0.01)
    monkeypatch.setattr("signer.publishing.config_maps.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("agent.authority.contact.FIRST_RETRY", 0.1)
    monkeypatch.setattr("agent.authority.contact.MAX_RETRY", 0.2)


def ran(test: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(test(Path(folder)))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


def stored(site: Site) -> AuthorityState:
    return AuthorityState.from_json(base64.b64decode(site.kube.objects[SECRET]["data"]["state.json"]), TD)


def stages(site: Site, kind: str = "x509") -> list[str]:
    return [slot.stage.value for slot in stored(site).slots(kind)]


def populated() -> Site:
    """An agent on each of five nodes, none of which says anything."""
    site = Site()
    for node in sorted(NODES):
        site.pod(f"agent-{node}", node=node, account="podsvid-agent", namespace="podsvid", driver=None)
    return site


@asynccontextmanager
async def held_lists(site: Site, path: str) -> AsyncIterator[asyncio.Event]:
    """The API server answers lists of `path` when it is let go."""
    go = asyncio.Event()
    plain = site.kube.list

    async def held(asked: str, kind: type[Kept], query: Mapping[str, str] | None = None) -> Page[Kept]:
        if asked == path:
            await go.wait()
        return await plain(asked, kind, query)

    site.kube.list = held  # type: ignore[method-assign,assignment]
    try:
        yield go
    finally:
        go.set()


@asynccontextmanager
async def starting(site: Site, folder: Path, *flags: str) -> AsyncIterator[Callable[[], Serving | None]]:
    """A replica that need not get ready."""
    found: list[Serving] = []
    leave = asyncio.Event()

    async def serve() -> None:
        async with serving(site, folder, site.clock, *flags) as signer:
            found.append(signer)
            await leave.wait()

    task = asyncio.create_task(serve())
    try:
        yield lambda: found[0] if found else None
    finally:
        leave.set()
        await task


class Looks:
    """How often a leader asked itself what is due."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        due = Life.due

        def counted(life: Life, state: AuthorityState, acks: Acks, now: datetime, *more: Any) -> Any:
            self.number += 1
            return due(life, state, acks, now, *more)

        monkeypatch.setattr(Life, "due", counted)

    async def pass_by(self, number: int = 20) -> None:
        wanted = self.number + number
        await until(lambda: self.number >= wanted)


@pytest.mark.parametrize("unread", [PODS, MAPS])
@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("stage", [Stage.PREPARED, Stage.TAINTED])
def test_a_leader_that_has_not_read_all_takes_nobody_for_everybody(
    stage: Stage, crashed: bool, unread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither signs with what no agent has, nor drops a root whose SVIDs are held, nor at a person's word."""
    looks = Looks(monkeypatch)
    site = populated()

    async def released(_: Any) -> None:
        """The leader was killed: its lease has to run out, which here is at once."""
        site.kube.remove(LEASE)

    async def test(folder: Path) -> None:
        for name in "ab":
            (folder / name).mkdir()
        if crashed:
            monkeypatch.setattr("signer.cluster.leader.Leader.release", released)
        async with serving(site, folder / "a", site.clock) as first:
            rotation = first.replica._rotation
            if stage is Stage.TAINTED:
                await rotation.step("rotate", "x509", "", forced=True)
                await until(lambda: "prepared" in stages(site))
                await rotation.step("activate", "x509", "", forced=True)
            else:
                await rotation.step("prepare", "x509", "", forced=False)
            await looks.pass_by()
        before = stages(site)
        assert stage in before
        async with (
            starting(site, folder / "b", "--identity", "signer-2") as signer,
            held_lists(site, unread) as go,
        ):
            await until(lambda: _holder(site) == "signer-2")
            await looks.pass_by()
            assert stages(site) == before
            go.set()
            await until(lambda: signer() is not None)
            await looks.pass_by()
            assert stages(site) == before
            found = signer()
            assert found is not None
            assert found.replica._rotation.acks(stored(site)).waiting == NODES

    ran(test)


def _holder(site: Site) -> str:
    return str(((site.kube.objects.get(LEASE) or {}).get("spec") or {}).get("holderIdentity") or "")


class Node:
    """The part of an agent that follows the signer, and one pod's SVID."""

    def __init__(self, site: Site, signer: Serving, folder: Path) -> None:
        self.site = site
        self.claim = site.pod("web-1")
        token = {"token": site.token(self.claim), "expirationTimestamp": "2099-01-01T00:00:00Z"}
        self.token = PodToken(json.dumps({AUDIENCE: token}))
        self.settings = signer.settings(site.agent("node-a"), folder)
        self.authority = SignerAuthority(self.settings, SystemClock(), random.Random(1))
        self.authority.load()

    def cut(self) -> None:
        """As when the signers' processes are gone: in this one, a server's streams outlive it."""
        trust = self.authority.trust.current
        assert trust is not None
        self.authority = SignerAuthority(self.settings, SystemClock(), random.Random(1))
        self.authority.trust.publish(trust)

    @property
    def sequence(self) -> int:
        trust = self.authority.trust.current
        return (trust.bundle.sequence or 0) if trust else 0

    async def follow(self) -> None:
        """All its workloads have each trust at once."""
        version = 0
        while True:
            version = await self.authority.trust.wait_beyond(version)
            assert self.authority.trust.current is not None
            self.authority.hold(self.authority.trust.current, {})

    async def mount(self) -> None:
        """What kubelet does: bring the ConfigMap's bundle into the agent's file."""
        while True:
            found = self.site.kube.objects.get(BUNDLE)
            if found is not None:
                text = found["data"]["bundle.json"]
                if self.settings.bundle_file.read_text() != text:
                    self.settings.bundle_file.write_text(text)
            await asyncio.sleep(0.05)

    async def mint(self) -> None:
        """An SVID that the agent itself takes, as `agent/workload/issuer.py` does. Raises."""
        request = MintRequest(
            PodRef("default", "web-1", self.claim.uid, "web"), self.token, KeyAlgorithm.EC_P256.generate(), None, ()
        )
        minted = await self.authority.mint_x509(request)
        check_x509_svid(minted.chain, minted.trust.bundle, datetime.now(UTC))


@asynccontextmanager
async def following(node: Node) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in (node.authority.run(), node.follow(), node.mount())]
    try:
        yield
        assert not [each for each in tasks if each.done()]
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.usefixtures("served_by")
@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=20), timedelta(days=10**4)])
def test_who_stood_in_the_signers_place_once_is_outdone_by_the_signer(ahead: timedelta) -> None:
    """A thief of the CA key, for one stream and with any number: what agents say of it is answered from above."""
    site = Site(datetime.now(UTC).replace(microsecond=0))
    site.kube.put("/api/v1/namespaces/podsvid", {"metadata": {"name": "podsvid"}})
    site.pod("agent-node-a", account="podsvid-agent", namespace="podsvid", uid="agent-uid-node-a", driver=None)

    async def test(folder: Path) -> None:
        for name in "an":
            (folder / name).mkdir()
        async with serving(site, folder / "a", SystemClock()) as first:
            node = Node(site, first, folder / "n")
            async with following(node):
                await until(lambda: node.sequence == stored(site).sequence)
                true = stored(site).bundle
                false = authority(datetime.now(UTC)).chain
                number = sequence_at(datetime.now(UTC) + ahead)
                lie = replace(true, x509_authorities=(*true.x509_authorities, *false), sequence=number)
                assert node.authority._held.take(Trust(lie))
                if ahead > timedelta(days=1):
                    # Nobody can publish above it: whatever is heard next replaces it.
                    await first.replica._rotation.step("prepare", "jwt", "", forced=False)
                await until(lambda: node.sequence == stored(site).sequence)
                trust = node.authority.trust.current
                assert trust is not None
                assert set(trust.bundle.x509_authorities) == set(true.x509_authorities)
                await until(lambda: not first.replica._rotation.acks(stored(site)).waiting)
                await node.mint()

    ran(test)


@pytest.mark.usefixtures("served_by")
@pytest.mark.parametrize("kind", ["jwt", "x509"])
def test_agents_follow_an_older_secret_that_was_put_back_without_a_hand_on_any_node(kind: str) -> None:
    """x509: the root of the older one is not even in the trust that agents have, nor in the signer's own any more."""
    site = Site(datetime.now(UTC).replace(microsecond=0))
    site.kube.put("/api/v1/namespaces/podsvid", {"metadata": {"name": "podsvid"}})
    site.pod("agent-node-a", account="podsvid-agent", namespace="podsvid", uid="agent-uid-node-a", driver=None)

    async def test(folder: Path) -> None:
        for name in "abn":
            (folder / name).mkdir()
        async with serving(site, folder / "a", SystemClock()) as first:
            port = int(first.address.rpartition(":")[2])
            node = Node(site, first, folder / "n")
            async with following(node):
                rotation = first.replica._rotation
                await until(lambda: not rotation.acks(stored(site)).waiting)
                await node.mint()
                backup = copy.deepcopy(site.kube.objects[SECRET])
                for _ in range(3):
                    await rotation.step("prepare", kind, "", forced=False)
                    await rotation.step("activate", kind, "", forced=True)
                for slot in stored(site).slots(kind):
                    if slot.stage is Stage.OLD:
                        await rotation.step("revoke", kind, slot.id, forced=True)
                await until(lambda: node.sequence == stored(site).sequence)
                await until(lambda: str(node.sequence) in site.kube.objects[BUNDLE]["data"]["bundle.json"])
                await node.mint()
        held = node.sequence
        site.kube.put(SECRET, {key: backup[key] for key in ("type", "data")})
        node.cut()
        async with serving(site, folder / "b", SystemClock(), port=port) as second, following(node):
            await until(lambda: node.sequence > held)
            await until(lambda: node.sequence == stored(site).sequence)
            rotation = second.replica._rotation
            await until(lambda: not rotation.acks(stored(site)).waiting)
            await node.mint()
            assert stored(site).slots(kind)[0].id in backup_ids(backup, kind)
            assert "an older one; published again" in rotation.next_steps(stored(site))[0]
            value = second.replica.metrics.registry.get_sample_value
            assert value("podsvid_signer_rollbacks_detected_total", {"how": "restored"}) == 1
            # What the parts know is asked again and again.
            await until(lambda: value("podsvid_signer_leader") == 1)

    ran(test)


def backup_ids(backup: Object, kind: str) -> set[str]:
    state = AuthorityState.from_json(base64.b64decode(backup["data"]["state.json"]), TD)
    return {slot.id for slot in state.slots(kind)}
