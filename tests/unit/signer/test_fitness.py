"""What a pod is that gets nothing, whatever policies say: a mint and `explain` say so in the same words."""

from typing import Any

import pytest

from signer.cluster.objects import MAX_LABELS
from signer.errors import Reason, Refused
from signer.front.admin import AdminService
from signer.front.mints import _TELL_POD
from signer.pb import admin_pb2
from tests.signer_rig import DRIVER
from tests.unit.signer.test_attestation import Rig, rigged
from tests.unit.signer.test_pods import told

MANY = {f"label-{number}": "x" for number in range(MAX_LABELS + 1)}
UNFIT: tuple[tuple[Reason, dict[str, Any]], ...] = (
    (Reason.POD_IS_MIRROR, {"annotations": {"kubernetes.io/config.mirror": "x"}}),
    (Reason.POD_FINISHED, {"phase": "Succeeded"}),
    (Reason.POD_OVERSIZED, {"labels": MANY}),
    (Reason.POD_WITHOUT_DRIVER, {"driver": "csi.other.io"}),
    (Reason.POD_WITHOUT_DRIVER, {"driver": None}),
)


async def explained(rig: Rig, name: str) -> admin_pb2.ExplainResponse:
    """By a service that has no policies to ask: none of these pods needs one."""
    nothing: Any = None
    service = AdminService(
        nothing, nothing, rig.pods, frozenset({DRIVER}), rig.site.clock, nothing, namespace="podsvid"
    )
    return await service.explain(admin_pb2.ExplainRequest(namespace="default", pod=name), nothing)


@pytest.mark.parametrize(("reason", "given"), UNFIT)
def test_it_is_explained_as_it_is_refused(reason: Reason, given: dict[str, Any]) -> None:
    async def test(rig: Rig) -> None:
        claim = rig.site.pod("web-0", **given)
        await told()
        with pytest.raises(Refused) as caught:
            await rig.attest(claim, rig.site.token(claim))
        assert caught.value.reason is reason
        said = await explained(rig, "web-0")
        assert said.outcome == f"refused: {reason}: {caught.value}"
        assert said.spiffe_id == said.entitled == said.policy == ""

    rigged(test)


def test_what_its_author_can_mend_is_in_the_pods_events() -> None:
    # One that has finished needs nothing any more.
    assert {reason for reason, _ in UNFIT} - _TELL_POD == {Reason.POD_FINISHED}
