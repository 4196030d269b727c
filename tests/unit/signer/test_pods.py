"""Live pods: by uid and name at once, asked for where the mirror is behind, and read for what a person wrote."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from signer.attestation.pods import AgentAddresses, Pods, read_pod
from signer.cluster.kube import Object
from signer.cluster.objects import Pod as PodObject
from signer.cluster.objects import Texts
from signer.errors import ApiUnavailable, Forbidden, Reason, Refused
from signer.model import LivePod, PodClaim
from tests.signer_rig import DRIVER, Site
from tests.typed import typed

PATH = "/api/v1/namespaces/default/pods/web"


def followed(test: Callable[[Site, Pods], Awaitable[None]]) -> None:
    async def run() -> None:
        site = Site()
        pods = Pods(site.kube, site.clock)
        following = asyncio.ensure_future(pods.run())
        await pods.wait_synced()
        try:
            await test(site, pods)
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    asyncio.run(run())


async def told() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def refused(pods: Pods, claim: PodClaim) -> Reason:
    with pytest.raises(Refused) as caught:
        await pods.find(claim)
    return caught.value.reason


def test_a_pod_that_is_known_is_not_asked_for() -> None:
    async def test(site: Site, pods: Pods) -> None:
        claim = site.pod("web")
        await told()
        reads = len(site.kube.reads)
        found = await pods.find(claim)
        assert (found.uid, found.node_name, found.service_account) == (claim.uid, "node-a", "web")
        assert len(site.kube.reads) == reads

    followed(test)


@pytest.mark.parametrize(("namespace", "name"), [("other", "web"), ("default", "other"), ("", ""), ("x/y", "web")])
def test_a_uid_of_another_name_is_refused(namespace: str, name: str) -> None:
    async def test(site: Site, pods: Pods) -> None:
        claim = site.pod("web")
        await told()
        assert await refused(pods, PodClaim(namespace, name, claim.uid)) is Reason.POD_UID_MISMATCH

    followed(test)


def test_a_name_of_another_uid_is_refused() -> None:
    async def test(site: Site, pods: Pods) -> None:
        site.pod("web")
        assert await refused(pods, PodClaim("default", "web", "before")) is Reason.POD_UID_MISMATCH
        assert await refused(pods, PodClaim("default", "gone", "before")) is Reason.POD_NOT_FOUND

    followed(test)


def test_a_pod_that_was_without_a_node_a_moment_ago_is_looked_at() -> None:
    """Its binding to a node may be on its way to the mirror; by then its first mint may be here."""

    async def test(site: Site, pods: Pods) -> None:
        claim = site.pod("web", node="")
        await told()
        known = pods.known(claim.uid)
        assert known is not None
        assert known.node_name == ""
        site.pod("web", uid=claim.uid)
        reads = len(site.kube.reads)
        assert (await pods.find(claim)).node_name == "node-a"
        assert site.kube.reads[reads:] == [PATH]

    followed(test)


@pytest.mark.parametrize("body", [{}, {"metadata": {"name": "web", "namespace": "default"}}, {"kind": "Status"}])
def test_an_answer_that_is_no_pod_is_no_answer(body: Object) -> None:
    async def test(site: Site, pods: Pods) -> None:
        async def answering(path: str) -> Object:
            return body

        site.kube.get = answering  # type: ignore[method-assign]
        for uid in ("u", ""):
            with pytest.raises(ApiUnavailable):
                await pods.find(PodClaim("default", "web", uid))

    followed(test)


def test_a_signer_without_the_right_to_read_pods_says_so() -> None:
    async def test(site: Site, pods: Pods) -> None:
        async def denied(path: str) -> Object:
            raise Forbidden("pods is forbidden")

        site.kube.get = denied  # type: ignore[method-assign]
        with pytest.raises(ApiUnavailable, match="may not read pods: pods is forbidden; apply its RBAC"):
            await pods.find(PodClaim("default", "web", "u"))

    followed(test)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a/b", "a b", "a\n", "..", "é", "x" * 254, "a?b", "a#b"])
def test_a_name_that_is_none_is_not_asked_for(name: str) -> None:
    async def test(site: Site, pods: Pods) -> None:
        reads = len(site.kube.reads)
        for claim in (PodClaim("default", name, "u"), PodClaim(name, "web", "u")):
            assert await refused(pods, claim) is Reason.POD_NOT_FOUND
        assert len(site.kube.reads) == reads
        assert await refused(pods, PodClaim("default", "x" * 253, "u")) is Reason.POD_NOT_FOUND
        assert len(site.kube.reads) == reads + 1

    followed(test)


def read(**changes: Any) -> LivePod | None:
    return read_pod(typed(PodObject, pod(**changes)))


def pod(**changes: Any) -> Object:
    metadata = {"uid": "u", "name": "n", "namespace": "ns", **changes.pop("metadata", {})}
    return {"metadata": metadata, "spec": {"nodeName": "node-a", "serviceAccountName": "web"}, **changes}


@pytest.mark.parametrize("missing", ["uid", "name", "namespace"])
def test_what_has_no_uid_name_or_namespace_is_no_pod(missing: str) -> None:
    assert read() is not None
    assert read(metadata={missing: ""}) is None
    assert read(metadata={missing: None}) is None


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Unknown", False), ("Succeeded", True), ("Failed", True), (None, False)],
)
def test_a_pod_is_finished_by_its_phase(phase: str | None, finished: bool) -> None:
    found = read(status={"phase": phase})
    assert found is not None
    assert found.finished is finished


@pytest.mark.parametrize("value", ["x", "", None])
def test_a_static_pod_is_one_whatever_its_annotation_says(value: str | None) -> None:
    found = read(metadata={"annotations": {"kubernetes.io/config.mirror": value}})
    assert found is not None
    assert found.mirror
    other = read(metadata={"annotations": {"kubernetes.io/config.source": "file"}})
    assert other is not None
    assert not other.mirror


def test_only_inline_volumes_name_a_driver() -> None:
    """A claim's driver is in its PersistentVolume, which somebody else may have made."""
    volumes: list[Object] = [
        {"name": "a", "emptyDir": {}},
        {"name": "b", "persistentVolumeClaim": {"claimName": "x", "driver": DRIVER}},
        {"name": "c", "csi": None},
        {"name": "d", "csi": {}},
    ]
    spec = {"nodeName": "node-a", "serviceAccountName": "web"}
    found = read(spec={**spec, "volumes": volumes})
    assert found is not None
    assert found.drivers == frozenset()
    found = read(spec={**spec, "volumes": [*volumes, {"csi": {"driver": "x"}}, {"csi": {"driver": DRIVER}}]})
    assert found is not None
    assert found.drivers == {"x", DRIVER}


