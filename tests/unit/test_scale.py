"""bench.scale: its API server says what the fake one says, its cluster is what it is to be, its rows add up."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio import client

from bench.scale import api
from bench.scale.api import Server, Store
from bench.scale.cores import apart, waited
from bench.scale.figures import ROWS, Figures, Goal, histogram_quantile, most_in_a_second, quantile
from bench.scale.fleet import Loop
from bench.scale.population import NAMESPACE, Cluster, Tokens
from bench.scale.renewals import LATE, Renewals, Renewing, Watched, _share
from bench.scale.run import FULL, QUICK
from bench.scale.watch import Watch
from runtime.clock import SystemClock
from signer.attestation.pods import read_pod
from signer.attestation.tokens import JWKS, OfflineTokens, TokenReviews
from signer.cluster.kube import KubeApi, Object
from signer.cluster.kube_client import KubeClient
from signer.cluster.objects import DataObject, Pod, PolicyObject
from signer.errors import Gone, SignerError
from signer.policy.policy import matching, read_policy
from tests.fake_kube import FakeKube
from tests.signer_rig import AUDIENCE, DRIVER
from tests.typed import typed

SMALL = Cluster(nodes=4, pods=40, policies=6, services=8, namespaces=2)
MAPS = "/api/v1/namespaces/default/configmaps"


@asynccontextmanager
async def over_http(cluster: Cluster = SMALL, folder: Path | None = None) -> AsyncIterator[KubeClient]:
    """The signer's own client at an API server of the benchmark, with `cluster` in it where there is a folder."""
    store, keys = Store(), {}
    if folder is not None:
        Tokens.write_key(folder / "key")
        keys = Tokens(folder / "key").keys()
        for path, body in cluster.objects():
            store.fill(path, body)
    runner = web.AppRunner(Server(store, keys, cluster, 0.0).application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        kube = KubeClient(configuration)
        try:
            yield kube
        finally:
            await kube.close()
    finally:
        await runner.cleanup()


async def attempt(call: Awaitable[object]) -> str:
    """The kind of error that a call ends with."""
    try:
        await call
    except SignerError as error:
        return type(error).__name__
    return "done"


def config_map(name: str, **data: str) -> Object:
    return {"metadata": {"name": name, "labels": {"a": data.get("label", "b")}}, "data": data}


async def story(api: KubeApi) -> list[object]:
    """What a client sees of one object and its collection, without what each server makes up."""
    told: list[object] = []
    told.append(await attempt(api.get(f"{MAPS}/one")))
    created = await api.create(MAPS, config_map("one", x="1"))
    told.append(await attempt(api.create(MAPS, config_map("one"))))
    begun = (await api.list(MAPS, DataObject)).version
    changed = await api.replace(f"{MAPS}/one", {**created, "data": {"x": "2"}})
    told.append((changed["data"], changed["metadata"]["uid"] == created["metadata"]["uid"]))
    told.append(await attempt(api.replace(f"{MAPS}/one", created)))
    told.append((await api.patch(f"{MAPS}/one", {"data": {"x": None, "y": "3"}}))["data"])
    told.append((await api.replace(f"{MAPS}/one/status", {"status": {"ok": True}}))["data"])
    await api.create(MAPS, config_map("two", label="c"))
    await api.create("/api/v1/namespaces/other/configmaps", config_map("one"))
    for path, query in (
        (MAPS, {}),
        ("/api/v1/configmaps", {}),
        (MAPS, {"labelSelector": "a=c"}),
        ("/api/v1/configmaps", {"fieldSelector": "metadata.name=one"}),
    ):
        found = (await api.list(path, DataObject, query)).items
        told.append(sorted((each.metadata.namespace or "", each.metadata.name or "") for each in found))
    told.append(await attempt(api.delete(f"{MAPS}/one", {"preconditions": {"uid": "another"}})))
    await api.delete(f"{MAPS}/one")
    told.append(await attempt(api.delete(f"{MAPS}/one")))
    told.append(await attempt(api.replace(f"{MAPS}/one", created)))
    events = []
    async with asyncio.timeout(10):
        async for event in api.watch(MAPS, DataObject, {"resourceVersion": begun}):
            events.append((event.kind, event.item and event.item.metadata.name))
            if event.kind == "DELETED":
                break
    told.append(events)
    return told


def test_the_signers_client_sees_the_same_at_it_as_at_the_fake() -> None:
    async def run() -> None:
        async with over_http() as api:
            assert await story(api) == await story(FakeKube(SystemClock()))

    asyncio.run(run())


def test_a_list_comes_in_pages_and_a_watch_from_too_long_ago_is_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_http(folder=tmp_path) as api:
            names, token, pages = [], "", 0
            while True:
                query = {"limit": "15", **({"continue": token} if token else {})}
                answer = await api.list("/api/v1/pods", Pod, query)
                names += [each.metadata.uid for each in answer.items]
                token, pages = answer.more, pages + 1
                if not token:
                    break
            assert (len(set(names)), pages) == (SMALL.pods, 3)
            with pytest.raises(Gone):
                async for _ in api.watch("/api/v1/pods", Pod, {"resourceVersion": "1"}):
                    pass
            with pytest.raises(Gone):
                await api.list("/api/v1/pods", Pod, {"limit": "15", "continue": "1.forgotten:15"})

    asyncio.run(run())


def test_who_follows_a_quiet_collection_gets_bookmarks_though_much_happens_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the signer takes its watch for dead, and lists all pods anew in the middle of what is measured."""
    monkeypatch.setattr(api, "BOOKMARK_SECONDS", 0.2)

    async def run() -> None:
        async with over_http() as kube:
            begun = (await kube.list(MAPS, DataObject)).version

            async def much() -> None:
                number = 0
                while True:
                    number += 1
                    await kube.create("/api/v1/namespaces/other/secrets", config_map(f"s{number}"))

            elsewhere = asyncio.create_task(much())
            async with asyncio.timeout(30):
                async for event in kube.watch(MAPS, DataObject, {"resourceVersion": begun}):
                    assert event.kind == "BOOKMARK"
                    break
            assert not elsewhere.done()
            elsewhere.cancel()
            await asyncio.gather(elsewhere, return_exceptions=True)

    asyncio.run(run())


def tasks(proc: Path, pid: int, *threads: int) -> None:
    for each in threads:
        (proc / str(pid) / "task" / str(each)).mkdir(parents=True)


def test_the_signers_have_a_core_of_their_own_while_that_is_measured_and_others_the_rest(tmp_path: Path) -> None:
    tasks(tmp_path, 10, 10, 11)
    tasks(tmp_path, 20, 20)
    kept: dict[int, frozenset[int]] = {}

    def keep(thread: int, cores: Collection[int]) -> None:
        if thread == 11:
            raise ProcessLookupError
        kept[thread] = frozenset(cores)

    with apart([10], [20, 30], {0, 1, 2}, keep, tmp_path) as there:
        assert there
        assert kept == {10: {0}, 20: {1, 2}}
    assert kept == {10: {0, 1, 2}, 20: {0, 1, 2}}
    kept.clear()
    with apart([10], [20], {3}, keep, tmp_path) as there:
        assert not there
    assert kept == {}


def test_how_long_a_loop_waited_for_a_core(tmp_path: Path) -> None:
    tasks(tmp_path, 10, 10)
    assert waited(10, tmp_path) == 0.0
    (tmp_path / "10" / "task" / "10" / "schedstat").write_text("5000000000 2500000000 17\n")
    assert waited(10, tmp_path) == 2.5


def test_it_reviews_the_tokens_that_the_cluster_signs_and_publishes_their_key(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_http(folder=tmp_path) as api:
            clock = SystemClock()
            offline = OfflineTokens(api, AUDIENCE, clock)
            await offline.refresh()
            token = Tokens(tmp_path / "key").of(SMALL, 5)
            reviewed = await TokenReviews(api, AUDIENCE, offline, clock).verify(token)
            # What the API server says of a token is what its signed claims say.
            assert reviewed == offline.verify(token)
            assert (reviewed.pod_uid, reviewed.node_name) == (SMALL.reference(5).uid, "node-1")

    asyncio.run(run())


def test_every_node_has_an_agent_and_pods_and_the_policies_match_some() -> None:
    for cluster in (SMALL, QUICK.cluster):
        bodies = dict(cluster.objects())
        pods = [
            found for found in (read_pod(typed(Pod, cluster.pod(each)[1])) for each in range(cluster.pods)) if found
        ]
        assert len(bodies) == cluster.pods + cluster.policies + cluster.services + cluster.namespaces + 1
        assert [each.node_name for each in pods if each.namespace == NAMESPACE] == [
            f"node-{number}" for number in range(cluster.nodes)
        ]
        mounting = Counter(each.node_name for each in pods if DRIVER in each.drivers)
        assert all(mounting[f"node-{number}"] == len(cluster.mounted(number)) > 0 for number in range(cluster.nodes))
        policies = []
        for path, body in bodies.items():
            if "workloadidentities" in path:
                metadata = {"uid": path, **body["metadata"]}
                policies.append(read_policy(typed(PolicyObject, {**body, "metadata": metadata})))
        assert all(each is not None and not each.problem for each in policies)
        matched = [
            len(matching([each for each in policies if each], pod, {"team": pod.namespace}))
            for pod in pods[cluster.nodes : cluster.nodes + 200]
        ]
        assert 0 in matched
        assert 1 in matched


def test_the_sizes_are_those_that_are_promised() -> None:
    assert FULL.cluster == Cluster(5_000, 150_000, 2_000, 20_000, 500)
    assert [10 * each for each in (QUICK.cluster.nodes, QUICK.cluster.pods)] == [5_000, 150_000]
    assert QUICK.changes == FULL.changes == 0.01


def test_what_is_counted_in_a_second_and_below_a_bound() -> None:
    assert most_in_a_second([0.0, 0.5, 0.9, 1.0, 1.2, 5.0]) == 4.0
    assert most_in_a_second([]) == 0.0
    assert [quantile([3.0, 1.0, 2.0], part) for part in (0.01, 0.5, 0.99)] == [1.0, 2.0, 3.0]
    before = {0.01: 10.0, 0.05: 10.0, float("inf"): 10.0}
    after = {0.01: 108.0, 0.05: 109.0, float("inf"): 110.0}
    assert histogram_quantile(before, after, 0.98) == 0.01
    assert histogram_quantile(before, after, 0.99) == 0.05
    assert histogram_quantile(before, before, 0.99) is None


def marked(add: Callable[[Figures], None]) -> list[str]:
    figures = Figures()
    add(figures)
    return [mark for mark in map(figures.mark, ROWS) if mark]


def test_goals_are_marked_and_no_row_is_left_out() -> None:
    assert marked(lambda figures: figures.add("mint_cpu", 1.31, 1.0)) == ["missed"]
    assert marked(lambda figures: figures.add("mint_cpu", 1.29, 1.0)) == ["met"]
    assert marked(lambda figures: figures.add("lag_p99", 51.0)) == ["missed"]
    assert marked(lambda figures: figures.add("lag_p99", None, note="not reported")) == []
    with pytest.raises(KeyError):
        Figures().add("another", 1.0)
    figures = Figures(failure="the signer | ended\nhere")
    figures.add("mint_cpu", 2.0, 1.0)
    lines = figures.table().splitlines()
    assert len(lines) == len(ROWS) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert figures.missed == [ROWS["mint_cpu"].what]
    found = json.loads(figures.json({"cores": "2"}))
    assert [each["key"] for each in found["rows"]] == list(ROWS)
    assert found["failure"] == figures.failure


def test_each_agent_has_an_address_of_its_own_and_all_are_of_this_host() -> None:
    addresses = [Cluster.address(node) for node in range(60_000)]
    assert len(set(addresses)) == len(addresses)
    assert all(ip_address(each).is_loopback for each in addresses)
    # Nobody else's: servers and other clients of a run have the usual one.
    assert "127.0.0.1" not in addresses


def test_what_holds_a_loop_is_written_down(tmp_path: Path) -> None:
    file = tmp_path / "held"
    watch = Watch(file)
    watch.busy()
    watch.idle()
    watch.collected("start", {"generation": 2})
    watch.collected("stop", {"generation": 2})
    watch.write()
    assert "{2: 1} times" in file.read_text()


def test_connections_of_agents_go_to_the_replicas_that_the_service_has() -> None:
    async def run() -> None:
        came: Counter[int] = Counter()

        def noted(number: int) -> Callable[..., None]:
            def come(_: object, writer: asyncio.StreamWriter) -> None:
                came[number] += 1
                writer.close()

            return come

        servers = [await asyncio.start_server(noted(number), "127.0.0.1", 0) for number in range(3)]
        ports = [each.sockets[0].getsockname()[1] for each in servers]
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)

        async def connect(times: int) -> dict[int, int]:
            came.clear()
            for _ in range(times):
                reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
                await reader.read()
                writer.close()
            return dict(came)

        assert await connect(3) == {0: 3}
        loop.ports = ports[1:]
        assert set(await connect(40)) == {1, 2}
        loop.ports = ports[2:]
        assert await connect(3) == {2: 3}
        for each in servers:
            each.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())


def test_what_signers_ask_for_is_counted_by_kind(tmp_path: Path) -> None:
    async def run() -> None:
        async with over_http(folder=tmp_path) as kube:
            await kube.create(MAPS, config_map("one"))
            await kube.list(MAPS, DataObject)
            for _ in range(2):
                await kube.get(f"{MAPS}/one")
            await kube.get(JWKS)
            assert await kube.get("/bench/asked") == {"writes": 1, "lists": 1, "reads": 3}

    asyncio.run(run())


def test_svids_live_as_long_as_gives_the_wanted_renewals_a_second() -> None:
    plan = Renewing(count=1_000_000, rate=100.0)
    assert plan.seconds == 10_000
    # Each is renewed after 0.45 of its life.
    assert plan.life(4_500) == pytest.approx(100.0)


def test_a_renewal_that_is_late_or_never_comes_misses_the_goal() -> None:
    figures = Figures()
    step = Renewals(Renewing(), 1.0, SMALL, figures, lambda _: None)
    watched = Watched((), shares={"a": [(10.0, 5.0), (30.0, 2.0)]}, idle={"a": (4.0, 1.0)}, used=(0.008, 0.004))

    def fill(late: float, *overdue: float) -> str:
        found = {"times": [1.0, 2.0, 2.5, 5.0], "late": [0.0, 0.1, 0.2, late], "overdue": list(overdue)}
        step._fill(
            [{**found, "failed": {"x": 2}, "batches": {"1": 2, "2": 1}}], watched, Counter(reviews=6, lists=2), 0.02
        )
        return figures.mark("renew_late")

    assert [fill(LATE), fill(LATE + 0.1), fill(0.0, 70.0)] == ["met", "missed", "missed"]
    assert (figures.figure("renew_late_most").value, figures.figure("renew_late_p99").value) == (70.0, 70.0)
    values = {key: figures.figure(key).value for key in figures.found}
    assert (values["renew_done"], values["renew_mean"], values["renew_failed"]) == (4, 1.0, 2)
    assert (values["renew_together"], values["renew_requests"]) == (50.0, 2.0)
    assert (values["renew_cpu"], values["renew_workers_cpu"], values["renew_agents_cpu"]) == (2.0, 1.0, 5.0)
    assert (values["renew_cpu_most"], values["renew_workers_cpu_most"]) == (30.0, 5.0)
    assert str(Goal(0)) == "none"


def test_a_worker_that_ended_takes_its_time_along_and_none_of_anothers() -> None:
    assert _share((1.0, 5.0), (3.0, 2.0), 4.0) == (50.0, 0.0)
