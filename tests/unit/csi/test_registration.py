"""The registration socket over a real Unix socket, with a kubelet that refuses and a directory that is taken away."""

import asyncio
import errno
import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from csi import registration
from csi.pb import pluginregistration_pb2 as pb
from csi.pb import pluginregistration_pb2_grpc as pb_grpc
from csi.registration import Registration, serve_private
from tests.csi_rig import DRIVER, PATIENCE

ENDPOINT = Path("/var/lib/kubelet/plugins/csi.podsvid.io/csi.sock")


@pytest.fixture
def base() -> Iterator[Path]:
    """Short enough for the sockets' paths."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as found:
        yield Path(found)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(registration, "RETRY_DELAY", 0.0)


def registering(main: Callable[[Registration, Path], Awaitable[None]], base: Path) -> None:
    """Run `main` with a Registration that is served and watched."""

    async def run() -> None:
        registry = base / "plugins_registry"
        found = Registration(DRIVER, ENDPOINT, registry)
        found.remove_stale()
        async with found.serving():
            watching = asyncio.create_task(found.run())
            try:
                async with asyncio.timeout(PATIENCE):
                    await main(found, registry)
                assert not watching.done()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        assert list(registry.iterdir()) == []

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def sockets(registry: Path) -> list[str]:
    """What kubelet looks at."""
    return sorted(path.name for path in registry.iterdir() if not path.name.startswith("."))


@asynccontextmanager
async def kubelet(socket: Path) -> AsyncIterator[pb_grpc.RegistrationStub]:
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield pb_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]


async def notify(registry: Path, registered: bool, error: str = "") -> None:
    (name,) = sockets(registry)
    async with kubelet(registry / name) as stub:
        await stub.NotifyRegistrationStatus(pb.RegistrationStatus(plugin_registered=registered, error=error))


def test_the_socket_says_what_kubelet_asks_and_only_root_reaches_it(base: Path) -> None:
    async def main(found: Registration, registry: Path) -> None:
        (name,) = sockets(registry)
        assert name.startswith(f"{DRIVER}-")
        assert name.endswith("-reg.sock")
        assert stat.S_IMODE((registry / name).stat().st_mode) == 0o600
        assert found.announced
        assert not found.registered
        async with kubelet(registry / name) as stub:
            assert await stub.GetInfo(pb.InfoRequest()) == pb.PluginInfo(
                type="CSIPlugin", name=DRIVER, endpoint=str(ENDPOINT), supported_versions=["1.0.0"]
            )
        await notify(registry, True)
        assert found.registered

    registering(main, base)


def test_registered_is_what_kubelet_said_last(base: Path) -> None:
    async def run() -> None:
        found, context = Registration(DRIVER, ENDPOINT, base), None
        for said in (True, False, True):
            await found.NotifyRegistrationStatus(pb.RegistrationStatus(plugin_registered=said), context)  # type: ignore[arg-type]
            assert found.registered is said

    asyncio.run(run())


def test_a_refusal_is_logged_cut_and_answered_with_a_socket_of_another_name(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(found: Registration, registry: Path) -> None:
        before = sockets(registry)
        await notify(registry, True)
        await notify(registry, False, "x" * 1000)
        await until(lambda: len(sockets(registry)) == 1 and sockets(registry) != before)
        assert not found.registered
        assert found.announced
        (line,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
        assert (line.message, line.error) == ("kubelet refused the registration", "x" * 256)  # type: ignore[attr-defined]
        await notify(registry, True)
        assert found.registered

    registering(main, base)


def test_a_socket_that_somebody_removed_is_made_again_and_is_not_registered(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(found: Registration, registry: Path) -> None:
        (before,) = sockets(registry)
        await notify(registry, True)
        (registry / before).unlink()
        assert not found.announced
        await until(lambda: found.announced)
        assert sockets(registry) != [before]
        assert not found.registered
        assert "registration socket disappeared; making it again" in [each.message for each in caplog.records]
        await notify(registry, True)

    registering(main, base)


def test_a_registered_socket_is_left_alone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    real_exists = Path.exists

    async def main(found: Registration, registry: Path) -> None:
        before = sockets(registry)
        await notify(registry, True)

        def exists(path: Path, **named: bool) -> bool:
            nonlocal looks
            looks += path.name.endswith("reg.sock")
            return real_exists(path, **named)

        monkeypatch.setattr(Path, "exists", exists)
        await until(lambda: looks >= 3)
        assert sockets(registry) == before
        assert found.registered

    registering(main, base)


def test_a_socket_that_cannot_be_made_is_tried_again_until_it_can(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pods of the node are served by the same process: it outlives kubelet's directory."""

    async def main(found: Registration, registry: Path) -> None:
        (name,) = sockets(registry)
        (registry / name).unlink()
        registry.rmdir()
        registry.write_bytes(b"in the way")

        def failures() -> int:
            return sum("could not be made" in each.message for each in caplog.records)

        await until(lambda: failures() >= 2)
        assert not found.announced
        registry.unlink()
        await until(lambda: found.announced)
        await notify(registry, True)
        assert found.registered

    registering(main, base)


def test_the_sockets_of_earlier_runs_go_and_nobody_elses(base: Path) -> None:
    registry = base / "deep" / "plugins_registry"
    found = Registration(DRIVER, ENDPOINT, registry)
    found.remove_stale()
    assert registry.is_dir()
    stale = [f"{DRIVER}-0123abcd-reg.sock", f"{DRIVER}-reg.sock"]
    others = ["csi.other.io-reg.sock", f"{DRIVER}.org-reg.sock", f"{DRIVER}-notes", f"x{DRIVER}-reg.sock"]
    for name in (*stale, *others):
        (registry / name).touch()
    found.remove_stale()
    assert sockets(registry) == sorted(others)


def test_a_socket_appears_when_it_answers_and_was_private_all_along(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        own = Registration(DRIVER, ENDPOINT, base)
        pb_grpc.add_RegistrationServicer_to_server(own, server)  # type: ignore[no-untyped-call]
        real_start, real_rename = server.start, os.rename
        steps = list[str]()

        async def start() -> None:
            ((hidden, mode),) = [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in base.iterdir()]
            # kubelet passes over names that begin with a dot.
            assert hidden.startswith(".")
            assert mode == 0o600
            await real_start()
            steps.append("start")

        def rename(source: Path, destination: Path) -> None:
            assert stat.S_IMODE(source.stat().st_mode) == 0o600
            real_rename(source, destination)
            steps.append("rename")

        monkeypatch.setattr(server, "start", start)
        monkeypatch.setattr(os, "rename", rename)
        (base / ".csi.sock").touch()  # of a process that died in between
        await serve_private(server, base / "csi.sock")
        assert steps == ["start", "rename"]
        assert [path.name for path in base.iterdir()] == ["csi.sock"]
        async with kubelet(base / "csi.sock") as stub:
            assert (await stub.GetInfo(pb.InfoRequest())).name == DRIVER
        await server.stop(None)

    before = os.umask(0)
    try:
        asyncio.run(run())
    finally:
        os.umask(before)


@pytest.mark.parametrize("step", ["chmod", "rename"])
def test_a_socket_that_could_not_be_put_in_place_leaves_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def test() -> None:
        def fails(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr(os, step, fails)
            with pytest.raises(OSError, match="No space left"):
                await serve_private(grpc.aio.server(), base / "csi.sock")
        assert not list(base.iterdir())
        server = grpc.aio.server()
        await serve_private(server, base / "csi.sock")
        assert [each.name for each in base.iterdir()] == ["csi.sock"]
        await server.stop(None)

    asyncio.run(test())
