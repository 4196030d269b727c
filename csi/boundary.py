"""Where exceptions become gRPC statuses: nothing else may escape a handler, since kubelet takes UNKNOWN as final."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import grpc
import grpc.aio

from csi.errors import (
    CsiError,
    HostUnanswered,
    IdentityDenied,
    IdentityUnavailable,
    InvalidRequest,
    MountDenied,
    MountNotShared,
    NodeBusy,
    NodeFull,
    OperationPending,
    PodFull,
    TargetConflict,
    UndoFailed,
    VolumeConflict,
    VolumeFailed,
    VolumeNotFound,
)
from csi.request import POD_NAME, POD_NAMESPACE
from runtime import advice

_log = logging.getLogger("podsvid.csi")
# Of each field of a request that was not checked.
_MAX_SHOWN = 253
# Of an answer: an event has room for 1024 bytes, of which kubelet's own words before it take a quarter.
_MAX_SAID = 760
STATUS_CODES: Mapping[type[CsiError], grpc.StatusCode] = MappingProxyType(
    {
        InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
        VolumeNotFound: grpc.StatusCode.NOT_FOUND,
        VolumeConflict: grpc.StatusCode.ALREADY_EXISTS,
        TargetConflict: grpc.StatusCode.FAILED_PRECONDITION,
        OperationPending: grpc.StatusCode.ABORTED,
        IdentityDenied: grpc.StatusCode.PERMISSION_DENIED,
        IdentityUnavailable: grpc.StatusCode.UNAVAILABLE,
        MountDenied: grpc.StatusCode.FAILED_PRECONDITION,
        HostUnanswered: grpc.StatusCode.UNAVAILABLE,
        MountNotShared: grpc.StatusCode.FAILED_PRECONDITION,
        PodFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
        NodeFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
        NodeBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
        VolumeFailed: grpc.StatusCode.INTERNAL,
        UndoFailed: grpc.StatusCode.UNAVAILABLE,
        CsiError: grpc.StatusCode.INTERNAL,
    }
)


class ErrorBoundary(grpc.aio.ServerInterceptor):
    """Maps CsiError through STATUS_CODES; anything else becomes INTERNAL without its text (which may hold secrets).

    `docs_url`: where what is said is explained, as of the setting.
    """

    def __init__(self, docs_url: str = "") -> None:
        self._docs_url = docs_url

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        inner = handler.unary_unary

        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await inner(request, context)
            except CsiError as error:
                await refuse(method, error, context, request, self._docs_url)
            except Exception as error:
                _log.exception("call failed unexpectedly", extra={"method": method})
                await context.abort(
                    grpc.StatusCode.INTERNAL, f"internal error ({type(error).__name__}); see the agent's log"
                )

        return grpc.unary_unary_rpc_method_handler(
            guarded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def refuse(
    method: str, error: CsiError, context: grpc.aio.ServicerContext[Any, Any], request: object, docs_url: str = ""
) -> NoReturn:
    """End the call with the error's status; kubelet shows the message in the pod's event."""
    code = STATUS_CODES[type(error)]
    _log.warning(
        "call refused",
        extra={
            "method": method,
            "pod": _pod(request),
            "volume_id": str(getattr(request, "volume_id", ""))[:_MAX_SHOWN],
            "code": code.name,
            "reason": error.reason,
            "error": str(error),
        },
    )
    exact = advice.exact(error.reason, str(error))
    await context.abort(code, advice.explained(f"{error.reason}: {error}", exact, docs_url, _MAX_SAID))
    raise AssertionError("unreachable: abort raises")


def _pod(request: object) -> str:
    """Of which pod kubelet says that it is; empty where it says nothing of that."""
    # Not checked yet: of a request that is refused nothing is known to be well formed.
    given: Mapping[str, str] = getattr(request, "volume_context", {})
    return "/".join(given[key][:_MAX_SHOWN] for key in (POD_NAMESPACE, POD_NAME) if key in given)