@pytest.mark.parametrize(
    ("metadata", "spec"),
    [
        ({"labels": {f"l{n}": "" for n in range(129)}}, {}),
        ({"labels": {f"l{n:03}": "x" * 131 for n in range(125)}}, {}),
        ({}, {"volumes": [{"csi": {"driver": f"d{n}"}} for n in range(17)]}),
    ],
    ids=["labels", "long labels", "drivers"],
)
def test_of_a_pod_with_more_than_is_kept_nothing_is_kept(metadata: Object, spec: Object) -> None:
    """Neither by what is left out nor by the rest may anybody decide."""
    found = read(metadata=metadata, spec={"nodeName": "node-a", **spec})
    assert found is not None
    assert (found.oversized, found.labels, found.drivers) == (True, {}, frozenset())


def test_a_pod_with_as_much_as_is_kept_is_one() -> None:
    labels = {f"l{n}": "" for n in range(128)}
    found = read(metadata={"labels": labels}, spec={"volumes": [{"csi": {"driver": f"d{n}"}} for n in range(16)] * 2})
    assert found is not None
    assert (found.oversized, found.labels, len(found.drivers)) == (False, labels, 16)


def test_pods_are_found_by_name_as_they_come_and_go() -> None:
    async def test(site: Site, pods: Pods) -> None:
        heard: list[tuple[str, str]] = []
        pods.observers.append(lambda old, new: heard.append((str(old), str(new))))
        first, _ = site.pod("web"), site.pod("web", namespace="other")
        await told()
        found = pods.named("default", "web")
        assert found is not None
        assert found.uid == first.uid
        assert [each.uid for each in pods.of_namespace("default")] == [first.uid]
        assert set(pods.namespaces()) == {"default", "other"}
        assert (pods.named("other", "x"), list(pods.of_namespace("x"))) == (None, [])
        # Another one of the same name, told of before the first one's end.
        site.kube.objects.pop(PATH)
        second = site.pod("web")
        await told()
        later = pods.named("default", "web")
        assert later is not None
        assert later.uid == second.uid != first.uid
        pods._mirror._put(first.uid, None)
        assert pods.named("default", "web") == later
        site.remove(second)
        await told()
        assert pods.named("default", "web") is None
        assert set(pods.namespaces()) == {"other"}
        assert ("default/web", "None") in heard

    followed(test)


