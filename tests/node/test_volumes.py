"""Published volumes on a real node: identity, restarts, modes, sockets."""

import asyncio
import stat
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509

from podsvid.quickstart.pods import PodVolume
from svid.certificates import serial_of
from tests.support import DEADLINE, DRIVER, IS_ROOT, VOLUME, first, node, pod, serial, svid_stream

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")
FILES = ["tls.crt", "tls.key", "ca.crt", "credential-bundle.private-key.pem", "bundle.json"]


@pytest.mark.spec("EP-1", "EP-2", "EP-3", "EP-20")
def test_a_published_volume_holds_a_verified_identity_and_unpublish_takes_all_of_it_away() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web = pod()
            target = await kubelet.publish(web, VOLUME)
            assert here.mounts() == [str(target)]
            assert (target / "bundle.json").read_bytes()
            combined = (target / "credential-bundle.private-key.pem").read_bytes()
            assert combined == (target / "tls.key").read_bytes() + (target / "tls.crt").read_bytes()
            verified = subprocess.run(
                ["openssl", "verify", "-x509_strict", "-CAfile", target / "ca.crt", target / "tls.crt"], check=False
            )
            assert verified.returncode == 0
            response = await first(here.short(target) / "socket")
            (entry,) = response.svids
            assert entry.spiffe_id == "spiffe://example.org/ns/default/sa/web"
            assert serial_of(x509.load_der_x509_certificate(entry.x509_svid)) == serial(target)
            usage = await kubelet.stats(web, VOLUME)
            assert usage.usage[0].used > 0
            assert not usage.volume_condition.abnormal
            await kubelet.unpublish(web, VOLUME)
            assert here.mounts() == []
            assert here.journal() == []
            assert not target.exists()
            assert here.stop() == 0

    asyncio.run(run())


def test_100_identical_publishes_leave_one_mount_and_one_serial() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web = pod()
            target = await kubelet.publish(web, VOLUME)
            before = serial(target)
            for _ in range(100):
                await kubelet.publish(web, VOLUME)
            assert here.mounts() == [str(target)]
            assert serial(target) == before

    asyncio.run(run())


