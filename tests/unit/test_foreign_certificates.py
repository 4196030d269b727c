"""Certificates that others made, bent in every way: each reader answers with this project's own error, or takes them.

The library reads names, keys and extensions only when they are looked at, and answers with whatever comes of it then.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.authority.given import GivenX509, open_files
from agent.authority.proven import _signers, certificates
from agent.errors import AuthorityDamaged
from podsvid.api import rendering
from runtime.federation import read_bundle
from signer.errors import Refused
from signer.minting.minting import proven_key
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from svid.acceptance import accept
from svid.authority import PublicAuthority, X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificate_from_der, check_readable, serial_of, to_pem
from svid.errors import InvalidBundle, InvalidSvid, IssuanceRefused, SvidError
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid, issued_by, leaf_spiffe_id

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
TD = TrustDomain("example.org")
WEB = SpiffeId.parse("spiffe://example.org/web")
HOUR = timedelta(hours=1)
ROOT = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)
KEY = KeyAlgorithm.EC_P256.generate()
LEAF = ROOT.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW, dns_names=["web.example.org"])
GOOD = TrustBundle(TD, ROOT.chain)
CA_DER, LEAF_DER = (each.public_bytes(Encoding.DER) for each in (ROOT.chain[0], LEAF[0]))
NAME_DER = ROOT.chain[0].subject.public_bytes()
# Of an attribute's value: a bit string that only one attribute may have, and a tag that none has.
TAGS = (0x03, 0x0E)


def renamed(der: bytes, tag: int, which: tuple[int, ...] = (0, 1)) -> bytes:
    """With the first value of a name (0: the issuer's, 1: the subject's) of another kind."""
    bent, at = bytearray(der), -1
    value = NAME_DER.index(b"podsvid") - 2
    for number in range(der.count(NAME_DER)):
        at = der.index(NAME_DER, at + 1)
        if number in which:
            bent[at + value] = tag
    return bytes(bent)


# Their dates are all GeneralizedTimes: those have four digits for the year, and DER has a year 0.
LATE = datetime(2051, 6, 1, 12, 0, 0, tzinfo=UTC)
LATE_ROOT = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=700), now=LATE)
LATE_LEAF = LATE_ROOT.issue(KEY.public_key(), WEB, ttl=timedelta(days=300), now=LATE, dns_names=["web.example.org"])
LATE_CA_DER, LATE_LEAF_DER = (each.public_bytes(Encoding.DER) for each in (LATE_ROOT.chain[0], LATE_LEAF[0]))
BEGINS, ENDS = 0, 1


def undated(der: bytes, which: int) -> bytes:
    """Beginning or ending in the year 0."""
    form = b"\x18\x0f"
    at = der.index(form) if which == BEGINS else der.index(form, der.index(form) + 1)
    return der[: at + 2] + b"0000" + der[at + 6 :]


# Extensions that the library answers with errors of its own: a name of a kind that it has not, a feature, and no list.
ODD = {
    "an EDI party's name": (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, "3004a3023000"),
    "an unknown TLS feature": (ExtensionOID.TLS_FEATURE, "3003020101"),
    "no TLS feature": (ExtensionOID.TLS_FEATURE, "3000"),
}


def extended(oid: x509.ObjectIdentifier, value: str) -> bytes:
    """A root that has such an extension beside its own."""
    root, key = ROOT.chain[0], KeyAlgorithm.EC_P256.generate()
    builder = x509.CertificateBuilder(root.issuer, root.subject, key.public_key(), root.serial_number)
    builder = builder.not_valid_before(root.not_valid_before_utc).not_valid_after(root.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.UnrecognizedExtension(oid, bytes.fromhex(value)), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


STRANGE = {
    **{f"name {tag:#x}": renamed(CA_DER, tag) for tag in TAGS},
    **{what: extended(*each) for what, each in ODD.items()},
    "begins in the year 0": undated(LATE_CA_DER, BEGINS),
    "ends in the year 0": undated(LATE_CA_DER, ENDS),
}


def bent(der: bytes) -> st.SearchStrategy[bytes]:
    """With a few bytes changed."""

    def changed(changes: list[tuple[int, int]]) -> bytes:
        found = bytearray(der)
        for position, value in changes:
            found[position] = value
        return bytes(found)

    change = st.tuples(st.integers(0, len(der) - 1), st.integers(0, 255))
    return st.lists(change, min_size=1, max_size=3).map(changed)


def read(der: bytes) -> x509.Certificate:
    try:
        return certificate_from_der(der)
    except ValueError:
        return ROOT.chain[0]


def all_readers(der: bytes) -> None:
    """All that is done to a certificate of another's; only this package's errors may come of it."""
    entry = {"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(der).decode()]}
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    bundles: tuple[Callable[[], TrustBundle], ...] = (
        lambda: TrustBundle.from_der(TD, der),
        lambda: TrustBundle.from_pem(TD, pem),
        lambda: TrustBundle.from_pem(TD, pem, lambda why: None),
        lambda: TrustBundle.from_jwks(TD, json.dumps({"keys": [entry]}).encode()),
    )
    for parse in bundles:
        with suppress(SvidError):
            found = parse()
            found.to_jwks()
            rendering.bundles([found])
            with suppress(SvidError):
                check_x509_svid(LEAF, found, NOW)
            held = X509Authority(TD, ROOT.chain, ROOT.private_key, found)
            with suppress(SvidError):
                accept(held, NOW)
            with suppress(SvidError):
                held.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW)
    each = read(der)
    serial_of(each)
    issued_by(each, ROOT.chain[0])
    issued_by(LEAF[0], each)
    _signers(each, certificates(ROOT.bundle.to_pem()))
    tries: list[Callable[[], object]] = [
        lambda: leaf_spiffe_id(each),
        lambda: check_x509_svid((each,), GOOD, NOW),
        lambda: check_x509_svid((LEAF[0], each), GOOD, NOW),
        lambda: accept(ROOT, NOW, others=[PublicAuthority(TD, (each,), GOOD)]),
    ]
    for chain in ((each,), (each, *ROOT.chain), (*ROOT.chain, each)):
        tries.append(lambda chain=chain: used(X509Authority(TD, chain, ROOT.private_key, GOOD)))  # type: ignore[misc]
    for attempt in tries:
        with suppress(SvidError):
            attempt()


def used(found: X509Authority) -> None:
    uses: tuple[Callable[[], object], ...] = (
        lambda: accept(found, NOW),
        lambda: found.issue_intermediate(KEY, lifetime=HOUR, now=NOW),
        lambda: found.issue(KEY.public_key(), WEB, ttl=HOUR, now=NOW),
        lambda: found.above_ends,
        lambda: found.public.not_after,
    )
    for each in uses:
        with suppress(SvidError):
            each()


@settings(max_examples=120)
@given(bent(CA_DER) | bent(LEAF_DER))
def test_no_reader_answers_with_another_error(der: bytes) -> None:
    all_readers(der)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_a_name_that_cannot_be_read_is_refused_by_all_readers(tag: int, which: tuple[int, ...]) -> None:
    all_readers(renamed(LEAF_DER, tag, (0,)))
    refused_by_all_readers(renamed(CA_DER, tag, which))


@pytest.mark.parametrize("which", [BEGINS, ENDS])
def test_a_date_that_cannot_be_read_is_refused_by_all_readers(which: int) -> None:
    leaf = undated(LATE_LEAF_DER, which)
    all_readers(leaf)
    with pytest.raises(InvalidSvid, match="cannot be parsed"):
        leaf_spiffe_id(certificate_from_der(leaf))
    refused_by_all_readers(undated(LATE_CA_DER, which))


@pytest.mark.parametrize("what", ODD)
def test_an_extension_that_cannot_be_read_is_refused_by_all_readers(what: str) -> None:
    all_readers(extended(*ODD[what]))
    with pytest.raises(ValueError, match="extensions cannot be read"):
        check_readable(certificate_from_der(extended(*ODD[what])))


def refused_by_all_readers(der: bytes) -> None:
    strange = certificate_from_der(der)
    all_readers(der)
    with pytest.raises(ValueError, match=r"\w"):
        check_readable(strange)
    with pytest.raises(InvalidBundle, match="cannot be parsed"):
        TrustBundle(TD, (strange,))
    with pytest.raises(IssuanceRefused, match="cannot be parsed"):
        X509Authority(TD, (strange,), ROOT.private_key, GOOD)
    with pytest.raises(IssuanceRefused, match="cannot be parsed"):
        PublicAuthority(TD, (*ROOT.chain, strange), GOOD)
    with pytest.raises(InvalidSvid):
        check_x509_svid((LEAF[0], strange), TrustBundle(TD), NOW)
    assert not issued_by(strange, strange)


@pytest.mark.parametrize("der", STRANGE.values(), ids=STRANGE)
def test_a_partners_root_that_cannot_be_read_is_left_out_and_the_others_count(tmp_path: Path, der: bytes) -> None:
    both = [certificate_from_der(der), *ROOT.chain]
    (tmp_path / "pem").write_bytes(to_pem(both))
    assert read_bundle(TD, tmp_path / "pem").x509_authorities == ROOT.chain


@pytest.mark.parametrize("der", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("file", ["crt", "roots"])
def test_files_with_such_a_certificate_are_unusable_in_a_sentence(tmp_path: Path, der: bytes, file: str) -> None:
    """Another error ends the signer that leads, or the agent, and so does it after each start."""
    (tmp_path / "crt").write_bytes(to_pem(ROOT.chain))
    (tmp_path / "roots").write_bytes(to_pem(ROOT.chain))
    (tmp_path / "key").write_bytes(key_to_pem(ROOT.private_key))
    (tmp_path / file).write_bytes(to_pem([certificate_from_der(der)]))
    paths = (tmp_path / "crt", tmp_path / "key", tmp_path / "roots")
    with pytest.raises(UpstreamUnusable, match="cannot be parsed"):
        asyncio.run(FileUpstream(*paths).certify(TD, KEY, HOUR, NOW))
    with pytest.raises(AuthorityDamaged, match="cannot be parsed"):
        open_files(*paths, TD)
    with pytest.raises(AuthorityDamaged, match="cannot be parsed"):
        GivenX509(*paths, TD)


REQUEST = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


@settings(max_examples=200)
@given(bent(REQUEST) | st.binary(max_size=64))
def test_a_certificate_request_is_proven_or_refused(der: bytes) -> None:
    with suppress(Refused):
        proven_key(der)
