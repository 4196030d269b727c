"""The mount calls on this host's own kernel: what it lists, what counts as ours, and what is left to others."""

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from csi.files import mount_id
from csi.mount import Targets, TmpfsMounts
from csi.tmpfs import SIZE
from podsvid.quickstart.disk import mount_points_below
from runtime.federation import MAX_TOTAL_BYTES
from svid.bundle import TrustBundle
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.csi_rig import NOW, UID, contents, plain_directory, target
from tests.mounted import mount_lines
from tests.support import IS_ROOT

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")
BELOW = (UID, "volumes", "kubernetes.io~csi", "spiffe", "mount")


@pytest.fixture
def place() -> Iterator[Path]:
    """The target of a pod's volume, in directories as kubelet makes them."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
        found = Path(target(base))
        found.parent.mkdir(parents=True)
        try:
            yield found
        finally:
            for _ in listed(Path(base)):
                subprocess.run(["umount", "-l", listed(Path(base))[-1][4]], check=True)


def listed(base: Path) -> list[list[str]]:
    """The kernel's lines about what is mounted at `base` or below, oldest first."""
    return [line for each in mount_lines() if Path((line := each.split(" "))[4]).is_relative_to(base)]


def targets(place: Path) -> Targets:
    return Targets(str(place.parents[5]), TmpfsMounts())


def mount(place: Path, *arguments: str) -> None:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, place], check=True)


def knows_noswap() -> bool:
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "noswap", "x", base], check=False, capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", base], check=True)
        return done.returncode == 0


@pytest.mark.parametrize(("mode", "group"), [(0o755, None), (0o2750, 2000)])
def test_the_kernel_lists_a_bounded_tmpfs_without_programs_and_devices_and_swap(
    place: Path, mode: int, group: int | None
) -> None:
    found = targets(place).mount(BELOW, mode=mode, group=group)
    os.close(found.descriptor)
    ((*_, own, _, kind, source, options),) = listed(place)
    assert (kind, source) == ("tmpfs", "podsvid")
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(own.split(","))
    assert {"size=4096k", "nr_inodes=256"} <= set(options.split(","))
    assert ("noswap" in options.split(",")) == knows_noswap()
    seen = place.stat()
    assert (stat.S_IMODE(seen.st_mode), seen.st_gid) == (mode, group or 0)
    targets(place).remove(BELOW)
    assert listed(place) == []
    assert not place.exists()


@pytest.mark.parametrize("arguments", [("-t", "tmpfs", "other"), ("-t", "ramfs", "podsvid"), ("-t", "proc", "podsvid")])
def test_another_file_system_is_mounted_over_and_never_written_into(place: Path, arguments: tuple[str, ...]) -> None:
    mount(place, *arguments)
    theirs = os.open(place, os.O_RDONLY)
    try:
        before = sorted(os.listdir(theirs)) if arguments[1] != "proc" else []
        assert targets(place).find(BELOW) is None
        assert targets(place).find(BELOW, targets(place).own()) is None
        found = targets(place).mount(BELOW, mode=0o755, group=None)
        assert found.made
        assert not os.path.sameopenfile(found.descriptor, theirs)
        assert [line[-2] for line in listed(place)][1:] == ["podsvid"]
        assert [line[-3] for line in listed(place)][1:] == ["tmpfs"]
        os.close(os.open("tls.key", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=found.descriptor))
        os.close(found.descriptor)
        if arguments[1] != "proc":
            assert sorted(os.listdir(theirs)) == before
    finally:
        os.close(theirs)
    targets(place).remove(BELOW)
    assert listed(place) == []
    assert not place.exists()


def test_a_directory_of_one_of_our_own_mounts_is_not_the_targets_mount(place: Path) -> None:
    other = place.with_name("other")
    mount(other, "-t", "tmpfs", "podsvid")
    (other / "inner").mkdir()
    mount(place, "--bind", str(other / "inner"))
    assert targets(place).find(BELOW) is None
    assert targets(place).find(BELOW, targets(place).own()) is None
    found = targets(place).mount(BELOW, mode=0o755, group=None)
    assert found.made
    os.close(os.open("tls.key", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=found.descriptor))
    os.close(found.descriptor)
    assert list((other / "inner").iterdir()) == []


def test_our_own_mount_is_found_and_kept(place: Path) -> None:
    first = targets(place).mount(BELOW, mode=0o755, group=None)
    (place / "tls.key").touch()
    again = targets(place).mount(BELOW, mode=0o755, group=None)
    found = targets(place).find(BELOW)
    assert found is not None
    assert (first.made, again.made) == (True, False)
    assert os.path.sameopenfile(first.descriptor, found)
    assert len(listed(place)) == 1
    assert (place / "tls.key").exists()
    # Nor does it depend on a list that misses it, as kernels before 5.8 give.
    others = [targets(place).find(BELOW, own) for own in (targets(place).own(), frozenset[int]())]
    for each in (again.descriptor, found, *others):
        assert each is not None
        assert os.path.sameopenfile(first.descriptor, each)
        os.close(each)
    os.close(first.descriptor)


