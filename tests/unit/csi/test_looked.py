"""A host whose file systems hang: what is asked of it is refused in time, in a sentence, and asked again later."""

import asyncio
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest

from csi import adoption, node, registration
from csi.errors import HostUnanswered, MountNotShared
from csi.pb import pluginregistration_pb2 as pb
from csi.pb import pluginregistration_pb2_grpc as pb_grpc
from csi.reach import SharedLooks, looked
from csi.registration import Registration
from runtime.bounded import Bounded
from tests.csi_rig import DRIVER, PATIENCE, publish_request, rig
from tests.unit.csi.test_node_turns import MANY, request, until


class Hung:
    """A Reach that does not answer until it is let `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.looks = 0

    def check(self) -> None:
        self.looks += 1
        assert self.go.wait(PATIENCE)


class Saying:
    """A Reach that raises `error`, where it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.looks = 0

    def check(self) -> None:
        self.looks += 1
        if self.error is not None:
            raise self.error


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


def test_hundreds_of_publishes_at_once_are_a_few_looks(tmp_path: Path) -> None:
    async def main() -> None:
        reach = Saying()
        async with rig(tmp_path, bounds=MANY, reach=reach) as here:
            await asyncio.gather(*(here.publish(request(here, number)) for number in range(300)))
            assert here.node.volumes == 300
            assert reach.looks <= 3

    asyncio.run(main())


def test_a_look_that_hangs_refuses_all_of_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.05)

    async def main() -> None:
        hung = Hung()
        async with rig(tmp_path, bounds=MANY, reach=hung) as here, asyncio.timeout(PATIENCE):
            calls = (here.publish(request(here, number)) for number in range(300))
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in found} == {HostUnanswered}
            assert hung.looks == 1
            # Whoever comes later is refused by a wait of its own, and nothing else was begun meanwhile.
            with pytest.raises(HostUnanswered):
                await here.publish()
            assert (hung.looks, here.steps.taken) == (1, [])
            hung.go.set()

    asyncio.run(main())


def test_a_look_answers_who_asked_before_it_began_and_nobody_later() -> None:
    async def main() -> None:
        hung = Hung()
        looks = SharedLooks(hung.check, PATIENCE)
        first = asyncio.create_task(looks.look())
        await until(lambda: hung.looks == 1)
        later = [asyncio.create_task(looks.look()) for _ in range(10)]
        await asyncio.sleep(0)
        # One of them goes, and takes it from none of the others.
        later.pop(0).cancel()
        await asyncio.sleep(0)
        assert not first.done()
        hung.go.set()
        await asyncio.gather(first, *later)
        assert hung.looks == 2

    asyncio.run(main())


def test_what_is_published_is_refused_in_time_on_a_host_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.05)

    async def main() -> None:
        hung = Hung()
        hung.go.set()
        async with rig(tmp_path, reach=hung) as here:
            # A slow machine may take longer for once.
            while not here.node.volumes:
                with suppress(HostUnanswered):
                    await here.publish()
            hung.go.clear()
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(HostUnanswered):
                    await here.publish()
            hung.go.set()
            assert here.node.volumes == 1

    asyncio.run(main())


def test_what_is_published_goes_on_where_nothing_new_could_be_and_is_not_made_again_there(tmp_path: Path) -> None:
    async def main() -> None:
        reach = Saying()
        async with rig(tmp_path, reach=reach) as here:
            await here.publish()
            reach.error = MountNotShared("no shared mount")
            await here.publish()
            assert here.observed[-1] == "republished"
            # Unmounted behind its back: what is there of it stays known, so that an unpublish takes it away.
            Path(publish_request(here.root).target_path).rename(here.root / "elsewhere")
            with pytest.raises(MountNotShared):
                await here.publish()
            assert here.node.volumes == 1

    asyncio.run(main())


def test_places_that_hang_are_given_up_at_the_start_and_keep_no_stop_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hung = Hung()
        async with rig(tmp_path) as here, asyncio.timeout(PATIENCE):
            monkeypatch.setattr(here.journal, "entries", hung.check)
            looking = asyncio.create_task(here.node.look())
            await until(lambda: hung.looks == 1)
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
            monkeypatch.setattr(adoption, "FIND_SECONDS", 0.05)
            with pytest.raises(HostUnanswered):
                await here.node.look()
            hung.go.set()

    asyncio.run(main())


def test_kubelet_is_told_why_there_is_no_driver_within_the_second_that_it_waits() -> None:
    async def main(base: Path) -> None:
        hung, registry = Hung(), base / "plugins_registry"
        found = Registration(DRIVER, base / "csi.sock", registry, hung)
        found.remove_stale()
        async with found.serving():
            (socket,) = registry.glob("*-reg.sock")
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                kubelet = pb_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]
                codes = list[grpc.StatusCode]()
                # As kubelet does: a machine that is slow for once is asked again.
                while grpc.StatusCode.UNAVAILABLE not in codes and len(codes) < 10:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await kubelet.GetInfo(pb.InfoRequest(), timeout=1)
                    codes.append(refused.value.code())
                assert codes[-1] is grpc.StatusCode.UNAVAILABLE
                assert "HOST_UNANSWERED" in (refused.value.details() or "")
                assert "do not answer" in found.refused
                hung.go.set()

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
        asyncio.run(main(Path(base)))


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
