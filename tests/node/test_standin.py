"""The stand-in kubelet against a scripted driver: what it sends, what it remembers, what it removes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from csi.pb import csi_pb2, csi_pb2_grpc, pluginregistration_pb2, pluginregistration_pb2_grpc
from podsvid.quickstart.calls import RpcRecord
from podsvid.quickstart.errors import (
    DriverNotRegistered,
    PublishFailed,
    StandInError,
    StatsFailed,
    UnpublishFailed,
    VolumeLeftBehind,
)
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume, VolumeState, volume_id_of
from podsvid.quickstart.registry import Registration
from podsvid.quickstart.request import TOKENS_KEY

DRIVER = "csi.example.org"
POD = Pod("shop", "cart-0", "5f1c2a50-0000-4000-8000-000000000001", "cart")
VOLUME = PodVolume("spiffe")

NON_FINAL = ["CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"]
FINAL = [code.name for code in grpc.StatusCode if code.name not in {*NON_FINAL, "OK"}]

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class FakeDriver:
    """A driver whose volumes are plain directories and whose next answers can be set."""

    root: Path
    name: str = DRIVER
    type: str = "CSIPlugin"
    versions: tuple[str, ...] = ("1.0.0",)
    capabilities: tuple[int, ...] = (
        csi_pb2.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP,
        csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS,
    )
    socket_name: str = "reg.sock"
    failures: list[grpc.StatusCode] = field(default_factory=list)
    usage: bool = True
    forgets_to_remove: bool = False
    hangs: bool = False
    get_info_delay: float = 0.0
    published: list[csi_pb2.NodePublishVolumeRequest] = field(default_factory=list)
    unpublished: list[str] = field(default_factory=list)
    told: list[tuple[bool, str]] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    get_infos: int = 0

    @property
    def endpoint(self) -> Path:
        return self.root / "plugins" / f"{self.socket_name}.csi"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeDriver]:
        csi, registration = grpc.aio.server(), grpc.aio.server()
        csi_pb2_grpc.add_NodeServicer_to_server(_FakeNode(self), csi)
        pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(_FakeRegistration(self), registration)
        csi.add_insecure_port(f"unix:{self.endpoint}")
        registration.add_insecure_port(f"unix:{self.root / 'plugins_registry' / self.socket_name}")
        await csi.start()
        await registration.start()
        try:
            yield self
        finally:
            await registration.stop(None)
            await csi.stop(None)

    async def may_fail(self, context: Context) -> None:
        if self.failures and (code := self.failures.pop(0)) is not grpc.StatusCode.OK:
            await context.abort(code, "as the test wants it")


class _FakeRegistration(pluginregistration_pb2_grpc.RegistrationServicer):
    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    async def GetInfo(self, request: object, context: Context) -> pluginregistration_pb2.PluginInfo:
        driver = self._driver
        driver.get_infos += 1
        await asyncio.sleep(driver.get_info_delay)
        return pluginregistration_pb2.PluginInfo(
            type=driver.type,
            name=driver.name,
            endpoint=str(driver.endpoint),
            supported_versions=driver.versions,
        )

    async def NotifyRegistrationStatus(
        self, request: pluginregistration_pb2.RegistrationStatus, context: Context
    ) -> pluginregistration_pb2.RegistrationStatusResponse:
        self._driver.told.append((request.plugin_registered, request.error))
        return pluginregistration_pb2.RegistrationStatusResponse()


class _FakeNode(csi_pb2_grpc.NodeServicer):
    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    async def NodeGetInfo(self, request: object, context: Context) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id="node-1")

    async def NodeGetCapabilities(self, request: object, context: Context) -> csi_pb2.NodeGetCapabilitiesResponse:
        self._driver.peers.append(context.peer())
        rpc = csi_pb2.NodeServiceCapability.RPC
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.NodeServiceCapability(rpc=rpc(type=kind))  # type: ignore[arg-type]
                for kind in self._driver.capabilities
            ]
        )

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        self._driver.published.append(request)
        if self._driver.hangs:
            await asyncio.Event().wait()
        await self._driver.may_fail(context)
        Path(request.target_path).mkdir(exist_ok=True)
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        self._driver.unpublished.append(request.volume_id)
        await self._driver.may_fail(context)
        target = Path(request.target_path)
        if self._driver.forgets_to_remove:
            (target / "left").touch()
        elif target.exists():
            target.rmdir()
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        await self._driver.may_fail(context)
        usage = [csi_pb2.VolumeUsage(total=7, unit=csi_pb2.VolumeUsage.BYTES)] if self._driver.usage else []
        return csi_pb2.NodeGetVolumeStatsResponse(usage=usage)


@dataclass
class FakeTime:
    """A clock that only sleeping moves."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@dataclass