def test_publish_during_publish_is_aborted() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            request = kubelet.publish_request(pod(), PodVolume(attributes={"keyAlgorithm": "rsa-4096"}))
            Path(request.target_path).parent.mkdir(parents=True)
            calls = [asyncio.ensure_future(kubelet.call("NodePublishVolume", request)) for _ in range(4)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
            assert len(refused) == 3
            assert {error.code() for error in refused} == {grpc.StatusCode.ABORTED}
            assert len(here.mounts()) == 1

    asyncio.run(run())


def test_kubelet_restart_with_110_volumes_changes_no_mount_and_reboot_comes_back_clean() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            pods = [pod(f"p{number}", f"sa-{number}") for number in range(110)]
            targets = await asyncio.gather(*(kubelet.publish(each, VOLUME) for each in pods))
            mounts, serials = sorted(here.mounts()), [serial(target) for target in targets]
            await kubelet.restart()
            assert sorted(here.mounts()) == mounts
            assert [serial(target) for target in targets] == serials

            here.kill()
            await kubelet.reboot()
            assert here.mounts() == []
            kubelet.delete_pod(pods[0])
            here.start()
            await kubelet.restart()
            assert sorted(here.mounts()) == sorted(str(target) for target in targets[1:])
            assert not targets[0].exists()
            assert len(here.journal()) == 109

    asyncio.run(run())


def test_kill_and_restart_with_50_volumes_and_open_streams_mints_nothing_and_goes_on_rotating() -> None:
    async def run() -> None:
        async with node(ttl="100s") as (here, kubelet):
            pods = [pod(f"p{number}", f"sa-{number}") for number in range(50)]
            targets = await asyncio.gather(*(kubelet.publish(each, VOLUME) for each in pods))
            sockets = [here.short(target) / "socket" for target in targets]
            serials = [serial(target) for target in targets]
            drawn = here.renewals()
            async with AsyncExitStack() as stack:
                streams = [aiter(await stack.enter_async_context(svid_stream(socket))) for socket in sockets]
                await asyncio.gather(*(anext(stream) for stream in streams))
                here.kill()
                ended = await asyncio.gather(*(anext(stream) for stream in streams), return_exceptions=True)
                codes = [error.code() for error in ended if isinstance(error, grpc.aio.AioRpcError)]
                assert codes == [grpc.StatusCode.UNAVAILABLE] * 50
            here.start(ttl="100s")
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            assert [serial(target) for target in targets] == serials
            assert len(here.mounts()) == 50
            # The instant was drawn once: neither the journal nor the new process drew another.
            # It is registered after two seconds, be they all picked up or not.
            async with asyncio.timeout(DEADLINE):
                while len(picked_up := [each for each in here.events() if each["event"] == "volume picked up"]) < 50:
                    await asyncio.sleep(0.05)
            assert {line["volume_id"]: line["renew_at"] for line in picked_up} == drawn
            assert not any([(await kubelet.stats(each, VOLUME)).volume_condition.abnormal for each in pods])
            answers = await asyncio.gather(*(first(socket) for socket in sockets))
            assert [answer.svids[0].spiffe_id.rpartition("/")[2] for answer in answers] == [
                each.service_account for each in pods
            ]
            async with svid_stream(sockets[0]) as call, asyncio.timeout(DEADLINE):
                stream = aiter(call)
                one, two = await anext(stream), await anext(stream)
                assert one.svids[0].x509_svid != two.svids[0].x509_svid

    asyncio.run(run())


def test_after_a_restart_damaged_files_are_made_again_and_a_damaged_state_is_minted_anew() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            pods = [pod("a"), pod("b"), pod("c"), pod("d")]
            damaged, forgotten, swapped, lost = [await kubelet.publish(each, VOLUME) for each in pods]
            old, kept, replaced = serial(forgotten), serial(swapped), serial(lost)
            right = (swapped / "tls.key").read_bytes()
            here.kill()
            (damaged / "..data" / "tls.key").unlink()
            (swapped / "..data" / "tls.key").write_bytes((forgotten / "..data" / "tls.key").read_bytes())
            (lost / "..data" / ".state.json").write_bytes(b"{")
            entry = next(
                path
                for path in (here.base / "r/journal").iterdir()
                if str(forgotten) in path.read_text(encoding="utf-8")
            )
            entry.write_text("{", encoding="utf-8")
            here.start()
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            assert (await first(here.short(damaged) / "socket")).svids
            assert (await first(here.short(swapped) / "socket")).svids
            async with asyncio.timeout(DEADLINE):
                while not (damaged / "tls.key").exists() or (swapped / "tls.key").read_bytes() != right:
                    await asyncio.sleep(0.01)
                while serial(lost) == replaced:
                    await asyncio.sleep(0.01)
            assert serial(swapped) == kept
            for each in pods:
                await kubelet.republish(each, VOLUME)
            assert serial(damaged)
            assert serial(forgotten) != old
            assert (await first(here.short(forgotten) / "socket")).svids
            assert sorted(here.mounts()) == sorted(map(str, (damaged, forgotten, swapped, lost)))

    asyncio.run(run())


def test_the_embedded_authority_is_kept_and_a_damaged_one_is_refused() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod(), VOLUME)
            authority = (target / "ca.crt").read_bytes()
            assert here.stop() == 0
            state = here.base / "s" / "authority.pem"
            assert stat.S_IMODE(state.stat().st_mode) == 0o600
            await kubelet.wait_deregistered(DRIVER)
            here.start()
            await kubelet.wait_registered(DRIVER)
            assert (await kubelet.publish(pod("b"), VOLUME) / "ca.crt").read_bytes() == authority
            assert here.stop() == 0
            state.chmod(0o644)
            here.start()
            assert here.process is not None
            assert here.process.wait(DEADLINE) == 1
            assert "can be read by others" in here.log.read_text(encoding="utf-8")
            state.chmod(0o600)
            for content in (b"", state.read_bytes()[:100], state.read_bytes()[300:]):
                state.write_bytes(content)
                here.start()
                assert here.process is not None
                assert here.process.wait(DEADLINE) == 1
                assert "AUTHORITY_DAMAGED" in here.log.read_text(encoding="utf-8")
                assert state.read_bytes() == content

    asyncio.run(run())


