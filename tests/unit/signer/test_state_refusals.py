"""What a Secret holds is taken only as it was written: by this signer's key, under its name, at its version."""

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from signer.authority.state import AuthorityState
from signer.authority.store import SECRET_TYPE, Cipher, SecretStore
from signer.errors import Conflict, StateDamaged
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import ALL, TD, TTL, done, first, life, stages
from tests.unit.signer.test_store import CIPHER, PATH, store, upstream_files


@pytest.mark.parametrize(("written", "read", "advice"), [(None, CIPHER, "is not encrypted"), (CIPHER, None, "set sta")])
def test_a_secret_of_the_other_kind_is_refused(
    written: Cipher | None, read: Cipher | None, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write the Secret but has not the key must not choose the authorities."""

    async def run() -> None:
        kube = FakeKube(StepClock())
        await store(kube, written).create(await life().first(START))
        with pytest.raises(StateDamaged, match=advice) as caught:
            await store(kube, read).load()
        assert "state_key_file" in str(caught.value)
        assert store(kube, read).read_event(kube.objects[PATH]) is None
        (line,) = caplog.records
        assert (line.levelno, vars(line)["reason"]) == (logging.ERROR, StateDamaged.reason)

    asyncio.run(run())


def test_a_plain_copy_beside_the_encrypted_one_is_not_looked_at() -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        own, planted = await life().first(START), await life().first(START)
        await store(kube, CIPHER).create(own)
        data = {**kube.objects[PATH]["data"], "state.json": base64.b64encode(planted.to_json()).decode()}
        kube.put(PATH, {"data": data})
        found = await store(kube, CIPHER).load()
        assert found is not None
        assert found.state.to_json() == own.to_json()
        # The next change takes it away.
        after, _ = await life().prepare(found.state, "x509", START)
        await store(kube, CIPHER).replace(found, after)
        assert list(kube.objects[PATH]["data"]) == ["state.enc"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "moved",
    [
        lambda kube: SecretStore(kube, "other", "authority", TD, CIPHER),
        lambda kube: SecretStore(kube, "podsvid", "other", TD, CIPHER),
        lambda kube: SecretStore(kube, "podsvid", "authority", TrustDomain("other.org"), CIPHER),
    ],
)
def test_what_is_encrypted_is_bound_to_namespace_name_and_trust_domain(moved: Any) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        await store(kube, CIPHER).create(await life().first(START))
        with pytest.raises(StateDamaged, match="cannot be decrypted"):
            moved(kube)._stored(kube.objects[PATH])

    asyncio.run(run())


def test_the_same_state_is_never_encrypted_alike() -> None:
    data, name = first().to_json(), "example.org/podsvid/authority"
    ciphertexts = {CIPHER.encrypt(data, name)[:12] for _ in range(20)}
    assert len(ciphertexts) == 20
    assert CIPHER.decrypt(CIPHER.encrypt(data, name), name) == data


@pytest.mark.parametrize("cipher", [None, CIPHER])
def test_a_change_is_compared_with_what_was_read_and_with_nothing_else(cipher: Cipher | None) -> None:
    async def run() -> None:
        kube = FakeKube(StepClock())
        kept = store(kube, cipher)
        mine = await kept.create(await life().first(START))
        body = kube.objects[PATH]
        assert (mine.version, body["type"]) == (body["metadata"]["resourceVersion"], SECRET_TYPE)
        assert body["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "podsvid"
        after, _ = await life().prepare(mine.state, "x509", START)
        written = await kept.replace(mine, after)
        assert written.version == kube.objects[PATH]["metadata"]["resourceVersion"] != mine.version
        # Somebody who changes no more than a label is another writer, too.
        kube.put(PATH, {**kube.objects[PATH], "metadata": {"name": "authority", "labels": {"a": "b"}}})
        with pytest.raises(Conflict):
            await kept.replace(written, after)

    asyncio.run(run())


def changed(change: Any) -> bytes:
    document = json.loads(first().to_json())
    change(document)
    return json.dumps(document).encode()


def _two_active(document: Any) -> None:
    other = json.loads(first().to_json())
    document["x509"].append(other["x509"][0])


def _two_prepared(document: Any) -> None:
    for _ in range(2):
        (slot,) = json.loads(first().to_json())["x509"]
        document["x509"].append({**slot, "stage": "prepared"})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_two_active, "2 active X.509"),
        (_two_prepared, "more than one prepared X.509"),
        (lambda each: each["x509"].append({**each["x509"][0], "stage": "old"}), "a X.509 authority twice"),
        (lambda each: each["jwt"][0].update(stage="old"), "0 active JWT"),
        (lambda each: each["jwt"].append({**each["jwt"][0], "stage": "tainted"}), "a JWT authority twice"),
        (lambda each: each.update(x509=[]), "0 active X.509"),
        (lambda each: each["x509"][0].update(id="00" * 20), "not what a signer wrote"),
        (lambda each: each["jwt"][0].update(id="other"), "not what a signer wrote"),
        (lambda each: each["x509"][0].update(stage="active "), "not what a signer wrote"),
        (lambda each: each["x509"][0].update(prepared_at="2030-01-01T00:00:00"), "not what a signer wrote"),
        (lambda each: each["jwt"][0].update(algorithm="none"), "not what a signer wrote"),
        (lambda each: each["x509"][0].update(key=json.loads(first().to_json())["x509"][0]["key"]), "does not match"),
        (lambda each: each.update(goals=[{"kind": "ssh", "forced": False}]), "not what a signer wrote"),
        (lambda each: each.pop("directives"), "not what a signer wrote"),
        (lambda each: each.update(version=0), "version 0"),
        (lambda each: each.update(version=3), "not what a signer wrote"),
        (lambda each: each.update(version=True), "version True"),
        (lambda each: each["x509"][0].pop("key"), "no key of a X.509 authority"),
        (lambda each: each["jwt"][0].pop("key"), "not what a signer wrote"),
        (lambda each: each.update(version=2, abandoned=None), "not what a signer wrote"),
        (lambda each: [each.update(version=2), each.pop("abandoned")], "not what a signer wrote"),
        (lambda each: each.update(abandoned=[{"kind": "x509", "id": each["x509"][0]["id"]}]), "not what a signer wr"),
    ],
)
def test_no_state_is_taken_that_a_signer_would_not_write(change: Any, why: str) -> None:
    data = changed(change)
    with pytest.raises(StateDamaged, match=why) as caught:
        AuthorityState.from_json(data, TD)
    assert "restore the Secret from a backup" in str(caught.value)
    for secret in ("PRIVATE", json.loads(data)["jwt"][0].get("key", "x\nPRIVATE").splitlines()[1]):
        assert secret not in str(caught.value)


def test_a_state_survives_being_stored_whole() -> None:
    state = first()
    for kind in ("x509", "jwt"):
        state, _ = life().asked(state, kind, forced=kind == "x509", now=START)
        state, _ = done(life().prepare(state, kind, START))
    step = life().due(state, ALL, START + TTL)
    assert step is not None
    state = done(life().do(state, step, START + TTL))
    assert stages(state) == ["tainted", "active"]
    again = AuthorityState.from_json(state.to_json(), TD)
    assert (again.goals, again.directives, again.sequence) == (state.goals, state.directives, state.sequence)
    for old, new in zip((*state.x509, *state.jwt), (*again.x509, *again.jwt), strict=True):
        for field in ("id", "stage", "prepared_at", "activated_at", "ends_at"):
            assert getattr(new, field) == getattr(old, field)
    assert again.bundle.to_jwks() == state.bundle.to_jwks()


def test_an_upstream_is_read_anew_each_time_and_its_roots_are_what_is_trusted(tmp_path: Path) -> None:
    _, upstream = upstream_files(tmp_path)
    key = KeyAlgorithm.EC_P256.generate()
    one = done(upstream.certify(TD, key, TTL, START))
    other_root, _ = upstream_files(tmp_path)
    two = done(upstream.certify(TD, key, TTL, START))
    assert one.bundle.x509_authorities != two.bundle.x509_authorities
    assert two.chain[0].issuer == other_root.chain[0].subject
    assert two.not_after <= START + TTL
    for damaged in (b"", b"no PEM"):
        (tmp_path / "ca.crt").write_bytes(damaged)
        with pytest.raises(UpstreamUnusable):
            done(upstream.certify(TD, key, TTL, START))


def test_roots_that_do_not_verify_what_the_upstream_signs_are_found_out_before_it_signs(tmp_path: Path) -> None:
    """Otherwise it is prepared, acknowledged and activated, and from then on no workload gets an SVID."""
    _, upstream = upstream_files(tmp_path)
    roots = tmp_path / "roots.pem"
    with_bundle = FileUpstream(upstream.certificate, upstream.key, roots)
    key = KeyAlgorithm.EC_P256.generate()
    roots.write_bytes((tmp_path / "ca.crt").read_bytes())
    authority = done(with_bundle.certify(TD, key, TTL, START))
    assert to_pem(authority.bundle.x509_authorities) == roots.read_bytes()
    (tmp_path / "other").mkdir()
    upstream_files(tmp_path / "other")
    roots.write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(UpstreamUnusable, match="invalid SVID"):
        done(with_bundle.certify(TD, key, TTL, START))
    roots.unlink()
    with pytest.raises(UpstreamUnusable, match="cannot be read"):
        done(with_bundle.certify(TD, key, TTL, START))