class Node:
    """A kubelet with a registered fake driver."""

    kubelet: StandInKubelet
    driver: FakeDriver
    time: FakeTime
    calls: list[RpcRecord]

    @property
    def target(self) -> Path:
        return self.kubelet.target_path(POD, VOLUME)


@pytest.fixture
def root() -> Iterator[Path]:
    # Not tmp_path: socket paths below it could be too long.
    directory = Path(tempfile.mkdtemp(prefix="pvt-"))
    yield directory
    shutil.rmtree(directory)


def on_node(
    test: Callable[[Node], Awaitable[None]], root: Path, driver: FakeDriver | None = None, **options: Any
) -> None:
    """Run the coroutine on a node whose driver is registered."""

    async def main() -> None:
        fake_time, calls = FakeTime(), list[RpcRecord]()
        kubelet = StandInKubelet(
            root,
            driver=DRIVER,
            registry_interval=0.01,
            clock=fake_time.clock,
            sleep=fake_time.sleep,
            on_rpc=calls.append,
            **options,
        )
        fake = driver or FakeDriver(root)
        async with asyncio.timeout(20), kubelet, fake.running():
            await kubelet.wait_registered()
            calls.clear()
            await test(Node(kubelet, fake, fake_time, calls))

    asyncio.run(main())


# --- publishing -----------------------------------------------------------------------------------------------


def test_volume_id_is_the_hash_of_pod_uid_and_volume_name() -> None:
    assert volume_id_of("uid", "vol") == "csi-" + hashlib.sha256(b"uidvol").hexdigest()
    assert len(volume_id_of("uid", "vol")) == 68


def test_publish_sends_what_kubelet_sends(root: Path) -> None:
    volume = PodVolume(
        "spiffe",
        attributes={"layout": "grpc", "csi.storage.k8s.io/pod.name": "spoofed"},
        fs_group=2000,
        tokens={"signer": {"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"}},
        secrets={"user": "secret"},
    )

    async def test(node: Node) -> None:
        target = await node.kubelet.publish(POD, volume)

        assert target == root / "pods" / POD.uid / "volumes/kubernetes.io~csi/spiffe/mount"
        assert [call.method for call in node.calls] == [
            "NodeGetCapabilities",
            "NodeGetCapabilities",
            "NodePublishVolume",
        ]
        (request,) = node.driver.published
        assert request.volume_id == volume_id_of(POD.uid, "spiffe")
        assert request.target_path == str(target)
        assert dict(request.volume_context) == {
            "layout": "grpc",
            "csi.storage.k8s.io/pod.name": "cart-0",
            "csi.storage.k8s.io/pod.namespace": "shop",
            "csi.storage.k8s.io/pod.uid": POD.uid,
            "csi.storage.k8s.io/serviceAccount.name": "cart",
            "csi.storage.k8s.io/ephemeral": "true",
        }
        assert json.loads(request.secrets[TOKENS_KEY])["signer"]["token"] == "t"
        assert request.secrets["user"] == "secret"
        assert request.readonly
        assert request.volume_capability.mount.volume_mount_group == "2000"
        mode = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
        assert request.volume_capability.access_mode.mode == mode
        assert not request.staging_target_path

    on_node(test, root)


