"""Publishes and unpublishes that are wrong, and what they leave alone."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest

from csi.pb import csi_pb2
from csi.server import MAX_MESSAGE
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import PodVolume
from tests.mounted import mount_lines
from tests.support import DRIVER, IS_ROOT, VOLUME, node, pod, serial

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")
FILES = ["tls.crt", "tls.key", "ca.crt", "credential-bundle.private-key.pem", "bundle.json"]


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
    ("a static pod", _context("serviceAccount.name", ""), "static pods get no identity"),
    ("account with a newline", _context("serviceAccount.name", "web\n"), "not a service account name"),
    ("account with a slash", _context("serviceAccount.name", "a/b"), "not a service account name"),
    ("huge account", _context("serviceAccount.name", "a" * 30_000), "not a service account name"),
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


def test_a_refusal_leads_to_the_site_that_the_settings_name() -> None:
    async def run() -> None:
        async with node("--docs-url", "https://docs.example.org") as (_, kubelet):
            request = kubelet.publish_request(pod(), VOLUME)
            Path(request.target_path).parent.mkdir(parents=True)
            request.readonly = False
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await kubelet.call("NodePublishVolume", request)
            said = caught.value.details() or ""
            assert said.endswith(" (see https://docs.example.org/troubleshooting.html#invalid_request)")

    asyncio.run(run())


def test_a_call_longer_than_kubelets_is_refused_unread() -> None:
    async def run() -> None:
        async with node() as (here, kubelet):
            request = kubelet.publish_request(pod(), VOLUME)
            Path(request.target_path).parent.mkdir(parents=True)
            # Of a Secret that the pod's author names; kubelet sends it along.
            request.secrets["unread"] = "x" * MAX_MESSAGE
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
                await kubelet.call("NodePublishVolume", request)
            # Not final: kubelet tries again, and unpublishes.
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert here.mounts() == []
            request.secrets["unread"] = "x" * (MAX_MESSAGE - 2048)
            await kubelet.call("NodePublishVolume", request)
            assert len(here.mounts()) == 1

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
            assert not [line for line in mount_lines() if str(outside) in line]
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
