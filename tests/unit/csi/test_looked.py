"""A host whose file systems hang: what is asked of it is refused in time, in a sentence, and asked again later."""

import asyncio
import tempfile
import threading
from pathlib import Path

import grpc.aio
import pytest

from csi import node, registration
from csi.errors import HostUnanswered
from csi.pb import pluginregistration_pb2 as pb
from csi.pb import pluginregistration_pb2_grpc as pb_grpc
from csi.reach import looked
from csi.registration import Registration
from runtime.bounded import Bounded
from tests.csi_rig import DRIVER, PATIENCE, rig


class Hung:
    """A Reach that does not answer until it is let `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def check(self) -> None:
        self.go.wait(PATIENCE)


def test_what_hangs_is_refused_and_what_answers_later_is_taken() -> None:
    async def main() -> None:
        hung, looks = Hung(), Bounded(0.01)
        for _ in range(3):
            with pytest.raises(HostUnanswered, match=r"do not answer: .* within 0\.01 s; look for mounts that hang"):
                await looked(looks, hung.check)
        hung.go.set()
        await looked(Bounded(PATIENCE), hung.check)

    asyncio.run(main())


def test_a_publish_on_a_host_that_hangs_is_refused_with_nothing_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.01)

    async def main() -> None:
        hung = Hung()
        async with rig(tmp_path, reach=hung) as here:
            with pytest.raises(HostUnanswered):
                await here.publish()
            assert here.steps.taken == []
            hung.go.set()

    asyncio.run(main())


def test_kubelet_is_not_told_of_a_driver_on_a_host_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "LOOK_SECONDS", 0.01)

    async def main(base: Path) -> None:
        hung, registry = Hung(), base / "plugins_registry"
        found = Registration(DRIVER, base / "csi.sock", registry, hung)
        found.remove_stale()
        async with found.serving():
            (socket,) = registry.glob("*-reg.sock")
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                kubelet = pb_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await kubelet.GetInfo(pb.InfoRequest())
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "do not answer" in found.refused
                hung.go.set()

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as found:
        asyncio.run(main(Path(found)))
