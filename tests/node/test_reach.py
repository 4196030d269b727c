"""An agent whose mounts do not reach kubelet: it takes no pod, instead of giving all of them empty volumes."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

from csi.errors import MountNotShared
from csi.pb import csi_pb2_grpc
from csi.reach import KubeletReach
from podsvid.quickstart.errors import DriverNotRegistered
from podsvid.quickstart.kubelet import StandInKubelet
from tests.csi_rig import publish_request
from tests.fake_workload_api import eventually
from tests.support import DRIVER, IS_ROOT, VOLUME, host, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mount namespaces of this host: run as root")
WANTED = "mountPropagation: Bidirectional"


def said(log: Path) -> int:
    return log.read_text(encoding="utf-8").count("MOUNT_NOT_SHARED") if log.exists() else 0


@pytest.mark.parametrize("propagation", ["private", "slave"])
def test_it_is_not_registered_and_refuses_to_publish(propagation: str) -> None:
    async def run() -> None:
        with host() as here:
            here.start(within=lambda *command: ["unshare", "--mount", "--propagation", propagation, *command])
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await eventually(lambda: said(here.log) > 0)
                with pytest.raises(DriverNotRegistered):
                    await kubelet.wait_registered(DRIVER, timeout=0.2)
                # One that kubelet had registered before.
                async with grpc.aio.insecure_channel(f"unix:{here.kubelet_root}/plugins/{DRIVER}/csi.sock") as channel:
                    node = csi_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await node.NodePublishVolume(publish_request(here.kubelet_root))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert WANTED in str(refused.value.details())
            assert "published" not in here.log.read_text(encoding="utf-8").replace("not published", "")
            assert list((here.kubelet_root / "pods").iterdir()) == []

    asyncio.run(run())


def test_in_kubelets_own_mounts_nothing_need_be_shared() -> None:
    """As on a node without systemd, and as in quickstart: what is mounted here is there."""
    inside = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__]
    done = subprocess.run(inside, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, timeout=120, check=False)
    assert done.returncode == 0


async def beside_kubelet() -> None:
    """Run by the test above where no mount is shared."""
    with host() as here:
        here.start()
        async with StandInKubelet(here.kubelet_root) as kubelet:
            await kubelet.wait_registered(DRIVER)
            target = await kubelet.publish(pod(), VOLUME)
            assert (target / "tls.crt").exists()
            assert said(here.log) == 0
            await kubelet.unpublish(pod(), VOLUME)


def private(tmp_path: Path) -> Path:
    """A directory on a mount that is not shared."""
    found = tmp_path / "pods"
    found.mkdir()
    for command in (["mount", "-t", "tmpfs", "podsvid-test", found], ["mount", "--make-private", found]):
        subprocess.run([str(each) for each in command], check=True)
    return found


def test_who_is_connected_decides_where_the_mount_is_not_shared(tmp_path: Path) -> None:
    pods = private(tmp_path)
    try:
        asked: list[str] = []

        def reach(*processes: int) -> KubeletReach:
            def peers(address: str) -> list[int]:
                asked.append(address)
                return list(processes)

            return KubeletReach(str(pods), lambda: ["", "/x.sock"], peers)

        reach(os.getpid()).check()
        reach().check()
        # Of a process that has ended nothing is known.
        reach(2**22 - 1).check()
        for elsewhere in ((0,), (os.getpid(), 0)):
            with pytest.raises(MountNotShared, match=WANTED):
                reach(*elsewhere).check()
        assert set(asked) == {"/x.sock"}
        asked.clear()
        once = reach(os.getpid())
        once.check()
        once.check()
        assert asked == ["/x.sock"]
        asked.clear()
        subprocess.run(["mount", "--make-shared", str(pods)], check=True)
        reach(0).check()
        assert asked == []
        KubeletReach(str(tmp_path / "nothing"), lambda: ["/x.sock"], lambda _: [0]).check()
    finally:
        subprocess.run(["umount", str(pods)], check=True)


if __name__ == "__main__":
    asyncio.run(beside_kubelet())
