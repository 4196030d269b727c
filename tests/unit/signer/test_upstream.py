"""A CA above in files: what it certifies, what verifiers are to trust, and what is said when it is unusable."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384

from signer.errors import SignerError
from signer.upstream.certify import FileUpstream, SelfSigned, UpstreamUnusable, upstream_of
from svid.authority import X509Authority
from svid.certificates import certificates_from_pem, to_pem
from svid.errors import SvidError
from svid.keys import KeyAlgorithm, key_to_pem
from svid.x509svid import check_x509_svid
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import KEY, TD, TTL, WEB, done
from tests.unit.signer.test_store import upstream_files

AUTHORITY_KEY = KeyAlgorithm.EC_P256.generate()
DAY = timedelta(days=1)


def certified(upstream: FileUpstream, lifetime: timedelta = DAY) -> X509Authority:
    return done(upstream.certify(TD, AUTHORITY_KEY, lifetime, START))


def test_the_lifetime_is_what_was_asked_for_as_far_as_the_ca_goes(tmp_path: Path) -> None:
    root, upstream = upstream_files(tmp_path)
    assert certified(upstream).not_after == START + DAY
    assert certified(upstream, 10_000 * DAY).not_after == root.not_after


def two_levels(folder: Path) -> X509Authority:
    """A root, and in the files a CA below it with room for another."""
    root, _ = upstream_files(folder, path_length=2)
    root = X509Authority(TD, certificates_from_pem((folder / "ca.crt").read_bytes()), root.private_key, root.bundle)
    key = KeyAlgorithm.EC_P256.generate()
    narrow = root.issue_intermediate(key, lifetime=50 * DAY, now=START).chain[0]
    builder = x509.CertificateBuilder(
        narrow.issuer,
        narrow.subject,
        narrow.public_key(),
        narrow.serial_number,
        narrow.not_valid_before_utc,
        narrow.not_valid_after_utc,
    )
    for each in narrow.extensions:
        value = x509.BasicConstraints(True, 1) if isinstance(each.value, x509.BasicConstraints) else each.value
        builder = builder.add_extension(value, each.critical)
    issuing = builder.sign(root.private_key, SHA384())
    (folder / "root.crt").write_bytes(to_pem(root.chain))
    (folder / "issuing.crt").write_bytes(to_pem((issuing,)))
    (folder / "ca.crt").write_bytes(to_pem((issuing, *root.chain)))
    (folder / "ca.key").write_bytes(key_to_pem(key))
    return root


def test_the_root_is_what_the_chain_ends_with(tmp_path: Path) -> None:
    root = two_levels(tmp_path)
    found = certified(FileUpstream(tmp_path / "ca.crt", tmp_path / "ca.key"))
    assert found.bundle.x509_authorities == root.chain
    chain = found.issue(KEY, WEB, ttl=TTL, now=START)
    assert len(chain) == 3
    assert check_x509_svid(chain, found.bundle, START) == WEB


def test_the_roots_are_what_the_bundle_file_says(tmp_path: Path) -> None:
    root = two_levels(tmp_path)
    next_root = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=DAY, now=START)
    (tmp_path / "bundle.pem").write_bytes(to_pem((*root.chain, *next_root.chain)))
    # The chain need not have its root then.
    found = certified(FileUpstream(tmp_path / "issuing.crt", tmp_path / "ca.key", tmp_path / "bundle.pem"))
    assert found.bundle.x509_authorities == (*root.chain, *next_root.chain)
    assert check_x509_svid(found.issue(KEY, WEB, ttl=TTL, now=START), found.bundle, START) == WEB


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "bundle.pem"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    upstream_files(tmp_path)
    (tmp_path / "bundle.pem").write_bytes((tmp_path / "ca.crt").read_bytes())
    upstream = FileUpstream(tmp_path / "ca.crt", tmp_path / "ca.key", tmp_path / "bundle.pem")
    certified(upstream)
    (tmp_path / name).unlink()
    with pytest.raises(UpstreamUnusable) as caught:
        certified(upstream)
    assert str(caught.value) == f"{tmp_path / name} cannot be read: {os.strerror(2)}"
    assert caught.value.reason == "UPSTREAM_UNUSABLE"


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "bundle.pem"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"\xff\xfe"])
def test_a_file_that_is_no_pem_is_refused_and_not_quoted(tmp_path: Path, name: str, content: bytes) -> None:
    upstream_files(tmp_path)
    (tmp_path / "bundle.pem").write_bytes((tmp_path / "ca.crt").read_bytes())
    upstream = FileUpstream(tmp_path / "ca.crt", tmp_path / "ca.key", tmp_path / "bundle.pem")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UpstreamUnusable) as caught:
        certified(upstream)
    assert "nothing of the kind" not in str(caught.value)
    assert str(tmp_path / "ca.crt") in str(caught.value)


def test_files_are_read_anew_each_time(tmp_path: Path) -> None:
    """A CA that was renewed needs no restart."""
    _, upstream = upstream_files(tmp_path)
    before = certified(upstream)
    upstream_files(tmp_path)
    assert certified(upstream).bundle.x509_authorities != before.bundle.x509_authorities


def test_an_ended_ca_certifies_nothing(tmp_path: Path) -> None:
    root, upstream = upstream_files(tmp_path)
    with pytest.raises(UpstreamUnusable, match="expired"):
        done(upstream.certify(TD, AUTHORITY_KEY, DAY, root.not_after))


@pytest.mark.parametrize("lifetime", [timedelta(0), -DAY, timedelta(days=9999 * 366)])
def test_a_lifetime_that_cannot_be_is_refused(lifetime: timedelta) -> None:
    with pytest.raises(SignerError) as caught:
        done(SelfSigned().certify(TD, AUTHORITY_KEY, lifetime, START))
    assert caught.value.reason == "UPSTREAM_UNUSABLE"
    assert not isinstance(caught.value, SvidError)


def secret(folder: Path, *, chain: str = "issuing.crt") -> Path:
    """A Secret's volume with a CA below a root; what is in it for a ca.crt is the test's."""
    two_levels(folder)
    there = folder / "secret"
    there.mkdir()
    (there / "tls.crt").write_bytes((folder / chain).read_bytes())
    (there / "tls.key").write_bytes((folder / "ca.key").read_bytes())
    return there


def test_a_secrets_ca_crt_is_the_root(tmp_path: Path) -> None:
    folder = secret(tmp_path)
    root = certificates_from_pem((tmp_path / "root.crt").read_bytes())
    (folder / "ca.crt").write_bytes((tmp_path / "root.crt").read_bytes())
    found = done(upstream_of(None, None, None, folder).certify(TD, AUTHORITY_KEY, DAY, START))
    assert found.bundle.x509_authorities == root
    chain = found.issue(KEY, WEB, ttl=TTL, now=START)
    assert len(chain) == 3
    assert check_x509_svid(chain, found.bundle, START) == WEB


@pytest.mark.parametrize("content", [None, b"", b"\n"])
def test_a_secret_without_a_ca_crt_has_its_root_in_its_chain(tmp_path: Path, content: bytes | None) -> None:
    folder = secret(tmp_path, chain="ca.crt")
    if content is not None:
        (folder / "ca.crt").write_bytes(content)
    found = done(upstream_of(None, None, None, folder).certify(TD, AUTHORITY_KEY, DAY, START))
    assert found.bundle.x509_authorities == certificates_from_pem((tmp_path / "root.crt").read_bytes())


def test_a_ca_crt_that_is_another_ones_is_refused(tmp_path: Path) -> None:
    folder = secret(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    upstream_files(other)
    (folder / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(UpstreamUnusable, match="invalid SVID"):
        done(upstream_of(None, None, None, folder).certify(TD, AUTHORITY_KEY, DAY, START))
    (folder / "ca.crt").write_bytes(b"rubbish")
    with pytest.raises(UpstreamUnusable):
        done(upstream_of(None, None, None, folder).certify(TD, AUTHORITY_KEY, DAY, START))


def test_roots_that_are_given_apart_win_and_may_not_be_missing(tmp_path: Path) -> None:
    folder = secret(tmp_path)
    (folder / "ca.crt").write_bytes(b"rubbish")
    found = done(upstream_of(None, None, tmp_path / "root.crt", folder).certify(TD, AUTHORITY_KEY, DAY, START))
    assert found.bundle.x509_authorities == certificates_from_pem((tmp_path / "root.crt").read_bytes())
    for upstream in (
        upstream_of(None, None, tmp_path / "nothing", folder),
        upstream_of(folder / "tls.crt", folder / "tls.key", tmp_path / "nothing", None),
    ):
        with pytest.raises(UpstreamUnusable, match="cannot be read"):
            done(upstream.certify(TD, AUTHORITY_KEY, DAY, START))
    assert isinstance(upstream_of(None, None, None, None), SelfSigned)
