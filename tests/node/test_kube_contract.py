"""What the signer takes an API server for: the one in memory, and the real client before it over HTTP, agree."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest
from aiohttp import web
from kubernetes.aio import client

from signer.cluster import kube_client
from signer.cluster.decoding import Event
from signer.cluster.kube import KubeApi
from signer.cluster.kube_client import KubeClient
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, Named, Pod
from signer.cluster.paging import MOST, Paging
from signer.errors import AnswerTooLarge, ApiUnavailable, Conflict, Gone, NotFound
from tests import kube_server
from tests.fake_kube import FakeKube
from tests.signer_rig import StepClock

MAPS = "/api/v1/namespaces/a/configmaps"
Test: TypeAlias = Callable[[KubeApi, FakeKube], Awaitable[None]]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[KubeClient]:
    configuration = client.Configuration()
    configuration.host = url
    api = KubeClient(configuration)
    try:
        yield api
    finally:
        await api.close()


@pytest.fixture(params=["memory", "http"])
def both(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    async def run(test: Test) -> None:
        kube = FakeKube(StepClock())
        async with asyncio.timeout(60):
            if request.param == "memory":
                await test(kube, kube)
                return
            async with kube_server.served(kube_server.application(kube, [])) as url, connected(url) as api:
                await test(api, kube)

    return lambda test: asyncio.run(run(test))


def test_an_object_is_written_read_and_removed(both: Callable[[Test], None]) -> None:
    async def test(api: KubeApi, kube: FakeKube) -> None:
        made = await api.create(MAPS, {"metadata": {"name": "x"}, "data": {"k": "v"}})
        with pytest.raises(Conflict):
            await api.create(MAPS, {"metadata": {"name": "x"}})
        found = await api.read(f"{MAPS}/x", DataObject)
        assert (found.metadata.name, found.metadata.namespace, found.data) == ("x", "a", {"k": "v"})
        assert found.metadata.uid == made["metadata"]["uid"]
        changed = await api.replace(f"{MAPS}/x", {**made, "data": {"k": "w"}})
        with pytest.raises(Conflict):
            await api.replace(f"{MAPS}/x", made)
        assert (await api.patch(f"{MAPS}/x", {"data": {"k": None, "l": "m"}}))["data"] == {"l": "m"}
        with pytest.raises(Conflict):
            await api.delete(
                f"{MAPS}/x", {"preconditions": {"resourceVersion": changed["metadata"]["resourceVersion"]}}
            )
        await api.delete(f"{MAPS}/x")
        for again in (api.get(f"{MAPS}/x"), api.read(f"{MAPS}/x", Named), api.delete(f"{MAPS}/x")):
            with pytest.raises(NotFound):
                await again

    both(test)


def test_a_list_comes_in_parts_of_one_moment(both: Callable[[Test], None]) -> None:
    async def test(api: KubeApi, kube: FakeKube) -> None:
        for number in range(5):
            kube.put(f"/api/v1/namespaces/ns{number}/pods/p", {"spec": {"nodeName": f"n{number}"}})
        first = await api.list("/api/v1/pods", Pod, {"limit": "2"})
        assert [each.spec and each.spec.node_name for each in first.items] == ["n0", "n1"]
        kube.put("/api/v1/namespaces/ns9/pods/p", {})
        second = await api.list("/api/v1/pods", Pod, {"limit": "9", "continue": first.more})
        assert [each.metadata.namespace for each in second.items] == ["ns2", "ns3", "ns4"]
        assert (second.more, second.version) == ("", first.version)
        third = await api.list("/api/v1/pods", Pod, {"limit": "2"})
        kube.compact()
        with pytest.raises(Gone):
            await api.list("/api/v1/pods", Pod, {"limit": "2", "continue": third.more})

    both(test)


def test_a_watch_tells_what_came_after_the_list(both: Callable[[Test], None]) -> None:
    async def test(api: KubeApi, kube: FakeKube) -> None:
        kube.put(f"{MAPS}/one", {"data": {"k": "v"}})
        version = (await api.list("/api/v1/configmaps", DataObject)).version
        kube.put(f"{MAPS}/two", {"data": {"k": "w"}})
        kube.put(f"{MAPS}/two", {"data": {"k": "x"}})
        kube.remove(f"{MAPS}/one")
        events: list[Event[DataObject]] = []
        async for each in api.watch("/api/v1/configmaps", DataObject, {"resourceVersion": version}):
            events.append(each)
            if len(events) == 3:
                break
        assert [(each.kind, each.item and each.item.metadata.name) for each in events] == [
            ("ADDED", "two"),
            ("MODIFIED", "two"),
            ("DELETED", "one"),
        ]
        assert [each.item and each.item.data for each in events] == [{"k": "w"}, {"k": "x"}, {"k": "v"}]
        assert int(version) < int(events[0].version) < int(events[2].version)
        kube.compact()
        with pytest.raises(Gone):
            await anext(aiter(api.watch("/api/v1/configmaps", DataObject, {"resourceVersion": version})))

    both(test)


def test_only_what_is_wanted_is_asked_for_and_nothing_packed() -> None:
    """A packed answer is as large as its sender likes once it is unpacked."""

    async def run() -> None:
        kube, asked = FakeKube(StepClock()), list[web.Request]()
        async with kube_server.served(kube_server.application(kube, asked)) as url, connected(url) as api:
            kube.put("/api/v1/namespaces/a", {})
            await api.list("/api/v1/namespaces", Named)
            await api.list("/api/v1/pods", Pod)
        accepts = [each.headers["Accept"] for each in asked]
        assert accepts[0].startswith("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=1,")
        assert accepts[1].startswith("application/json,")
        assert {each.headers["Accept-Encoding"] for each in asked} == {"identity"}

    asyncio.run(run())


def test_a_part_that_does_not_fit_is_asked_for_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_client, "MAX_PAGE", 40_000)
    monkeypatch.setattr(kube_client, "MAX_OBJECT", 60_000)

    async def run() -> None:
        kube = FakeKube(StepClock())
        for number in range(20):
            kube.put(f"{MAPS}/m{number:02}", {"data": {"k": "x" * 15_000}})
        kube.put(f"{MAPS}/z", {"data": {"k": "x" * 50_000}})
        asked: list[web.Request] = []
        async with kube_server.served(kube_server.application(kube, asked)) as url, connected(url) as api:
            with pytest.raises(AnswerTooLarge):
                await api.list("/api/v1/configmaps", DataObject, {"limit": "500"})
            paging = Paging()
            found = [
                each.metadata.name
                async for page in paging.pages(api, "/api/v1/configmaps", DataObject, {})
                for each in page.items
            ]
            assert found == [*(f"m{number:02}" for number in range(20)), "z"]
            # One object is never too many, up to what etcd takes of one.
            kube.put(f"{MAPS}/zz", {"data": {"k": "x" * 70_000}})
            with pytest.raises(ApiUnavailable):
                _ = [page async for page in paging.pages(api, "/api/v1/configmaps", DataObject, {})]
            assert paging.limit == 1

    asyncio.run(run())


def test_small_parts_grow_again() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        for number in range(40):
            kube.put(f"{MAPS}/m{number:02}", {})
        paging = Paging()
        paging.limit = 4
        sizes = [len(list(page.items)) async for page in paging.pages(kube, "/api/v1/configmaps", DataObject, {})]
        assert sizes == [4, 8, 16, 12]
        assert paging.limit == 64
        for _ in range(9):
            _ = [page async for page in paging.pages(kube, "/api/v1/configmaps", DataObject, {})]
        assert paging.limit == MOST
        # What an API server cannot put together in time may be less next time.
        kube.down = True
        with pytest.raises(ApiUnavailable):
            _ = [page async for page in paging.pages(kube, "/api/v1/configmaps", DataObject, {})]
        assert paging.limit == MOST // 2

    asyncio.run(run())


def test_an_event_that_is_too_long_is_listed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.mirror.FIRST_RETRY", 0.0)
    monkeypatch.setattr(kube_client, "LARGE", 10_000)
    monkeypatch.setattr(kube_client, "MAX_OBJECT", 50_000)

    async def run() -> None:
        kube = FakeKube(StepClock())
        async with kube_server.served(kube_server.application(kube, [])) as url, connected(url) as api:
            mirrors = [
                Mirror(api, MAPS, DataObject, lambda each: each.metadata.name, kube._clock),
                Mirror(api, "/api/v1/configmaps", DataObject, lambda each: each.metadata.name, kube._clock),
            ]
            tasks = [asyncio.create_task(each.run()) for each in mirrors]
            kube.put(f"{MAPS}/one", {})
            for each in mirrors:
                await each.wait_synced()

            async def all_know(name: str) -> None:
                async with asyncio.timeout(30):
                    while not all(name in each.values.values() for each in mirrors):
                        await asyncio.sleep(0.01)

            # Long ones wait for each other, and none is lost.
            for number in range(5):
                kube.put(f"{MAPS}/long{number}", {"data": {"k": "x" * 40_000}})
                await all_know(f"long{number}")
            listed = kube.reads.count(MAPS)
            path = f"{MAPS}/longer"
            kube.put(path, {"data": {"k": "x" * 600_000}})
            kube.put(path, {"data": {"k": "x"}})
            await all_know("longer")
            assert kube.reads.count(MAPS) > listed
            assert not [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_the_api_servers_time_is_told_with_each_answer() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        async with kube_server.served(kube_server.application(kube, [])) as url, connected(url) as api:
            told: list[datetime] = []
            api.dated = told.append
            await api.create(MAPS, {"metadata": {"name": "x"}})
            with pytest.raises(NotFound):
                await api.get(f"{MAPS}/y")
            await api.list(MAPS, DataObject)
            assert len(told) == 3
            now = datetime.now(UTC)
            assert all(abs(now - each) < timedelta(minutes=1) and each.utcoffset() == timedelta(0) for each in told)

    asyncio.run(run())


@pytest.mark.parametrize("date", ["yesterday", "", "Fri, 32 Nov 2026 10:00:00 GMT", "Fri, 27 Nov 99999 10:00:00 GMT"])
def test_a_time_that_is_none_is_passed_over(date: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"metadata": {"name": "x"}}, headers={"Date": date})

    async def run() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        async with kube_server.served(application) as url, connected(url) as api:
            told: list[datetime] = []
            api.dated = told.append
            assert (await api.get(f"{MAPS}/x"))["metadata"]["name"] == "x"
            assert told == []

    asyncio.run(run())


@pytest.mark.parametrize(("token", "sent"), [("of-a-signer\n", "of-a-signer"), ("SECRET\nTOKEN", None)])
def test_a_token_may_end_with_its_line_and_is_never_repeated(token: str, sent: str | None) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response({"metadata": {"name": "x"}})

    async def run() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        configuration = client.Configuration()
        configuration.api_key = {"BearerToken": f"Bearer {token}"}
        async with kube_server.served(application) as configuration.host:
            api = KubeClient(configuration)
            try:
                if sent:
                    await api.get(f"{MAPS}/x")
                else:
                    with pytest.raises(ApiUnavailable) as caught:
                        await api.get(f"{MAPS}/x")
                    assert "SECRET" not in str(caught.value)
            finally:
                await api.close()

    asyncio.run(run())
    assert seen == ([f"Bearer {sent}"] if sent else [])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "cannot be reached (it ended the connection)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "cannot be reached (it ended the connection)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "answers with what no API server does"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"\xff"', "answers with what no API server does"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "answers with what no API server does"),
    ],
)
def test_what_is_no_answer_of_an_api_server_is_said_in_words(answer: bytes, said: str) -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, connected(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as api:
            with pytest.raises(ApiUnavailable) as refused:
                await api.get("/version")
        assert said in str(refused.value)
        assert not re.search(r"\w(Error|Exception)\b|Payload|html|SSH", str(refused.value))

    asyncio.run(run())
