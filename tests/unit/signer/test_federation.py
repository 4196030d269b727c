"""Other trust domains by objects: what is fetched and when, what every replica has of it, what a status says."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import looptime
import pytest

from runtime.federation import MAX_TOTAL_BYTES
from signer.cluster.kube import Object
from signer.federation import domains as rooms
from signer.federation.domains import LABEL, PATIENCE, Domains
from signer.federation.endpoint import FetchFailed
from signer.federation.polling import AT_ONCE, Polling
from signer.federation.relation import COLLECTION, Profile, Relation
from svid.bundle import TrustBundle
from svid.spiffeid import TrustDomain
from tests.fake_authority import root
from tests.fake_kube import FakeKube

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
OWN, PARTNER, OTHER = (TrustDomain(name) for name in ("example.org", "partner.test", "other.test"))
OURS = root(START, OWN).bundle
THEIRS = [replace(root(START, PARTNER).bundle, sequence=number) for number in range(1, 5)]
CONFIGS = "/api/v1/namespaces/podsvid/configmaps"
URL = "https://partner.test/bundle"
# What a look and what follows it take at most here.
SOON = 20.0
Test = Callable[["Cluster"], Awaitable[Any]]


class LoopClock:
    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Here:
    """Implements Aside on the loop, whose time threads do not know."""

    async def do(self, work: Callable[[], Any]) -> Any:
        return work()


class Partner:
    """Implements Endpoint. `says` is a document or a failure for each URL; `asked` when, of whom, and known by what."""

    def __init__(self) -> None:
        self.says: dict[str, bytes | FetchFailed] = {}
        self.asked: list[tuple[float, str, TrustBundle | None]] = []
        self.takes = 0.0
        self.at_once = self.most = 0

    async def fetch(self, relation: Relation, trusted: TrustBundle | None) -> bytes:
        self.asked.append((asyncio.get_running_loop().time(), relation.url, trusted))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.at_once -= 1
        found = self.says.get(relation.url, FetchFailed("nobody is there"))
        if isinstance(found, FetchFailed):
            raise found
        return found

    def publishes(self, bundle: TrustBundle, url: str = URL) -> None:
        self.says[url] = bundle.to_jwks()


class Cluster:
    """An API server, a partner, and replicas; `replica` starts one that leads or not."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.kube = FakeKube(self.clock)
        self.partner = Partner()
        self.results: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def replica(self, *, leads: bool = True, files: dict[TrustDomain, Path] | None = None) -> Domains:
        known = Domains(self.kube, "podsvid", OWN, files or {}, self.clock)
        self.tasks.append(asyncio.create_task(known.run()))
        if leads:
            rng = random.Random(1)
            polling = Polling(
                self.kube, known, self.partner, lambda: OURS, self.clock, rng, self.results.append, Here()
            )
            self.tasks.append(asyncio.create_task(polling.lead()))
        return known

    def relate(self, name: str = "partner", domain: str = "partner.test", url: str = URL, **more: Any) -> str:
        spec: Object = {
            "trustDomain": domain,
            "bundleEndpointURL": url,
            "bundleEndpointProfile": {"type": "https_web"},
            **more,
        }
        old = self.kube.objects.get(f"{COLLECTION}/{name}", {})
        generation = (old.get("metadata") or {}).get("generation", 0) + 1
        metadata = {"name": name, "generation": generation}
        if old:
            metadata |= {"creationTimestamp": old["metadata"]["creationTimestamp"]}
        self.kube.put(f"{COLLECTION}/{name}", {**old, "metadata": metadata, "spec": spec})
        return name

    def status(self, name: str = "partner") -> dict[str, Any]:
        found: dict[str, Any] = self.kube.objects[f"{COLLECTION}/{name}"].get("status", {})
        return found

    def condition(self, kind: str, name: str = "partner") -> tuple[str, str, str]:
        (found,) = [each for each in self.status(name)["conditions"] if each["type"] == kind]
        return found["status"], found["reason"], found["message"]

    async def stop(self) -> None:
        for each in self.tasks:
            each.cancel()
        for each in self.tasks:
            with suppress(asyncio.CancelledError):
                await each
        self.tasks = []


def play(test: Test) -> None:
    async def main() -> None:
        cluster = Cluster()
        try:
            await test(cluster)
        finally:
            await cluster.stop()

    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.spec("FED-15")
