"""What a mirror knows: all parts of a list, each event, and since when it hears nothing; against a scripted server."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from signer.cluster import decoding
from signer.cluster.decoding import Event, Kept, Page
from signer.cluster.kube import Object
from signer.cluster.mirror import FIRST_RETRY, FRESH_SECONDS, MAX_GAPS, MAX_RETRY, SLICE, WATCH_SECONDS, Mirror
from signer.cluster.objects import Item
from signer.errors import ApiUnavailable, Forbidden, Gone, SignerError
from tests.signer_rig import START, StepClock

PATH = "/api/v1/pods"


def thing(name: str, version: int, **more: Any) -> Object:
    return {"metadata": {"uid": f"uid-{name}", "name": name, "resourceVersion": str(version)}, **more}


def event(kind: str, *body: Any, **more: Any) -> Object:
    return {"type": kind, "object": thing(*body, **more)}


class Scripted:
    """An API server for one mirror: what it answers next is put in by the test, and what it is asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._lists: asyncio.Queue[Object | SignerError] = asyncio.Queue()
        # None ends a watch, as a server does when its time is over.
        self._events: asyncio.Queue[Object | SignerError | None] = asyncio.Queue()

    def listed(self, version: int, *items: Object, more: str = "") -> None:
        self._lists.put_nowait({"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(items)})

    def fails(self, error: SignerError) -> None:
        self._lists.put_nowait(error)

    def tell(self, *events: Object | SignerError | None) -> None:
        for each in events:
            self._events.put_nowait(each)

    @property
    def watched(self) -> list[str]:
        """From which versions."""
        return [query["resourceVersion"] for kind, query in self.asked if kind == "watch"]

    async def list(self, path: str, kind: type[Kept], query: Mapping[str, str] | None = None) -> Page[Kept]:
        assert path == PATH
        self.asked.append(("list", dict(query or {})))
        answer = await self._lists.get()
        if isinstance(answer, SignerError):
            raise answer
        return decoding.page(json.dumps(answer).encode(), kind)

    async def watch(self, path: str, kind: type[Kept], query: Mapping[str, str]) -> AsyncIterator[Event[Kept]]:
        assert path == PATH
        self.asked.append(("watch", dict(query)))
        while (found := await self._events.get()) is not None:
            if isinstance(found, SignerError):
                raise found
            yield decoding.event(json.dumps(found).encode(), kind)


class Rig:
    def __init__(self, observe: Callable[[str | None, str | None], None] | None = None) -> None:
        self.api, self.clock = Scripted(), StepClock()
        api: Any = self.api
        self.mirror: Mirror[Thing, str] = Mirror(
            api, PATH, Thing, _name, self.clock, {"labelSelector": "a=b"}, random.Random(1), observe=observe
        )

    @property
    def names(self) -> set[str]:
        return set(self.mirror.values.values())


class Thing(Item, frozen=True):
    hidden: bool = False
    mark: str = ""


def _name(each: Thing) -> str | None:
    return None if each.hidden else f"{each.metadata.name}{each.mark}"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[None]:
    task = asyncio.create_task(rig.mirror.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.cluster.mirror.FIRST_RETRY", 0.0)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(each)["reason"] for each in caplog.records if each.name == "podsvid.mirror"]


def test_all_parts_of_a_list_are_one_list() -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            rig.api.listed(7, thing("one", 1), more="t1")
            await until(lambda: len(rig.api.asked) == 2)
            # Half of what there is is not all that there is.
            assert not rig.mirror.synced
            assert rig.mirror.changed.version == 0
            assert rig.names == {"one"}
            rig.api.listed(7, thing("two", 2), more="t2")
            rig.api.listed(7, thing("three", 3), thing("x", 4, hidden=True))
            await until(lambda: rig.mirror.synced)
            assert rig.names == {"one", "two", "three"}
            assert rig.mirror.find("uid-two") == "two"
            await until(lambda: len(rig.api.asked) == 4)
        assert rig.api.asked == [
            ("list", {"labelSelector": "a=b", "limit": "500"}),
            ("list", {"labelSelector": "a=b", "limit": "500", "continue": "t1"}),
            ("list", {"labelSelector": "a=b", "limit": "500", "continue": "t2"}),
            (
                "watch",
                {
                    "labelSelector": "a=b",
                    "resourceVersion": "7",
                    "allowWatchBookmarks": "true",
                    "timeoutSeconds": "290",
                },
            ),
        ]

    asyncio.run(run())


def test_events_are_applied_and_what_is_no_news_wakes_nobody() -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            rig.api.listed(7)
            await rig.mirror.wait_synced()
            # An empty collection is known, too.
            assert rig.mirror.changed.version == 1
            rig.api.tell(event("ADDED", "one", 8), event("ADDED", "two", 9))
            await until(lambda: rig.names == {"one", "two"})
            assert rig.mirror.changed.version == 3
            # Something else of it changed; one was never shown; a bookmark; a kind of the future.
            rig.api.tell(
                event("MODIFIED", "one", 10, status="x"),
                event("ADDED", "three", 11, hidden=True),
                event("DELETED", "three", 12),
                event("BOOKMARK", "", 13),
                event("FUTURE", "four", 14),
                event("MODIFIED", "two", 15, mark="!"),
            )
            await until(lambda: rig.names == {"one", "two!"})
            assert rig.mirror.changed.version == 4
            # It is what it was, and not to be shown any more.
            rig.api.tell(event("MODIFIED", "two", 16, hidden=True), event("DELETED", "one", 17))
            await until(lambda: rig.names == set())
            assert rig.mirror.changed.version == 6
            # The time of the watch is over: the next goes on where it ended.
            rig.api.tell(None)
            await until(lambda: len(rig.api.watched) == 2)
        assert rig.api.watched == ["7", "17"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "gap",
    [{"type": "ERROR", "object": {"code": 410, "message": "too old"}}, Gone("too old")],
    ids=["in the watch", "at its start"],
)
def test_a_gap_is_listed_over_at_once(gap: Object | SignerError, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            rig.api.listed(7, thing("one", 1), thing("two", 2))
            await rig.mirror.wait_synced()
            version = rig.mirror.changed.version
            rig.api.tell(gap)
            rig.api.listed(20, thing("one", 1))
            await until(lambda: rig.names == {"one"})
            assert rig.mirror.changed.version == version + 1
            await until(lambda: rig.api.watched == ["7", "20"])
            # Listed again, and nothing new.
            rig.api.tell(gap)
            rig.api.listed(30, thing("one", 1))
            await until(lambda: rig.api.watched == ["7", "20", "30"])
            assert rig.mirror.changed.version == version + 1
        # That is how it is meant to be: no failure, and no contact lost.
        assert said(caplog) == []
        assert rig.mirror.lost_since is None

    asyncio.run(run())


@pytest.mark.usefixtures("no_delay")
def test_an_outage_keeps_what_was_known_and_is_timed_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        rig = Rig()
        away, begun = ApiUnavailable("away"), rig.clock.monotonic()
        async with running(rig):
            rig.api.listed(7, thing("one", 1))
            await rig.mirror.wait_synced()
            rig.clock.pass_by(minutes=1)
            rig.api.tell(event("ADDED", "two", 8))
            await until(lambda: len(rig.names) == 2)
            assert rig.mirror.last_contact == START + timedelta(minutes=1)
            rig.clock.pass_by(minutes=1)
            rig.api.tell({"type": "ERROR", "object": {"code": 500, "message": "no"}})
            await until(lambda: rig.mirror.lost_since is not None)
            rig.api.fails(away)
            rig.clock.pass_by(minutes=1)
            rig.api.fails(away)
            await until(lambda: len(rig.api.asked) == 5)
            # Since the first failure, not the last.
            assert rig.mirror.lost_since == begun + 120
            assert rig.mirror.synced
            assert rig.names == {"one", "two"}
            assert said(caplog) == ["API_SERVER_UNAVAILABLE"]
            rig.clock.pass_by(minutes=1)
            rig.api.listed(9, thing("two", 8))
            await until(lambda: rig.names == {"two"})
            assert rig.mirror.lost_since is None
            assert rig.mirror.last_contact == rig.clock.now()
            # The next outage is another one.
            rig.api.tell(away)
            rig.api.fails(away)
            await until(lambda: said(caplog) == ["API_SERVER_UNAVAILABLE"] * 2)

    asyncio.run(run())


@pytest.mark.usefixtures("no_delay")
def test_a_right_that_was_taken_away_is_said_each_time(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            for _ in range(3):
                rig.api.fails(Forbidden("cannot list"))
            await until(lambda: len(rig.api.asked) == 4)
            assert said(caplog) == ["FORBIDDEN"] * 3
            assert rig.mirror.lost_since == rig.clock.monotonic()
            assert not rig.mirror.synced

    caplog.set_level(logging.WARNING)
    asyncio.run(run())


@pytest.mark.usefixtures("no_delay")
def test_a_list_that_is_too_old_before_its_end_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            rig.api.listed(7, thing("one", 1))
            await rig.mirror.wait_synced()
            rig.api.tell(Gone("too old"))
            rig.api.listed(8, thing("one", 1), more="t1")
            rig.api.fails(Gone("the continue parameter is too old"))
            await until(lambda: said(caplog) == ["GONE"])
            assert not rig.mirror.fresh
            rig.clock.pass_by(hours=5)
            assert rig.mirror.outdated(timedelta(hours=1))
            heard = rig.mirror.heard_at
            rig.api.listed(8, thing("one", 1), more="t1")
            await until(lambda: rig.mirror.heard_at != heard)
            # A part that came just now is of no list that ended.
            assert not rig.mirror.recent(timedelta(hours=1))
            rig.api.fails(Gone("the continue parameter is too old"))
            rig.api.listed(9, thing("one", 1))
            await until(lambda: rig.mirror.fresh)

    caplog.set_level(logging.WARNING)
    asyncio.run(run())


@pytest.mark.usefixtures("no_delay")
def test_lists_that_nothing_can_be_watched_from_are_asked_for_ever_more_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            for number in range(MAX_GAPS + 4):
                rig.api.listed(7 + number)
                rig.api.tell(Gone("too old"))
            await until(lambda: len(rig.api.watched) == MAX_GAPS + 4)
            await until(lambda: len(said(caplog)) == 4)
            assert rig.mirror._tries == 4
            # One that brings something ends that.
            rig.api.listed(20)
            rig.api.tell(event("ADDED", "one", 21))
            await until(lambda: rig.names == {"one"})
            assert rig.mirror._tries == 0

    caplog.set_level(logging.WARNING)
    asyncio.run(run())


def test_tries_slow_down_up_to_a_bound_and_apart() -> None:
    async def run() -> None:
        rig = Rig()
        delays = []
        for failures in range(1, 40):
            rig.mirror._tries = failures
            delays.append(rig.mirror._delay())
        for number, delay in enumerate(delays):
            most = min(MAX_RETRY, FIRST_RETRY * 2**number)
            assert most / 2 <= delay <= most
        assert max(delays) > MAX_RETRY / 2
        # No two replicas that lost the API server at one moment come back at one.
        assert len({round(each, 6) for each in delays[10:]}) == len(delays[10:])

    asyncio.run(run())


def test_fresh_is_what_is_complete_and_followed_and_not_silent_for_longer_than_a_watch() -> None:
    async def run() -> None:
        rig = Rig()
        assert not rig.mirror.fresh
        async with running(rig):
            rig.api.listed(7)
            await rig.mirror.wait_synced()
            assert rig.mirror.fresh
            rig.clock.pass_by(seconds=FRESH_SECONDS)
            assert rig.mirror.fresh
            rig.clock.pass_by(seconds=1)
            assert not rig.mirror.fresh
            assert not rig.mirror.recent(timedelta(minutes=5))
            # A watch that ended in its time had nothing to say.
            rig.api.tell(None)
            await until(lambda: rig.mirror.fresh)
            rig.api.fails(ApiUnavailable("away"))
            rig.api.tell(ApiUnavailable("away"))
            await until(lambda: not rig.mirror.fresh)
            rig.clock.pass_by(minutes=5)
            assert rig.mirror.recent(timedelta(minutes=5))
            assert not rig.mirror.recent(timedelta(minutes=4))
            assert not rig.mirror.outdated(timedelta(minutes=5))
            assert rig.mirror.outdated(timedelta(minutes=4))

    asyncio.run(run())
    assert float(WATCH_SECONDS) < FRESH_SECONDS


def test_while_it_is_listed_again_it_is_not_fresh() -> None:
    """What was missed since is known at the end of the list only, however lately a part of it came."""

    async def run() -> None:
        rig = Rig()
        async with running(rig):
            rig.api.listed(7, thing("one", 1), thing("two", 2))
            await until(lambda: rig.mirror.fresh)
            rig.api.tell(Gone("too old"))
            await until(lambda: len(rig.api.asked) == 3)
            assert not rig.mirror.fresh
            rig.api.listed(20, thing("one", 1), more="t1")
            await until(lambda: len(rig.api.asked) == 4)
            assert rig.mirror.heard_at == rig.clock.monotonic()
            assert not rig.mirror.fresh
            assert not rig.mirror.outdated(timedelta(0)), "nobody is refused for it"
            rig.api.listed(20, thing("three", 3))
            await until(lambda: rig.mirror.fresh)
            assert rig.names == {"one", "three"}

    asyncio.run(run())


def test_a_long_list_gives_way_and_each_change_is_told() -> None:
    async def run() -> None:
        told: list[tuple[str | None, str | None]] = []
        rig = Rig(lambda old, new: told.append((old, new)))
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with running(rig):
            await asyncio.sleep(0)
            rig.api.listed(7, *(thing(f"t{number}", number) for number in range(40 * SLICE)))
            beside = asyncio.create_task(others())
            await rig.mirror.wait_synced()
            # Once for each slice, so that none of them is longer than that.
            assert turns >= 40
            beside.cancel()
            assert told == [(None, f"t{number}") for number in range(40 * SLICE)]
            told.clear()
            rig.api.tell(event("MODIFIED", "t1", 8, mark="!"), event("DELETED", "t2", 9), event("DELETED", "t2", 10))
            await until(lambda: len(told) == 2)
            rig.api.tell(Gone("too old"))
            rig.api.listed(20, thing("t1", 8, mark="!"), thing("new", 9))
            await until(lambda: len(rig.names) == 2)
            assert told[:2] == [("t1", "t1!"), ("t2", None)]
            assert told[2] == (None, "new")
            assert {new for _, new in told[3:]} == {None}

    asyncio.run(run())


def test_what_is_no_object_is_an_outage_and_not_an_end(no_delay: None, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        rig = Rig()
        async with running(rig):
            rig.api.listed(7, {"metadata": {"name": 5}})
            rig.api.listed(8, thing("one", 1))
            await rig.mirror.wait_synced()
            rig.api.tell({"type": "ADDED", "object": {"metadata": []}})
            rig.api.listed(9, thing("two", 1))
            await until(lambda: rig.names == {"two"})
        assert said(caplog) == ["API_SERVER_UNAVAILABLE"] * 2

    asyncio.run(run())
