"""Publishing beside other people: what is theirs is neither changed nor removed, and no failure keeps the rest."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from signer.cluster.kube import MANAGED, Object
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject
from signer.publishing.config_maps import TRUST_DOMAIN_LABEL, Copy, Publisher, _digest, bundle_map
from svid.bundle import TrustBundle
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.meanwhile import before
from tests.signer_rig import StepClock
from tests.unit.signer.test_lifecycle import TD, first

CTB = "/apis/certificates.k8s.io/v1/clustertrustbundles"
OWN = first().bundle
PARTNER = TrustBundle(TrustDomain("partner.test"), first().bundle.x509_authorities)
NAME, PARTNERS = f"{CTB}/podsvid.io:spiffe:example.org", f"{CTB}/podsvid.io:spiffe:partner.test"
THEIRS = {"ca.crt": "theirs"}


def copies(publisher: Publisher) -> "Mirror[DataObject, Copy]":
    ((_, found),) = publisher._copies
    return found


def config_map(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/podsvid-bundle"


def namespace(kube: FakeKube, name: str, **metadata: Any) -> None:
    kube.put(f"/api/v1/namespaces/{name}", {"metadata": {"name": name, "labels": {"wanted": "yes"}, **metadata}})


def put(kube: FakeKube, path: str, labels: dict[str, str], **content: Any) -> None:
    kube.put(path, {"metadata": {"name": path.rpartition("/")[2], "labels": labels}, **content})


def publisher(kube: FakeKube, trust_domain: TrustDomain = TD) -> Publisher:
    return Publisher(
        kube, "wanted=yes", (bundle_map("podsvid-bundle"),), "podsvid.io/spiffe", trust_domain, StepClock()
    )


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


@asynccontextmanager
async def following(each: Publisher) -> AsyncIterator[None]:
    """Its mirrors follow; `reconcile` is the test's to call."""
    tasks = [asyncio.create_task(mirror.run()) for mirror in (each._namespaces, copies(each))]
    try:
        await until(lambda: each._namespaces.synced and copies(each).synced)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def once(kube: FakeKube, *bundles: TrustBundle, times: int = 1) -> Publisher:
    """As a new leader does it."""
    publishing = publisher(kube)
    await publishing.publish(bundles or (OWN,))
    async with following(publishing):
        for _ in range(times):
            await publishing.reconcile()
    return publishing


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (vars(each)["what"], vars(each)["error"]) for each in caplog.records if each.getMessage() == "not published"
    ]


def test_what_is_written() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "a")
        await once(kube, OWN, PARTNER)
        labels = {**MANAGED, TRUST_DOMAIN_LABEL: "example.org"}
        found = kube.objects[config_map("a")]
        assert found["metadata"]["labels"] == labels
        assert found["data"] == {"ca.crt": OWN.to_pem().decode(), "bundle.json": OWN.to_jwks().decode()}
        bundle = kube.objects[NAME]
        assert bundle["metadata"]["labels"] == labels
        assert bundle["spec"] == {"signerName": "podsvid.io/spiffe", "trustBundle": OWN.to_pem().decode()}
        assert kube.objects[PARTNERS]["metadata"]["labels"][TRUST_DOMAIN_LABEL] == "partner.test"
        assert kube.objects[PARTNERS]["spec"]["trustBundle"] == PARTNER.to_pem().decode()
        assert "PRIVATE" not in str(kube.objects)

    asyncio.run(run())


