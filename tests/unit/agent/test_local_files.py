"""Keys that the agent keeps on its node: who may read them, what is never replaced, and what a failed write leaves."""

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from agent.authority import files, jwt_keys
from agent.authority.files import read_secret, write_secret
from agent.authority.jwt_keys import open_kept
from agent.authority.local import STATE_FILE, open_embedded
from agent.errors import AuthorityDamaged
from svid.jws import JwtAlgorithm
from svid.jwtauthority import KeyringPolicy
from svid.spiffeid import TrustDomain
from tests.fake_authority import TRUST_DOMAIN, StepClock

POLICY = KeyringPolicy(JwtAlgorithm.ES256, timedelta(days=10), timedelta(days=1), timedelta(minutes=5))


def test_a_secret_is_its_owners_whatever_the_umask_and_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        write_secret(path, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path) == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_a_secret_that_others_could_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"key")
    path.chmod(mode)
    with pytest.raises(AuthorityDamaged, match="can be read by others"):
        read_secret(path)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "secret"
    write_secret(path, b"old")

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(os, step, failing)
        write_secret(path, b"new")
    assert read_secret(path) == b"old"
    write_secret(path, b"new")
    assert read_secret(path) == b"new"


def test_a_secret_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def syncing(descriptor: int) -> None:
        steps.append("fsync")
        fsync(descriptor)

    def renaming(old: str, new: str) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    write_secret(tmp_path / "secret", b"new")
    assert steps == ["fsync", "rename", "fsync"]


def test_a_link_that_somebody_laid_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / ".secret.new").symlink_to(victim)
    write_secret(tmp_path / "secret", b"key")
    assert victim.read_bytes() == b"untouched"


def test_the_embedded_authority_is_made_once_and_found_again(tmp_path: Path) -> None:
    clock = StepClock()
    first = open_embedded(tmp_path / "s", TRUST_DOMAIN, clock)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "s" / STATE_FILE).stat().st_mode) == 0o600
    assert open_embedded(tmp_path / "s", TRUST_DOMAIN, clock).chain == first.chain


@pytest.mark.parametrize("how", ["readable by others", "empty", "cut short", "of another domain", "two parts of two"])
def test_an_authority_that_cannot_be_used_is_left_to_a_person(tmp_path: Path, how: str) -> None:
    clock = StepClock()
    open_embedded(tmp_path, TRUST_DOMAIN, clock)
    path = tmp_path / STATE_FILE
    good = path.read_bytes()
    match how:
        case "readable by others":
            path.chmod(0o644)
        case "empty":
            path.write_bytes(b"")
        case "cut short":
            path.write_bytes(good[:-40])
        case "of another domain":
            path.unlink()
            open_embedded(tmp_path, TrustDomain("other.test"), clock)
        case _:
            open_embedded(tmp_path / "other", TRUST_DOMAIN, clock)
            end = b"-----END PRIVATE KEY-----\n"
            other = (tmp_path / "other" / STATE_FILE).read_bytes()
            path.write_bytes(other.partition(end)[0] + end + good.partition(end)[2])
    before = path.read_bytes()
    with pytest.raises(AuthorityDamaged) as refused:
        open_embedded(tmp_path, TRUST_DOMAIN, clock)
    assert path.read_bytes() == before
    assert "PRIVATE" not in str(refused.value)


def test_jwt_keys_are_kept_before_anybody_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StepClock()
    keys = open_kept(tmp_path, POLICY, clock)
    before = (keys.authorities, keys.sequence)
    clock.at += timedelta(days=9, minutes=1)

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(jwt_keys, "write_secret", failing)
        keys.advance(clock.at)
    assert (keys.authorities, keys.sequence) == before
    assert keys.advance(clock.at)
    assert len(keys.authorities) == 2
    assert open_kept(tmp_path, POLICY, clock).authorities == keys.authorities
    assert not keys.advance(clock.at)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json"])
def test_jwt_keys_that_cannot_be_read_are_not_replaced(tmp_path: Path, content: bytes) -> None:
    clock = StepClock()
    open_kept(tmp_path, POLICY, clock)
    path = tmp_path / jwt_keys.STATE_FILE
    files.write_secret(path, content)
    with pytest.raises(AuthorityDamaged, match="is damaged"):
        open_kept(tmp_path, POLICY, clock)
    assert path.read_bytes() == content
    path.chmod(0o644)
    with pytest.raises(AuthorityDamaged, match="can be read by others"):
        open_kept(tmp_path, POLICY, clock)
