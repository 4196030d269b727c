"""Volumes of a real agent with real mounts, driven by the stand-in kubelet."""

import asyncio
import os
import select
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509

from csi.model import Contents, PodRef, Volume
from csi.pb import csi_pb2
from csi.volume import VolumeDirectory
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from svid.authority import X509Authority
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.support import DEADLINE, DRIVER, IS_ROOT, VOLUME, first, host, node, pod, serial, svid_stream

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
            assert f"{x509.load_der_x509_certificate(entry.x509_svid).serial_number:x}" == serial(target)
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
        async with node(ttl="60s") as (here, kubelet):
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
            here.start(ttl="60s")
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            assert [serial(target) for target in targets] == serials
            assert len(here.mounts()) == 50
            # The instant was drawn once: neither the journal nor the new process drew another.
            picked_up = [line for line in here.events() if line["event"] == "volume picked up"]
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

            answers = await asyncio.gather(*(ask(number) for number in range(200)))
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


Mutate = Callable[[csi_pb2.NodePublishVolumeRequest], None]


def _context(key: str, value: str | None) -> Mutate:
    def change(request: csi_pb2.NodePublishVolumeRequest) -> None:
        if value is None:
            del request.volume_context[f"csi.storage.k8s.io/{key}"]
        else:
            request.volume_context[f"csi.storage.k8s.io/{key}"] = value

    return change


def _target(change: Callable[[str], str]) -> Mutate:
    def apply(request: csi_pb2.NodePublishVolumeRequest) -> None:
        request.target_path = change(request.target_path)

    return apply


def _set(**fields: object) -> Mutate:
    def apply(request: csi_pb2.NodePublishVolumeRequest) -> None:
        for name, value in fields.items():
            setattr(request, name, value)

    return apply


MALFORMED: list[tuple[str, Mutate, str]] = [
    ("no volume_id", _set(volume_id=""), "volume_id is missing"),
    ("no target_path", _set(target_path=""), "target_path is missing"),
    ("no capability", lambda r: r.ClearField("volume_capability"), "volume_capability is missing"),
    ("no access type", lambda r: r.volume_capability.ClearField("mount"), "no access type"),
    ("block", lambda r: r.volume_capability.block.SetInParent(), "block access"),
    ("fsType", lambda r: setattr(r.volume_capability.mount, "fs_type", "ext4"), "fsType"),
    ("mount flags", lambda r: r.volume_capability.mount.mount_flags.append("suid"), "mount_flags"),
    ("volume_id with a slash", _set(volume_id="../../etc"), "not usable"),
    ("volume_id too long", _set(volume_id="a" * 129), "not usable"),
    ("not ephemeral", _context("ephemeral", "false"), "ephemeral"),
    ("writable", _set(readonly=False), "readOnly must be true"),
    ("no namespace", _context("pod.namespace", None), "podInfoOnMount"),
    ("no pod name", _context("pod.name", None), "podInfoOnMount"),
    ("no uid", _context("pod.uid", None), "podInfoOnMount"),
    ("no account", _context("serviceAccount.name", None), "podInfoOnMount"),
    ("namespace with a slash", _context("pod.namespace", "a/sa/root"), "not a namespace name"),
    ("namespace of dots", _context("pod.namespace", ".."), "not a namespace name"),
    ("namespace of 64 characters", _context("pod.namespace", "a" * 64), "not a namespace name"),
    ("unicode namespace", _context("pod.namespace", "dëfault"), "not a namespace name"),
    ("account with a newline", _context("serviceAccount.name", "web\n"), "not a service account name"),
    ("account with a slash", _context("serviceAccount.name", "a/b"), "not a service account name"),
    ("huge account", _context("serviceAccount.name", "a" * 100_000), "not a service account name"),
    ("uid of dots", _context("pod.uid", ".."), "not a pod uid"),
    ("another pod's uid", _context("pod.uid", "11111111-2222-3333-4444-555555555555"), "belongs to pod uid"),
    ("group is no number", lambda r: setattr(r.volume_capability.mount, "volume_mount_group", "root"), "group id"),
    ("group is negative", lambda r: setattr(r.volume_capability.mount, "volume_mount_group", "-1"), "group id"),
    ("group is huge", lambda r: setattr(r.volume_capability.mount, "volume_mount_group", "9" * 40), "group id"),
    ("unknown attribute", lambda r: r.volume_context.update({"spiffeId": "x"}), "accepted: layout, keyAlgorithm"),
    ("unknown key algorithm", lambda r: r.volume_context.update({"keyAlgorithm": "dsa"}), "ec-p256"),
    ("target elsewhere", _target(lambda _: "/etc/podsvid-test/mount"), "not of the form"),
    ("target is relative", _target(lambda path: path[1:]), "not of the form"),
    ("target with dots", _target(lambda path: path.replace("/spiffe/mount", "/../spiffe/mount")), "not of the form"),
    ("target with dots as volume", _target(lambda path: path.replace("/spiffe/", "/../")), "not of the form"),
    ("target with a double slash", _target(lambda path: path.replace("/volumes", "//volumes")), "not of the form"),
    ("target too deep", _target(lambda path: path + "/more"), "not of the form"),
    ("target of another plug-in", _target(lambda path: path.replace("~csi", "~secret")), "not of the form"),
    ("huge target", _target(lambda path: path + "a" * 10_000), "not of the form"),
    ("unicode target", _target(lambda path: path.replace("spiffe/mount", "spïffe/mount")), "not of the form"),
]