def test_a_name_that_a_pod_chose_is_no_line_of_the_kernels_list(place: Path) -> None:
    # kubelet binds a volume's subPath below the pods' directory; a pod's author calls it as he likes.
    chosen = place.parent / "sub\rpath"
    chosen.mkdir()
    mount(chosen, "--bind", str(chosen))
    first = targets(place).mount(BELOW, mode=0o755, group=None)
    again = targets(place).mount(BELOW, mode=0o755, group=None)
    own = targets(place).own()
    found = targets(place).find(BELOW, own)
    try:
        assert found is not None
        assert own is not None
        assert mount_id(found) in own
        assert (first.made, again.made) == (True, False)
        assert place in mount_points_below(place.parents[5])
        assert chosen in mount_points_below(place.parents[5])
    finally:
        for each in (first.descriptor, again.descriptor, found):
            if each is not None:
                os.close(each)


def test_a_mount_without_room_for_more_does_not_hold_a_cut_file(place: Path) -> None:
    found = targets(place).mount(BELOW, mode=0o755, group=None)
    os.close(found.descriptor)
    with pytest.raises(OSError, match="No space left"), (place / "big").open("wb", buffering=0) as file:
        while file.write(b"x" * 1024 * 1024):
            pass
    assert (place / "big").stat().st_size == 4 * 1024 * 1024


def test_files_that_a_pod_never_closes_keep_no_pages_and_are_weighed(place: Path) -> None:
    os.close(targets(place).mount(BELOW, mode=0o755, group=None).descriptor)
    held: list[int] = []
    with plain_directory(place) as directory:
        for number in range(10):
            directory.write(contents(), NOW + timedelta(seconds=number))
            held += [os.open(path, os.O_RDONLY) for path in (place / "..data").iterdir()]
        try:
            names = sum(len(names) + len(folders) for _, folders, names in os.walk(place))
            (pages, inodes) = (usage.used for usage in directory.usage())
            assert inodes > names + 30
            assert pages <= 3 * 8 * 2 * os.sysconf("SC_PAGE_SIZE")
            assert directory.weight(0, 1024).now >= pages + inodes * 1024
        finally:
            for each in held:
                os.close(each)
        assert directory.weight(0, 1024).now < pages + inodes * 1024


def test_a_volume_that_its_pod_keeps_full_is_told_from_one_that_is_full(place: Path) -> None:
    os.close(targets(place).mount(BELOW, mode=0o755, group=None).descriptor)
    held: list[int] = []
    with plain_directory(place) as directory:
        try:
            with pytest.raises(OSError, match="No space left"):
                for number in range(100):
                    directory.write(contents(), NOW + timedelta(seconds=number))
                    held += [os.open(path, os.O_RDONLY) for path in (place / "..data").iterdir()]
            assert directory.is_kept_full()
        finally:
            for each in held:
                os.close(each)
        assert not directory.is_kept_full()
        directory.write(contents(), NOW + timedelta(seconds=200))
        for number in range(directory.usage()[1].available):
            (place / f"file{number}").touch()
        with pytest.raises(OSError, match="No space left"):
            directory.write(contents(), NOW + timedelta(seconds=201))
        assert not directory.is_kept_full()


def test_who_has_something_open_of_a_volume_that_went_has_no_secrets(place: Path) -> None:
    os.close(targets(place).mount(BELOW, mode=0o755, group=None).descriptor)
    kept: list[int] = []
    with plain_directory(place, {"keystores": "pkcs12"}) as directory:
        for number in range(2):
            directory.write(contents(), NOW + timedelta(seconds=number))
        with directory.socket_place(None), socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{directory.descriptor}/..socket/1")
            directory.take_socket("1")
        try:
            # As the process that serves the sockets, or a container with the host's directories, in mounts of its own.
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 600"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
                assert other.stdout is not None
                other.stdout.readline()
                seen = Path(f"/proc/{other.pid}/root{place}")
                kept = [os.open(seen / name, os.O_RDONLY) for name in (".", "tls.key", "ca.crt", "keystore.password")]
                other.kill()
            directory.empty()
            directory.close()
            targets(place).remove(BELOW)
            assert not place.exists()
            assert os.listdir(kept[0]) == []
            assert [os.pread(each, 10, 0) for each in kept[1:]] == [b"", b"", b""]
        finally:
            for each in kept:
                os.close(each)


def test_of_a_busy_volume_the_secrets_go_at_once_and_of_a_foreign_one_nothing_does(place: Path) -> None:
    found = targets(place).mount(BELOW, mode=0o755, group=None)
    (place / "..1").mkdir()
    (place / "..1" / "tls.key").touch()
    targets(place).remove(BELOW)  # while it is open here
    assert os.listdir(found.descriptor) == []
    os.close(found.descriptor)
    assert listed(place) == []
    mount(place, "-t", "tmpfs", "other")
    (place / "kept").touch()
    held = os.open(place, os.O_RDONLY)
    targets(place).remove(BELOW)
    assert os.listdir(held) == ["kept"]
    os.close(held)
    assert listed(place) == []
    assert not place.exists()


