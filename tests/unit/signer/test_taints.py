"""The start-up taint goes when kubelet knows the driver, and nothing else of a node is touched."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from signer.cluster.taints import CSI_NODES, NODES, TAINT, StartupTaint
from tests.fake_kube import FakeKube
from tests.meanwhile import before
from tests.signer_rig import DRIVER, StepClock

OURS = {"key": TAINT, "effect": "NoExecute"}
OTHER = {"key": "dedicated", "value": "x", "effect": "NoSchedule"}


def node(kube: FakeKube, name: str, *taints: dict[str, Any]) -> None:
    kube.put(f"{NODES}/{name}", {"metadata": {"name": name}, "spec": {"taints": list(taints)}})


def csi_node(kube: FakeKube, name: str, *drivers: str) -> None:
    kube.put(f"{CSI_NODES}/{name}", {"metadata": {"name": name}, "spec": {"drivers": [{"name": d} for d in drivers]}})


def taints(kube: FakeKube, name: str) -> list[dict[str, Any]]:
    return kube.objects[f"{NODES}/{name}"]["spec"].get("taints") or []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def removing(kube: FakeKube, *drivers: str) -> AsyncIterator[StartupTaint]:
    found = StartupTaint(kube, frozenset(drivers), StepClock())
    loops = [asyncio.create_task(found.follow()), asyncio.create_task(found.remove())]
    try:
        yield found
        assert not [each for each in loops if each.done()]
    finally:
        for each in loops:
            each.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def test_the_taint_goes_when_the_csi_node_lists_the_driver_and_other_taints_stay() -> None:
    async def main() -> None:
        kube = FakeKube(StepClock())
        node(kube, "a", OTHER, OURS)
        node(kube, "b", OURS)
        node(kube, "c", OTHER)
        csi_node(kube, "a", "other.csi")
        csi_node(kube, "c", DRIVER)
        async with removing(kube, DRIVER):
            csi_node(kube, "a", "other.csi", DRIVER)
            await until(lambda: taints(kube, "a") == [OTHER])
            csi_node(kube, "b", DRIVER)
            await until(lambda: taints(kube, "b") == [])
            # A node that comes with both.
            csi_node(kube, "d", DRIVER)
            node(kube, "d", OURS)
            await until(lambda: taints(kube, "d") == [])
        assert taints(kube, "c") == [OTHER]
        assert [path for _, path in kube.writes] == [f"{NODES}/{name}" for name in ("a", "b", "d")]

    asyncio.run(main())


def test_every_driver_must_be_there() -> None:
    async def main() -> None:
        kube = FakeKube(StepClock())
        node(kube, "a", OURS)
        csi_node(kube, "a", DRIVER)
        async with removing(kube, DRIVER, "csi.spiffe.io") as found:
            await until(lambda: found._nodes.synced and found._registered.synced)
            assert found.ready() == []
            assert taints(kube, "a") == [OURS]
            csi_node(kube, "a", "csi.spiffe.io", DRIVER)
            await until(lambda: taints(kube, "a") == [])

    asyncio.run(main())


def test_a_taint_that_somebody_adds_at_the_same_time_is_kept() -> None:
    async def main() -> None:
        kube = FakeKube(StepClock())
        node(kube, "a", OURS)
        csi_node(kube, "a", DRIVER)
        patch, raced = kube.patch, False

        async def racing(path: str, body: Any) -> Any:
            nonlocal raced
            if not raced:
                raced = True
                node(kube, "a", OURS, OTHER)
            return await patch(path, body)

        kube.patch = racing  # type: ignore[method-assign]
        async with removing(kube, DRIVER):
            await until(lambda: taints(kube, "a") == [OTHER])

    asyncio.run(main())


def test_a_refusal_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("signer.cluster.taints.RETRY_SECONDS", 0.01)

    async def main() -> None:
        kube = FakeKube(StepClock())
        node(kube, "a", OURS)
        csi_node(kube, "a", DRIVER)
        kube.denied.add(("patch", NODES))
        async with removing(kube, DRIVER):
            await until(lambda: len(caplog.records) > 1)
            kube.denied.clear()
            await until(lambda: taints(kube, "a") == [])

    asyncio.run(main())


def test_a_node_waits_for_its_own_drivers_all_of_them() -> None:
    """What another node has, or half of what it needs, makes none ready."""

    async def main() -> None:
        kube = FakeKube(StepClock())
        for name in ("ready", "half", "bare"):
            node(kube, name, OURS)
        csi_node(kube, "half", DRIVER)
        csi_node(kube, "ready", DRIVER, "csi.spiffe.io")
        async with removing(kube, DRIVER, "csi.spiffe.io"):
            await until(lambda: taints(kube, "ready") == [])
            # All that was ready then was looked at in the same turn.
            for _ in range(100):
                await asyncio.sleep(0)
            assert taints(kube, "half") == taints(kube, "bare") == [OURS]
        assert kube.writes == [("patch", f"{NODES}/ready")]

    asyncio.run(main())


def test_a_node_that_is_gone_meanwhile_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        kube = FakeKube(StepClock())
        node(kube, "gone", OURS)
        csi_node(kube, "gone", DRIVER)
        before(kube, "patch", lambda: kube.remove(f"{NODES}/gone"))
        async with removing(kube, DRIVER) as found:
            await until(lambda: not found.ready() and len(kube.writes) == 1)
            node(kube, "next", OURS)
            csi_node(kube, "next", DRIVER)
            await until(lambda: taints(kube, "next") == [])
        assert [each.getMessage() for each in caplog.records if each.name == "podsvid.taints"] == []

    asyncio.run(main())
