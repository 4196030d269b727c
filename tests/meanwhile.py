"""What somebody else does at the API server while a call is under way: a race's second actor, at a chosen moment."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.fake_kube import FakeKube


def before(kube: FakeKube, method: str, act: Callable[[], Any], path: str = "") -> None:
    """`act` is done once, just before the next call of `method` (on a path that contains `path`) has its effect."""
    _around(kube, method, path, act, lambda: None)


def after(kube: FakeKube, method: str, act: Callable[[], Any], path: str = "") -> None:
    """`act` is done once, when the next call of `method` had its effect and its answer is under way.

    What `act` raises is raised to the caller: an answer that is lost.
    """
    _around(kube, method, path, lambda: None, act)


def _around(kube: FakeKube, method: str, path: str, first: Callable[[], Any], last: Callable[[], Any]) -> None:
    present = getattr(kube, method)
    done = False

    async def raced(target: str, *arguments: Any) -> Any:
        nonlocal done
        if done or path not in target:
            return await present(target, *arguments)
        done = True
        first()
        answer = await present(target, *arguments)
        last()
        return answer

    setattr(kube, method, raced)


def unhurried(kube: FakeKube) -> FakeKube:
    """The same, each of whose calls lets others run before it and after it: two at once are really at once."""
    for method in ("get", "list", "create", "replace", "patch", "delete"):
        _yielding(kube, method)
    return kube


def _yielding(kube: FakeKube, method: str) -> None:
    present = getattr(kube, method)

    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        answer = await present(*arguments)
        await asyncio.sleep(0)
        return answer

    setattr(kube, method, slow)