AGENTS = ("podsvid", "podsvid-agent")


def agent_pod(*, phase: str = "Running", account: str = "podsvid-agent", **status: Any) -> LivePod:
    body = {
        "metadata": {"name": "agent-1", "namespace": "podsvid", "uid": "1"},
        "spec": {"nodeName": "node-a", "serviceAccountName": account},
        "status": {"phase": phase, **status},
    }
    found = read_pod(typed(PodObject, body), agents=AGENTS)
    assert found is not None
    return found


def test_of_agents_it_is_kept_where_they_run() -> None:
    ips: Any = {"podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00:1:2:3::7"}], "hostIPs": [{"ip": "192.0.2.9"}]}
    assert agent_pod(**ips).addresses == {"10.1.0.7", "fd00:1:2:3::7", "192.0.2.9"}
    assert agent_pod().addresses == frozenset()
    assert agent_pod(podIPs=[{}], hostIPs=None).addresses == frozenset()
    # Whoever writes a status writes as many as it likes.
    many = [{"ip": f"10.1.0.{number}"} for number in range(100)]
    assert agent_pod(podIPs=many, hostIPs=many).addresses == {"10.1.0.0", "10.1.0.1"}
    for other in (agent_pod(phase="Failed", **ips), agent_pod(account="other", **ips)):
        assert other.addresses == frozenset()


def test_an_address_is_an_agents_until_the_last_one_there_has_gone() -> None:
    places = AgentAddresses()
    host = [{"ip": "192.0.2.9"}]
    old = agent_pod(podIPs=[{"ip": "10.1.0.7"}], hostIPs=host)
    new = agent_pod(podIPs=[{"ip": "10.1.0.8"}], hostIPs=host)
    places.pod_changed(None, old)
    places.pod_changed(None, new)
    assert all(each in places for each in ("10.1.0.7", "10.1.0.8", "192.0.2.9"))
    places.pod_changed(old, None)
    assert [each in places for each in ("10.1.0.7", "10.1.0.8", "192.0.2.9")] == [False, True, True]
    places.pod_changed(new, agent_pod(podIPs=[{"ip": "10.1.0.9"}]))
    assert [each in places for each in ("10.1.0.8", "10.1.0.9", "192.0.2.9")] == [False, True, False]


def test_in_an_agents_ipv6_network_are_other_pods() -> None:
    places = AgentAddresses()
    one, two = (agent_pod(podIPs=[{"ip": ip}]) for ip in ("fd00:1:2:3::7", "FD00:1:2:3:0::8"))
    for each in (one, two):
        places.pod_changed(None, each)
    assert ("fd00:1:2:3::8" in places, "fd00:1:2:3::9" in places) == (True, False)
    assert sorted(places.within("fd00:1:2:3::/64")) == ["fd00:1:2:3::7", "fd00:1:2:3::8"]
    assert [list(places.within(each)) for each in ("fd00:1:2:4::/64", "10.0.0.1")] == [[], []]
    places.pod_changed(one, None)
    assert ("fd00:1:2:3::7" in places, list(places.within("fd00:1:2:3::/64"))) == (False, ["fd00:1:2:3::8"])
    places.pod_changed(two, agent_pod(podIPs=[{"ip": "10.0.0.1"}]))
    assert (list(places.within("fd00:1:2:3::/64")), list(places.within("10.0.0.1"))) == ([], [])


def test_what_pods_have_in_common_is_there_once() -> None:
    """A set of each for each of 150,000 pods were 65 MB, and most of what the collector looks at."""
    texts, drivers = Texts(), frozenset({DRIVER})
    volumes = [{"name": "identity", "csi": {"driver": DRIVER}}]
    found = [
        read_pod(
            typed(
                PodObject,
                {
                    "metadata": {"namespace": "default", "name": f"web-{number}", "uid": f"u{number}"},
                    "spec": {"nodeName": "node-a", "volumes": volumes[: number % 2]},
                },
            ),
            texts,
            ("podsvid", "podsvid-agent"),
            drivers,
        )
        for number in range(10)
    ]
    pods = [each for each in found if each is not None]
    assert len(pods) == 10
    assert len({id(each.drivers) for each in pods}) == 2
    assert len({id(each.addresses) for each in pods}) == 1
