"""What every call to the signer's API has: a token in its headers, one message, and how it ends when it is refused."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from runtime.deadlines import Deadline, Deadlines
from runtime.headers import Headers
from signer.errors import ERROR_DOMAIN, ApiUnavailable, Reason, Refused
from signer.front.aborting import aborted
from signer.front.budget import HEADERS, MAX_TOKEN
from signer.front.limits import Place
from signer.front.statuses import STATUS_CODES
from signer.model import SOON

_log = logging.getLogger("podsvid.api")
# Seconds. The second: until the message of a call has come, once its agent is proven. The third: until gRPC says that
# a call has no message as it was given up.
MINT_DEADLINE = 30.0
MESSAGE_SECONDS = 5.0
GIVEN_UP = 0.25
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Messages: TypeAlias = AsyncIterable[bytes]
_Message = TypeVar("_Message", bound=Message)


async def only(
    form: type[_Message], messages: Messages, patience: Deadlines, *places: Place, given_up: Callable[[], object]
) -> _Message:
    """The message of an agent's call that has these places, if it comes in time. `given_up` is told where there is
    none, as the agent or gRPC has ended the call: that is in no audit line. Raises Refused."""
    return parsed(form, await unread(messages, patience, *places, given_up=given_up))


async def unread(
    messages: Messages, patience: Deadlines, *places: Place, given_up: Callable[[], object] | None = None
) -> bytes:
    """The message as its bytes. Without `given_up` a call that has none is refused at once, whoever has ended it."""
    try:
        with patience.one() as deadline:
            # Closed: gRPC's iterator holds itself and the call for as long as it is not.
            asked: AsyncGenerator[bytes, None] = cast(Any, aiter(messages))
            with Silence(places, deadline):
                try:
                    return await anext(asked)
                except StopAsyncIteration:
                    # Its caller has given it up, or gRPC has ended it as too long: it says so a moment later, and ends
                    # this. Others may have its places as long as that is waited for.
                    if given_up:
                        await _told(given_up, deadline)
                    said = "the call has no message, or a longer one than a mint needs"
                    raise Refused(Reason.INVALID_REQUEST, said) from None
                finally:
                    await asked.aclose()
    except TimeoutError:
        if any(each.lost for each in places):
            raise Refused(Reason.BUSY, "others took the place of this call, which said nothing", SOON) from None
        raise Refused(Reason.INVALID_REQUEST, f"no message of the call within {MESSAGE_SECONDS:g} s") from None


async def _told(given_up: Callable[[], object], deadline: Deadline) -> None:
    try:
        await asyncio.sleep(GIVEN_UP)
    except asyncio.CancelledError:
        if not deadline.expired:
            given_up()
        raise


class Silence:
    """Over the block the caller of a call is waited for: where others want one of its places, its time is over."""

    def __init__(self, places: Sequence[Place], deadline: Deadline) -> None:
        self._places = places
        self._deadline = deadline

    def __enter__(self) -> None:
        now = asyncio.get_running_loop().time()
        for each in self._places:
            each.silent(now, self._deadline.end)

    def __exit__(self, *_: object) -> None:
        for each in self._places:
            each.heard()


def parsed(form: type[_Message], message: bytes) -> _Message:
    """Raises Refused."""
    try:
        return form.FromString(message)
    except DecodeError:
        raise Refused(Reason.INVALID_REQUEST, "the message cannot be read") from None


async def ended(reading: "asyncio.Task[None]", context: Context) -> None:
    """Say why an agent is not listened to any more, if it is for what it said."""
    if reading.done() and not reading.cancelled():
        error = reading.exception()
        if isinstance(error, Refused):
            await abort(context, error)


def still_wanted(context: Context) -> None:
    """Raises Refused (BUSY) where nobody waits for the answer any more: work for it takes the time of those who do."""
    left = context.time_remaining()
    if left is not None and left <= 0.0:
        raise Refused(Reason.BUSY, "the call came to its turn after its caller's deadline", retry_after=SOON)


def headers_of(context: Context) -> Headers:
    """All of a call. They are made anew, a token among them, each time that gRPC is asked."""
    return cast(Headers, context.invocation_metadata() or ())


def bearer(headers: Headers, missing: Refused | None = None) -> str:
    """The token of a call with these headers; `missing` is raised where there is none. Raises Refused."""
    if len(headers) > HEADERS:
        raise Refused(Reason.INVALID_REQUEST, f"the call has more than {HEADERS} headers")
    for key, value in headers:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.strip().partition(" ")
            if scheme.lower() == "bearer" and token:
                return bounded(token.strip())
    raise missing or Refused(
        Reason.AGENT_TOKEN_MISSING,
        "the call has no agent token; set agent_token_file to a projected service account token of this audience",
    )


def header(context: Context, name: str) -> str:
    """The last of that name, as gRPC's clients have it; empty where there is none."""
    found = [value for key, value in headers_of(context) if key == name and isinstance(value, str)]
    return found[-1].strip() if found else ""


def bounded(token: str) -> str:
    if len(token) > MAX_TOKEN:
        raise Refused(Reason.INVALID_REQUEST, f"a token is longer than {MAX_TOKEN} characters")
    return token


def refused_by(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, ApiUnavailable):
        return Refused(Reason.API_SERVER_UNAVAILABLE, str(error), retry_after=SOON)
    if isinstance(error, TimeoutError):
        return Refused(Reason.API_SERVER_UNAVAILABLE, f"not attested within {MINT_DEADLINE:g} s", retry_after=SOON)
    # The traceback's frames hold tokens only as values, which are not printed.
    _log.error("bug: a call failed unexpectedly", exc_info=error)
    return Refused(Reason.INTERNAL, "the signer failed; its log says more")


def status_of(refusal: Refused) -> status_pb2.Status:
    """Code, text, reason and when to try again: all that a caller learns of it."""
    details = any_pb2.Any()
    details.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason.value, domain=ERROR_DOMAIN))
    code: Any = STATUS_CODES[refusal.reason]
    status = status_pb2.Status(code=code.value[0], message=str(refusal), details=[details])
    if refusal.retry_after is not None:
        seconds = refusal.retry_after.total_seconds()
        delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


async def abort(context: Context, refusal: Refused) -> NoReturn:
    await aborted(context.abort_with_status(rpc_status.to_status(status_of(refusal))), refusal)
