"""Federated bundles from files: what is good is kept, what went bad changes nothing."""

import asyncio
import base64
import json
import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from runtime.federation import MAX_TOTAL_BYTES, FederatedBundles, read_bundle
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_der, to_pem
from svid.keys import KeyAlgorithm, PrivateKey
from svid.spiffeid import TrustDomain

PARTNER, OTHER = TrustDomain("partner.test"), TrustDomain("other.test")
DAY = timedelta(days=1)


def bundle(domain: TrustDomain, sequence: int | None = None) -> TrustBundle:
    made = X509Authority.create(
        domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=datetime.now(UTC)
    )
    return TrustBundle(domain, made.bundle.x509_authorities, sequence=sequence)


def replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    os.replace(temporary, path)


@pytest.mark.spec("TD-14", "FED-8")
def test_jwks_and_pem_are_read_and_changes_are_seen(tmp_path: Path) -> None:
    first, second = bundle(PARTNER), bundle(OTHER)
    files = {PARTNER: tmp_path / "p.json", OTHER: tmp_path / "o.pem"}
    replace(files[PARTNER], first.to_jwks())
    replace(files[OTHER], second.to_pem())
    federated = FederatedBundles(files)
    assert federated.refresh()
    assert federated.bundles == (second, first)  # by the names of the trust domains, whatever their order was
    assert not federated.refresh()
    newer = bundle(PARTNER)
    replace(files[PARTNER], newer.to_jwks())
    assert federated.refresh()
    assert federated.bundles == (second, newer)


