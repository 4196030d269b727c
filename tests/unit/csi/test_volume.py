"""A volume's files: all of the new ones or all of the old ones, whatever fails, and for whom they are."""

import errno
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from csi import tmpfs
from csi.errors import InvalidRequest
from csi.model import Contents
from csi.volume import modes
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import InvalidSvid
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.csi_rig import NOW, WEB, contents, plain_directory
from tests.here_sockets import socket_path

FILES = ["ca.crt", "tls.crt", "tls.key", "credential-bundle.private-key.pem", "bundle.json"]
# As the design has it, and as its readers' fsGroup needs it.
SECRET, PUBLIC = {"tls.key", "credential-bundle.private-key.pem"}, {"tls.crt", "ca.crt", "bundle.json"}


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As a file system that is full: write(2) takes what still fits and says so by its result only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def generations(base: Path) -> list[str]:
    return sorted(path.name for path in base.glob("..2*"))


def read_all(base: Path) -> dict[str, bytes]:
    return {name: (base / name).read_bytes() for name in FILES}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def failing(monkeypatch: pytest.MonkeyPatch, call: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Have `os.<call>` fail where `when` its arguments say so."""
    real = getattr(os, call)

    def fake(*arguments: object, **named: object) -> object:
        if when(*arguments, **named):
            raise OSError(28, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, fake)


def test_a_file_that_fits_in_part_is_no_file(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        old, new = contents(), contents()
        directory.write(old, NOW)
        before, kept = read_all(tmp_path), generations(tmp_path)
        size = (tmp_path / "..data" / ".state.json").stat().st_size
        with files_no_longer_than(size - 100), pytest.raises(OSError, match="File too large"):
            directory.write(new, NOW)
        assert read_all(tmp_path) == before
        assert generations(tmp_path) == kept
        assert directory.holds(old)


@pytest.mark.parametrize("call", ["mkdir", "fchmod", "symlink", "rename"])
def test_whatever_call_fails_the_old_files_stay_and_nothing_of_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with plain_directory(tmp_path) as directory:
        old = contents()
        directory.write(old, NOW)
        before, kept = read_all(tmp_path), generations(tmp_path)
        with monkeypatch.context() as patched:
            failing(patched, call)
            with pytest.raises(OSError, match="No space left"):
                directory.write(contents(), NOW)
        assert read_all(tmp_path) == before
        assert generations(tmp_path) == kept
        assert directory.read().identity.default.serial == old.identity.default.serial
        # What the failure left is in nobody's way.
        new = contents()
        directory.write(new, NOW)
        assert directory.read().identity.default.serial == new.identity.default.serial
        assert directory.holds(new)


def test_the_new_files_appear_all_at_once_after_the_last_of_them_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plain_directory(tmp_path) as directory:
        directory.write(contents(), NOW)
        before, real, switches = read_all(tmp_path), os.rename, list[str]()

        def rename(source: str, destination: str, **named: int) -> None:
            assert read_all(tmp_path) == before
            (new,) = set(generations(tmp_path)) - {os.readlink(tmp_path / "..data")}
            # Whoever follows the link from now on finds every file, for the right readers.
            assert {*FILES} <= {path.name for path in (tmp_path / new).iterdir()}
            assert mode(tmp_path / new) == 0o755
            assert all(mode(tmp_path / new / name) == 0o444 for name in FILES)
            real(source, destination, **named)
            switches.append(destination)

        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", rename)
            directory.write(contents(), NOW)
        assert switches == ["..data"]
        after = read_all(tmp_path)
        assert all(after[name] != before[name] for name in ("tls.crt", "tls.key"))


def test_a_reader_keeps_the_two_generations_before(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        written = []
        for number in range(5):
            directory.write(contents(), NOW + timedelta(seconds=number))
            written.append(os.readlink(tmp_path / "..data"))
        assert generations(tmp_path) == sorted(written[-3:])
        # Somebody else's directories are not ours to remove.
        for name in ("..other", "2000"):
            (tmp_path / name).mkdir()
            os.utime(tmp_path / name, (0, 0))
        directory.write(contents(), NOW + timedelta(seconds=9))
        assert (tmp_path / "..other").is_dir()
        assert (tmp_path / "2000").is_dir()


def test_what_a_pod_has_open_of_files_that_are_removed_is_empty(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        directory.write(contents(), NOW)
        names = [".state.json", "tls.crt", *SECRET]
        held = [os.open(tmp_path / "..data" / name, os.O_RDONLY) for name in names]
        try:
            for number in range(1, 3):
                directory.write(contents(), NOW + timedelta(seconds=number))
                assert all(os.fstat(file).st_size for file in held)
            directory.write(contents(), NOW + timedelta(seconds=3))
            assert [os.fstat(file).st_size for file in held] == [0] * len(held)
        finally:
            for file in held:
                os.close(file)


class Ended(BaseException):
    """The process that wrote does no more."""


def test_an_end_of_the_process_while_files_are_emptied_keeps_no_key_for_who_has_it_open(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        directory.write(contents(), NOW)
        with (tmp_path / "tls.key").open("rb") as held:
            directory.write(contents(), NOW + timedelta(seconds=1))
            inode, steps = os.fstat(held.fileno()).st_ino, list[str]()

            def ending(name: str, real: Callable[..., None]) -> Callable[..., None]:
                def step(file: int | str, *more: int, dir_fd: int | None = None) -> None:
                    if os.stat(file, dir_fd=dir_fd).st_ino == inode:
                        steps.append(name)
                    if len(steps) > 1:
                        raise Ended
                    real(file, *more, **({} if dir_fd is None else {"dir_fd": dir_fd}))

                return step

            with pytest.MonkeyPatch.context() as patched:
                for name in ("unlink", "ftruncate"):
                    patched.setattr(os, name, ending(name, getattr(os, name)))
                with pytest.raises(Ended):
                    directory.prune()
            assert sorted(steps) == ["ftruncate", "unlink"]
            with plain_directory(tmp_path) as following:
                assert following.prune()
            assert held.read() == b""
            assert len(generations(tmp_path)) == 1


def test_what_lasts_is_empty_with_its_volume_though_something_is_mounted_in_an_older_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink
    with plain_directory(tmp_path, {"keystores": "pkcs12"}) as directory:
        directory.write(contents(), NOW)
        older = os.stat((tmp_path / "..data").resolve()).st_ino
        directory.write(contents(), NOW + timedelta(seconds=1))

        def unlink(path: str, *, dir_fd: int) -> None:
            if os.fstat(dir_fd).st_ino == older and path == "keystore.password":
                raise OSError(errno.EBUSY, "Device or resource busy")
            real(path, dir_fd=dir_fd)

        monkeypatch.setattr(os, "unlink", unlink)
        with (tmp_path / "keystore.password").open("rb") as held:
            directory.empty()
            assert held.read() == b""
        assert [path.name for path in tmp_path.glob("..2*/*")] == ["keystore.password"]


def test_older_files_are_no_more_than_usual_after_writes_that_failed_at_a_link(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        directory.write(contents(), NOW)
        assert directory.prune()
        # Not one that a write could take away.
        (tmp_path / "tls.crt").unlink()
        (tmp_path / "tls.crt").mkdir()
        for number in range(1, 6):
            with pytest.raises(OSError, match=r"tls\.crt"):
                directory.write(contents(), NOW + timedelta(seconds=number))
        (tmp_path / "tls.crt").rmdir()
        directory.write(contents(), NOW + timedelta(seconds=6))
        assert len(generations(tmp_path)) == 3


def test_a_write_looks_for_older_files_only_where_there_may_be_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looked = os.scandir, list[object]()

    def scandir(path: int) -> Any:
        looked.append(path)
        return real(path)

    with plain_directory(tmp_path) as directory:
        # An earlier process's may be there.
        directory.write(contents(), NOW)
        directory.write(contents(), NOW + timedelta(seconds=1))
        assert directory.prune()
        monkeypatch.setattr(os, "scandir", scandir)
        for number in range(2, 4):
            directory.write(contents(), NOW + timedelta(seconds=number))
        assert looked == []
        directory.write(contents(), NOW + timedelta(seconds=4))
        assert looked != []
        assert len(generations(tmp_path)) == 3


def also_trusting(given: Contents, more: TrustBundle) -> Contents:
    own = given.identity.bundle
    both = replace(own, x509_authorities=(*own.x509_authorities, *more.x509_authorities))
    return replace(given, identity=replace(given.identity, bundle=both))


def test_files_that_say_the_same_again_are_one_and_stay_readable_for_who_mounted_one_alone(tmp_path: Path) -> None:
    attributes = {"keystores": "pkcs12"}
    lasting = ["ca.crt", "bundle.json", "truststore.p12", "keystore.password"]
    with plain_directory(tmp_path, attributes) as directory:
        directory.write(contents(), NOW)
        # Kept open, so that no later file gets the number of one of them.
        first = {path.name: os.open(path, os.O_RDONLY) for path in (tmp_path / "..data").iterdir()}
        before = {name: (tmp_path / name).read_bytes() for name in lasting}
        for number in range(1, 6):
            directory.write(contents(), NOW + timedelta(seconds=number))
        now = [
            path for path in (tmp_path / "..data").iterdir() if path.stat().st_ino == os.fstat(first[path.name]).st_ino
        ]
        assert {path.name for path in now} == set(lasting)
        assert {stat.S_IMODE((tmp_path / "..data" / name).stat().st_mode) for name in lasting} == {0o444}
        # What they weigh is not counted once for each generation.
        assert directory.weight(0, 0).now < sum(path.stat().st_blocks * 512 for path in tmp_path.glob("..2*/*"))
        # Nor does it come to weigh more when the older ones have gone.
        grown = directory.weight(0, 0).grown
        assert directory.prune()
        # A third of a file is rounded down.
        assert directory.weight(0, 0).grown - grown < 3 * len(lasting)
        # Other authorities are other files, and whoever has the old ones keeps them.
        domain, day = TrustDomain("example.org"), timedelta(days=1)
        another = X509Authority.create(domain, algorithm=KeyAlgorithm.EC_P256, lifetime=day, now=NOW)
        changed = also_trusting(contents(), another.bundle)
        for number in range(6, 10):
            directory.write(changed, NOW + timedelta(seconds=number))
        after = {name: (tmp_path / name).read_bytes() for name in lasting}
        assert {name for name in lasting if after[name] != before[name]} == {"ca.crt", "bundle.json", "truststore.p12"}
        assert {name: os.pread(first[name], 1 << 20, 0) for name in lasting} == before
        for file in first.values():
            os.close(file)


@pytest.mark.parametrize("damage", ["link", "other content", "gone"])
def test_a_file_that_somebody_damaged_is_not_kept_because_it_lasts(tmp_path: Path, damage: str) -> None:
    with plain_directory(tmp_path) as directory:
        directory.write(contents(), NOW)
        own = (tmp_path / "ca.crt").read_bytes()
        path = (tmp_path / "..data").resolve() / "ca.crt"
        path.unlink()
        if damage == "link":
            path.symlink_to("/etc/hostname")
        if damage == "other content":
            path.write_bytes(own[:-1])
        directory.write(contents(), NOW + timedelta(seconds=1))
        assert (tmp_path / "ca.crt").read_bytes() == own
        assert not (tmp_path / "..data" / "ca.crt").is_symlink()


def test_what_a_pod_has_open_of_files_that_never_came_about_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def open_and_fail(*_: object, **__: object) -> None:
        # Whoever is root in the pod reads what is not there for anybody yet.
        held.append(os.open(next(tmp_path.glob("..2*/tls.key")), os.O_RDONLY))
        raise OSError(28, "No space left on device")

    with plain_directory(tmp_path) as directory:
        monkeypatch.setattr(os, "symlink", open_and_fail)
        with pytest.raises(OSError, match="No space"):
            directory.write(contents(), NOW)
        assert os.fstat(held[0]).st_size == 0
        os.close(held[0])


def test_what_stands_in_a_links_place_is_replaced(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        (tmp_path / "tls.key").write_bytes(b"not a link")
        (tmp_path / "tls.crt").symlink_to("/etc/hostname")
        directory.write(contents(), NOW)
        assert os.readlink(tmp_path / "tls.key") == "..data/tls.key"
        assert os.readlink(tmp_path / "tls.crt") == "..data/tls.crt"
        assert (os.readlink(tmp_path / "api.sock"), os.readlink(tmp_path / "spire-agent.sock")) == ("socket", "socket")


@pytest.mark.parametrize("group", [None, os.getgid()])
def test_who_may_read(tmp_path: Path, group: int | None) -> None:
    own = 0o444 if group is None else 0o440
    with plain_directory(tmp_path, group=group) as directory:
        directory.write(contents(), NOW)
        assert {mode(tmp_path / name) for name in FILES} == {own}
        assert mode(tmp_path / "..data") == (0o755 if group is None else 0o2750)
        assert mode(tmp_path / "..data" / ".state.json") == 0o400
    with plain_directory(tmp_path, {"keyMode": "0400", "fileMode": "0644"}, group) as directory:
        directory.write(contents(), NOW)
        assert {mode(tmp_path / name) for name in SECRET} == {0o400}
        assert {mode(tmp_path / name) for name in PUBLIC} == {0o644}
        assert mode(tmp_path / "..data" / ".state.json") == 0o400


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others: run as root")
def test_files_directory_and_socket_are_given_to_the_pods_group(tmp_path: Path) -> None:
    with plain_directory(tmp_path, {"fileOwner": "70"}, 2000) as directory:
        directory.write(contents(), NOW)
        assert {(path.stat().st_uid, path.stat().st_gid) for path in map(tmp_path.joinpath, FILES)} == {(70, 2000)}
        assert (tmp_path / "..data").stat().st_gid == 2000
        state = (tmp_path / "..data" / ".state.json").stat()
        assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (0, 0, 0o400)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(socket_path(directory))
            directory.open_socket()
        found = (tmp_path / "socket").stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (2000, 0o660)


def test_a_key_is_readable_by_nobody_until_its_mode_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = os.fchmod, dict[str, int]()

    def fchmod(descriptor: int, wanted: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen[name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        real(descriptor, wanted)

    before = os.umask(0)
    try:
        with plain_directory(tmp_path) as directory, monkeypatch.context() as patched:
            patched.setattr(os, "fchmod", fchmod)
            directory.write(contents(), NOW)
    finally:
        os.umask(before)
    assert {seen[name] for name in (*FILES, ".state.json")} == {0o600}
    (stamp,) = generations(tmp_path)
    assert seen[stamp] == 0o700


def test_the_modes_are_the_designs() -> None:
    assert (modes(None).directory, modes(None).file, modes(None).socket) == (0o755, 0o444, 0o666)
    for group in (0, 2000):
        assert (modes(group).directory, modes(group).file, modes(group).socket) == (0o2750, 0o440, 0o660)


def test_a_socket_takes_its_mode_and_one_that_was_left_is_taken_away(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        assert not directory.has_socket()
        directory.prepare_socket()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(socket_path(directory))
                directory.open_socket()
            assert directory.has_socket()
            assert mode(tmp_path / "socket") == 0o666
            directory.prepare_socket()
        (tmp_path / "socket").write_bytes(b"")
        assert not directory.has_socket()
        (tmp_path / "socket").unlink()
        (tmp_path / "socket").symlink_to("elsewhere")
        assert not directory.has_socket()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user: run as root")
@pytest.mark.parametrize("group", [None, 2000])
def test_the_place_where_a_socket_is_bound_is_its_owners_alone_and_what_is_taken_is_nobodys(
    tmp_path: Path, group: int | None
) -> None:
    with plain_directory(tmp_path, {}, group) as directory:
        tmp_path.chmod(modes(group).directory)
        with directory.socket_place(1234) as place:
            found = os.fstat(place)
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 1234, 0o700)
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(f"/proc/self/fd/{place}/s1")
                os.chown(f"/proc/self/fd/{place}/s1", 1234, 1234)
                directory.take_socket("s1")
                with socket.socket(socket.AF_UNIX) as again:
                    again.bind(f"/proc/self/fd/{place}/s2")
                    directory.take_socket("s2")
        taken = (tmp_path / "socket").stat()
        assert (taken.st_uid, taken.st_gid) == (0, group or 0)
        assert stat.S_IMODE(taken.st_mode) == modes(group).socket
        assert os.listdir(tmp_path) == ["socket"]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount: run as root")
def test_nothing_of_the_volume_is_above_the_place_that_another_user_is_handed(tmp_path: Path) -> None:
    (tmp_path / "tls.key").write_bytes(b"secret")

    def above(place: int) -> list[str]:
        return os.listdir(f"/proc/self/fd/{place}/..")

    with plain_directory(tmp_path) as directory:
        with directory.socket_place(1234) as place:
            assert above(place) == []
            kept = os.dup(place)
        # It was removed meanwhile.
        assert above(kept) == []
        os.close(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount: run as root")
def test_who_is_handed_a_place_to_close_may_do_that_later(tmp_path: Path) -> None:
    later: list[int] = []
    with plain_directory(tmp_path) as directory, directory.socket_place(1234, later.append) as place:
        pass
    assert later == [place]
    assert stat.S_ISDIR(os.fstat(place).st_mode)
    assert os.listdir(tmp_path) == []
    os.close(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user: run as root")
def test_a_place_that_cannot_be_cut_off_is_not_handed_out_but_by_old_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tmpfs, "_CLONE", 1 << 30)  # no such flag
    with plain_directory(tmp_path) as directory:
        with pytest.raises(OSError, match="Invalid argument"), directory.socket_place(1234):
            raise AssertionError("it was handed out")
        assert os.listdir(tmp_path) == []
        monkeypatch.setattr(tmpfs, "_OPEN_TREE", 100000)  # no such call
        with directory.socket_place(1234) as place:
            assert os.listdir(place) == []


@pytest.mark.parametrize("kind", ["link", "file", "directory", "nothing"])
def test_only_a_socket_is_taken_and_the_place_is_emptied_of_all_else(tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.touch(0o600)
    volume = tmp_path / "volume"
    volume.mkdir()
    with plain_directory(volume) as directory:
        with directory.socket_place(None) as place, pytest.raises(OSError, match="no socket was bound"):
            if kind == "link":
                os.symlink(outside, "s1", dir_fd=place)
            elif kind == "file":
                os.close(os.open("s1", os.O_CREAT, dir_fd=place))
            elif kind == "directory":
                os.mkdir("s1", dir_fd=place)
            directory.take_socket("s1")
        assert os.listdir(volume) == []
        assert mode(outside) == 0o600


def test_what_was_replaced_while_it_was_taken_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.unlink(source, dir_fd=src_dir_fd)
        os.symlink("/etc/passwd", source, dir_fd=src_dir_fd)
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    with plain_directory(tmp_path) as directory, directory.socket_place(None) as place:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{place}/s1")
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="no socket was bound"):
            directory.take_socket("s1")
        monkeypatch.undo()
        assert not os.path.lexists(tmp_path / "socket")


def test_a_place_that_an_ended_process_left_is_made_anew(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        (tmp_path / "..socket").mkdir()
        (tmp_path / "..socket" / "left").touch()
        with directory.socket_place(None) as place:
            assert os.listdir(place) == []
        assert os.listdir(tmp_path) == []


def _without_a_file(base: Path) -> None:
    (base / "..data" / "tls.crt").unlink()


def _with_another_key(base: Path) -> None:
    (base / "..data" / "tls.key").chmod(0o600)
    (base / "..data" / "tls.key").write_bytes(b"another")


def _with_a_link(base: Path) -> None:
    real = base / "..data" / "tls.key"
    real.rename(base / "elsewhere")
    real.symlink_to(base / "elsewhere")


def _without_data(base: Path) -> None:
    (base / "..data").unlink()


@pytest.mark.parametrize("damage", [_without_a_file, _with_another_key, _with_a_link, _without_data])
def test_files_that_are_not_as_written_are_noticed(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with plain_directory(tmp_path) as directory:
        written = contents()
        directory.write(written, NOW)
        assert directory.holds(written)
        assert not directory.holds(contents())
        damage(tmp_path)
        assert not directory.holds(written)


def test_a_keystore_that_is_gone_is_noticed(tmp_path: Path) -> None:
    with plain_directory(tmp_path, {"keystores": "pkcs12"}) as directory:
        written = contents()
        directory.write(written, NOW)
        assert directory.holds(written)
        (tmp_path / "..data" / "keystore.p12").unlink()
        assert not directory.holds(written)


def test_whatever_lets_its_reader_act_as_the_pod_has_the_keys_mode(tmp_path: Path) -> None:
    chosen = {"keyMode": "0400", "fileMode": "0644", "keystores": "pkcs12", "jwt-audiences": "db"}
    token = JwtSigningKey.create(JwtAlgorithm.ES256).issue(WEB, ["db"], ttl=timedelta(minutes=5), now=NOW)
    with plain_directory(tmp_path, chosen) as directory:
        directory.write(replace(contents(), jwt_svids={"db.jwt": token}), NOW)
        modes_found = {path.name: mode(path) for path in (tmp_path / "..data").iterdir()}
    secret = {*SECRET, "keystore.p12", "keystore.password", "db.jwt", ".state.json"}
    assert {name for name, found in modes_found.items() if found == 0o400} == secret
    assert {name for name, found in modes_found.items() if found == 0o644} == {*PUBLIC, "truststore.p12"}


def test_a_state_behind_a_link_is_not_followed(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        directory.write(contents(), NOW)
        state = tmp_path / "..data" / ".state.json"
        state.rename(tmp_path / "elsewhere")
        state.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic links"):
            directory.read()
        state.unlink()
        state.write_bytes(b"{}")
        with pytest.raises(InvalidSvid):
            directory.read()


def test_a_closed_volume_is_closed_once_and_its_number_is_left_to_others(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        number = directory.descriptor
        directory.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        reused = os.open("/dev/null", os.O_RDONLY)
        try:
            assert reused == number
            directory.close()
            os.fstat(reused)
        finally:
            os.close(reused)


def test_who_comes_to_a_closed_volume_touches_no_other(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.mkdir()
    others.mkdir()
    with plain_directory(mine) as directory:
        directory.write(contents(), NOW)
        number = directory.descriptor
        directory.close()
        with plain_directory(others) as other:
            assert other.descriptor == number
            with pytest.raises(OSError, match="Bad file descriptor"):
                directory.write(contents(), NOW)
            with pytest.raises(OSError, match="Bad file descriptor"), directory.socket_place(None):
                pass
            with pytest.raises(OSError, match="Bad file descriptor"):
                directory.prune()
            assert list(others.iterdir()) == []


def test_in_place_tells_a_directory_that_was_replaced(tmp_path: Path) -> None:
    inside = tmp_path / "volume"
    inside.mkdir()
    with plain_directory(inside) as directory:
        assert directory.in_place()
        inside.rename(tmp_path / "moved")
        assert not directory.in_place()
        inside.symlink_to(tmp_path / "moved")
        assert not directory.in_place()


def test_a_made_password_is_kept_by_the_volume_and_by_its_state(tmp_path: Path) -> None:
    given: Contents = contents()
    with plain_directory(tmp_path, {"keystores": "pkcs12"}) as directory:
        directory.write(given, NOW)
        password = (tmp_path / "keystore.password").read_bytes()
        assert len(password) >= 32
        directory.write(contents(), NOW)
        assert (tmp_path / "keystore.password").read_bytes() == password
    with plain_directory(tmp_path, {"keystores": "pkcs12"}) as again:
        again.read()
        again.write(given, NOW)
        assert (tmp_path / "keystore.password").read_bytes() == password
    with pytest.raises(InvalidRequest), plain_directory(tmp_path, {"keystorePassword": "sesame-1"}):
        pass


def test_usage_is_that_of_the_file_system(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        for each, (total, free) in zip(
            directory.usage(),
            [(found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize) for found in [os.statvfs(tmp_path)]]
            + [(found.f_files, found.f_ffree) for found in [os.statvfs(tmp_path)]],
            strict=True,
        ):
            assert each.total == total
            assert each.available + each.used == total
            assert abs(each.available - free) < total


def test_written_at_is_when_the_files_were_replaced(tmp_path: Path) -> None:
    with plain_directory(tmp_path) as directory:
        assert directory.written_at() is None
        directory.write(contents(), NOW)
        at = directory.written_at()
        assert at is not None
        assert at.timestamp() == pytest.approx((tmp_path / "..data").lstat().st_mtime)


def test_the_sockets_path_fits_whatever_the_directory_is_called(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a" * 50] * 4)
    deep.mkdir(parents=True)
    with plain_directory(deep) as directory, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(socket_path(directory))
        assert (deep / "socket").is_socket()
