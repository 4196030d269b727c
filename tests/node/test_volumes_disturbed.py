"""Volumes whose readers, mounts, sockets, journal or agent are disturbed."""

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest

from csi.model import Contents, PodRef, Volume
from csi.pb import csi_pb2
from csi.volume import VolumeDirectory
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod
from svid.authority import X509Authority
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.support import DEADLINE, DRIVER, IS_ROOT, VOLUME, first, host, node, pod, serial

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")


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
            whole = here.base / "whole"
            whole.write_text("kept", encoding="utf-8")
            subprocess.run(["mount", "--bind", whole, (target / "tls.crt").resolve()], check=True)
            with _foreign_mount("directory", here.base, target / "inner" / "deep") as precious:
                held = os.open(target, os.O_RDONLY)
                try:
                    await kubelet.unpublish(web, VOLUME)
                    assert "inner" in os.listdir(held)
                finally:
                    os.close(held)
                assert os.listdir(precious) == ["file"]
                assert whole.read_text(encoding="utf-8") == "kept"
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


def test_a_file_mounted_over_one_of_a_volumes_keeps_what_is_in_it_whatever_its_number() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            web = pod()
            target = await kubelet.publish(web, VOLUME)
            key = (target / "tls.key").resolve()
            elsewhere = here.base / "elsewhere"
            elsewhere.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "other", elsewhere], check=True)
            try:
                # Each tmpfs numbers its files by itself, one after the other.
                for number in range(key.stat().st_ino + 1):
                    path = elsewhere / str(number)
                    path.write_text("kept", encoding="utf-8")
                    if path.stat().st_ino == key.stat().st_ino:
                        break
                assert path.stat().st_ino == key.stat().st_ino
                subprocess.run(["mount", "--bind", path, key], check=True)
                await kubelet.unpublish(web, VOLUME)
                assert path.read_text(encoding="utf-8") == "kept"
            finally:
                subprocess.run(["umount", elsewhere], check=True)

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
            # An authority from files, which ends soon, but not while the agent starts on a busy machine: after that
            # nothing can be renewed.
            issuer = X509Authority.create(
                TrustDomain("example.org"),
                algorithm=KeyAlgorithm.EC_P256,
                lifetime=timedelta(seconds=20),
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
                with pytest.raises(PublishFailed, match=r"IDENTITY_UNAVAILABLE.*authority expired"):
                    await kubelet.publish(pod("late"), VOLUME)
                assert here.mounts() == [str(target)]
                assert "rotation failed" in here.log.read_text(encoding="utf-8")
            finally:
                await kubelet.stop()

    asyncio.run(run())