def test_other_peoples_config_maps_are_neither_changed_nor_removed(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        for name in ("selected", "free"):
            namespace(kube, name)
        for name in ("ours", "theirs", "unlabelled"):
            namespace(kube, name, labels={})
        others = {
            "selected": {},
            "theirs": {"app.kubernetes.io/managed-by": "Helm", TRUST_DOMAIN_LABEL: "example.org"},
            "unlabelled": {},
        }
        for name, labels in others.items():
            put(kube, config_map(name), labels, data=THEIRS)
        put(kube, config_map("ours"), dict(MANAGED), data=THEIRS)
        publishing = publisher(kube)
        await publishing.publish((OWN,))

        def in_selected() -> list[bytes]:
            found = copies(publishing).values.values()
            return [each.digest for each in found if each.namespace == "selected"]

        async with following(publishing):
            for _ in range(3):
                await publishing.reconcile()
            for name in others:
                assert kube.objects[config_map(name)]["data"] == THEIRS
            assert config_map("ours") not in kube.objects
            assert config_map("free") in kube.objects
            # Said once, and again when it happens again.
            refusal = "ConfigMap podsvid-bundle in selected is not podsvid's; rename or remove it"
            assert said(caplog) == [("ConfigMap podsvid-bundle in selected", refusal)]
            kube.remove(config_map("selected"))
            await until(lambda: in_selected() == [])
            await publishing.reconcile()
            assert kube.objects[config_map("selected")]["data"]["ca.crt"] == OWN.to_pem().decode()
            put(kube, config_map("selected"), {}, data=THEIRS)
            await until(lambda: in_selected() == [_digest(THEIRS)])
            await publishing.reconcile()
        assert said(caplog) == [("ConfigMap podsvid-bundle in selected", refusal)] * 2

    asyncio.run(run())


def test_other_peoples_trust_bundles_are_neither_changed_nor_removed(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        theirs = {"signerName": "podsvid.io/spiffe", "trustBundle": "theirs"}
        kept = [
            NAME,
            f"{CTB}/podsvid.io:spiffe:old.test",
            f"{CTB}/podsvid.io:spiffe-next:example.org",
            f"{CTB}/example.org",
        ]
        labels = [{}, {"app.kubernetes.io/managed-by": "Helm"}, dict(MANAGED), dict(MANAGED)]
        for path, each in zip(kept, labels, strict=True):
            put(kube, path, each, spec=theirs)
        gone = f"{CTB}/podsvid.io:spiffe:gone.test"
        put(kube, gone, dict(MANAGED), spec=theirs)
        await once(kube, OWN, PARTNER, times=2)
        for path in kept:
            assert kube.objects[path]["spec"] == theirs
        assert gone not in kube.objects
        # One that is in the way does not keep the others.
        assert kube.objects[PARTNERS]["spec"]["trustBundle"] == PARTNER.to_pem().decode()
        assert said(caplog) == [
            (
                "ClusterTrustBundle podsvid.io:spiffe:example.org",
                "ClusterTrustBundle podsvid.io:spiffe:example.org is not podsvid's; remove it",
            )
        ]

    asyncio.run(run())


def test_what_somebody_put_in_the_place_of_ours_meanwhile_is_not_removed(caplog: pytest.LogCaptureFixture) -> None:
    """Between what the watch told and the call that removes."""

    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "a", labels={})
        put(kube, config_map("a"), dict(MANAGED), data=THEIRS)
        gone = f"{CTB}/podsvid.io:spiffe:gone.test"
        put(kube, gone, dict(MANAGED), spec={})

        def swap(path: str, **content: Any) -> Callable[[], None]:
            def act() -> None:
                kube.remove(path)
                put(kube, path, {}, **content)

            return act

        before(kube, "delete", swap(gone, spec={"trustBundle": "theirs"}), gone)
        # The same object, which they took over.
        before(kube, "delete", lambda: put(kube, config_map("a"), {}, data=THEIRS), config_map("a"))
        await once(kube)
        assert kube.objects[gone]["spec"] == {"trustBundle": "theirs"}
        assert kube.objects[config_map("a")]["data"] == THEIRS
        assert {what for what, _ in said(caplog)} == {
            "ConfigMap podsvid-bundle in a",
            "ClusterTrustBundle podsvid.io:spiffe:gone.test",
        }

    asyncio.run(run())


def test_what_somebody_changed_meanwhile_is_not_overwritten_unseen() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "a")
        put(kube, config_map("a"), dict(MANAGED), data={})
        put(kube, NAME, dict(MANAGED), spec={})
        before(kube, "replace", lambda: put(kube, config_map("a"), {}, data=THEIRS), config_map("a"))
        before(kube, "replace", lambda: put(kube, NAME, {}, spec={"trustBundle": "theirs"}), NAME)
        await once(kube)
        assert kube.objects[config_map("a")]["data"] == THEIRS
        assert kube.objects[NAME]["spec"] == {"trustBundle": "theirs"}

    asyncio.run(run())


def test_of_two_leaders_for_a_moment_both_publish_the_same_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "a")
        one, two = publisher(kube), publisher(kube)
        for each in (one, two):
            await each.publish((OWN,))
        async with following(one), following(two):
            # Neither watch has told of the other's write.
            for each in (one, two):
                await each._write(
                    "podsvid-bundle",
                    "a",
                    None,
                    {"ca.crt": OWN.to_pem().decode(), "bundle.json": OWN.to_jwks().decode()},
                )
            await until(lambda: bool(copies(one).values) and bool(copies(two).values))
            writes = kube.writes.copy()
            for each in (one, two):
                await each.reconcile()
        assert [path for _, path in kube.writes[len(writes) :]] == [CTB]
        assert said(caplog) == []

    asyncio.run(run())