def test_what_is_mounted_below_the_target_is_left_as_it_is(place: Path) -> None:
    nested = place / "a" / "nested"
    nested.mkdir(parents=True)
    mount(nested, "-t", "tmpfs", "other")
    (nested / "kept").touch()
    with pytest.raises(OSError, match="something is mounted below the target path"):
        targets(place).remove(BELOW)
    assert (nested / "kept").exists()
    subprocess.run(["umount", nested], check=True)
    targets(place).remove(BELOW)
    assert not place.exists()


def test_a_directory_of_a_tmpfs_is_not_a_tmpfs_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where kubelet's root is on a tmpfs: one mount more or less, and the files would be everybody's."""
    mount(place.parents[4], "-t", "tmpfs", "other")
    place.parent.mkdir(parents=True)
    mounts = TmpfsMounts()
    monkeypatch.setattr(mounts, "_mount", lambda directory, options: None)
    with pytest.raises(OSError, match="the tmpfs did not appear at the target path"):
        Targets(str(place.parents[5]), mounts).mount(BELOW, mode=0o755, group=None)
    assert not place.exists()


def test_a_mount_that_does_not_appear_is_noticed_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = TmpfsMounts()
    monkeypatch.setattr(mounts, "_mount", lambda directory, options: None)
    with pytest.raises(OSError, match="the tmpfs did not appear at the target path"):
        Targets(str(place.parents[5]), mounts).mount(BELOW, mode=0o755, group=None)
    assert not place.exists()


def foreign(number: int, domains: int, roots: int) -> tuple[TrustBundle, ...]:
    """Federated bundles that are others for each number, of roots as long as RSA-4096 makes them."""

    def one(domain: int, each: int) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{number}.{domain}.{each}")])
        key = LONG.public_key()
        builder = x509.CertificateBuilder(name, name, key, x509.random_serial_number(), NOW, NOW + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.9"), b"x" * 480), False)
        return builder.sign(SHORT, SHA256())

    return tuple(
        TrustBundle(TrustDomain(f"p{domain}.test"), tuple(one(domain, each) for each in range(roots)))
        for domain in range(domains)
    )


LONG = KeyAlgorithm.RSA_4096.generate()
SHORT = KeyAlgorithm.EC_P256.generate()


@pytest.mark.parametrize("layout", ["spiffe", "grpc"])
def test_all_bundles_that_are_accepted_can_be_written_for_ever(place: Path, layout: str) -> None:
    os.close(targets(place).mount(BELOW, mode=0o755, group=None).descriptor)
    bundles = [foreign(number, 40, 20) for number in range(3)]
    size = sum(len(each.to_jwks()) for each in bundles[0])
    assert MAX_TOTAL_BYTES * 0.9 < size < MAX_TOTAL_BYTES
    with plain_directory(place, {"layout": layout}) as directory:
        for number in range(7):
            made = contents()
            identity = replace(made.identity, federated=bundles[number % 3])
            # None is swept away meanwhile: it is the worst that can be.
            directory.write(replace(made, identity=identity), NOW + timedelta(seconds=number))
            assert directory.holds(replace(made, identity=identity))
            assert (place / "..data" / ".state.json").stat().st_size < 8192
        grown = os.statvfs(place)
        assert (grown.f_blocks * grown.f_frsize > SIZE) == (layout == "grpc")
        ((*_, own, _, _, _, options),) = listed(place)
        assert {"rw", "nosuid", "nodev", "noexec"} <= set(own.split(","))
        assert "nr_inodes=256" in options.split(",")
        assert ("noswap" in options.split(",")) == knows_noswap()
        # What is not needed any more is given back, once it is empty enough.
        for number in range(7, 10):
            directory.write(contents(), NOW + timedelta(seconds=number))
            directory.prune()
        directory.write(contents(), NOW + timedelta(seconds=10))
        shrunk = os.statvfs(place)
        assert shrunk.f_blocks * shrunk.f_frsize == SIZE


def test_where_a_volume_cannot_grow_older_files_give_way_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(targets(place).mount(BELOW, mode=0o755, group=None).descriptor)

    def refused(directory: int, size: int) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("csi.volume.resize", refused)
    bundles = [foreign(number, 40, 14) for number in range(2)]
    with plain_directory(place, {"layout": "grpc"}) as directory:
        for number in range(6):
            made = contents()
            identity = replace(made.identity, federated=bundles[number % 2])
            directory.write(replace(made, identity=identity), NOW + timedelta(seconds=number))
            assert len(list(place.glob("..2*"))) <= 2
