"""The mount calls as they are made, without a mount: what the kernel is asked for, and targets when a step fails."""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.errors import InvalidRequest, UndoFailed
from csi.mount import MNT_DETACH, UMOUNT_NOFOLLOW, PlainDirectories, Targets, TmpfsMounts
from tests.csi_rig import UID, FakeMounts, Steps, target

BELOW = (UID, "volumes", "kubernetes.io~csi", "spiffe", "mount")
FULL = OSError(errno.ENOSPC, "No space left on device")
# <sys/mount.h>: spelled again, so that a constant of the product that is wrong is seen.
NOSUID, NODEV, NOEXEC = 2, 4, 8


class FakeLibc:
    """Implements the three calls of TmpfsMounts; `refusing` answers mount options with an errno, 0 for fine."""

    def __init__(self, refusing: Callable[[str], int] = lambda options: 0) -> None:
        self._refusing = refusing
        self.mounts: list[tuple[bytes, bytes, int, str]] = []
        self.unmounts: list[int] = []
        self.busy = False

    def mount(self, source: bytes, place: bytes, kind: bytes, flags: ctypes.c_ulong, data: bytes) -> int:
        self.mounts.append((source, kind, flags.value, data.decode()))
        ctypes.set_errno(self._refusing(data.decode()))
        return -1 if ctypes.get_errno() else 0

    def umount2(self, path: bytes, flags: int) -> int:
        self.unmounts.append(flags)
        ctypes.set_errno(errno.EBUSY if self.busy and not flags & MNT_DETACH else 0)
        return -1 if ctypes.get_errno() else 0


def mounts(libc: FakeLibc, selinux: bool = False) -> TmpfsMounts:
    found = TmpfsMounts()
    found._libc = libc  # type: ignore[assignment]
    found._selinux = selinux
    return found


def attach(libc: FakeLibc, base: Path, mode: int = 0o755, group: int | None = None, selinux: bool = False) -> None:
    descriptor = os.open(base, os.O_RDONLY)
    try:
        mounts(libc, selinux).attach(descriptor, mode=mode, group=group)
    finally:
        os.close(descriptor)


def test_the_kernel_is_asked_for_a_bounded_tmpfs_that_nothing_runs_from_and_that_never_reaches_a_disk(
    tmp_path: Path,
) -> None:
    libc = FakeLibc()
    attach(libc, tmp_path)
    first = "size=4194304,nr_inodes=256,mode=755,noswap"
    assert libc.mounts == [(b"podsvid", b"tmpfs", NOSUID | NODEV | NOEXEC, first)]
    attach(libc, tmp_path, 0o2750, 0)
    assert libc.mounts[1][3] == "size=4194304,nr_inodes=256,mode=2750,gid=0,noswap"
    attach(libc, tmp_path, selinux=True)
    assert 'context="system_u:object_r:container_file_t:s0"' in libc.mounts[2][3]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_a_kernel_that_does_not_know_noswap_is_asked_for_all_the_rest(tmp_path: Path, number: int) -> None:
    libc = FakeLibc(lambda options: number if "noswap" in options else 0)
    attach(libc, tmp_path, 0o2750, 2000)
    with_it, without = libc.mounts
    assert with_it[3] == f"{without[3]},noswap"
    assert with_it[:3] == without[:3] == (b"podsvid", b"tmpfs", NOSUID | NODEV | NOEXEC)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_another_refusal_is_no_reason_to_do_without_noswap(tmp_path: Path, number: int) -> None:
    libc = FakeLibc(lambda options: number)
    with pytest.raises(OSError, match="mount: ") as caught:
        attach(libc, tmp_path)
    assert caught.value.errno == number
    assert len(libc.mounts) == 1


def test_a_kernel_that_refuses_both_is_an_error(tmp_path: Path) -> None:
    libc = FakeLibc(lambda options: errno.EPERM)
    with pytest.raises(OSError, match="mount: ") as caught:
        attach(libc, tmp_path)
    assert caught.value.errno == errno.EPERM
    assert len(libc.mounts) == 2


