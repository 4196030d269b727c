"""What is remembered of publishes that kubelet asked for: every refusal, whose it was, and nothing that still runs."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from agent.admin import ADVICE, ADVICE_BEFORE, NodeAdmin, RefusedPublishes, _problem
from agent.pb import node_admin_pb2
from agent.workload.problems import Problem
from csi.errors import CsiError, IdentityDenied, IdentityUnavailable, InvalidRequest, OperationPending
from csi.model import PodRef
from csi.pb import csi_pb2
from csi.request import POD_NAME, POD_NAMESPACE, POD_UID, SERVICE_ACCOUNT
from signer.errors import Reason

PUBLISH = "/csi.v1.Node/NodePublishVolume"
CONTEXT = {POD_NAMESPACE: "default", POD_NAME: "web-1", POD_UID: "uid", SERVICE_ACCOUNT: "web"}
POD = PodRef("default", "web-1", "uid", "web")


class Remembered:
    """Takes the place of the registry: what it was told."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, PodRef, str, str]] = []
        self.accepted: list[str] = []

    def publish_refused(self, volume_id: str, pod: PodRef, reason: str, message: str) -> None:
        self.refused.append((volume_id, pod, reason, message))

    def publish_accepted(self, volume_id: str) -> None:
        self.accepted.append(volume_id)


class Details:
    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = method


def asked(remembered: Remembered, answer: Callable[[], object], method: str = PUBLISH, **request: Any) -> object:
    """What a call behind the interceptor answers, or raises."""

    async def inner(request: Any, context: Any) -> object:
        return answer()

    async def continuation(_: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(inner)

    async def main() -> object:
        interceptor: Any = RefusedPublishes(remembered)  # type: ignore[arg-type]
        handler = await interceptor.intercept_service(continuation, Details(method))
        given = {"volume_id": "csi-1", "volume_context": CONTEXT, **request}
        return await handler.unary_unary(csi_pb2.NodePublishVolumeRequest(**given), None)

    return asyncio.run(main())


def refusing(error: Exception) -> Callable[[], object]:
    def answer() -> object:
        raise error

    return answer


@pytest.mark.parametrize(
    "error", [IdentityDenied("POD_DENIED: by policy"), IdentityUnavailable("away"), InvalidRequest("unknown 'x'")]
)
def test_a_refusal_is_remembered_with_its_reason_and_goes_on_to_kubelet(error: CsiError) -> None:
    remembered = Remembered()
    with pytest.raises(type(error), match=str(error)):
        asked(remembered, refusing(error))
    assert remembered.refused == [("csi-1", POD, error.reason, str(error))]
    assert remembered.accepted == []


def test_an_answer_ends_what_was_wrong_before() -> None:
    remembered = Remembered()
    assert asked(remembered, lambda: "answered") == "answered"
    assert (remembered.refused, remembered.accepted) == ([], ["csi-1"])


@pytest.mark.parametrize("error", [OperationPending("it runs"), RuntimeError("a bug"), asyncio.CancelledError()])
def test_what_says_nothing_of_the_volume_is_neither_refused_nor_accepted(error: Exception) -> None:
    remembered = Remembered()
    with pytest.raises(type(error)):
        asked(remembered, refusing(error))
    assert (remembered.refused, remembered.accepted) == ([], [])


def test_other_methods_are_not_watched() -> None:
    remembered = Remembered()
    with pytest.raises(InvalidRequest):
        asked(remembered, refusing(InvalidRequest("no")), "/csi.v1.Node/NodeUnpublishVolume")
    assert asked(remembered, lambda: "answered", "/csi.v1.Node/NodeUnpublishVolume") == "answered"
    assert (remembered.refused, remembered.accepted) == ([], [])


def test_of_a_request_that_is_refused_nothing_is_kept_at_any_length() -> None:
    remembered = Remembered()
    context = {**dict.fromkeys(CONTEXT, "x" * 10_000), "other": "y" * 10_000}
    with pytest.raises(InvalidRequest):
        asked(remembered, refusing(InvalidRequest("no")), volume_id="v" * 10_000, volume_context=context)
    with pytest.raises(InvalidRequest):
        asked(remembered, refusing(InvalidRequest("no")), volume_context={})
    (volume_id, pod, *_), (_, nobody, *_) = remembered.refused
    assert volume_id == "v" * 128
    assert pod == PodRef(*["x" * 253] * 4)
    assert nobody == PodRef("", "", "", "")


@pytest.mark.parametrize(
    ("reason", "message", "advice"),
    [
        ("IDENTITY_UNAVAILABLE", "POD_TOKEN_EXPIRED: kubelet has not", ADVICE["POD_TOKEN_EXPIRED"]),
        ("IDENTITY_UNAVAILABLE", "POD_TOKEN_MISSING: kubelet has not", ADVICE["POD_TOKEN_MISSING"]),
        ("AUTHORITY_UNAVAILABLE", "SIGNER_UNREACHABLE: the signer", ADVICE["SIGNER_UNREACHABLE"]),
        ("IDENTITY_UNAVAILABLE", "something new", ADVICE["IDENTITY_UNAVAILABLE"]),
        ("IDENTITY_UNAVAILABLE", "A_NEW_CODE: of a newer signer", ADVICE["IDENTITY_UNAVAILABLE"]),
        ("WRITE_FAILED", "the volume's files: No space left on device", ADVICE["WRITE_FAILED"]),
        ("IDENTITY_DENIED", "POD_DENIED: by policy", ""),
    ],
)
def test_advice_is_the_most_specific_there_is(reason: str, message: str, advice: str) -> None:
    first, last = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC)
    found = _problem(Problem(last, POD, "csi-1", reason, message, first, 3))
    assert (found.reason, found.message, found.times, found.advice) == (reason, message, 3, advice)
    assert (found.first_at.ToDatetime(UTC), found.at.ToDatetime(UTC)) == (first, last)


