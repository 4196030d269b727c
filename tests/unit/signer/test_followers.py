"""Who cannot follow the authorities: said of what signs, will sign or is trusted by ML-DSA, and of nothing else."""

import json
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from csi.layout import render
from csi.model import Contents, VolumeOptions
from signer.authority.anchors import UpstreamRoot
from signer.authority.followers import warnings
from signer.authority.slots import Stage, X509Slot
from signer.authority.state import AuthorityState
from signer.front.audit import Audit
from signer.upstream.certify import FileUpstream
from svid.acceptance import accept
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem, signature_hash
from svid.postquantum import VERIFIERS, Part, refusing, signs_below
from svid.x509svid import X509Svid
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_lifecycle import TD, WEB, advanced, done, first, life
from tests.unit.signer.test_upstream_trial import name

DAY = timedelta(days=1)
REFUSING = refusing(Part.ABOVE)


def made(algorithm: KeyAlgorithm = KeyAlgorithm.ML_DSA_65) -> X509Authority:
    return X509Authority.create(TD, algorithm=algorithm, lifetime=10 * DAY, now=START)


def ca(
    text: str,
    key: PrivateKey,
    above: tuple[x509.Certificate, PrivateKey] | None = None,
) -> x509.Certificate:
    """A CA's certificate, which `above` or it itself signed."""
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    issuer, signer = (above[0].subject, above[1]) if above else (name(text), key)
    builder = x509.CertificateBuilder(
        issuer, name(text), key.public_key(), x509.random_serial_number(), START - DAY, START + 90 * DAY
    )
    builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    return builder.sign(signer, signature_hash(signer))


def by(authority: X509Authority, stage: Stage = Stage.PREPARED) -> AuthorityState:
    state = first()
    return replace(state, x509=(*state.x509, X509Slot(stage, authority, START)))


@pytest.fixture
def below(tmp_path: Path) -> X509Authority:
    """An EC authority that an organisation's ML-DSA root certified, from files."""
    key = KeyAlgorithm.ML_DSA_87.generate()
    (tmp_path / "crt").write_bytes(to_pem([ca("root", key)]))
    (tmp_path / "key").write_bytes(key_to_pem(key))
    upstream = FileUpstream(tmp_path / "crt", tmp_path / "key")
    return done(upstream.certify(TD, KeyAlgorithm.EC_P256.generate(), 10 * DAY, START))


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519])
def test_nothing_is_said_of_what_all_follow(algorithm: KeyAlgorithm) -> None:
    assert warnings(by(made(algorithm))) == []


def test_of_a_prepared_one_it_is_said_before_it_signs_who_will_refuse() -> None:
    now = START
    acting = life(key_algorithm=KeyAlgorithm.ML_DSA_65)
    state, _ = done(acting.prepare(first(), "x509", now))
    (line,) = warnings(state)
    prepared = state.x509[1].id
    assert line.startswith(f"x509: SVIDs of the prepared authority {prepared} take verifiers that know ML-DSA")
    assert f"podsvid authority revoke {prepared}" in line
    for each in VERIFIERS.values():
        assert (f"{each.name} (instead: {each.instead})" in line) == (each in REFUSING)
    # As it says: whoever sees it can take it back.
    back, _ = acting.revoke(state, "x509", prepared, now, forced=False)
    assert warnings(back) == []
    state = advanced(state, now, by=acting)
    assert state.active_x509_id == prepared
    (line,) = warnings(state)
    assert line.startswith(
        f"x509: SVIDs of the active authority {prepared} take verifiers that know ML-DSA; these refuse"
    )


def test_of_an_ec_authority_below_an_ml_dsa_root_it_is_said_too(below: X509Authority) -> None:
    assert signs_below(below)
    (line,) = warnings(by(below))
    assert "prepared authority" in line


def test_what_signs_no_more_is_not_spoken_of() -> None:
    assert warnings(by(made(), Stage.OLD)) == []


def test_of_a_root_beside_it_is_said_that_nobody_minds_yet_and_who_will() -> None:
    (root,) = made().chain
    state = replace(first(), roots=(UpstreamRoot(root, START),))
    (line,) = warnings(state)
    assert UpstreamRoot(root, START).id in line
    assert "no verifier that was tried minds" in line
    assert all(each.name in line for each in REFUSING)
    again = AuthorityState.from_json(state.to_json(), TD)
    assert (again.bundle, warnings(again)) == (state.bundle, [line])


def test_where_a_way_without_ml_dsa_leads_to_another_root_nobody_has_to_take_it() -> None:
    """A root that both sign: verifiers that do not know the one take the other."""
    old, new = KeyAlgorithm.EC_P384.generate(), KeyAlgorithm.ML_DSA_87.generate()
    plain, later = ca("old", old), ca("new", new)
    crossed = ca("old", old, (later, new))
    roots = TrustBundle(TD, (plain, later))
    authority = X509Authority(TD, (plain,), old, roots).issue_intermediate(
        KeyAlgorithm.EC_P256.generate(), lifetime=DAY, now=START
    )
    both = X509Authority(TD, (*authority.chain, crossed), authority.private_key, roots)
    accept(both, START)
    assert not signs_below(both)
    # Where the old one is trusted no more there is one way, and it needs the new one.
    assert signs_below(X509Authority(TD, both.chain, both.private_key, TrustBundle(TD, (later,))))


def test_the_audit_log_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "podsvid.audit")
    audit, plain, state = Audit(StepClock()), first(), by(made())

    def said() -> int:
        return len([each for each in caplog.records if each.getMessage() == "some verifiers cannot follow"])

    audit.followed(plain)
    assert said() == 0
    audit.authorities(plain, state)
    audit.authorities(state, replace(state, sequence=state.sequence + 1))
    audit.followed(state)
    assert said() == 1
    assert [vars(each)["why"] for each in caplog.records] == warnings(state)
    audit.authorities(state, plain)
    audit.authorities(plain, state)
    assert said() == 2


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.ML_DSA_65, KeyAlgorithm.ML_DSA_87])
def test_a_volume_has_room_for_it_and_its_json_no_key_that_readers_refuse(
    below: X509Authority, algorithm: KeyAlgorithm
) -> None:
    """go-jose and gRPC's C core take nothing of a bundle with a key of kind AKP."""
    (beside,) = made(algorithm).chain
    bundle = TrustBundle(TD, (*made(KeyAlgorithm.EC_P256).chain, *below.bundle.x509_authorities, beside))
    key = KeyAlgorithm.EC_P256.generate()
    chain = below.issue(key.public_key(), WEB, ttl=DAY, now=START)
    contents = Contents(WorkloadIdentity((X509Svid(WEB, chain, key),), bundle))
    files = render(VolumeOptions(keystores="pkcs12"), contents, "changeit")
    assert files["ca.crt"].content.count(b"BEGIN CERTIFICATE") == 3
    assert sum(len(each.content) for each in files.values()) < 128 * 1024
    documents = [json.loads(files["bundle.json"].content)]
    documents += json.loads(render(VolumeOptions(layout="grpc"), contents, "")["trust_bundles.json"].content)[
        "trust_domains"
    ].values()
    assert [[each["kty"] for each in found["keys"]] for found in documents] == [["EC"], ["EC"]]
