"""An agent that may not mount: it does not say that it serves, is not registered, and what it tried leaves nothing."""

import asyncio
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest

from csi.errors import MountDenied
from csi.files import mount_id
from csi.mount import TmpfsMounts
from csi.mountable import Mountable, capabilities, refusal
from csi.pb import csi_pb2_grpc
from podsvid.quickstart.errors import DriverNotRegistered
from podsvid.quickstart.kubelet import StandInKubelet
from tests.csi_rig import publish_request
from tests.fake_workload_api import eventually
from tests.mounted import mount_lines
from tests.ports import free_port
from tests.support import DEADLINE, DRIVER, IS_ROOT, ROOT, host

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts of this host: run as root")
UNABLE = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all"]


def readiness(port: int) -> tuple[int, str]:
    with suppress(OSError):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
    return 0, ""


def test_it_neither_says_that_it_serves_nor_is_registered_nor_publishes() -> None:
    async def run() -> None:
        port = free_port()
        with host() as here:
            here.start("--health-listen", f"127.0.0.1:{port}", within=lambda *command: [*UNABLE, *command])
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await eventually(lambda: any(each.get("reason") == "MOUNT_DENIED" for each in here.events()))
                with pytest.raises(DriverNotRegistered):
                    await kubelet.wait_registered(DRIVER, timeout=0.2)
                async with grpc.aio.insecure_channel(f"unix:{here.kubelet_root}/plugins/{DRIVER}/csi.sock") as channel:
                    node = csi_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await node.NodePublishVolume(publish_request(here.kubelet_root))
                # Why it is not ready is known once kubelet has asked who it is.
                async with asyncio.timeout(DEADLINE):
                    while "no CAP_SYS_ADMIN" not in (said_ready := await asyncio.to_thread(readiness, port))[1]:
                        await asyncio.sleep(0.05)
                code, text = said_ready
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "no CAP_SYS_ADMIN" in str(refused.value.details())
            assert (code, "no CAP_SYS_ADMIN" in text, "privileged container" in text) == (503, True, True)
            said = {str(each.get("event")) for each in here.events()}
            assert "agent makes no volumes" in said
            assert "agent serving" not in said
            assert list((here.kubelet_root / "pods").iterdir()) == []

    asyncio.run(run())


def test_the_attempt_is_seen_by_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    pods = tmp_path / "pods"
    pods.mkdir()
    seen: list[str] = []

    class Watched(TmpfsMounts):
        def verify(self, directory: int, parent: int) -> None:
            super().verify(directory, parent)
            seen.append(str(mount_id(directory)))
            assert not [line for line in mount_lines() if str(pods) in line]

    def left() -> tuple[list[str], int]:
        # Other tests mount here as well, elsewhere.
        own = [line for line in mount_lines() if line.split(" ")[4] == "/" or str(tmp_path) in line]
        return own, len(list(Path("/proc/self/fd").iterdir()))

    before = left()
    assert refusal(str(pods), Watched()) == ""
    assert refusal(str(tmp_path / "none"), TmpfsMounts()) == ""
    assert len(seen) == 1
    assert left() == before


class Refusing(TmpfsMounts):
    """As under an AppArmor profile without mounts."""

    def attach(self, directory: int, *, mode: int, group: int | None) -> None:
        raise PermissionError(13, "Permission denied")


class Asked:
    """What comes after it."""

    times = 0

    def check(self) -> None:
        self.times += 1


def test_it_is_tried_until_it_was_possible_and_what_comes_then_is_asked_each_time(tmp_path: Path) -> None:
    asked, tries = Asked(), list[int]()

    class Allowed(TmpfsMounts):
        def attach(self, directory: int, *, mode: int, group: int | None) -> None:
            tries.append(directory)
            if len(tries) < 3:
                raise PermissionError(13, "Permission denied")
            super().attach(directory, mode=mode, group=group)

    found = Mountable(str(tmp_path), Allowed(), asked)
    for _ in range(2):
        with pytest.raises(MountDenied, match=r"nothing can be mounted here \(Permission denied\)"):
            found.check()
    assert asked.times == 0
    for _ in range(3):
        found.check()
    assert (len(tries), asked.times) == (3, 3)
    with pytest.raises(MountDenied):
        Mountable(str(tmp_path), Refusing(), asked).check()


def test_a_root_that_is_no_mount_says_nothing_of_volumes(tmp_path: Path) -> None:
    """In a changed root mounts cannot be made private, and volumes were mounted there all the same."""
    program = """
import os, sys
from csi.mount import TmpfsMounts
from csi.mountable import refusal
os.chroot(sys.argv[1])
os.chdir("/")
print(repr(refusal("/", TmpfsMounts())))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout == "''\n"


def test_what_a_process_may_do_is_read_from_the_kernel() -> None:
    assert capabilities() & 1 << 21