def test_what_a_partner_publishes_is_everywhere_soon_and_gone_soon_after_the_relation() -> None:
    async def test(cluster: Cluster) -> None:
        leader, other = cluster.replica(), cluster.replica(leads=False)
        await asyncio.sleep(1)
        assert leader.known
        assert other.known
        assert other.bundles == ()
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(SOON)
        for replica in (leader, other):
            (bundle,) = replica.bundles
            assert (bundle.trust_domain, bundle.x509_authorities) == (PARTNER, THEIRS[0].x509_authorities)
        assert cluster.condition("Ready") == ("True", "InForce", "workloads have it")
        assert cluster.condition("Fetched")[:2] == ("True", "Fetched")
        status = cluster.status()
        assert (status["sequence"], status["x509Authorities"], status["jwtKeys"]) == (1, 1, [])
        assert status["fetchedAt"] == status["changedAt"] == "2026-06-01T12:00:01Z"
        assert status["earliestNotAfter"] == "2026-06-21T12:00:00Z"
        (config_map,) = [each for path, each in cluster.kube.objects.items() if path.startswith(CONFIGS)]
        (owner,) = config_map["metadata"]["ownerReferences"]
        assert owner["uid"] == cluster.kube.objects[f"{COLLECTION}/partner"]["metadata"]["uid"]
        cluster.kube.remove(f"{COLLECTION}/partner")
        version = other.changed.version
        async with asyncio.timeout(5):
            await other.changed.wait_beyond(version - 1)
            await asyncio.sleep(0.1)
        assert leader.bundles == other.bundles == ()

    play(test)


@pytest.mark.spec("FED-5")
def test_a_partner_is_asked_four_times_in_its_hint_and_what_is_the_same_is_not_written() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.partner.publishes(replace(THEIRS[0], refresh_hint=timedelta(minutes=10)))
        cluster.relate()
        cluster.replica()
        await asyncio.sleep(3600)
        assert 22 <= len(cluster.partner.asked) <= 28
        assert [path for _, path in cluster.kube.writes if path.startswith(CONFIGS)] == [CONFIGS]
        assert cluster.results == ["newer"] + ["same"] * (len(cluster.partner.asked) - 1)
        # A status each time, and no more.
        assert len(cluster.kube.writes) - 1 <= len(cluster.partner.asked) + 1

    play(test)


@pytest.mark.spec("FED-6", "FED-14", "FED-17", "C-106", "C-107")
def test_what_fails_or_is_older_changes_nothing_but_the_status() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.partner.publishes(THEIRS[2])
        cluster.relate()
        await asyncio.sleep(SOON)
        (before,) = known.bundles
        for says, reason in (
            (FetchFailed("it answers 500"), ("False", "Failed", "it answers 500")),
            (b"<html>", ("False", "Failed", None)),
            (THEIRS[1].to_jwks(), ("True", "Older", None)),
            (OURS.to_jwks(), ("False", "Failed", None)),
        ):
            cluster.partner.says[URL] = says
            await asyncio.sleep(200)
            assert known.bundles == (before,)
            found = cluster.condition("Fetched")
            assert found[:2] == reason[:2]
            assert reason[2] in (None, found[2])
            assert cluster.condition("Ready")[0] == "True"
        cluster.partner.publishes(THEIRS[3])
        await asyncio.sleep(200)
        assert known.bundles[0].sequence == 4
        assert cluster.condition("Fetched")[1] == "Fetched"
        assert set(cluster.results) == {"newer", "same", "older", "failed"}

    play(test)