def test_publish_makes_the_directory_as_kubelet_does(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        parent = node.target.parent
        for directory in (root / "pods", root / "pods" / POD.uid, parent):
            assert directory.stat().st_mode & 0o7777 == 0o750
        data = json.loads((parent / "vol_data.json").read_text())
        assert data["volumeHandle"] == volume_id_of(POD.uid, "spiffe")
        assert (data["driverName"], data["nodeName"], data["specVolID"]) == (DRIVER, "node-1", "spiffe")

    on_node(test, root)


def test_tokens_can_come_in_the_volume_context(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, PodVolume(tokens={"signer": {"token": "t"}}))
        (request,) = node.driver.published
        assert TOKENS_KEY in request.volume_context
        assert not request.secrets

    on_node(test, root, tokens_in_secrets=False)


def test_tokens_are_not_in_the_representation_of_a_volume() -> None:
    volume = PodVolume(tokens={"signer": {"token": "hush"}}, secrets={"a": "hush"})
    assert "hush" not in repr(volume)


def test_no_mount_group_for_a_driver_without_the_capability(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, PodVolume(fs_group=2000))
        assert node.driver.published[0].volume_capability.mount.volume_mount_group == ""

    on_node(test, root, FakeDriver(root, capabilities=()))


@pytest.mark.parametrize("code", FINAL)
def test_after_a_final_error_the_volume_is_forgotten_and_its_directory_gone(root: Path, code: str) -> None:
    async def test(node: Node) -> None:
        node.driver.failures = [grpc.StatusCode[code]]
        with pytest.raises(PublishFailed) as failure:
            await node.kubelet.publish(POD, VOLUME)
        assert failure.value.final
        assert node.kubelet.state(POD, VOLUME) is None
        assert not node.target.parent.exists()
        assert await node.kubelet.unpublish(POD, VOLUME) is False
        assert node.driver.unpublished == []

    on_node(test, root)


@pytest.mark.parametrize("code", NON_FINAL)
def test_after_any_other_error_the_volume_is_uncertain_and_will_be_unpublished(root: Path, code: str) -> None:
    async def test(node: Node) -> None:
        node.driver.failures = [grpc.StatusCode[code]]
        with pytest.raises(PublishFailed) as failure:
            await node.kubelet.publish(POD, VOLUME)
        assert not failure.value.final
        assert node.kubelet.state(POD, VOLUME) is VolumeState.UNCERTAIN
        assert (node.target.parent / "vol_data.json").exists()
        assert await node.kubelet.unpublish(POD, VOLUME) is True
        assert node.driver.unpublished == [volume_id_of(POD.uid, "spiffe")]
        assert not (root / "pods" / POD.uid).exists()

    on_node(test, root)


def test_a_cancelled_publish_leaves_the_volume_uncertain(root: Path) -> None:
    async def test(node: Node) -> None:
        node.driver.hangs = True
        publishing = asyncio.create_task(node.kubelet.publish(POD, VOLUME))
        while not node.driver.published:
            await asyncio.sleep(0.001)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        assert node.kubelet.state(POD, VOLUME) is VolumeState.UNCERTAIN

    on_node(test, root)


def test_publish_until_backs_off_as_kubelet_does(root: Path) -> None:
    async def test(node: Node) -> None:
        node.driver.failures = [grpc.StatusCode.UNAVAILABLE] * 10
        await node.kubelet.publish_until(POD, VOLUME, timeout=None)
        assert node.time.slept == [0.5, 1, 2, 4, 8, 16, 32, 64, 122, 122]
        assert node.kubelet.state(POD, VOLUME) is VolumeState.MOUNTED

    on_node(test, root)


def test_publish_until_gives_up_with_the_last_error(root: Path) -> None:
    async def test(node: Node) -> None:
        node.driver.failures = [grpc.StatusCode.UNAVAILABLE] * 9 + [grpc.StatusCode.INTERNAL]
        with pytest.raises(PublishFailed, match=r'failed for volume "spiffe": .*UNAVAILABLE.*as the test wants it'):
            await node.kubelet.publish_until(POD, VOLUME, timeout=4)
        assert node.time.slept == [0.5, 1, 2]

    on_node(test, root)


@pytest.mark.parametrize("code", ["INTERNAL", "UNAVAILABLE"])
def test_a_failed_republish_changes_nothing(root: Path, code: str) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        node.driver.failures = [grpc.StatusCode[code]]
        with pytest.raises(PublishFailed):
            await node.kubelet.republish(POD, VOLUME)
        assert node.kubelet.state(POD, VOLUME) is VolumeState.MOUNTED
        assert node.target.is_dir()

    on_node(test, root)


def test_republish_needs_a_mounted_volume(root: Path) -> None:
    async def test(node: Node) -> None:
        with pytest.raises(StandInError, match="is not mounted"):
            await node.kubelet.republish(POD, VOLUME)

    on_node(test, root)


def test_every_call_comes_over_a_connection_of_its_own(root: Path) -> None:
    async def test(node: Node) -> None:
        loop = asyncio.get_running_loop()
        connections = 0

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            up_reader, up_writer = await asyncio.open_unix_connection(str(node.driver.endpoint))

            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)

        front = root / "front.sock"
        server = await asyncio.start_unix_server(relay, str(front))
        registration = node.kubelet.registration()
        relayed = Registration(DRIVER, str(front), "node-1", registration.registry_socket, ("1.0.0",))
        node.kubelet._registry._registered[DRIVER] = relayed
        await node.kubelet.publish(POD, VOLUME)
        assert connections == 3
        server.close()
        assert loop.is_running()

    on_node(test, root)