def test_malformed_requests_get_a_clear_error_and_change_nothing() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            for name, mutate, message in MALFORMED:
                request = kubelet.publish_request(pod(), VOLUME)
                Path(request.target_path).parent.mkdir(parents=True)
                mutate(request)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await kubelet.call("NodePublishVolume", request)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
                details = caught.value.details() or ""
                assert message in details, (name, details)
                assert len(details) < 700, name
            assert here.mounts() == []
            assert here.journal() == []
            assert list(here.kubelet_root.glob("pods/*/volumes/*/*/*")) == []

    asyncio.run(run())


def test_symlinks_in_the_targets_parents_are_refused_and_nothing_appears_behind_them() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            outside = here.base / "outside"
            for depth in range(5):
                request = kubelet.publish_request(pod(), VOLUME)
                target = Path(request.target_path)
                where = [target, *target.parents][depth]
                where.parent.mkdir(parents=True, exist_ok=True)
                behind = outside / str(depth) / target.relative_to(where).parent
                behind.mkdir(parents=True)
                where.symlink_to(outside / str(depth))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await kubelet.call("NodePublishVolume", request)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, depth
                assert "symlink" in (caught.value.details() or "")
                assert [path for path in outside.rglob("*") if not path.is_dir()] == []
            assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(outside) in line]
            assert here.mounts() == []

    asyncio.run(run())


def test_unpublish_tolerates_everything() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            never = kubelet.publish_request(pod(), VOLUME)
            request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=never.volume_id, target_path=never.target_path)
            await kubelet.call("NodeUnpublishVolume", request)
            target = Path(never.target_path)
            target.mkdir(parents=True)
            (target / "left").write_text("written while nothing was mounted", encoding="utf-8")
            for _ in range(3):
                await kubelet.call("NodeUnpublishVolume", request)
            assert not target.exists()
            # A mount that the journal does not know, stacked twice.
            target.mkdir()
            for _ in range(2):
                subprocess.run(["mount", "-t", "tmpfs", "podsvid", target], check=True)
            await kubelet.call("NodeUnpublishVolume", request)
            assert here.mounts() == []
            assert not target.exists()
            # Somebody still looks into it.
            web = pod()
            held = await kubelet.publish(web, VOLUME)
            descriptor = os.open(held, os.O_RDONLY)
            try:
                await kubelet.unpublish(web, VOLUME)
                assert os.listdir(descriptor) == []
            finally:
                os.close(descriptor)
            assert here.mounts() == []

    asyncio.run(run())


def test_a_publish_with_other_arguments_is_refused_and_the_volume_stays() -> None:
    async def run() -> None:
        async with node() as (_, kubelet):
            web = pod()
            target = await kubelet.publish(web, VOLUME)
            before = serial(target)
            with pytest.raises(PublishFailed, match="VOLUME_CONFLICT"):
                await kubelet.publish(web, PodVolume(attributes={"keyAlgorithm": "ed25519"}))
            assert serial(target) == before

    asyncio.run(run())


