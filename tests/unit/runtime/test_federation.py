"""Federated bundles from files: what is good is kept, what went bad changes nothing."""

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runtime.federation import MAX_TOTAL_BYTES, FederatedBundles
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain

PARTNER, OTHER = TrustDomain("partner.test"), TrustDomain("other.test")


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
