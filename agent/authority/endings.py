"""How calls to the signer end: what an error says, and whether it is the caller that is to end."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

SERVICE = "/podsvid.signer.v1.Signer/"
_CODES = {each.value[0]: each for each in grpc.StatusCode}


class Failed(Exception):
    """A call of its own, or an item of one, that has no answer: `reason` is the signer's, empty where it is not its.

    `retry`: seconds to wait, where the signer said so.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, text: str, retry: float | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.text = text
        self.retry = retry

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Failed":
        """That of a call."""
        return cls(error.code(), *explain(error))

    @classmethod
    def of_item(cls, refusal: bytes) -> "Failed":
        """That of an item, which is a google.rpc.Status."""
        try:
            status = status_pb2.Status.FromString(refusal)
        except DecodeError:
            return cls(grpc.StatusCode.UNKNOWN, "", "the signer's refusal cannot be read")
        code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        reason, retry = _details(status.details)
        return cls(code, reason, status.message or code.name, retry)


def explain(error: grpc.aio.AioRpcError) -> tuple[str, str, float | None]:
    """Reason code, text for people, and seconds to wait where the signer said so."""
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:
        status = None
    reason, retry = _details(status.details if status else ())
    return reason, error.details() or error.code().name, retry


def is_cancelled() -> bool:
    """Whether this task is to end. grpc also raises CancelledError where a connection was closed below a call."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _details(details: Sequence[Any]) -> tuple[str, float | None]:
    reason, retry = "", None
    for detail in details:
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = str(info.reason)
        elif detail.Unpack(delay):
            retry = timedelta(seconds=delay.retry_delay.seconds, microseconds=delay.retry_delay.nanos // 1000)
    return reason, retry.total_seconds() if retry else None