def test_ours_is_mended_whatever_of_it_was_changed() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        changes: dict[str, Object] = {
            "text": {"data": {"ca.crt": "x", "bundle.json": OWN.to_jwks().decode()}},
            "more": {"data": {"ca.crt": OWN.to_pem().decode(), "bundle.json": OWN.to_jwks().decode(), "x": "y"}},
            "binary": {
                "data": {"ca.crt": OWN.to_pem().decode(), "bundle.json": OWN.to_jwks().decode()},
                "binaryData": {"ca.p12": "eA=="},
            },
            "none": {},
        }
        for name, content in changes.items():
            namespace(kube, name)
            put(kube, config_map(name), dict(MANAGED), **content)
        put(kube, NAME, dict(MANAGED), spec={"signerName": "podsvid.io/spiffe", "trustBundle": "x"})
        await once(kube)
        for name in changes:
            found = kube.objects[config_map(name)]
            assert found["data"] == {"ca.crt": OWN.to_pem().decode(), "bundle.json": OWN.to_jwks().decode()}
            assert "binaryData" not in found
        assert kube.objects[NAME]["spec"]["trustBundle"] == OWN.to_pem().decode()
        # And what is right is not written again.
        writes = len(kube.writes)
        await once(kube)
        assert len(kube.writes) == writes

    asyncio.run(run())


def test_one_namespace_that_refuses_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        for name in ("a", "b", "c"):
            namespace(kube, name)
        kube.denied |= {("create", "/api/v1/namespaces/a/"), ("create", CTB)}
        publishing = await once(kube, OWN, PARTNER, times=3)
        assert [name for name in "abc" if config_map(name) in kube.objects] == ["b", "c"]
        # Each of them once, not at every attempt.
        assert [what for what, _ in said(caplog)] == [
            "ConfigMap podsvid-bundle in a",
            "ClusterTrustBundle podsvid.io:spiffe:example.org",
            "ClusterTrustBundle podsvid.io:spiffe:partner.test",
        ]
        kube.denied = {("list", CTB)}
        async with following(publishing):
            await publishing.reconcile()
        assert config_map("a") in kube.objects
        assert [what for what, _ in said(caplog)][3:] == ["ClusterTrustBundles"]

    asyncio.run(run())


def test_a_namespace_that_ends_or_vanishes_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "ending", deletionTimestamp="2030-01-01T00:00:00Z")
        namespace(kube, "vanished")
        kube.missing.add("/api/v1/namespaces/vanished/configmaps")
        await once(kube)
        assert [path for path in kube.objects if "configmaps" in path] == []
        assert said(caplog) == []

    asyncio.run(run())


def test_a_partner_without_certificates_has_no_trust_bundle() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        put(kube, PARTNERS, dict(MANAGED), spec={"signerName": "podsvid.io/spiffe", "trustBundle": "before"})
        await once(kube, OWN, replace(PARTNER, x509_authorities=()))
        assert [path for path in kube.objects if path.startswith(CTB)] == [NAME]

    asyncio.run(run())


def test_a_long_trust_domain_is_a_label() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "a")
        long = TrustDomain("_" + "a" * 61 + ".b" + "c" * 80)
        publishing = publisher(kube, long)
        await publishing.publish((TrustBundle(long, OWN.x509_authorities),))
        async with following(publishing):
            await publishing.reconcile()
        assert kube.objects[config_map("a")]["metadata"]["labels"][TRUST_DOMAIN_LABEL] == "a" * 61

    asyncio.run(run())


def test_what_no_watch_told_of_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.publishing.config_maps.REPAIR_SECONDS", 0.0)

    async def run() -> None:
        kube = FakeKube(StepClock())
        publishing = publisher(kube)
        task = asyncio.create_task(publishing.run())
        try:
            # Nothing is known yet, and nothing is published.
            await until(lambda: copies(publishing).synced)
            assert kube.writes == []
            await publishing.publish((OWN,))
            await until(lambda: NAME in kube.objects)
            kube.remove(NAME)
            await until(lambda: NAME in kube.objects)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_nothing_is_removed_before_all_is_known(caplog: pytest.LogCaptureFixture) -> None:
    """With the copies read and the namespaces not, every copy would look as if its place were gone."""
    caplog.set_level(logging.INFO)

    async def run() -> None:
        kube = FakeKube(StepClock())
        namespace(kube, "a")
        await once(kube)
        kube.denied.add(("list", "/api/v1/namespaces"))
        publishing = publisher(kube)
        await publishing.publish((OWN,))
        task = asyncio.create_task(publishing.run())
        try:
            await until(lambda: copies(publishing).synced)
            for _ in range(100):
                await asyncio.sleep(0)
            assert config_map("a") in kube.objects
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
