"""The kubelet's back-off: half a second, doubled after each failure of the same operation, to two minutes."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

from podsvid.quickstart.errors import StandInError

FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 122.0
_Result = TypeVar("_Result")


def backoff_delays() -> Iterator[float]:
    """The kubelet's waits in seconds after the first, second ... failure of the same operation."""
    delay = FIRST_BACKOFF
    while True:
        yield delay
        delay = longer(delay)


def longer(delay: float) -> float:
    """The wait that follows one of ``delay`` seconds."""
    return min(delay * 2, _LONGEST_BACKOFF)


async def until_done(
    attempt: Callable[[], Awaitable[_Result]],
    timeout: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> _Result:
    """Attempt until it works; gives up when the next wait would end more than `timeout` seconds after the start."""
    began = clock()
    for delay in backoff_delays():
        try:
            return await attempt()
        except StandInError:
            if timeout is not None and clock() + delay - began > timeout:
                raise
        await sleep(delay)
    raise AssertionError("the delays never end")
