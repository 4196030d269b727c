"""A Secret that somebody wrote by hand: what is not just as this signer's settings have it is refused, never used."""

import asyncio
import base64
import logging
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signer.authority.store import SECRET_TYPE, Cipher, SecretStore, read_cipher
from signer.cluster.kube import Object
from signer.errors import Conflict, NotFound, StateDamaged
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.meanwhile import before
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import TD, done, first, life
from tests.unit.signer.test_store import CIPHER, PATH, store


def data(kube: FakeKube, path: str = PATH) -> dict[str, Any]:
    found: dict[str, Any] = kube.objects[path]["data"]
    return found


def written(cipher: Cipher | None) -> FakeKube:
    kube = FakeKube(StepClock())
    done(store(kube, cipher).create(first()))
    return kube


def refused(kept: SecretStore, body: Object, caplog: pytest.LogCaptureFixture) -> str:
    """What is said of the Secret, which a running signer passes over and a starting one stops at."""
    caplog.clear()
    assert kept.read_event(body) is None
    (line,) = caplog.records
    assert (line.levelno, line.getMessage()) == (logging.ERROR, "the authorities' Secret was damaged")
    assert vars(line)["reason"] == "AUTHORITY_DAMAGED"
    kube = FakeKube(StepClock())
    kube.put(PATH, body)
    with pytest.raises(StateDamaged) as caught:
        done(SecretStore(kube, "podsvid", "authority", TD, kept._cipher).load())
    assert str(caught.value) == vars(line)["error"]
    assert kube.writes == []
    return str(caught.value)


def test_a_plain_secret_is_not_taken_where_there_is_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """Who may write Secrets, and has not the key, must not choose the authorities."""
    plain = data(written(None))
    said = refused(store(FakeKube(StepClock()), CIPHER), {"data": plain}, caplog)
    assert said == "Secret authority is not encrypted; leave state_key_file out"
    # Beside an encrypted one it is not read either.
    kube = written(CIPHER)
    encrypted = data(kube)
    found = store(kube, CIPHER).read_event({**kube.objects[PATH], "data": {**plain, **encrypted}})
    assert found is not None
    loaded = done(store(kube, CIPHER).load())
    assert loaded is not None
    assert found.to_json() == loaded.state.to_json()
    broken = {**plain, "state.enc": base64.b64encode(b"x" * 64).decode()}
    assert "cannot be decrypted" in refused(store(kube, CIPHER), {"data": broken}, caplog)


def test_an_encrypted_secret_needs_the_key(caplog: pytest.LogCaptureFixture) -> None:
    said = refused(store(FakeKube(StepClock())), {"data": data(written(CIPHER))}, caplog)
    assert said == "Secret authority is encrypted; set state_key_file"


@pytest.mark.parametrize("cipher", [None, CIPHER])
def test_a_secret_without_the_state_is_damaged(cipher: Cipher | None, caplog: pytest.LogCaptureFixture) -> None:
    wanted = "state.enc" if cipher else "state.json"
    kept = store(FakeKube(StepClock()), cipher)
    for body in ({}, {"data": None}, {"data": {"other": "eA=="}}):
        assert refused(kept, body, caplog) == f"Secret authority has no {wanted}; restore it from a backup"
    for content in ("not base64!", "eA=", "eA==\n@", None, 5):
        said = refused(kept, {"data": {wanted: content}}, caplog)
        assert said == "Secret authority is damaged; restore it from a backup"


def test_what_is_encrypted_belongs_to_one_secret_of_one_cluster(caplog: pytest.LogCaptureFixture) -> None:
    content = {"data": data(written(CIPHER))}
    kube = FakeKube(StepClock())
    for namespace, name, trust_domain in (
        ("other", "authority", TD),
        ("podsvid", "other", TD),
        ("podsvid", "authority", TrustDomain("other.org")),
    ):
        elsewhere = SecretStore(kube, namespace, name, trust_domain, CIPHER)
        assert elsewhere.read_event(content) is None
        assert "cannot be decrypted" in vars(caplog.records[-1])["error"]


def test_the_same_state_is_never_encrypted_to_the_same() -> None:
    once, again = (CIPHER.encrypt(b"state", "name") for _ in range(2))
    assert once[:12] != again[:12]
    assert once[12:] != again[12:]
    assert CIPHER.decrypt(once, "name") == CIPHER.decrypt(again, "name") == b"state"


def test_the_authorities_of_another_trust_domain_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = SecretStore(FakeKube(StepClock()), "podsvid", "authority", TrustDomain("other.org"))
    assert elsewhere.read_event({"data": data(written(None))}) is None
    assert "of another trust domain than other.org" in vars(caplog.records[-1])["error"]


@pytest.mark.parametrize("cipher", [None, CIPHER])
def test_what_is_written(cipher: Cipher | None) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        kept = store(kube, cipher)
        stored = await kept.create(await life().first(START))
        body = kube.objects[PATH]
        assert body["type"] == SECRET_TYPE
        assert body["metadata"]["namespace"] == "podsvid"
        assert body["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "podsvid"
        assert stored.version == body["metadata"]["resourceVersion"]
        after, _ = await life().prepare(stored.state, "x509", START)
        # What somebody put beside it does not stay: a plain state beside the encrypted one would be worth a key.
        kube.put(PATH, {**body, "data": {**body["data"], "state.json": "eA==", "state.enc": "eA=="}})
        loaded = replace(stored, version=kube.objects[PATH]["metadata"]["resourceVersion"])
        again = await kept.replace(loaded, after)
        assert list(kube.objects[PATH]["data"]) == ["state.enc" if cipher else "state.json"]
        assert again.state.to_json() == after.to_json()
        assert again.version == kube.objects[PATH]["metadata"]["resourceVersion"] != stored.version

    asyncio.run(run())


def test_what_another_wrote_between_read_and_write_stays() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        kept = store(kube)
        stored = await kept.create(await life().first(START))
        ours, _ = await life().prepare(stored.state, "x509", START)
        theirs, _ = await life().prepare(stored.state, "jwt", START)
        body = kube.objects[PATH]
        content = {"state.json": base64.b64encode(theirs.to_json()).decode()}
        before(kube, "replace", lambda: kube.put(PATH, {**body, "data": content}))
        with pytest.raises(Conflict):
            await kept.replace(stored, ours)
        found = await kept.load()
        assert found is not None
        assert found.state.to_json() == theirs.to_json()
        kube.remove(PATH)
        with pytest.raises(NotFound):
            await kept.replace(found, ours)
        assert PATH not in kube.objects

    asyncio.run(run())


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: text + "=", lambda text: "*" + text[1:]])
def test_a_key_file_that_is_nearly_right_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "key"
    text = base64.b64encode(b"s" * 32).decode()
    path.write_text(change(text))
    with pytest.raises(StateDamaged) as caught:
        read_cipher(path)
    assert text[:20] not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir(mode=stat.S_IRWXU)
    with pytest.raises(StateDamaged, match=r"cannot be read: Is a directory"):
        read_cipher(tmp_path / "key")
