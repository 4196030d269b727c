"""What a failed call tells kubelet, over a real server: the code decides what it does, the text is the pod's event."""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from csi import errors
from csi.boundary import STATUS_CODES, ErrorBoundary, refuse
from csi.errors import CsiError
from csi.pb import csi_pb2
from csi.request import POD_NAME, POD_NAMESPACE
from tests.csi_rig import PATIENCE

SECRET = "-----BEGIN PRIVATE KEY----- MIGHAgEAMBMG"
METHOD = "/csi.v1.Node/NodePublishVolume"
# What kubelet does with these: it comes again, and calls NodeUnpublishVolume before it forgets the volume.
UNCERTAIN = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


@pytest.fixture
def base() -> Iterator[Path]:
    """Short enough for the socket's path."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as found:
        yield Path(found)


async def asked(channel: grpc.aio.Channel, timeout: float) -> bytes:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    return await call(b"asked", timeout=timeout)


async def called(base: Path, handler: Handler, timeout: float = PATIENCE) -> bytes:
    """What a call of a method with that handler comes to. Raises AioRpcError."""
    server = grpc.aio.server(interceptors=[ErrorBoundary()])
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "NodePublishVolume": grpc.unary_unary_rpc_method_handler(handler)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("csi.v1.Node", methods),))
    server.add_insecure_port(f"unix:{base}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{base}/s") as channel:
            return await asked(channel, timeout)
    finally:
        await server.stop(None)


def failed(base: Path, error: BaseException) -> grpc.aio.AioRpcError:
    async def handler(request: bytes, context: object) -> bytes:
        raise error

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(called(base, handler))
    return caught.value


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.VolumeNotFound, grpc.StatusCode.NOT_FOUND),
        (errors.VolumeConflict, grpc.StatusCode.ALREADY_EXISTS),
        (errors.TargetConflict, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.OperationPending, grpc.StatusCode.ABORTED),
        (errors.IdentityDenied, grpc.StatusCode.PERMISSION_DENIED),
        (errors.IdentityUnavailable, grpc.StatusCode.UNAVAILABLE),
        (errors.VolumeFailed, grpc.StatusCode.INTERNAL),
        (errors.UndoFailed, grpc.StatusCode.UNAVAILABLE),
        (errors.CsiError, grpc.StatusCode.INTERNAL),
    ],
)
def test_an_error_is_answered_with_its_code_its_reason_and_its_text(
    base: Path, caplog: pytest.LogCaptureFixture, error: type[CsiError], code: grpc.StatusCode
) -> None:
    answer = failed(base, error("what is wrong"))
    assert answer.code() is code
    assert answer.details() == f"{error.reason}: what is wrong (see docs/troubleshooting.md#{error.reason.lower()})"
    (line,) = [each for each in caplog.records if each.name == "podsvid.csi"]
    assert (line.message, line.levelno) == ("call refused", logging.WARNING)
    found = {key: vars(line)[key] for key in ("method", "code", "reason", "error")}
    assert found == {
        "method": "NodePublishVolume",
        "code": code.name,
        "reason": error.reason,
        "error": "what is wrong",
    }


def test_an_answer_leads_to_its_most_exact_reason_and_stays_short(base: Path) -> None:
    """kubelet puts it into an event, which has room for 1024 bytes."""
    said = failed(base, errors.IdentityDenied("POLICY_DENIED: " + "y" * 5000)).details() or ""
    assert said.startswith("IDENTITY_DENIED: POLICY_DENIED: yyy")
    assert said.endswith("yyy (see docs/troubleshooting.md#policy_denied)")
    assert len(said) == 760


@pytest.mark.parametrize(
    ("asked_for", "pod", "volume"),
    [
        (
            csi_pb2.NodePublishVolumeRequest(
                volume_id="csi-5", volume_context={POD_NAMESPACE: "shop", POD_NAME: "cart-0", "ttl": "1h"}
            ),
            "shop/cart-0",
            "csi-5",
        ),
        (csi_pb2.NodeUnpublishVolumeRequest(volume_id="v" * 5000), "", "v" * 253),
        (csi_pb2.NodePublishVolumeRequest(volume_context={POD_NAME: "p" * 5000}), "p" * 253, ""),
        (csi_pb2.NodeGetInfoRequest(), "", ""),
    ],
)
def test_a_refusal_in_the_log_names_the_pod_and_the_volume(
    caplog: pytest.LogCaptureFixture, asked_for: Any, pod: str, volume: str
) -> None:
    class Context:
        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise ConnectionError

    context: Any = Context()
    with pytest.raises(ConnectionError):
        asyncio.run(refuse("NodePublishVolume", errors.IdentityDenied("no"), context, asked_for))
    (line,) = [each for each in caplog.records if each.name == "podsvid.csi"]
    assert (vars(line)["pod"], vars(line)["volume_id"]) == (pod, volume)


def test_every_error_has_a_code_and_a_reason_of_its_own() -> None:
    own = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CsiError)]
    assert set(own) == set(STATUS_CODES)
    assert len({each.reason for each in own}) == len(own)


def test_what_leaves_something_behind_or_may_pass_is_uncertain_and_a_refusal_is_final() -> None:
    uncertain = {each for each, code in STATUS_CODES.items() if code in UNCERTAIN}
    full = {errors.PodFull, errors.NodeFull}
    passing = {errors.OperationPending, errors.IdentityUnavailable, errors.NodeBusy, errors.HostUnanswered}
    assert uncertain == {*passing, errors.UndoFailed, *full}
    assert {STATUS_CODES[each] for each in full} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    "error", [ValueError(SECRET), OSError(5, SECRET), KeyError(SECRET), ExceptionGroup(SECRET, [KeyError(SECRET)])]
)
def test_what_nobody_foresaw_is_logged_whole_and_quoted_nowhere(
    base: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    answer = failed(base, error)
    # UNKNOWN, which grpc makes of an exception that escapes, would carry its text.
    assert answer.code() is grpc.StatusCode.INTERNAL
    assert answer.details() == f"internal error ({type(error).__name__}); see the agent's log"
    (line,) = [each for each in caplog.records if each.name == "podsvid.csi"]
    assert (line.levelno, vars(line)["method"]) == (logging.ERROR, "NodePublishVolume")
    assert line.exc_info is not None
    assert line.exc_info[1] is error


def test_a_good_answer_passes_as_it_is(base: Path) -> None:
    async def handler(request: bytes, context: object) -> bytes:
        return request + b" and answered"

    assert asyncio.run(called(base, handler)) == b"asked and answered"


def test_a_call_that_is_cancelled_is_no_error_of_the_driver(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended: list[BaseException] = []

    async def run() -> None:
        gone = asyncio.Event()

        async def handler(request: bytes, context: object) -> bytes:
            try:
                await asyncio.Event().wait()
            except BaseException as error:
                ended.append(error)
                raise
            finally:
                gone.set()
            return b""

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await called(base, handler, timeout=1.0)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await gone.wait()

    asyncio.run(run())
    assert [type(each) for each in ended] == [asyncio.CancelledError]
    assert [each.message for each in caplog.records if each.name == "podsvid.csi"] == []


def test_a_method_that_is_not_there_stays_unimplemented(base: Path) -> None:
    async def run() -> None:
        server = grpc.aio.server(interceptors=[ErrorBoundary()])
        server.add_insecure_port(f"unix:{base}/s")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{base}/s") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked(channel, PATIENCE)
        await server.stop(None)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(run())