def test_a_directory_that_is_not_a_tmpfs_of_its_own_is_not_safe(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    parent, directory = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "mount", os.O_RDONLY)
    proc = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="the tmpfs did not appear"):
            TmpfsMounts().verify(directory, parent)
        # A mount of its own, but of another file system: what is written there might reach a disk.
        with pytest.raises(OSError, match="the tmpfs did not appear"):
            TmpfsMounts().verify(proc, parent)
        assert not TmpfsMounts().attached(directory, parent)
        assert not TmpfsMounts().attached(proc, parent)
    finally:
        for each in (parent, directory, proc):
            os.close(each)


def test_a_target_that_changes_meanwhile_is_not_followed_by_umount(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "another's").touch()
    libc = FakeLibc()
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        mounts(libc).detach(parent, "mount")
        assert libc.unmounts == [UMOUNT_NOFOLLOW] == [8]
        libc.busy = True
        mounts(libc).detach(parent, "mount")
        assert libc.unmounts[1:] == [UMOUNT_NOFOLLOW, UMOUNT_NOFOLLOW | MNT_DETACH] == [8, 10]
    finally:
        os.close(parent)
    # It was not ours, so it was not emptied.
    assert (tmp_path / "mount" / "another's").exists()


class Place:
    """A pod's directory below a kubelet root, and the targets of it."""

    def __init__(self, base: Path) -> None:
        self.target = Path(target(base))
        self.target.parent.mkdir(parents=True)
        self.steps = Steps()
        self.mounts = FakeMounts(self.steps)
        self.targets = Targets(str(base), self.mounts)

    def mount(self, mode: int = 0o755, group: int | None = None) -> tuple[int, bool]:
        found = self.targets.mount(BELOW, mode=mode, group=group)
        return found.descriptor, found.made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_mounted_target_is_open_and_has_its_mode(place: Place) -> None:
    descriptor, made = place.mount(0o2750, os.getgid())
    found = os.fstat(descriptor)
    assert made
    assert stat.S_IMODE(found.st_mode) == 0o2750
    assert os.path.samestat(found, place.target.stat())
    assert place.targets.is_at(descriptor, BELOW)
    os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another group: run as root")
def test_group_and_mode_are_the_wanted_ones_also_of_a_mount_that_was_found(place: Place) -> None:
    descriptor, _ = place.mount(0o2750, 2000)
    found = os.fstat(descriptor)
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (2000, 0o2750)
    os.close(descriptor)
    # A mount that was found is brought to the wanted group and mode, too.
    descriptor, made = place.mount(0o2750, 3000)
    found = os.fstat(descriptor)
    assert (made, found.st_gid, stat.S_IMODE(found.st_mode)) == (False, 3000, 0o2750)
    os.close(descriptor)


def test_a_mount_of_ours_is_kept_and_verified_again(place: Place) -> None:
    first, _ = place.mount()
    again, made = place.mount()
    assert not made
    assert place.steps.taken == ["attach", "verify", "verify"]
    place.steps.failing["verify"] = FULL
    with pytest.raises(OSError, match="No space"):
        place.mount()
    # A running pod may use it: this call has not made it, so this call does not take it away.
    assert place.steps.taken == ["attach", "verify", "verify", "verify"]
    assert place.target.is_dir()
    os.close(first)
    os.close(again)


@pytest.mark.parametrize("step", ["attach", "verify"])
@pytest.mark.parametrize("was_there", [False, True])
def test_a_mount_that_fails_leaves_nothing_that_this_call_made(place: Place, step: str, was_there: bool) -> None:
    if was_there:
        place.target.mkdir()
    before = descriptors()
    place.steps.failing[step] = FULL
    with pytest.raises(OSError, match="No space"):
        place.mount()
    assert place.mounts.mounted == set()
    assert place.target.exists() == (was_there and step == "attach")
    assert descriptors() == before