# --- unpublishing ---------------------------------------------------------------------------------------------


def test_a_failed_unpublish_is_repeated(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        node.driver.failures = [grpc.StatusCode.INTERNAL]
        with pytest.raises(UnpublishFailed):
            await node.kubelet.unpublish(POD, VOLUME)
        assert await node.kubelet.unpublish(POD, VOLUME) is True
        assert not (root / "pods" / POD.uid).exists()

    on_node(test, root)


def test_unpublish_keeps_the_pods_other_volumes(root: Path) -> None:
    async def test(node: Node) -> None:
        other = PodVolume("other")
        await node.kubelet.publish(POD, VOLUME)
        await node.kubelet.publish(POD, other)
        await node.kubelet.unpublish(POD, VOLUME)
        assert not node.target.parent.exists()
        assert node.kubelet.target_path(POD, other).is_dir()

    on_node(test, root)


def test_a_driver_that_leaves_something_behind_is_caught(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        node.driver.forgets_to_remove = True
        with pytest.raises(VolumeLeftBehind):
            await node.kubelet.unpublish(POD, VOLUME)

    on_node(test, root)


# --- stats and raw calls --------------------------------------------------------------------------------------


def test_stats(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        assert (await node.kubelet.stats(POD, VOLUME)).usage[0].total == 7
        node.driver.failures = [grpc.StatusCode.NOT_FOUND]
        with pytest.raises(StatsFailed) as failure:
            await node.kubelet.stats(POD, VOLUME)
        assert failure.value.code is grpc.StatusCode.NOT_FOUND
        node.driver.usage = False
        with pytest.raises(StandInError, match="no usage"):
            await node.kubelet.stats(POD, VOLUME)
        node.driver.capabilities = ()
        with pytest.raises(StandInError, match="GET_VOLUME_STATS"):
            await node.kubelet.stats(POD, VOLUME)

    on_node(test, root)


def test_raw_calls(root: Path) -> None:
    async def test(node: Node) -> None:
        answer = await node.kubelet.call("NodeGetInfo", csi_pb2.NodeGetInfoRequest(), 5)
        assert isinstance(answer, csi_pb2.NodeGetInfoResponse)
        assert answer.node_id == "node-1"
        with pytest.raises(ValueError, match="NodeFly"):
            await node.kubelet.call("NodeFly", csi_pb2.NodeGetInfoRequest())

    on_node(test, root)


# --- registration ---------------------------------------------------------------------------------------------


def test_a_registered_plugin_is_told_so(root: Path) -> None:
    async def test(node: Node) -> None:
        registration = node.kubelet.registration()
        assert (registration.driver, registration.node_id) == (DRIVER, "node-1")
        while not node.driver.told:
            await asyncio.sleep(0.001)
        assert node.driver.told == [(True, "")]

    on_node(test, root)


def test_a_driver_whose_socket_goes_is_deregistered(root: Path) -> None:
    async def test(node: Node) -> None:
        (root / "plugins_registry" / "reg.sock").unlink()
        await node.kubelet.wait_deregistered(timeout=60)
        with pytest.raises(DriverNotRegistered, match="not found in the list of registered CSI drivers"):
            await node.kubelet.publish(POD, VOLUME)
        assert not (root / "pods" / POD.uid).exists()

    on_node(test, root)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"type": "DevicePlugin"}, "no handler for plugin type 'DevicePlugin'"),
        ({"name": "-bad"}, "'-bad' is not a CSI driver name"),
        ({"name": "x" * 64}, "is not a CSI driver name"),
        ({"versions": ()}, "lists no supported version"),
        ({"versions": ("2.0.0",)}, "none of the versions 2.0.0 is a 1.x"),
        ({"versions": ("one",)}, "'one' is not a version"),
        ({"name": DRIVER}, "already registered"),
    ],
)
def test_a_plugin_with_a_wrong_story_is_refused_and_told(root: Path, change: dict[str, Any], refusal: str) -> None:
    async def test(node: Node) -> None:
        other = FakeDriver(root, socket_name="other-reg.sock", **({"name": "other.example.org"} | change))
        async with other.running():
            while not other.told:
                await asyncio.sleep(0.001)
            assert not other.told[0][0]
            assert refusal in other.told[0][1]
            with pytest.raises(DriverNotRegistered) as unregistered:
                await node.kubelet.wait_registered("other.example.org", timeout=0)
            assert refusal in str(unregistered.value)

    on_node(test, root)