@pytest.mark.parametrize(
    "document",
    [
        {"keys": [{"kty": "EC", "use": "jwt-svid", "crv": "P-256", "kid": "\ud800"}], "spiffe_sequence": 9},
        {"keys": [], "spiffe_sequence": 2**70},
        {"keys": [], "spiffe_sequence": -1},
    ],
)
def test_no_document_of_a_partner_ends_a_signer_or_stops_the_others(document: dict[str, Any]) -> None:
    point = {"x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}

    async def test(cluster: Cluster) -> None:
        found = {**document, "keys": [{**each, **point} for each in document["keys"]]}
        cluster.partner.says[URL] = json.dumps(found).encode()
        cluster.relate(trustDomainBundle=THEIRS[0].to_jwks().decode())
        known = cluster.replica()
        await asyncio.sleep(2)
        cluster.partner.publishes(replace(root(START, OTHER).bundle, sequence=1), "https://other")
        cluster.relate("other", "other.test", "https://other")
        await asyncio.sleep(1000)
        assert all(not each.done() for each in cluster.tasks)
        assert OTHER in {each.trust_domain for each in known.bundles}
        assert cluster.condition("Ready", "other")[0] == "True"

    play(test)


def test_what_nobody_had_thought_of_is_a_look_that_failed() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.partner.says[URL] = cast(bytes, 7)
        cluster.relate()
        cluster.replica()
        await asyncio.sleep(400)
        assert all(not each.done() for each in cluster.tasks)
        assert set(cluster.results) == {"failed"}
        assert cluster.condition("Fetched") == ("False", "Failed", "it cannot be read (TypeError); see the log")

    play(test)


def test_a_status_that_is_not_taken_stops_no_other_and_is_tried_ever_more_rarely() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(2)
        cluster.kube.denied.add(("replace", f"{COLLECTION}/partner/status"))
        cluster.partner.publishes(replace(root(START, OTHER).bundle, sequence=1), "https://other")
        cluster.relate("other", "other.test", "https://other")
        cluster.replica()
        await asyncio.sleep(3600)
        assert "conditions" not in cluster.status()
        assert cluster.condition("Ready", "other")[0] == "True"
        reads = [path for path in cluster.kube.reads if path == f"{COLLECTION}/partner"]
        assert len(reads) < 15

    play(test)


def test_objects_that_are_not_followed_are_not_asked_about_again_and_again() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.relate("own", "example.org")
        cluster.replica()
        await asyncio.sleep(3600)
        assert len([path for path in cluster.kube.reads if path == f"{COLLECTION}/own"]) == 1

    play(test)


def test_what_is_asked_of_an_object_that_changes_is_no_answer() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.partner.takes = 9.0
        # Of one who has its endpoint, and holds back each answer as long as it can.
        cluster.partner.publishes(replace(root(START, PARTNER).bundle, sequence=2**60), "https://stolen.test")
        cluster.relate(url="https://stolen.test")
        known = cluster.replica()
        await asyncio.sleep(5)
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(30)
        assert [each.sequence for each in known.bundles] == [1]

    play(test)


def test_an_old_document_for_ever_and_one_that_never_came_are_too_old_in_the_end() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.partner.publishes(THEIRS[2])
        cluster.relate(maxStale="30m")
        cluster.relate(
            "silent",
            "other.test",
            "https://other",
            trustDomainBundle=root(START, OTHER).bundle.to_jwks().decode(),
            maxStale="30m",
        )
        await asyncio.sleep(600)
        assert len(known.bundles) == 2
        cluster.partner.publishes(THEIRS[0])
        await asyncio.sleep(2200)
        assert not known.bundles
        assert cluster.condition("Ready")[1] == cluster.condition("Ready", "silent")[1] == "TooOld"

    play(test)


def test_a_stored_bundle_that_somebody_removes_is_fetched_again_at_once() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.partner.publishes(replace(THEIRS[0], refresh_hint=timedelta(hours=20)))
        cluster.relate()
        await asyncio.sleep(SOON)
        (stored,) = [path for path in cluster.kube.objects if path.startswith(CONFIGS)]
        cluster.kube.remove(stored)
        await asyncio.sleep(SOON)
        assert [each.sequence for each in known.bundles] == [1]

    play(test)


def test_a_kind_that_the_cluster_knows_no_more_takes_its_objects_along() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(SOON)
        cluster.kube.missing.add(COLLECTION)
        cluster.kube.down = True
        await asyncio.sleep(1)
        cluster.kube.down = False
        # An API server that starts knows it a little later.
        await asyncio.sleep(20)
        assert len(known.bundles) == 1
        await asyncio.sleep(200)
        assert not known.bundles

    play(test)


@pytest.mark.spec("TD-9", "C-105")
def test_an_empty_bundle_is_believed_at_once_and_said() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(SOON)
        cluster.partner.says[URL] = b'{"keys": [], "spiffe_sequence": 2}'
        await asyncio.sleep(150)
        assert known.bundles[0].x509_authorities == ()
        assert cluster.condition("Ready")[:2] == ("False", "Empty")

    play(test)


def test_the_next_leader_goes_on_from_what_was_stored() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.replica()
        cluster.partner.publishes(THEIRS[2])
        cluster.relate()
        await asyncio.sleep(SOON)
        fetched = cluster.status()["fetchedAt"]
        await cluster.stop()
        # A lagging replica of the partner answers the next one.
        cluster.partner.publishes(THEIRS[0])
        known = cluster.replica()
        await asyncio.sleep(SOON)
        assert known.bundles[0].sequence == 3
        assert cluster.condition("Fetched")[1] == "Older"
        assert cluster.status()["changedAt"] == fetched
        assert len([path for _, path in cluster.kube.writes if path.startswith(CONFIGS)]) == 1

    play(test)


@pytest.mark.spec("FED-41", "FED-42", "FED-43", "FED-49", "FED-50", "C-112")
def test_https_spiffe_goes_by_the_latest_bundle_and_first_by_the_one_that_was_given() -> None:
    profile = {"type": "https_spiffe", "endpointSPIFFEID": "spiffe://partner.test/spire/server"}

    async def test(cluster: Cluster) -> None:
        first, later = replace(THEIRS[0], sequence=1), replace(THEIRS[1], sequence=2)
        cluster.partner.publishes(later)
        cluster.relate(bundleEndpointProfile=profile, trustDomainBundle=first.to_jwks().decode())
        known = cluster.replica()
        await asyncio.sleep(0.5)
        await asyncio.sleep(400)
        by = [each[2].x509_authorities for each in cluster.partner.asked if each[2] is not None]
        assert len(by) == len(cluster.partner.asked) >= 3
        assert by[0] == first.x509_authorities
        assert set(by[1:]) == {later.x509_authorities}
        # An endpoint of a third trust domain is known by that one's bundle, or by nobody's.
        third = {"type": "https_spiffe", "endpointSPIFFEID": "spiffe://other.test/endpoint"}
        cluster.relate("chained", "chained.test", "https://chained", bundleEndpointProfile=third)
        await asyncio.sleep(SOON)
        assert [each[2] for each in cluster.partner.asked if each[1] == "https://chained"] == [None]
        theirs = replace(root(START, OTHER).bundle, sequence=1)
        cluster.partner.publishes(theirs, "https://other")
        cluster.relate("other", "other.test", "https://other")
        await asyncio.sleep(400)
        last = [each[2] for each in cluster.partner.asked if each[1] == "https://chained"][-1]
        assert last is not None
        assert last.x509_authorities == theirs.x509_authorities
        assert {each.trust_domain.name for each in known.bundles} == {"partner.test", "other.test"}

    play(test)


def test_a_bundle_that_was_given_counts_until_one_is_fetched_and_again_when_it_is_later() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.relate(trustDomainBundle=THEIRS[1].to_jwks().decode())
        await asyncio.sleep(SOON)
        assert known.bundles[0].sequence == 2
        assert cluster.condition("Ready")[0] == "True"
        assert cluster.condition("Fetched")[:2] == ("False", "Failed")
        cluster.partner.publishes(THEIRS[2])
        await asyncio.sleep(400)
        assert known.bundles[0].sequence == 3
        for given, counts in ((THEIRS[0], 3), (THEIRS[3], 4)):
            cluster.relate(trustDomainBundle=given.to_jwks().decode())
            await asyncio.sleep(SOON)
            assert known.bundles[0].sequence == counts

    play(test)


def test_the_oldest_relation_of_a_trust_domain_counts_and_files_go_before(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        file = tmp_path / "other.json"
        filed = replace(root(START, OTHER).bundle, sequence=9)
        file.write_bytes(filed.to_jwks())
        known = cluster.replica(files={OTHER: file})
        # A thread reads it, for which this clock does not wait.
        while not known.bundles:
            await known.look()
        cluster.partner.publishes(THEIRS[0])
        cluster.relate("b-older")
        await asyncio.sleep(2)
        cluster.partner.publishes(THEIRS[1], "https://evil.test")
        cluster.relate("a-younger", url="https://evil.test")
        cluster.relate("filed", "other.test")
        cluster.relate("own", "example.org")
        cluster.relate("broken", "third.test", "http://third.test")
        await asyncio.sleep(SOON)
        assert {each[1] for each in cluster.partner.asked} == {URL}
        assert [each.sequence for each in known.bundles] == [9, 1]
        for name, why in (
            ("a-younger", "b-older is for the same trust domain, and older"),
            ("filed", "federated_bundles has a file for it, which goes before"),
            ("own", "it is the own trust domain, whose bundle is here"),
            ("broken", "bundleEndpointURL has to begin with https://"),
        ):
            assert cluster.condition("Ready", name) == ("False", "Unusable", why)
        # The next one takes its place.
        cluster.kube.remove(f"{COLLECTION}/b-older")
        await asyncio.sleep(SOON)
        assert known.bundles[1].x509_authorities == THEIRS[1].x509_authorities
        assert cluster.condition("Ready", "a-younger")[0] == "True"

    play(test)


def test_one_that_cannot_be_reached_for_longer_than_allowed_is_trusted_no_more_and_comes_back() -> None:
    async def test(cluster: Cluster) -> None:
        leader, other = cluster.replica(), cluster.replica(leads=False)
        cluster.partner.publishes(THEIRS[2])
        cluster.relate(maxStale="30m")
        await asyncio.sleep(1800)
        assert len(other.bundles) == 1
        cluster.partner.says[URL] = FetchFailed("gone")
        await asyncio.sleep(1600)
        assert len(other.bundles) == 1
        await asyncio.sleep(500)
        assert (len(leader.bundles), len(other.bundles)) == (0, 0)
        assert cluster.condition("Ready")[:2] == ("False", "TooOld")
        # What was held is held against what comes: nobody brings an older one back by silence.
        cluster.partner.publishes(THEIRS[0])
        await asyncio.sleep(400)
        assert not other.bundles
        cluster.partner.publishes(THEIRS[2])
        await asyncio.sleep(400)
        assert [each.sequence for each in other.bundles] == [3]

    play(test)


def test_partners_that_answer_late_or_lie_delay_nobody_and_ask_for_no_more_than_their_share() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.partner.takes = 9.0
        for number in range(4 * AT_ONCE):
            cluster.relate(f"p{number:02}", f"p{number:02}.test", f"https://p{number:02}.test")
        known = cluster.replica()
        await asyncio.sleep(60)
        assert len(cluster.partner.asked) == 4 * AT_ONCE
        assert cluster.partner.most == AT_ONCE
        assert known.bundles == ()

    play(test)


def test_more_than_workloads_can_take_is_left_out_from_the_youngest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_TOTAL_BYTES", len(THEIRS[0].to_jwks()) + 10)
    assert MAX_TOTAL_BYTES == 2 * 1024 * 1024

    async def test(cluster: Cluster) -> None:
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        known = cluster.replica()
        await asyncio.sleep(SOON)
        cluster.partner.publishes(replace(root(START, OTHER).bundle, sequence=1), "https://other")
        cluster.relate("other", "other.test", "https://other")
        await asyncio.sleep(SOON)
        assert [each.trust_domain for each in known.bundles] == [PARTNER]
        assert cluster.condition("Ready", "other")[:2] == ("False", "TooLarge")

    play(test)


def test_a_cluster_without_such_objects_has_none_and_they_are_noticed_when_they_come() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.kube.missing.add(COLLECTION)
        known = cluster.replica()
        await asyncio.sleep(1)
        assert known.known
        assert not known.bundles
        cluster.kube.missing.clear()
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(60)
        assert [each.trust_domain for each in known.bundles] == [PARTNER]

    play(test)


def test_who_may_not_read_them_waits_for_a_while_and_goes_on_without() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.kube.denied.add(("list", COLLECTION))
        known = cluster.replica(leads=False)
        await asyncio.sleep(1)
        assert not known.known
        await asyncio.sleep(PATIENCE)
        assert known.known

    play(test)


@pytest.mark.spec("FED-8")
def test_what_somebody_wrote_into_the_store_is_not_another_domains() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.relate()
        await asyncio.sleep(SOON)
        uid = cluster.kube.objects[f"{COLLECTION}/partner"]["metadata"]["uid"]
        for data in (
            {"trust-domain": "other.test", "bundle.json": root(START, OTHER).bundle.to_jwks().decode()},
            {"trust-domain": "partner.test", "bundle.json": "{"},
            {"trust-domain": "partner.test"},
            {},
        ):
            cluster.kube.put(
                f"{CONFIGS}/stored", {"metadata": {"name": "stored", "labels": {LABEL: uid}}, "data": data}
            )
            await asyncio.sleep(1)
            assert known.bundles == ()
        cluster.partner.publishes(THEIRS[0])
        await asyncio.sleep(400)
        assert [each.x509_authorities for each in known.bundles] == [THEIRS[0].x509_authorities]

    play(test)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"trustDomain": "Partner"}, "trust domain characters"),
        ({"trustDomain": None}, "trust domain is missing"),
        ({"trustDomain": 7}, "trustDomain is of another type"),
        ({"bundleEndpointURL": "http://partner.test"}, "has to begin with https://"),
        ({"bundleEndpointURL": "https://user@partner.test"}, "has a user or password"),
        ({"bundleEndpointURL": "https://:x@partner.test"}, "has a user or password"),
        ({"bundleEndpointURL": "https://"}, "names no host"),
        ({"bundleEndpointURL": "https://partner.test:port"}, "is no URL"),
        ({"bundleEndpointURL": "https://[::1"}, "is no URL"),
        ({"bundleEndpointURL": "https://partner.test/\n"}, "is no URL"),
        ({"bundleEndpointURL": "https://partner.test/" + "x" * 2048}, "longer than 2048"),
        ({"bundleEndpointURL": "https://169.254.169.254/latest"}, "no trust domain is published"),
        ({"bundleEndpointURL": "https://[fe80::1%25eth0]/"}, "no trust domain is published"),
        ({"bundleEndpointURL": "https://[::ffff:169.254.169.254]/"}, "no trust domain is published"),
        ({"bundleEndpointURL": "https://0.0.0.0/"}, "no trust domain is published"),
        ({"bundleEndpointProfile": None}, "bundleEndpointProfile is missing"),
        ({"bundleEndpointProfile": {"type": "http"}}, "neither https_web nor https_spiffe"),
        ({"bundleEndpointProfile": {"type": "https_spiffe"}}, "whom https_spiffe wants to meet"),
        (
            {"bundleEndpointProfile": {"type": "https_web", "endpointSPIFFEID": "spiffe://a/b"}},
            "whom https_spiffe wants to meet",
        ),
        ({"bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": "spiffe://a"}}, "no workload's"),
        ({"bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": "https://a/b"}}, "spiffe"),
        ({"trustDomainBundle": "{"}, "trustDomainBundle: not a JWKS"),
        ({"caBundle": "x"}, "caBundle: "),
        ({"maxStale": "1s"}, "maxStale '1s'"),
        ({"maxStale": "soon"}, "maxStale 'soon'"),
    ],
)
@pytest.mark.spec("FED-12", "FED-20", "FED-21", "FED-30", "FED-52")
def test_what_cannot_be_followed_is_said_where_it_was_written(change: dict[str, Any], why: str) -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.relate(**change)
        await asyncio.sleep(SOON)
        assert cluster.partner.asked == []
        assert known.bundles == ()
        found = cluster.condition("Ready")
        assert found[:2] == ("False", "Unusable")
        assert why in found[2]

    play(test)