def test_a_target_whose_mode_cannot_be_set_is_taken_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()

    def fchmod(descriptor: int, mode: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fchmod", fchmod)
    with pytest.raises(OSError, match="No space"):
        place.mount(0o2750)
    assert place.mounts.mounted == set()
    assert not place.target.exists()
    assert descriptors() == before


def test_a_mount_that_cannot_be_undone_says_so(place: Place) -> None:
    place.steps.failing |= {"verify": FULL, "detach": OSError(errno.EBUSY, "Device or resource busy")}
    with pytest.raises(UndoFailed, match="a failed mount could not be undone: Device or resource busy"):
        place.mount()


@pytest.mark.parametrize("depth", range(6))
@pytest.mark.parametrize("kind", ["link", "file"])
def test_no_part_of_the_way_is_a_link_or_a_file(tmp_path: Path, depth: int, kind: str) -> None:
    place = Place(tmp_path / "kubelet")
    place.target.mkdir()
    where = [place.target, *place.target.parents][depth]
    assert where.is_relative_to(tmp_path / "kubelet" / "pods")
    behind = tmp_path / "behind"
    where.rename(behind)
    if kind == "link":
        where.symlink_to(behind)
    else:
        where.touch()
    before = descriptors()
    with pytest.raises(InvalidRequest, match="leads through a symlink or a file"):
        place.mount()
    assert place.steps.taken == []
    assert place.targets.find(BELOW) is None
    descriptor = os.open(behind, os.O_RDONLY)
    assert not place.targets.is_at(descriptor, BELOW)
    os.close(descriptor)
    assert descriptors() == before
    kept = behind.joinpath(*BELOW[len(BELOW) - depth :])
    assert kept.is_dir()
    if depth == 0:
        # The target itself: that link goes, and not what it leads to.
        place.targets.remove(BELOW)
        assert not os.path.lexists(where)
    else:
        with pytest.raises(InvalidRequest):
            place.targets.remove(BELOW)
    assert kept.is_dir()


def test_removing_takes_every_mount_that_is_stacked_and_nothing_is_fine(place: Place) -> None:
    place.targets.remove(BELOW)
    os.close(place.mount()[0])
    place.targets.remove(BELOW)
    assert not place.target.exists()
    place.targets.remove(BELOW)
    place.target.parent.rmdir()
    place.targets.remove(BELOW)
    assert place.steps.taken == ["attach", "verify", "detach"]


@pytest.mark.timeout(20)
def test_a_mount_that_never_goes_is_an_error_and_not_an_endless_loop(place: Place) -> None:
    os.close(place.mount()[0])
    seen: list[str] = []
    place.mounts.detach = lambda parent, name: seen.append(name)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="more than 16 mounts are stacked"):
        place.targets.remove(BELOW)
    assert seen == ["mount"] * 16


def test_what_was_written_while_nothing_was_mounted_goes_and_links_lead_nowhere(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (place.target / "a" / "b").mkdir(parents=True)
    (place.target / "a" / "file").touch()
    (place.target / "a" / "link").symlink_to(outside)
    place.targets.remove(BELOW)
    assert not place.target.exists()
    assert (outside / "kept").exists()


def test_only_a_mounted_target_is_found(place: Place) -> None:
    before = descriptors()
    assert place.targets.find(BELOW) is None
    place.target.mkdir()
    assert place.targets.find(BELOW) is None
    assert descriptors() == before
    descriptor, _ = place.mount()
    found = place.targets.find(BELOW)
    assert found is not None
    assert os.path.sameopenfile(found, descriptor)
    assert place.targets.is_at(found, BELOW)
    place.target.rename(place.target.with_name("moved"))
    assert not place.targets.is_at(found, BELOW)
    place.target.mkdir()
    assert not place.targets.is_at(found, BELOW)
    os.close(found)
    os.close(descriptor)


def test_the_kubelet_root_itself_may_be_a_link(tmp_path: Path) -> None:
    place = Place(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    targets = Targets(str(tmp_path / "link"), place.mounts)
    os.close(targets.mount(BELOW, mode=0o755, group=None).descriptor)
    assert place.target.is_dir()


def test_plain_directories_are_mounted_when_something_is_in_them(tmp_path: Path) -> None:
    place = Place(tmp_path)
    targets = Targets(str(tmp_path), PlainDirectories())
    found = targets.mount(BELOW, mode=0o2750, group=os.getgid())
    assert stat.S_IMODE(os.fstat(found.descriptor).st_mode) == 0o2750
    os.close(found.descriptor)
    assert targets.find(BELOW) is None
    (place.target / "tls.key").touch()
    descriptor = targets.find(BELOW)
    assert descriptor is not None
    os.close(descriptor)
    targets.remove(BELOW)
    assert not place.target.exists()
