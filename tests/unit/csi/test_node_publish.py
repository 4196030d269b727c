"""Publishing with what can fail on the way: what kubelet is told, and that a final answer leaves nothing behind."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from csi.errors import (
    CsiError,
    IdentityDenied,
    IdentityUnavailable,
    InvalidRequest,
    OperationPending,
    TargetConflict,
    UndoFailed,
    VolumeConflict,
    VolumeFailed,
)
from csi.model import PodToken
from csi.node import CAPABILITIES, DriverNode
from csi.pb import csi_pb2
from csi.profile import PROFILES
from csi.request import TOKENS
from tests.csi_rig import DRIVER, OTHER_UID, UID, Rig, publish_request, rig, target

FULL = OSError(28, "No space left on device")
SECRET = "-----BEGIN PRIVATE KEY----- MIGHAgEAMBMG"


def on_a_node(main: Callable[[Rig], Awaitable[None]], base: Path, mint_deadline: float = 30.0) -> None:
    async def run() -> None:
        async with rig(base, mint_deadline) as here:
            await main(here)

    asyncio.run(run())


def with_token(here: Rig, text: str) -> csi_pb2.NodePublishVolumeRequest:
    request = publish_request(here.root)
    request.secrets[TOKENS] = text
    return request


async def refused(here: Rig, error: type[CsiError], request: csi_pb2.NodePublishVolumeRequest | None = None) -> str:
    """The text of the refusal, which is exactly that error."""
    with pytest.raises(CsiError) as caught:
        await here.publish(request)
    assert type(caught.value) is error
    return str(caught.value)


def closed(here: Rig) -> bool:
    """Whether the directory that was last handed out was closed: its number is free again."""
    number = here.workloads.directories[-1].descriptor
    try:
        return "spiffe" not in os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return True


def test_minting_comes_before_the_mount_and_the_verified_mount_before_anything_is_written(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish(with_token(here, "first"))
        assert here.steps.taken == ["issue", "attach", "verify", "open"]
        assert here.made() == ["mount", "mount/tls.key"]
        assert here.node.volumes == 1
        assert here.observed == ["published"]
        # The token that was minted with is the one for the next renewal, too.
        assert here.workloads.tokens == here.workloads.republications == [("csi-1", PodToken("first"))]

    on_a_node(main, tmp_path)


def test_a_span_names_pod_volume_and_result(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        assert [each.name for each in here.tracer.spans] == ["NodePublishVolume", "mint", "mount", "write and serve"]
        assert here.tracer.spans[0].facts == {
            "k8s.namespace.name": "default",
            "k8s.pod.name": "web-0",
            "k8s.pod.uid": UID,
            "podsvid.volume_id": "csi-1",
            "podsvid.result": "published",
        }

    on_a_node(main, tmp_path)


@pytest.mark.parametrize("error", [IdentityDenied("no such pod"), IdentityUnavailable("the signer is away")])
def test_a_pod_without_an_identity_gets_no_volume_and_the_authoritys_own_words(tmp_path: Path, error: CsiError) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing["issue"] = error
        assert await refused(here, type(error)) == str(error)
        assert here.steps.taken == ["issue"]
        assert here.made() == []
        assert here.node.volumes == 0
        assert here.observed == [error.reason.lower()]
        here.steps.failing.clear()
        await here.publish()
        assert here.observed[1:] == ["published"]

    on_a_node(main, tmp_path)


@pytest.mark.timeout(20)
def test_an_authority_that_does_not_answer_is_waited_for_until_the_deadline_only(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.steps.hold("issue")
        assert "no SVID within 0 s" in await refused(here, IdentityUnavailable)
        assert here.steps.taken == ["issue"]
        assert here.made() == []
        # Nothing of the call is left, so that the next one is not told to wait for it.
        assert "no SVID within 0 s" in await refused(here, IdentityUnavailable)

    on_a_node(main, tmp_path, mint_deadline=0)


@pytest.mark.parametrize("step", ["attach", "verify"])
def test_nothing_is_written_where_no_verified_mount_is_and_the_target_goes(tmp_path: Path, step: str) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing[step] = FULL
        assert await refused(here, VolumeFailed) == "the volume could not be mounted: No space left on device"
        assert "open" not in here.steps.taken
        assert here.made() == []
        assert here.mounts.mounted == set()
        assert here.node.volumes == 0
        here.steps.failing.clear()
        await here.publish()
        assert here.made() == ["mount", "mount/tls.key"]

    on_a_node(main, tmp_path)


def test_a_mount_that_can_be_neither_used_nor_undone_is_no_final_answer(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing |= {"verify": FULL, "detach": OSError(16, "Device or resource busy")}
        assert "could not be undone: Device or resource busy" in await refused(here, UndoFailed)
        assert "open" not in here.steps.taken

    on_a_node(main, tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [(FULL, VolumeFailed), (IdentityUnavailable("gone meanwhile"), IdentityUnavailable), (ValueError(SECRET), None)],
)
def test_what_fails_after_the_mount_is_undone_whole(
    tmp_path: Path, error: Exception, told: type[CsiError] | None
) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing["open"] = error
        with pytest.raises(type(error) if told is None else told) as caught:
            await here.publish()
        if told is VolumeFailed:
            assert str(caught.value) == "the volume could not be made: No space left on device"
        assert here.made() == []
        assert here.mounts.mounted == set()
        assert closed(here)
        assert here.node.volumes == 0
        assert here.workloads.republications == []
        assert here.observed == ["error" if told is None else told.reason.lower()]

    on_a_node(main, tmp_path)


def test_a_failed_publish_that_cannot_be_undone_is_no_final_answer(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        here.steps.failing |= {"open": ValueError(SECRET), "detach": OSError(16, "Device or resource busy")}
        assert await refused(here, UndoFailed) == "a failed publish could not be undone: Device or resource busy"
        assert here.node.volumes == 0
        assert closed(here)

    on_a_node(main, tmp_path)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (FULL, "No space left on device"),
        (IdentityUnavailable("the signer is away"), "the signer is away"),
        (ValueError(SECRET), "ValueError; see the agent's log"),
    ],
)
def test_a_running_pods_volume_outlives_a_failed_renewal_and_the_event_quotes_nothing_unforeseen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, shown: str
) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        here.node.close()  # as an agent that has lost its journal
        before = here.mounts.mounted.copy()
        here.steps.failing["open"] = error
        told = await refused(here, UndoFailed)
        assert told == f"the volume was mounted before and could not be renewed: {shown}"
        assert here.mounts.mounted == before
        assert here.made() == ["mount", "mount/tls.key"]
        assert closed(here)
        assert "detach" not in here.steps.taken
        assert [line.exc_info is not None for line in caplog.records if "not be renewed" in line.message] == [True]

    on_a_node(main, tmp_path)


def test_a_republish_mints_and_mounts_nothing_and_brings_the_new_token(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish(with_token(here, "first"))
        before = here.steps.taken.copy()
        # Once published it answers OK, whatever the authority and the mounts would say.
        here.steps.failing |= {"issue": IdentityDenied("no longer"), "attach": FULL, "verify": FULL}
        await here.publish(with_token(here, "second"))
        assert here.steps.taken == before
        assert here.workloads.republications[1:] == [("csi-1", PodToken("second"))]
        assert here.observed == ["published", "republished"]
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)


def test_a_republish_that_cannot_look_takes_nothing_from_a_pod_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(here: Rig) -> None:
        await here.publish(with_token(here, "first"))
        before = here.steps.taken.copy()

        def none(*_: object, **__: object) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", none)
            await here.publish(with_token(here, "second"))
        assert here.steps.taken == before
        assert here.workloads.republications[1:] == [("csi-1", PodToken("second"))]
        assert here.observed == ["published", "republished"]

    on_a_node(main, tmp_path)


def _another_target(request: csi_pb2.NodePublishVolumeRequest) -> None:
    request.target_path = request.target_path.replace("/spiffe/", "/other/")


def _another_pod(request: csi_pb2.NodePublishVolumeRequest) -> None:
    request.target_path = request.target_path.replace(UID, OTHER_UID)
    request.volume_context["csi.storage.k8s.io/pod.uid"] = OTHER_UID


def _context(key: str, value: str) -> Callable[[csi_pb2.NodePublishVolumeRequest], None]:
    def change(request: csi_pb2.NodePublishVolumeRequest) -> None:
        request.volume_context[key] = value

    return change


def _another_group(request: csi_pb2.NodePublishVolumeRequest) -> None:
    request.volume_capability.mount.volume_mount_group = "2000"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_another_target, TargetConflict),
        (_another_pod, TargetConflict),
        (_context("csi.storage.k8s.io/pod.name", "web-1"), VolumeConflict),
        (_context("csi.storage.k8s.io/pod.namespace", "other"), VolumeConflict),
        (_context("csi.storage.k8s.io/serviceAccount.name", "admin"), VolumeConflict),
        (_context("keyAlgorithm", "ed25519"), VolumeConflict),
        (_another_group, VolumeConflict),
    ],
)
def test_the_same_volume_for_another_pod_or_otherwise_is_refused_and_its_token_is_not_taken(
    tmp_path: Path, change: Callable[[csi_pb2.NodePublishVolumeRequest], None], error: type[CsiError]
) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        steps, told = here.steps.taken.copy(), here.workloads.republications.copy()
        request = with_token(here, "another's")
        change(request)
        await refused(here, error, request)
        assert (here.steps.taken, here.workloads.republications) == (steps, told)
        assert here.node.volumes == 1

    on_a_node(main, tmp_path)


def test_the_same_volume_through_another_driver_is_refused(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        with pytest.raises(VolumeConflict):
            await here.node.publish(publish_request(here.root), "csi.spiffe.io", PROFILES["podsvid"])
        with pytest.raises(VolumeConflict):
            await here.node.publish(publish_request(here.root), DRIVER, PROFILES["spire"])

    on_a_node(main, tmp_path)


def test_a_volume_that_was_replaced_behind_podsvid_is_let_go_first_and_made_anew(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        await here.publish()
        (first,) = here.workloads.directories
        mount = Path(target(here.root))
        mount.rename(mount.with_name("moved"))
        await here.publish()
        assert here.steps.taken[4:] == ["close", "issue", "attach", "verify", "open"]
        assert here.observed == ["published", "published"]
        assert here.workloads.directories[-1] is not first
        assert here.node.volumes == 1
        # What was open of the old one is closed, so that it can go.
        assert not [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, "/moved")]

    on_a_node(main, tmp_path)


def _leads_to(descriptor: str, end: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(end)
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("step", ["issue", "attach", "open"])
def test_a_second_call_for_a_volume_is_told_to_wait_and_another_volume_is_not(tmp_path: Path, step: str) -> None:
    async def main(here: Rig) -> None:
        here.steps.hold(step)
        running = asyncio.create_task(here.publish())
        await here.steps.reached(step)
        taken = here.steps.taken.copy()
        await refused(here, OperationPending)
        with pytest.raises(OperationPending):
            await here.unpublish()
        assert here.steps.taken == taken
        here.steps.release(step)
        await here.publish(publish_request(here.root, OTHER_UID, "csi-2"))
        await running
        assert here.node.volumes == 2
        await here.publish()

    on_a_node(main, tmp_path)


def test_a_request_that_is_not_good_reaches_nobody(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        request = publish_request(here.root)
        request.readonly = False
        assert "readOnly" in await refused(here, InvalidRequest, request)
        assert here.steps.taken == []
        assert here.made() == []
        assert here.observed == ["invalid_request"]

    on_a_node(main, tmp_path)


def test_the_driver_says_its_node_and_what_it_can_and_passes_its_name_and_profile_on(tmp_path: Path) -> None:
    async def main(here: Rig) -> None:
        driver = DriverNode(here.node, "csi.spiffe.io", PROFILES["spire"])
        context: object = None
        info = await driver.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), context)  # type: ignore[arg-type]
        assert info == csi_pb2.NodeGetInfoResponse(node_id="node-1")
        found = await driver.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest(), context)  # type: ignore[arg-type]
        kinds = csi_pb2.NodeServiceCapability.RPC
        assert [each.rpc.type for each in found.capabilities] == list(CAPABILITIES)
        assert set(CAPABILITIES) == {kinds.VOLUME_MOUNT_GROUP, kinds.GET_VOLUME_STATS, kinds.VOLUME_CONDITION}
        await driver.NodePublishVolume(publish_request(here.root), context)  # type: ignore[arg-type]
        with pytest.raises(VolumeConflict):
            await here.publish()
        # Published as that driver's, with that driver's files.
        await here.node.publish(publish_request(here.root), "csi.spiffe.io", PROFILES["spire"])

    on_a_node(main, tmp_path)