def test_what_was_wrong_with_a_pod_that_had_the_name_before_is_no_news() -> None:
    """Of a StatefulSet's pod, say: kubelet does not go on trying for the one that is gone."""
    at = datetime(2026, 6, 1, tzinfo=UTC)

    def problem(uid: str, reason: str) -> Problem:
        return Problem(at, PodRef("default", "web-1", uid, "web"), f"csi-{uid}", reason, "text", at)

    class Workloads:
        by_volume: Mapping[str, Any] = {}
        publish_problems = (problem("before", "OLD"), problem("now", "ONE"), problem("now", "TWO"))

    async def main() -> None:
        workloads: Any = Workloads()
        blocking: Any = None
        admin = NodeAdmin(workloads, lambda: "", blocking)
        context: Any = None
        told = await admin.explain(node_admin_pb2.ExplainRequest(namespace="default", pod="web-1"), context)
        assert [each.reason for each in told.publish_problems] == ["ONE", "TWO"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "reason",
    [
        *(each for each in Reason if each.startswith("AGENT_")),
        *(Reason.API_SERVER_UNAVAILABLE, Reason.AUTHORITY_UNAVAILABLE, Reason.NAMESPACE_FULL),
        *(Reason.RATE_LIMITED, Reason.BUSY, Reason.POD_TOKEN_MISSING, Reason.POD_TOKEN_EXPIRED),
    ],
)
def test_what_an_operator_has_to_mend_comes_with_what_to_do(reason: Reason) -> None:
    """Not that of IDENTITY_UNAVAILABLE, which sends everybody to the signer."""
    at = datetime(2026, 6, 1, tzinfo=UTC)
    for kind in (IdentityUnavailable, IdentityDenied):
        told = _problem(Problem(at, POD, "csi-1", kind.reason, f"{reason}: text", at))
        assert told.advice == ADVICE[reason] != ADVICE[IdentityUnavailable.reason]


@pytest.mark.parametrize("reason", [*ADVICE_BEFORE, "NODE_FULL"])
def test_where_no_volume_was_published_nothing_is_said_of_what_a_published_one_keeps(reason: str) -> None:
    at = datetime(2026, 6, 1, tzinfo=UTC)

    class Workloads:
        by_volume: Mapping[str, Any] = {}
        publish_problems = (Problem(at, POD, "csi-1", "IDENTITY_DENIED", f"{reason}: text", at),)

    async def main() -> None:
        workloads: Any = Workloads()
        blocking: Any = None
        context: Any = None
        asked = node_admin_pb2.ExplainRequest(namespace=POD.namespace, pod=POD.name)
        (told,) = (await NodeAdmin(workloads, lambda: "", blocking).explain(asked, context)).publish_problems
        assert told.advice
        assert "kubelet tries again by itself" in told.advice
        assert not [each for each in ("socket", "SVID", "files ", "NAMESPACE/POD") if each in told.advice]

    asyncio.run(main())
