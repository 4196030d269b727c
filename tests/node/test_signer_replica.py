"""What a whole replica does because it leads, and no longer when it does not."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from signer.cluster.taints import CSI_NODES, NODES, TAINT
from signer.federation.relation import COLLECTION
from signer.model import PodClaim
from svid.spiffeid import TrustDomain
from tests.fake_authority import root
from tests.fake_kube import FakeKube
from tests.signer_rig import DRIVER, Serving, Site, serving

LEASE = "/apis/coordination.k8s.io/v1/namespaces/podsvid/leases/podsvid-signer"
BUNDLE = "/api/v1/namespaces/{}/configmaps/podsvid-bundle"
POLICY = "/apis/podsvid.io/v1alpha1/clusterworkloadidentities/wide"


@pytest.fixture(autouse=True, params=[1, 2], ids=["one-process", "workers"])
def served_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the replica itself, or by workers, as where its container has two cores."""
    monkeypatch.setattr("signer.worker_settings.limit", lambda: float(request.param))


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("signer.cluster.leader.LOOK_SECONDS", 0.001)
    monkeypatch.setattr("signer.cluster.leader.RENEW", 0.001)
    monkeypatch.setattr("signer.publishing.config_maps.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("signer.daemon.REFRESH_SECONDS", 0.001)
    monkeypatch.setattr("signer.telling.REFRESH_SECONDS", 0.001)


def replicated(site: Site, test: Callable[[Serving], Awaitable[None]], *flags: str) -> None:
    async def run(folder: Path) -> None:
        async with serving(site, folder, site.clock, *flags) as signer:
            await test(signer)

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def elections(site: Site, number: int = 20) -> None:
    """So many more of them, each of which takes longer than the leader's tasks look whether they may."""
    wanted = site.kube.reads.count(LEASE) + number
    await until(lambda: site.kube.reads.count(LEASE) >= wanted)


def held_by(kube: FakeKube, name: str) -> None:
    """For as long as the test takes."""
    spec = {"holderIdentity": name, "leaseDurationSeconds": 3600}
    kube.put(LEASE, {"metadata": {"name": "podsvid-signer"}, "spec": spec})


def populate(site: Site, name: str) -> None:
    """Something for each of the leader's tasks."""
    site.kube.put(f"/api/v1/namespaces/{name}", {"metadata": {"name": name}})
    site.kube.put(f"{NODES}/{name}", {"metadata": {"name": name}, "spec": {"taints": [{"key": TAINT}]}})
    site.kube.put(f"{CSI_NODES}/{name}", {"metadata": {"name": name}, "spec": {"drivers": [{"name": DRIVER}]}})


def tainted(kube: FakeKube, name: str) -> bool:
    return bool(kube.objects[f"{NODES}/{name}"]["spec"].get("taints"))


def test_only_while_it_leads_a_replica_changes_what_is_the_clusters() -> None:
    site = Site()
    kube = site.kube
    populate(site, "a")
    kube.put(POLICY, {"metadata": {"name": "wide"}, "spec": {}})
    held_by(kube, "other")

    def written() -> set[str]:
        """Whatever is not this replica's own: its word on agents, and the authorities that were not there."""
        own = ("leases", "podsvid-agents", "tokenreviews", "secrets", "podsvid/configmaps")
        return {path for _, path in kube.writes if not any(each in path for each in own)}

    async def test(signer: Serving) -> None:
        leader = signer.replica._leader
        await until(lambda: leader.holder == "other")
        await elections(site)
        assert written() == set()
        assert BUNDLE.format("a") not in kube.objects
        kube.remove(LEASE)
        await until(lambda: leader.leading)
        await until(lambda: BUNDLE.format("a") in kube.objects)
        await until(lambda: not tainted(kube, "a"))
        await until(lambda: "status" in kube.objects[POLICY])
        held_by(kube, "other")
        await until(lambda: not leader.leading)
        await elections(site)
        writes = written()
        populate(site, "b")
        kube.remove(BUNDLE.format("a"))
        await elections(site)
        assert (written(), tainted(kube, "b")) == (writes, True)
        assert BUNDLE.format("b") not in kube.objects
        assert BUNDLE.format("a") not in kube.objects
        # It leads again, and catches up.
        kube.remove(LEASE)
        await until(lambda: BUNDLE.format("a") in kube.objects and BUNDLE.format("b") in kube.objects)
        await until(lambda: not tainted(kube, "b"))

    replicated(site, test, "--startup-taint")


def test_a_replica_that_ends_gives_the_lease_up_after_its_last_write() -> None:
    site = Site()

    async def test(signer: Serving) -> None:
        await until(lambda: signer.replica._leader.leading)

    replicated(site, test)
    assert site.kube.objects[LEASE]["spec"]["holderIdentity"] == ""
    assert site.kube.writes[-1] == ("replace", LEASE)


def test_the_nodes_that_are_waited_for_are_those_of_living_agents() -> None:
    site = Site()

    def agent(node: str, **changes: str) -> None:
        whose = {"account": "podsvid-agent", "namespace": "podsvid", **changes}
        site.pod(f"agent-{node or 'none'}", node=node, driver=None, **whose)

    agent("a")
    agent("other-account", account="web")
    agent("other-namespace", namespace="default")
    agent("over", phase="Succeeded")
    agent("failed", phase="Failed")
    agent("")

    async def test(signer: Serving) -> None:
        assert signer.replica._rotation.live_nodes() == {"a"}

    replicated(site, test)


def test_a_replica_that_hears_nothing_of_the_authorities_signs_no_more() -> None:
    """Another may have revoked what it would sign with."""
    site = Site()

    async def test(signer: Serving) -> None:
        replica = signer.replica
        assert replica._signing_state() is replica._rotation.state is not None
        site.kube.down = True
        site.clock.pass_by(hours=1)
        assert replica._signing_state() is not None
        site.clock.pass_by(seconds=1)
        assert replica._signing_state() is None
        missing = await replica.not_ready()
        assert missing is not None
        assert "authorities" in missing
        site.kube.down = False
        await replica._rotation._loaded()
        assert replica._signing_state() is not None

    replicated(site, test, "--outage-limit", "1h")


def test_a_forced_rotation_takes_as_long_as_the_clusters_pods_need() -> None:
    site = Site()
    for number in range(5):
        site.pod(f"web-{number}", driver=DRIVER if number else None)

    async def test(signer: Serving) -> None:
        rotation = signer.replica._rotation
        before = rotation.state
        assert before is not None
        await rotation.step("rotate", "x509", "", forced=True)

        def told() -> bool:
            state = rotation.state
            return state is not None and any(each.authority_id == before.active_x509_id for each in state.directives)

        # Nobody answers: it goes on by its bound.
        site.clock.pass_by(seconds=70)
        await until(told)
        state = rotation.state
        assert state is not None
        (directive,) = state.directives
        # Four of them hold SVIDs, two a second are renewed.
        assert (directive.end - directive.start).total_seconds() == 2.0

    replicated(site, test, "--forced-reissue-over", "1s", "--reissue-rate", "2")


def test_a_policys_status_says_of_which_trust_domains_there_is_no_bundle() -> None:
    site = Site()
    site.kube.put(POLICY, {"metadata": {"name": "wide"}, "spec": {"federatesWith": ["partner.test"]}})

    def missing() -> str:
        conditions = (site.kube.objects[POLICY].get("status") or {}).get("conditions") or []
        return next((each["status"] for each in conditions if each["type"] == "FederationMissing"), "")

    async def test(signer: Serving) -> None:
        await until(lambda: missing() == "True")
        partner = {
            "trustDomain": "partner.test",
            # Nobody is there: it goes by the bundle that is given.
            "bundleEndpointURL": "https://127.0.0.1:1/",
            "bundleEndpointProfile": {"type": "https_web"},
            "trustDomainBundle": root(site.clock.now(), TrustDomain("partner.test")).bundle.to_jwks().decode(),
        }
        site.kube.put(f"{COLLECTION}/partner", {"spec": partner})
        await until(lambda: missing() == "False")
        site.kube.remove(f"{COLLECTION}/partner")
        await until(lambda: missing() == "True")

    replicated(site, test)


def test_its_events_lead_to_the_site_that_its_settings_name() -> None:
    site = Site()

    def notes() -> list[str]:
        return [str(each["note"]) for path, each in site.kube.objects.items() if "/events.k8s.io/" in path]

    async def test(signer: Serving) -> None:
        signer.replica._events.refused(PodClaim("shop", "web", "uid-1"), "KEY_WEAK", "another key")
        await until(lambda: bool(notes()))
        assert notes() == ["KEY_WEAK: another key (see https://docs.example.org/troubleshooting.html#key_weak)"]

    replicated(site, test, "--docs-url", "https://docs.example.org/")
