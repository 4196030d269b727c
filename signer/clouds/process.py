"""A cloud's library in a process of its own, as seen from the signer: begun when asked, and ended where it hangs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from runtime.child import MAX_FRAME, Child, ChildProcess, Gone, Late

MODULE = "signer.clouds.child"
# Seconds to load the library, and of one answer unless it is said otherwise; each with the credentials' way, too.
OPEN_SECONDS, ANSWER_SECONDS = 15.0, 10.0
# Seconds until another attempt, after the first that failed: the second comes at once.
FIRST_PAUSE, MOST_PAUSE = 0.5, 30.0
# By which kinds a library fails: see `Failed`.
KINDS = ("busy", "credentials", "missing", "not-installed", "refused", "there", "unreached")
# Which may be over at the next attempt.
PASSING = frozenset({"busy", "unreached"})
# After these the same would come of anything that is asked: whoever asks waits.
_AWAY = frozenset({"busy", "credentials", "not-installed", "unreached"})


@dataclass(frozen=True, slots=True)
class Service:
    """What is asked: `cloud` is aws or google; `region` where the cloud has them."""

    cloud: str
    name: str
    region: str = ""


class Failed(Exception):
    """Nothing was done, or nobody knows. The text tells people why.

    `kind`: `busy` (throttled, or a fault of its own), `credentials` (none, or none that are any good), `missing` (what
    was asked for is not there), `there` (it is there before), `refused` (everything else that it answers),
    `not-installed`, and `unreached`, which is also an answer that does not come in time.
    """

    def __init__(self, kind: str, text: str, code: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.code = code


class Cloud(Protocol):
    """One service of a cloud. One at a time; blocks for as long as is said."""

    def ask(self, method: str, parameters: Mapping[str, Any], seconds: float = ANSWER_SECONDS) -> Mapping[str, Any]:
        """What it answers. Raises Failed."""
        ...

    def close(self) -> None:
        """Ask nothing more."""
        ...


def _begun() -> Child:
    return ChildProcess(MODULE)


class CloudProcess:
    """Implements Cloud. `now`: seconds that only grow. It ends with the thread that asks first."""

    def __init__(
        self,
        service: Service,
        now: Callable[[], float],
        start: Callable[[], Child] = _begun,
    ) -> None:
        self._service = service
        self._now = now
        self._start = start
        self._child: Child | None = None
        self._failures = 0
        self._not_before = 0.0
        self._last = Failed("unreached", "it was not asked yet")

    def ask(self, method: str, parameters: Mapping[str, Any], seconds: float = ANSWER_SECONDS) -> Mapping[str, Any]:
        left = self._not_before - self._now()
        if left > 0:
            raise Failed(self._last.kind, f"{self._last}; asked again in {left:.0f} s", self._last.code)
        try:
            found = self._told(
                self._child or self._opened(), {"method": method, "parameters": parameters, "seconds": seconds}, seconds
            )
        except Failed as failed:
            if failed.kind in _AWAY:
                self._rest(failed)
            raise
        self._failures = 0
        return found

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _opened(self) -> Child:
        try:
            child = self._start()
        except OSError as error:
            raise Failed("unreached", f"no process can be started to ask it: {error.strerror}") from None
        try:
            self._told(child, asdict(self._service), OPEN_SECONDS)
        except BaseException:
            # It would take what it is asked next for the service's name.
            child.end()
            raise
        self._child = child
        return child

    def _told(self, child: Child, asked: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        message = json.dumps(asked, default=_written).encode()
        if len(message) > MAX_FRAME:
            raise Failed("refused", "that is too long to be asked")
        try:
            answer = _read(child.ask(message, seconds))
        except Late:
            # It may hang, or get a byte now and then: with its process it ends.
            self.close()
            raise Failed("unreached", f"it did not answer within {seconds:g} s") from None
        except Gone as error:
            self.close()
            raise Failed("unreached", f"the process that asks it {error}") from None
        except BaseException:
            self.close()
            raise
        if answer.get("failed") is None:
            return answer
        failed = Failed(str(answer["failed"]), str(answer.get("text", "")), str(answer.get("code", "")))
        if failed.kind in ("credentials", "not-installed"):
            # Others may be there by now, which that library would not look for.
            self.close()
        raise failed

    def _rest(self, failed: Failed) -> None:
        pause = min(FIRST_PAUSE * 2 ** min(self._failures - 1, 16), MOST_PAUSE) if self._failures else 0.0
        self._failures += 1
        self._not_before, self._last = self._now() + pause, failed


def _written(value: object) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise TypeError(f"a {type(value).__name__} cannot be asked for")


def _read(answer: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(answer)
        failed = found.get("failed")
    except (ValueError, AttributeError, RecursionError):
        raise Failed("unreached", "its answer cannot be read") from None
    if failed is not None and failed not in KINDS:
        raise Failed("unreached", "its answer cannot be read")
    return found if failed is not None else _mapping(found.get("answer"))


def _mapping(found: object) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise Failed("unreached", "its answer cannot be read")
    return found
