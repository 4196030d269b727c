"""The Secret: compare and swap, encryption, and what is refused rather than guessed."""

import asyncio
import base64
import random
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from signer.authority.acknowledgements import Agents
from signer.authority.rotation import Rotation
from signer.authority.store import Cipher, SecretStore, read_cipher
from signer.cluster.kube import Object
from signer.cluster.leader import Leader
from signer.errors import Conflict, StateDamaged
from signer.metrics import Metrics
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from svid.authority import X509Authority
from svid.certificates import extension, to_pem
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, key_to_pem
from svid.x509svid import check_x509_svid
from tests.fake_kube import FakeKube
from tests.signer_rig import START, StepClock
from tests.unit.signer.said import abandonments, sources
from tests.unit.signer.test_lifecycle import KEY, TD, TTL, WEB, done, first, life

PATH = "/api/v1/namespaces/podsvid/secrets/authority"
CIPHER = Cipher(b"k" * 32)


def store(kube: FakeKube, cipher: Cipher | None = None, name: str = "authority") -> SecretStore:
    return SecretStore(kube, "podsvid", name, TD, cipher)


@pytest.mark.parametrize("cipher", [None, CIPHER])
def test_of_two_writers_one_wins(cipher: Cipher | None) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        kept = store(kube, cipher)
        assert await kept.load() is None
        state = await life().first(START)
        mine = await kept.create(state)
        with pytest.raises(Conflict):
            await kept.create(state)
        theirs = await store(kube, cipher).load()
        assert theirs is not None
        assert theirs.state.to_json() == state.to_json()
        after, _ = await life().prepare(state, "x509", START)
        written = await kept.replace(mine, after)
        with pytest.raises(Conflict):
            await store(kube, cipher).replace(theirs, after)
        assert written.state.sequence == state.sequence + 1

    asyncio.run(run())


def test_encrypted_is_unreadable_and_cannot_be_swapped() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        await store(kube, CIPHER).create(await life().first(START))
        body = kube.objects[PATH]
        assert list(body["data"]) == ["state.enc"]
        content = base64.b64decode(body["data"]["state.enc"])
        assert b"PRIVATE" not in content
        for other in (store(kube, Cipher(b"x" * 32)), store(kube)):
            with pytest.raises(StateDamaged):
                await other.load()
        # A copy under another name is not the other's state.
        kube.put("/api/v1/namespaces/podsvid/secrets/copy", {"data": dict(body["data"])})
        with pytest.raises(StateDamaged):
            await store(kube, CIPHER, "copy").load()
        for change in (content[:-1], content[:20], b"", content[:30] + b"\0" + content[31:]):
            damaged: Object = {**body, "data": {"state.enc": base64.b64encode(change).decode()}}
            assert store(kube, CIPHER).read_event(damaged) is None

    asyncio.run(run())


def test_no_secret_without_content_is_taken_for_a_new_cluster() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        for data in ({}, {"state.json": "!"}, {"state.json": base64.b64encode(b"{}").decode()}):
            kube.put(PATH, {"data": data})
            with pytest.raises(StateDamaged):
                await store(kube).load()

    asyncio.run(run())


def test_an_older_secret_is_not_gone_on_from() -> None:
    """An old copy, put back while signers run, may hold an authority that was revoked since."""

    async def run() -> None:
        clock = StepClock()
        kube = FakeKube(clock)
        kept = store(kube)
        leader = Leader(kube, "podsvid", "lease", "one", timedelta(seconds=15), clock, random.Random(1))
        agents = Agents(kube, "podsvid", "one", clock)
        rotation = Rotation(
            kept, abandonments(kube, clock), life(), leader, agents, sources(), Metrics(), clock, random.Random(1)
        )
        await rotation.open()
        old = dict(kube.objects[PATH]["data"])
        await rotation.step("prepare", "x509", "", forced=False)
        newest = dict(kube.objects[PATH]["data"])
        assert rotation.state is not None
        await rotation.step("revoke", "x509", rotation.state.x509[1].id, forced=True)
        for copy in (old, newest):
            known = rotation.state
            kube.put(PATH, {"data": copy})
            clock.pass_by(minutes=1)
            await rotation._loaded()
            assert (rotation.state, rotation.confirmed_at) == (known, clock.monotonic())
            assert kept._stored(kube.objects[PATH]).state.to_json() == known.to_json()
        # A person's step is done on what is known, too.
        kube.put(PATH, {"data": newest})
        await rotation.step("prepare", "x509", "", forced=False)
        assert newest != kube.objects[PATH]["data"]
        assert {slot.id for slot in rotation.state.x509} & {slot.id for slot in known.x509} == {known.active_x509_id}

    asyncio.run(run())


