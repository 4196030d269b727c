"""What is done only while leading is ended when leading ends."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import looptime
import pytest

from signer.cluster.leader import Leader
from tests.fake_kube import FakeKube
from tests.signer_rig import Apart, StepClock

DURATION = timedelta(seconds=15)


def on_fake_time(main: Callable[[], Awaitable[Any]]) -> None:
    loop = looptime.new_event_loop(start=0)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def leader() -> Leader:
    """One whose monotonic clock is the loop's."""
    clock = StepClock()
    loop = asyncio.get_running_loop()
    return Leader(FakeKube(clock), "podsvid", "lease", "one", DURATION, Apart(clock, loop.time), random.Random(1))


def test_a_loop_runs_while_its_replica_leads_and_again_when_it_leads_again() -> None:
    async def main() -> None:
        found, ran = leader(), []

        async def loop() -> None:
            ran.append("begun")
            try:
                await asyncio.sleep(3600)
            finally:
                ran.append("ended")

        leading = asyncio.ensure_future(found.lead(loop))
        await asyncio.sleep(5)
        assert ran == []
        await found.attempt()
        await asyncio.sleep(5)
        assert ran == ["begun"]
        await asyncio.sleep(15)  # nobody renewed the lease
        assert not found.leading
        assert ran == ["begun", "ended"]
        await found.attempt()
        await asyncio.sleep(5)
        assert ran == ["begun", "ended", "begun"]
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await asyncio.sleep(0)
        assert ran == ["begun", "ended", "begun", "ended"]

    on_fake_time(main)


def test_a_loop_that_fails_ends_the_leading_with_its_error() -> None:
    async def main() -> None:
        found = leader()
        await found.attempt()

        async def loop() -> None:
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await asyncio.wait_for(found.lead(loop), 10)

    on_fake_time(main)


def test_a_loop_that_failed_is_not_forgotten_because_its_replica_leads_no_more() -> None:
    async def main() -> None:
        found = leader()
        await found.attempt()
        lease_ends = asyncio.Event()

        async def loop() -> None:
            await lease_ends.wait()
            raise ValueError("broken")

        leading = asyncio.ensure_future(found.lead(loop))
        await asyncio.sleep(11.5)  # between two looks, the second of which finds the lease at its end
        assert found.leading
        lease_ends.set()
        with pytest.raises(ValueError, match="broken"):
            await asyncio.wait_for(leading, 10)
        assert not found.leading

    on_fake_time(main)


def test_nothing_of_a_loop_runs_when_the_leading_has_ended() -> None:
    async def main() -> None:
        found, ended = leader(), asyncio.Event()
        await found.attempt()

        async def loop() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(2)
                ended.set()

        leading = asyncio.ensure_future(found.lead(loop))
        await asyncio.sleep(1)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        assert ended.is_set()

    on_fake_time(main)
