"""The door looks at those who are at it, and where there is nobody it waits."""

import asyncio
from contextlib import suppress

from signer.attestation.pods import AgentAddresses
from signer.front.admission import Admission
from signer.front.aside import Aside
from signer.front.sweeping import SWEEP, Sweeping


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