def test_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\x01" * 32)
    assert read_cipher(path) == Cipher(b"\x01" * 32)
    path.write_bytes(base64.b64encode(b"\x02" * 32) + b"\n")
    assert read_cipher(path) == Cipher(b"\x02" * 32)
    assert "\\x02" not in repr(read_cipher(path))
    assert read_cipher(None) is None
    for wrong in (b"short", b"\xff" * 31, base64.b64encode(b"x" * 31)):
        path.write_bytes(wrong)
        with pytest.raises(StateDamaged, match="32 bytes"):
            read_cipher(path)
    with pytest.raises(StateDamaged, match="cannot be read"):
        read_cipher(tmp_path / "absent")


def upstream_files(folder: Path, *, path_length: int | None = 1) -> tuple[X509Authority, FileUpstream]:
    root = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P384, lifetime=TTL * 24 * 100, now=START)
    chain = root.chain
    if path_length != 0:
        old = root.chain[0]
        builder = x509.CertificateBuilder(
            old.issuer,
            old.subject,
            old.public_key(),
            old.serial_number,
            old.not_valid_before_utc,
            old.not_valid_after_utc,
        )
        for each in old.extensions:
            value = (
                x509.BasicConstraints(True, path_length)
                if isinstance(each.value, x509.BasicConstraints)
                else each.value
            )
            builder = builder.add_extension(value, each.critical)
        chain = (builder.sign(root.private_key, hashes.SHA384()),)
    (folder / "ca.crt").write_bytes(to_pem(chain))
    (folder / "ca.key").write_bytes(key_to_pem(root.private_key))
    return root, FileUpstream(folder / "ca.crt", folder / "ca.key")


def test_an_upstream_ca_certifies_the_authority(tmp_path: Path) -> None:
    _, upstream = upstream_files(tmp_path)
    key = KeyAlgorithm.EC_P256.generate()
    authority = done(upstream.certify(TD, key, TTL * 24 * 200, START))
    assert authority.not_after <= START + TTL * 24 * 100
    constraints = extension(authority.chain[0], x509.BasicConstraints)
    assert constraints is not None
    assert constraints.value.path_length == 0
    chain = authority.issue(KEY, WEB, ttl=TTL, now=START)
    assert len(chain) == 2
    assert check_x509_svid(chain, authority.bundle, START) == WEB
    # As another implementation sees it.
    (tmp_path / "leaf.pem").write_bytes(to_pem(chain[:1]))
    (tmp_path / "chain.pem").write_bytes(to_pem(chain[1:]))
    command = ["openssl", "verify", "-attime", str(int(START.timestamp()) + 1), "-CAfile", str(tmp_path / "ca.crt")]
    command += ["-untrusted", str(tmp_path / "chain.pem"), str(tmp_path / "leaf.pem")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_an_upstream_without_room_or_files_is_refused(tmp_path: Path) -> None:
    _, upstream = upstream_files(tmp_path, path_length=0)
    key = KeyAlgorithm.EC_P256.generate()
    with pytest.raises(UpstreamUnusable, match="path length"):
        done(upstream.certify(TD, key, TTL, START))
    (tmp_path / "ca.key").write_bytes(key_to_pem(key))
    with pytest.raises(UpstreamUnusable, match="does not match"):
        done(upstream.certify(TD, key, TTL, START))
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(UpstreamUnusable, match="cannot be read"):
        done(upstream.certify(TD, key, TTL, START))


def test_states_do_not_print_keys() -> None:
    assert "PRIVATE" not in repr(first())


@pytest.mark.parametrize("cipher", [None, CIPHER])
def test_a_key_that_is_known_is_not_checked_again(cipher: Cipher | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That holds up everybody for as long as ten mints take, with RSA; and the Secret is read four times a minute."""
    checked: list[bytes] = []
    from_pem = JwtSigningKey.from_pem

    def counted(data: bytes, algorithm: JwtAlgorithm) -> JwtSigningKey:
        checked.append(data)
        return from_pem(data, algorithm)

    monkeypatch.setattr(JwtSigningKey, "from_pem", counted)

    async def run() -> None:
        kube = FakeKube(StepClock())
        kept = store(kube, cipher)
        stored = await kept.create(await life().first(START))
        await kept.load()
        prepared, _ = await life().prepare(stored.state, "jwt", START)
        stored = await kept.replace(stored, prepared)
        assert checked == []
        loaded = await kept.load()
        assert loaded is not None
        assert loaded.state.to_json() == prepared.to_json()
        # Whoever starts knows none, and one that was put in its place is checked.
        other = store(kube, cipher)
        await other.load()
        assert len(checked) == 2
        await other.load()
        assert len(checked) == 2
        await kept.replace(stored, await life().first(START))
        await other.load()
        assert len(checked) == 3
        # A key that has left is not remembered.
        assert len(other._keys) == len(kept._keys) == 1

    asyncio.run(run())