def test_a_ca_bundle_is_for_the_web_alone() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.replica()
        spiffe = {"type": "https_spiffe", "endpointSPIFFEID": "spiffe://partner.test/x"}
        cluster.relate(caBundle=THEIRS[0].to_pem().decode(), bundleEndpointProfile=spiffe)
        await asyncio.sleep(SOON)
        assert "caBundle is for the profile https_web" in cluster.condition("Ready")[2]
        cluster.relate(caBundle=THEIRS[0].to_pem().decode(), bundleEndpointProfile={"type": str(Profile.WEB)})
        await asyncio.sleep(SOON)
        assert cluster.condition("Ready")[1] == "NoBundle"

    play(test)


def test_what_the_api_server_does_not_take_is_tried_again_with_the_next_look() -> None:
    async def test(cluster: Cluster) -> None:
        known = cluster.replica()
        cluster.kube.denied.add(("create", CONFIGS))
        cluster.partner.publishes(THEIRS[0])
        cluster.relate()
        await asyncio.sleep(SOON)
        assert known.bundles == ()
        assert "cannot create" in cluster.condition("Fetched")[2]
        cluster.kube.denied.clear()
        await asyncio.sleep(400)
        assert len(known.bundles) == 1
        assert json.loads(json.dumps(cluster.status()))["fetchedAt"]

    play(test)