@pytest.mark.spec("C-106", "FED-17")
@pytest.mark.parametrize("content", [b"", b"<html>", b'{"keys": 1}', b"{", b"\xff\xfe"])
def test_a_file_that_went_bad_keeps_the_last_good_bundle_and_is_reported_once(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.json"
    good = bundle(PARTNER)
    replace(path, good.to_jwks())
    federated = FederatedBundles({PARTNER: path})
    federated.refresh()
    replace(path, content)
    with caplog.at_level(logging.ERROR):
        assert not federated.refresh()
        assert not federated.refresh()
    assert federated.bundles == (good,)
    assert len(caplog.records) == 1
    path.unlink()
    with caplog.at_level(logging.ERROR):
        assert not federated.refresh()
        assert not federated.refresh()
    assert federated.bundles == (good,)
    assert len(caplog.records) == 2


@pytest.mark.spec("C-105", "TD-9")
def test_an_empty_bundle_is_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    replace(path, bundle(PARTNER).to_jwks())
    federated = FederatedBundles({PARTNER: path})
    federated.refresh()
    replace(path, b'{"keys": []}')
    assert federated.refresh()
    assert federated.bundles == (TrustBundle(PARTNER),)


def certificate(*extensions: x509.ExtensionType, key: PrivateKey | None = None) -> x509.Certificate:
    """A root of these extensions, which may be none that a CA has."""
    key, now = key or KeyAlgorithm.EC_P256.generate(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "partner")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    for each in extensions:
        builder = builder.add_extension(each, critical=True)
    return builder.sign(key, SHA256())


def as_pem(*certificates: x509.Certificate) -> bytes:
    return to_pem(certificates)


def as_jwks(*certificates: x509.Certificate) -> bytes:
    entries = [
        {"use": "x509-svid", "kty": "EC", "crv": "P-256", "x5c": [base64.b64encode(to_der([each])).decode()]}
        for each in certificates
    ]
    return json.dumps({"keys": entries}).encode()


UNUSABLE: list[Callable[[], x509.Certificate]] = [
    certificate,
    lambda: certificate(x509.BasicConstraints(ca=False, path_length=None)),
    lambda: certificate(x509.BasicConstraints(ca=True, path_length=0), key=ec.generate_private_key(ec.SECP256K1())),
]


@pytest.mark.parametrize("unusable", UNUSABLE, ids=["no basicConstraints", "no CA", "of another curve"])
@pytest.mark.parametrize("form", [as_pem, as_jwks])
def test_the_same_roots_have_one_outcome_in_either_form_and_what_is_left_out_is_said_once(
    tmp_path: Path,
    form: Callable[..., bytes],
    unusable: Callable[[], x509.Certificate],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, good, bad = tmp_path / "bundle", bundle(PARTNER), unusable()
    replace(path, bundle(PARTNER).to_jwks())
    federated = FederatedBundles({PARTNER: path})
    federated.refresh()
    replace(path, form(bad, *good.x509_authorities))
    assert federated.refresh()
    assert not federated.refresh()
    assert federated.bundles == (good,)
    (line,) = caplog.records
    assert line.__dict__["trust_domain"] == "partner.test"
    assert line.__dict__["left_out"] == 1
    assert f"SHA-256 {bad.fingerprint(SHA256()).hex()}" in line.__dict__["error"]
    # The partner says that he has these: none of them counts, and the older ones do no longer.
    caplog.clear()
    replace(path, form(bad))
    assert federated.refresh()
    assert federated.bundles == (TrustBundle(PARTNER),)
    assert len(caplog.records) == 1


def test_a_log_line_has_its_bounds_whatever_stands_in_a_bundle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bundle"
    entries: list[dict[str, object]] = [{"use": "jwt-svid", "kty": "RSA", "kid": "\n\x1b" * 999, "n": 1}] * 99
    entries += [{"use": "x509-svid", "kty": "EC"}, {"use": "x509-svid", "kty": "EC", "x5c": ["!"]}]
    entries += [
        {"use": "jwt-svid", "kty": "EC"},
        {"use": "what", "kty": "EC"},
        {"use": "x509-svid", "kty": "unknown"},
    ]
    path.write_bytes(json.dumps({"keys": entries}).encode())
    assert read_bundle(PARTNER, path) == TrustBundle(PARTNER)
    (line,) = caplog.records
    assert line.__dict__["left_out"] == 102
    assert len(line.__dict__["error"]) < 4 * 500
    assert line.__dict__["error"].isprintable()


@pytest.mark.spec("C-107", "FED-6")
def test_an_older_sequence_never_replaces_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    newest = bundle(PARTNER, sequence=8)
    replace(path, newest.to_jwks())
    federated = FederatedBundles({PARTNER: path})
    federated.refresh()
    replace(path, bundle(PARTNER, sequence=7).to_jwks())
    assert not federated.refresh()
    assert federated.bundles == (newest,)
    unnumbered = bundle(PARTNER)
    replace(path, unnumbered.to_jwks())
    assert federated.refresh()
    assert federated.bundles == (unnumbered,)


@pytest.mark.spec("C-107")
def test_other_content_under_the_same_sequence_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.json"
    first, other = bundle(PARTNER, sequence=8), bundle(PARTNER, sequence=8)
    replace(path, first.to_jwks())
    federated = FederatedBundles({PARTNER: path})
    assert federated.refresh()
    # The same in another order of words is no news.
    replace(path, first.to_jwks().replace(b"\n", b" "))
    assert not federated.refresh()
    assert not caplog.records
    replace(path, other.to_jwks())
    assert federated.refresh()
    assert federated.bundles == (other,)
    assert ["sequence did not" in each.message for each in caplog.records] == [True]


@pytest.mark.spec("C-28", "CL-16")
def test_bundles_that_would_make_an_answer_too_long_for_clients_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = bundle(PARTNER), bundle(OTHER)
    files = {PARTNER: tmp_path / "p.json", OTHER: tmp_path / "o.json"}
    replace(files[PARTNER], first.to_jwks())
    federated = FederatedBundles(files, max_total=len(first.to_jwks()) + 100)
    assert federated.refresh()
    replace(files[OTHER], second.to_jwks())
    assert not federated.refresh()
    assert federated.bundles == (first,)
    assert any("would exceed" in record.__dict__.get("error", "") for record in caplog.records)
    # What is there may still be replaced by something of its size.
    newer = bundle(PARTNER)
    replace(files[PARTNER], newer.to_jwks())
    assert federated.refresh()
    assert federated.bundles == (newer,)
    assert MAX_TOTAL_BYTES < 4 * 1024 * 1024


def test_a_file_that_hangs_changes_nothing_and_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was read on the signer's event loop, which did nothing else any more."""
    kept, came = bundle(PARTNER), bundle(OTHER)
    files = {PARTNER: tmp_path / "p.json", OTHER: tmp_path / "o.json"}
    replace(files[PARTNER], kept.to_jwks())
    federated = FederatedBundles(files, within=0.05)
    federated.refresh()
    caplog.clear()
    os.mkfifo(files[OTHER])

    async def hangs() -> None:
        async with asyncio.timeout(60):
            for _ in range(3):
                await federated.look()

    # A look that waits for the file would not come back.
    watch = threading.Timer(60, files[OTHER].open, ["r+b"])
    watch.start()
    asyncio.run(hangs())
    watch.cancel()
    assert federated.bundles == (kept,)
    said = [each for each in caplog.records if "not read in time" in each.message]
    assert [getattr(each, "file", "") for each in said] == [str(files[OTHER])]
    # Who wrote it at last is heard.
    with files[OTHER].open("wb") as pipe:
        pipe.write(came.to_jwks())

    async def follows() -> None:
        async with asyncio.timeout(60):
            while federated.bundles != (came, kept):
                await federated.look()

    files[OTHER].unlink()
    replace(files[OTHER], came.to_jwks())
    asyncio.run(follows())


def test_without_files_no_thread_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.bounded.Thread", None)
    asyncio.run(FederatedBundles({}).look())
