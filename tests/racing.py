"""Two actors at once: something happens between a program's look at the API server and what it does there."""

from collections.abc import Awaitable, Callable
from typing import Any

from tests.fake_kube import FakeKube


def before(kube: FakeKube, method: str, happens: Callable[[], Awaitable[None] | None]) -> None:
    """Just before the next call of `method` (get, create, replace, delete) reaches the API server, `happens` does."""
    answer = getattr(kube, method)

    async def raced(*arguments: Any) -> Any:
        setattr(kube, method, answer)
        waited = happens()
        if waited is not None:
            await waited
        return await answer(*arguments)

    setattr(kube, method, raced)