def test_tokens_reach_neither_log_nor_journal_nor_files() -> None:
    secret = "eyJhbGciOi.very-secret-token"

    async def run() -> None:
        for in_secrets in (True, False):
            async with node("--log-level", "debug") as (here, _):
                kubelet = StandInKubelet(here.kubelet_root, tokens_in_secrets=in_secrets)
                await kubelet.start()
                try:
                    await kubelet.wait_registered(DRIVER)
                    tokens = {"aud": {"token": secret, "expirationTimestamp": "2026-01-01T00:00:00Z"}}
                    web, volume = pod(), PodVolume(tokens=tokens)
                    target = await kubelet.publish(web, volume)
                    await kubelet.republish(web, volume)
                    with pytest.raises(PublishFailed):
                        await kubelet.publish(pod("b"), PodVolume(tokens=tokens, attributes={"x": "y"}))
                    key = (target / "tls.key").read_text(encoding="utf-8").splitlines()[1]
                    journal = "".join(path.read_text(encoding="utf-8") for path in (here.base / "r/journal").iterdir())
                    for text in (here.log.read_text(encoding="utf-8"), journal):
                        assert secret not in text
                        assert key not in text
                    assert secret not in "".join((target / name).read_text(encoding="utf-8") for name in FILES)
                finally:
                    await kubelet.stop()

    asyncio.run(run())


READER = """
import os, sys
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
volume, rounds = sys.argv[1], 0
def read(name, directory):
    with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
        return file.read()
def public(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
while True:
    directory = os.open(volume + "/..data", os.O_RDONLY)
    key, chain, bundle = (read(name, directory) for name in ("tls.key", "tls.crt", "ca.crt"))
    os.close(directory)
    leaf = x509.load_pem_x509_certificate(chain)
    assert public(load_pem_private_key(key, None).public_key()) == public(leaf.public_key())
    assert bundle.endswith(b"-----END CERTIFICATE-----\\n")
    rounds += 1
    print(rounds, flush=True)
"""


def _wait_for_rounds(pipe: int, wanted: int) -> None:
    while select.select([pipe], [], [], 0)[0]:
        assert os.read(pipe, 65536), "the reader ended"
    while wanted > 0:
        told = os.read(pipe, 65536)
        assert told, "the reader ended"
        wanted -= told.count(b"\n")


def test_a_reader_at_full_speed_never_sees_a_torn_pair_in_200_rotations() -> None:
    now = datetime.now(UTC)
    issuer = X509Authority.create(
        TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=now
    )
    web = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")

    def identity() -> WorkloadIdentity:
        key = KeyAlgorithm.EC_P256.generate()
        chain = issuer.issue(key.public_key(), web, ttl=timedelta(hours=1), now=now)
        return WorkloadIdentity((X509Svid(web, chain, key),), issuer.bundle)

    with host() as here:
        target = here.base / "volume"
        target.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=256", "podsvid", target], check=True)
        published = Volume("csi-1", str(target), (), PodRef("default", "web", "uid", "web"), None)
        volume = VolumeDirectory(os.open(target, os.O_RDONLY | os.O_DIRECTORY), published)
        try:
            volume.write(Contents(identity()), now)
            with subprocess.Popen([sys.executable, "-c", READER, str(target)], stdout=subprocess.PIPE) as reader:
                assert reader.stdout is not None
                try:
                    for _ in range(200):
                        # The reader runs freely; a rotation only waits for a round that began after the last one.
                        _wait_for_rounds(reader.stdout.fileno(), 2)
                        volume.write(Contents(identity()), now)
                    assert reader.poll() is None
                finally:
                    reader.kill()
            assert len(list(target.glob("..2*"))) <= 3
        finally:
            volume.close()
            subprocess.run(["umount", "-l", target], check=True)


def test_a_volume_unmounted_behind_the_agent_is_mounted_again_at_the_next_republish() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web: Pod = pod()
            target = await kubelet.publish(web, VOLUME)
            subprocess.run(["umount", "-l", target], check=True)
            await kubelet.republish(web, VOLUME)
            assert here.mounts() == [str(target)]
            assert (await first(here.short(target) / "socket")).svids

    asyncio.run(run())


def test_a_socket_removed_behind_the_agent_is_back_after_the_next_republish() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web: Pod = pod()
            target = await kubelet.publish(web, VOLUME)
            before = serial(target)
            (target / "socket").unlink()
            await kubelet.republish(web, VOLUME)
            async with asyncio.timeout(DEADLINE):
                while not (target / "socket").exists():
                    await asyncio.sleep(0.01)
            assert (await first(here.short(target) / "socket")).svids
            assert serial(target) == before

    asyncio.run(run())


