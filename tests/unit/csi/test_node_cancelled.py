"""Calls whose caller goes away half-way (kubelet's deadline), and the end of the process while they run."""

import asyncio
import logging
from pathlib import Path

import pytest

from csi.errors import IdentityDenied, OperationPending
from tests.csi_rig import Rig, rig
from tests.unit.csi.test_node_publish import FULL, closed, on_a_node


async def cancelled_at(here: Rig, step: str, call: "asyncio.Task[None]") -> None:
    """Cancel `call` while `step` runs, as grpc does when kubelet's deadline has passed."""
    await here.steps.reached(step)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("step", ["issue", "attach", "verify", "open"])
def test_a_publish_goes_on_when_its_caller_has_gone(tmp_path: Path, step: str) -> None:
    async def main(here: Rig) -> None:
        here.steps.hold(step)
        await cancelled_at(here, step, asyncio.create_task(here.publish()))
        # It still runs, so nobody else may touch the volume, whoever asks.
        with pytest.raises(OperationPending):
            await here.publish()
        with pytest.raises(OperationPending):
            await here.unpublish()
        here.steps.release(step)
        await here.node.settle()
        assert here.steps.taken == ["issue", "attach", "verify", "open"]
        assert here.made() == ["mount", "mount/tls.key"]
        assert here.node.volumes == 1
        # kubelet comes again, and finds it done.
        await here.publish()
        assert here.observed[-1] == "republished"
        await here.unpublish()
        assert here.made() == []

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("step", ["issue", "attach", "open"])
def test_a_failure_that_nobody_waits_for_is_undone_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    async def main(here: Rig) -> None:
        here.steps.hold(step)
        here.steps.failing[step] = IdentityDenied("no such pod") if step == "issue" else FULL
        await cancelled_at(here, step, asyncio.create_task(here.publish()))
        here.steps.release(step)
        await here.node.settle()
        await asyncio.sleep(0)
        assert here.made() == []
        assert here.node.volumes == 0
        (line,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
        assert line.message == "operation failed after its caller went away"
        assert ("no such pod" if step == "issue" else "No space left") in line.error  # type: ignore[attr-defined]
        assert line.exc_info
        here.steps.failing.clear()
        await here.publish()
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("step", ["close", "detach"])
def test_an_unpublish_goes_on_when_its_caller_has_gone(tmp_path: Path, step: str) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        here.steps.hold(step)
        await cancelled_at(here, step, asyncio.create_task(here.unpublish()))
        with pytest.raises(OperationPending):
            await here.unpublish()
        with pytest.raises(OperationPending):
            await here.publish()
        here.steps.release(step)
        await here.node.settle()
        assert here.steps.taken[4:] == ["close", "detach"]
        assert here.made() == []
        assert here.node.volumes == 0
        await here.unpublish()

    on_a_node(main, tmp_path)


def test_the_process_ends_after_the_operations_that_run(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.steps.hold("open")
        await cancelled_at(here, "open", asyncio.create_task(here.publish()))
        settling = asyncio.create_task(here.node.settle())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not settling.done()
        here.steps.release("open")
        await settling
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)


def test_the_end_of_the_process_unmounts_nothing_and_lets_go_of_the_directories(tmp_path: Path) -> None:
    async def run() -> None:
        async with rig(tmp_path) as here:
            await here.publish()
            mounted = here.mounts.mounted.copy()
            assert not closed(here)
        assert closed(here)
        assert here.mounts.mounted == mounted
        assert here.made() == ["mount", "mount/tls.key"]
        assert "close" not in here.steps.taken
        assert here.node.volumes == 0

    asyncio.run(run())