def unregistered(kubelet: StandInKubelet) -> str:
    """Why its driver is not there."""
    with pytest.raises(DriverNotRegistered) as found:
        kubelet.registration()
    return str(found.value)


def test_get_info_has_one_second(root: Path) -> None:
    async def main() -> None:
        kubelet = StandInKubelet(root, driver=DRIVER, registry_interval=0.01)
        async with asyncio.timeout(20), kubelet, FakeDriver(root, get_info_delay=30).running():
            while "GetInfo" not in (said := unregistered(kubelet)):
                await asyncio.sleep(0.01)
            assert "GetInfo: DEADLINE_EXCEEDED" in said

    asyncio.run(main())


def test_a_stale_socket_is_refused_with_growing_waits(root: Path) -> None:
    async def test(node: Node) -> None:
        stale = root / "plugins_registry" / "stale.sock"
        server = await asyncio.start_unix_server(lambda reader, writer: None, str(stale))
        server.close()
        await server.wait_closed()
        while len(node.time.slept) < 4:
            await asyncio.sleep(0.001)
        assert node.time.slept[:4] == [0.5, 1, 2, 4]

    on_node(test, root)


def test_a_driver_that_comes_back_registers_again(root: Path) -> None:
    async def test(node: Node) -> None:
        (root / "plugins_registry" / "reg.sock").unlink()
        await node.kubelet.wait_deregistered(timeout=60)
        async with FakeDriver(root, socket_name="new-reg.sock").running() as new:
            registration = await node.kubelet.wait_registered(timeout=60)
            assert registration.endpoint == str(new.endpoint)

    on_node(test, root)


# --- restart and reboot ---------------------------------------------------------------------------------------


def test_a_restarted_kubelet_publishes_what_runs_and_unpublishes_what_vanished(root: Path) -> None:
    async def test(node: Node) -> None:
        gone = Pod("shop", "gone-0", "5f1c2a50-0000-4000-8000-000000000002")
        await node.kubelet.publish(POD, VOLUME)
        await node.kubelet.publish(gone, VOLUME)
        node.kubelet.delete_pod(gone)
        node.driver.published.clear()

        outcome = await node.kubelet.restart()

        assert outcome.published == (volume_id_of(POD.uid, "spiffe"),)
        assert outcome.unpublished == (volume_id_of(gone.uid, "spiffe"),)
        assert [request.volume_id for request in node.driver.published] == list(outcome.published)
        assert node.driver.unpublished == list(outcome.unpublished)
        assert node.kubelet.state(POD, VOLUME) is VolumeState.MOUNTED
        assert not (root / "pods" / gone.uid).exists()

    on_node(test, root)


def test_a_final_error_proves_nothing_about_a_reconstructed_volume(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        node.driver.failures = [grpc.StatusCode.INTERNAL] * 3
        with pytest.raises(ExceptionGroup):
            await node.kubelet.restart(timeout=1.5)
        assert node.kubelet.state(POD, VOLUME) is VolumeState.UNCERTAIN
        assert node.target.is_dir()
        assert await node.kubelet.unpublish_until(POD, VOLUME) is True

    on_node(test, root)


def test_a_new_kubelet_over_old_directories_unpublishes_them(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        successor = StandInKubelet(root, driver=DRIVER, registry_interval=0.01)
        async with successor:
            outcome = await successor.restart()
        assert outcome.unpublished == (volume_id_of(POD.uid, "spiffe"),)
        assert not (root / "pods" / POD.uid).exists()

    on_node(test, root)


def test_after_a_reboot_the_volume_is_published_into_the_old_directory(root: Path) -> None:
    async def test(node: Node) -> None:
        await node.kubelet.publish(POD, VOLUME)
        await node.kubelet.reboot()
        assert node.kubelet.state(POD, VOLUME) is None
        assert (node.target.parent / "vol_data.json").exists()
        with pytest.raises(DriverNotRegistered):
            node.kubelet.registration()
        outcome = await node.kubelet.restart()
        assert outcome.published == (volume_id_of(POD.uid, "spiffe"),)

    on_node(test, root)