def test_what_a_crash_or_damage_left_of_a_journal_entry_goes_with_the_volume() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web: Pod = pod()
            await kubelet.publish(web, VOLUME)
            (name,) = here.journal()
            here.kill()
            entry = here.base / "r" / "journal" / name
            entry.with_suffix(".tmp").write_text("half a doc", encoding="utf-8")
            entry.write_text("damaged", encoding="utf-8")
            here.start()
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            assert here.journal() == sorted(entry.with_suffix(each).name for each in (".damaged", ".tmp"))
            await kubelet.unpublish(web, VOLUME)
            assert here.journal() == []

    asyncio.run(run())


@contextmanager
def _foreign_mount(kind: str, base: Path, target: Path) -> Iterator[Path]:
    """What other drivers leave at a target: the host's directory (spiffe-csi), one of a tmpfs (csi-lib), or a tmpfs."""
    precious = base / "precious"
    precious.mkdir()
    if kind != "directory":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nosuid,nodev,noexec", "other", precious], check=True)
    if kind == "tmpfs directory":
        precious = precious / "inner"
        precious.mkdir()
    (precious / "file").write_text("kept", encoding="utf-8")
    target.mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, target], check=True)
    try:
        yield precious
        assert os.listdir(precious) == ["file"]
    finally:
        if kind != "directory":
            subprocess.run(["umount", base / "precious"], check=True)


FOREIGN = pytest.mark.parametrize("kind", ["directory", "tmpfs directory", "tmpfs"])


@FOREIGN
def test_unpublish_takes_a_foreign_mount_away_and_touches_nothing_in_it(kind: str) -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            request = kubelet.publish_request(pod(), VOLUME)
            target = Path(request.target_path)
            with _foreign_mount(kind, here.base, target):
                held = os.open(target, os.O_RDONLY)
                try:
                    await kubelet.call(
                        "NodeUnpublishVolume",
                        csi_pb2.NodeUnpublishVolumeRequest(volume_id=request.volume_id, target_path=str(target)),
                    )
                finally:
                    os.close(held)
            assert here.mounts() == []
            assert not target.exists()

    asyncio.run(run())


@FOREIGN
def test_nothing_of_a_pod_gets_into_what_another_driver_has_mounted_for_it(kind: str) -> None:
    """As when podsvid gets a driver's name on a node whose pods still run: kubelet publishes their volumes again."""

    async def run() -> None:
        async with node() as (here, kubelet):
            web = pod()
            target = Path(kubelet.publish_request(web, VOLUME).target_path)
            with _foreign_mount(kind, here.base, target) as precious:
                await kubelet.publish(web, VOLUME)
                before = serial(target)
                assert os.listdir(precious) == ["file"]
                here.kill()
                here.start()
                await kubelet.wait_deregistered(DRIVER)
                await kubelet.wait_registered(DRIVER)
                assert serial(target) == before
                assert os.listdir(precious) == ["file"]
                await kubelet.unpublish(web, VOLUME)
            assert here.mounts() == []
            assert not target.exists()

    asyncio.run(run())


def test_what_is_mounted_inside_a_volume_keeps_its_files() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web = pod()
            target = await kubelet.publish(web, VOLUME)
            with _foreign_mount("directory", here.base, target / "inner" / "deep") as precious:
                held = os.open(target, os.O_RDONLY)
                try:
                    await kubelet.unpublish(web, VOLUME)
                    assert os.listdir(held) == ["inner"]
                finally:
                    os.close(held)
                assert os.listdir(precious) == ["file"]
                # The same where nothing of ours is mounted: the target cannot be removed, and says why.
                request = kubelet.publish_request(pod(), VOLUME)
                nested = Path(request.target_path) / "nested"
                nested.mkdir(parents=True)
                subprocess.run(["mount", "--bind", precious, nested], check=True)
                unpublish = csi_pb2.NodeUnpublishVolumeRequest(
                    volume_id=request.volume_id, target_path=request.target_path
                )
                with pytest.raises(grpc.aio.AioRpcError, match="something is mounted below the target path"):
                    await kubelet.call("NodeUnpublishVolume", unpublish)
                subprocess.run(["umount", nested], check=True)
                await kubelet.call("NodeUnpublishVolume", unpublish)

    asyncio.run(run())


