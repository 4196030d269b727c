"""The door looks at those who are at it, and where there is nobody it waits."""

import asyncio
from contextlib import suppress

import pytest

from signer.attestation.pods import AgentAddresses
from signer.front import sweeping as sweeping_module
from signer.front.admission import Admission
from signer.front.aside import Aside
from signer.front.sweeping import MANY, SWEEP, SWEEPS, Sweeping


class Guest:
    def is_there(self) -> bool:
        return True

    def begin(self) -> None:
        return

    def close(self) -> None:
        return


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_where_there_is_nobody_nothing_is_looked_at_until_somebody_comes() -> None:
    async def run() -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await asyncio.sleep(0)

        now = asyncio.get_running_loop().time
        admission = Admission(1000, lambda _: None, now, expected=AgentAddresses())
        sweeping = Sweeping(admission, Aside(now), lambda: None, sleep)
        task = asyncio.ensure_future(sweeping.run())
        await turns()
        assert slept == [SWEEP]
        # It is looked at though it was turned away; and again only because of the next one.
        for _ in range(2):
            slept.clear()
            sweeping.comes()
            await turns()
            assert slept
            await turns()
            before = len(slept)
            await turns()
            assert len(slept) == before
        # Whoever stays is looked at again and again.
        entry = admission.enter(Guest(), "192.0.2.1")
        assert entry is not None
        sweeping.comes()
        await turns()
        slept.clear()
        for _ in range(4):
            await turns()
        assert len(slept) > 60
        admission.left(entry)
        for _ in range(4):
            await turns()
        slept.clear()
        await turns()
        assert not slept
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_memory_is_looked_after_where_many_were_let_in_and_for_nobody_who_was_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trims: list[int] = []
    swept = 0

    async def run() -> None:
        async def sleep(_: float) -> None:
            nonlocal swept
            swept += 1
            await asyncio.sleep(0)

        async def sweep(times: int, entering: int) -> None:
            """So many sweeps, with a connection at each, of which so many are let in."""
            until, came = swept + times, 0
            while swept < until:
                sweeping.comes()
                for _ in range(entering // times + 1 if came < entering else 0):
                    sweeping.enters()
                    came += 1
                before = swept
                while swept == before:
                    await asyncio.sleep(0)

        now = asyncio.get_running_loop().time
        admission = Admission(1000, lambda _: None, now, expected=AgentAddresses())
        sweeping = Sweeping(admission, Aside(now), lambda: None, sleep)
        monkeypatch.setattr(sweeping_module, "trimmer", lambda: lambda: trims.append(sweeping.came))
        async with asyncio.timeout(30):
            task = asyncio.ensure_future(sweeping.run())
            # None is let in; and as many as count, but not within as many sweeps.
            await sweep(10 * SWEEPS, 0)
            for _ in range(4):
                await sweep(2 * SWEEPS, MANY // 2)
            assert not trims
            before = sweeping.came
            await sweep(2 * SWEEPS, 3 * MANY)
            await sweep(10 * SWEEPS, 0)
        assert 1 <= len(trims) <= 2
        assert trims[0] > before + MANY
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