@pytest.mark.spec("CL-22", "CL-23")
@pytest.mark.parametrize(
    ("group", "directory", "file", "socket"), [(None, 0o755, 0o444, 0o666), (2000, 0o2750, 0o440, 0o660)]
)
def test_modes_as_a_non_root_process_meets_them(group: int | None, directory: int, file: int, socket: int) -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            target = await kubelet.publish(pod(), PodVolume(name="spiffe", fs_group=group))
            assert stat.S_IMODE(target.stat().st_mode) == directory
            assert {stat.S_IMODE((target / name).stat().st_mode) for name in FILES} == {file}
            assert stat.S_IMODE((target / "socket").stat().st_mode) == socket
            here.base.chmod(0o755)
            for parent in target.relative_to(here.base).parents:
                (here.base / parent).chmod(0o755) if here.base / parent != target else None
            link = here.short(target)
            ask = (
                "import socket,sys; open(sys.argv[1]+'/tls.key').read();"
                "socket.socket(socket.AF_UNIX).connect(sys.argv[1]+'/spire-agent.sock')"
            )

            def as_nobody(groups: str) -> int:
                command = [
                    "setpriv",
                    "--reuid=65534",
                    "--regid=65534",
                    groups,
                    "/usr/bin/python3",
                    "-c",
                    ask,
                    str(link),
                ]
                return subprocess.run(command, check=False, capture_output=True).returncode

            assert as_nobody("--groups=2000") == 0
            assert (as_nobody("--clear-groups") == 0) is (group is None)

    asyncio.run(run())


@pytest.mark.spec("EP-8", "EP-9", "EP-10", "WL-5")
def test_a_socket_answers_with_its_own_pod_only() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            pods = [pod("a", "alice"), pod("b", "bob", "other")]
            sockets = [here.short(await kubelet.publish(each, VOLUME)) / "socket" for each in pods]
            lies = (
                ("workload.spiffe.io", "true"),
                ("spiffe-id", "spiffe://example.org/ns/other/sa/bob"),
                ("pod-uid", pods[1].uid),
                ("x-forwarded-for", "b"),
            )

            async def ask(number: int) -> str:
                async with svid_stream(sockets[number % 2], lies) as call:
                    return (await anext(aiter(call))).svids[0].spiffe_id

            answers = await asyncio.gather(*(ask(number) for number in range(100)))
            assert set(answers[::2]) == {"spiffe://example.org/ns/default/sa/alice"}
            assert set(answers[1::2]) == {"spiffe://example.org/ns/other/sa/bob"}

    asyncio.run(run())


@pytest.mark.spec("EP-6", "EP-15", "WL-3", "C-1", "C-2", "C-3", "C-4", "C-5", "C-8")
@pytest.mark.parametrize(
    ("metadata", "method", "code"),
    [
        ((), "FetchX509SVID", grpc.StatusCode.INVALID_ARGUMENT),  # EP-6, C-1, C-5
        ((), "FetchX509Bundles", grpc.StatusCode.INVALID_ARGUMENT),
        ((), "FetchJWTSVID", grpc.StatusCode.INVALID_ARGUMENT),
        ((("workload.spiffe.io", "True"),), "FetchX509SVID", grpc.StatusCode.INVALID_ARGUMENT),  # C-2
        ((("workload.spiffe.io", "true "),), "FetchX509SVID", grpc.StatusCode.INVALID_ARGUMENT),  # C-3
        ((("workload.spiffe.io", "true"),) * 2, "FetchX509SVID", grpc.StatusCode.INVALID_ARGUMENT),  # C-4
        ((("workload.spiffe.io", "true"),), "FetchWITSVID", grpc.StatusCode.UNIMPLEMENTED),  # WL-3, C-8
        ((("workload.spiffe.io", "true"),), "FetchWITBundles", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_workload_endpoint_statuses(metadata: tuple[tuple[str, str], ...], method: str, code: grpc.StatusCode) -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            socket = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                ask = channel.unary_stream(
                    f"/SpiffeWorkloadAPI/{method}", request_serializer=bytes, response_deserializer=bytes
                )
                call = ask(b"", metadata=metadata, timeout=DEADLINE)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await anext(aiter(call))
            assert caught.value.code() is code

    asyncio.run(run())