def test_a_renewal_that_fails_after_the_journal_was_lost_leaves_the_running_pods_volume() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web = pod()
            target = await kubelet.publish(web, VOLUME)
            before = serial(target)
            here.kill()
            for path in (here.base / "r" / "journal").iterdir():
                path.unlink()
            here.start()
            await kubelet.wait_deregistered(DRIVER)
            await kubelet.wait_registered(DRIVER)
            subprocess.run(["mount", "-o", "remount,ro", target], check=True)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await kubelet.call("NodePublishVolume", kubelet.publish_request(web, VOLUME))
            # Not final, so kubelet neither forgets the volume nor takes its directory away.
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert here.mounts() == [str(target)]
            assert serial(target) == before
            subprocess.run(["mount", "-o", "remount,rw", target], check=True)
            await kubelet.call("NodePublishVolume", kubelet.publish_request(web, VOLUME))
            assert here.mounts() == [str(target)]
            assert serial(target) != before

    asyncio.run(run())


@pytest.mark.spec("C-23")
def test_a_second_agent_on_the_same_run_dir_is_refused_and_the_first_serves_on() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            serving = here.process
            here.start()
            assert here.process is not None
            assert await asyncio.to_thread(here.process.wait, DEADLINE) == 1
            assert "ALREADY_RUNNING" in here.log.read_text(encoding="utf-8")
            here.process = serving
            assert (await first(here.short(await kubelet.publish(pod(), VOLUME)) / "socket")).svids

    asyncio.run(run())


@pytest.mark.spec("TD-16")
def test_an_embedded_authority_is_not_used_for_another_trust_domain() -> None:
    async def run() -> None:
        async with node() as (here, _):
            assert here.stop() == 0
            state = (here.base / "s" / "authority.pem").read_bytes()
            here.start("--trust-domain", "other.org")
            assert here.process is not None
            assert await asyncio.to_thread(here.process.wait, DEADLINE) == 1
            assert "is the authority of spiffe://example.org, not of spiffe://other.org" in here.log.read_text()
            assert (here.base / "s" / "authority.pem").read_bytes() == state

    asyncio.run(run())


@pytest.mark.spec("C-13", "CL-14", "CL-19")
def test_an_outage_of_the_authority_shows_in_the_condition_and_never_in_republish() -> None:
    async def run() -> None:
        with host() as here:
            # An authority from files, which ends in a few seconds: after that nothing can be renewed.
            issuer = X509Authority.create(
                TrustDomain("example.org"),
                algorithm=KeyAlgorithm.EC_P256,
                lifetime=timedelta(seconds=8),
                now=datetime.now(UTC),
            )
            (here.base / "ca.crt").write_bytes(issuer.bundle.to_pem())
            (here.base / "ca.key").write_bytes(key_to_pem(issuer.private_key))
            files = ("--ca-cert-file", str(here.base / "ca.crt"), "--ca-key-file", str(here.base / "ca.key"))
            here.start("--authority", "file", *files)
            kubelet = StandInKubelet(here.kubelet_root)
            await kubelet.start()
            try:
                await kubelet.wait_registered(DRIVER)
                web = pod()
                target = await kubelet.publish(web, VOLUME)
                socket = here.short(target) / "socket"
                assert not (await kubelet.stats(web, VOLUME)).volume_condition.abnormal
                assert (await first(socket)).svids
                async with asyncio.timeout(DEADLINE):
                    while not (condition := (await kubelet.stats(web, VOLUME)).volume_condition).abnormal:
                        await asyncio.sleep(0.2)
                    while "expired" not in condition.message:
                        await asyncio.sleep(0.2)
                        condition = (await kubelet.stats(web, VOLUME)).volume_condition
                await kubelet.republish(web, VOLUME)
                assert here.mounts() == [str(target)]
                assert (target / "tls.key").exists()
                # C-13: an expired SVID is not handed out, and this is no denial.
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await first(socket)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                with pytest.raises(PublishFailed, match=r"IDENTITY_DENIED.*authority expired"):
                    await kubelet.publish(pod("late"), VOLUME)
                assert here.mounts() == [str(target)]
                assert "rotation failed" in here.log.read_text(encoding="utf-8")
            finally:
                await kubelet.stop()

    asyncio.run(run())
