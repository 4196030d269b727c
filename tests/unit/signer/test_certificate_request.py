"""What a PodCertificateRequest says, in both of its encodings; whatever it says, it is read or has a flaw."""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from signer.cluster.objects import PodCertificateRequestObject
from signer.errors import Reason, Refused
from signer.front.certificate_request import MAX_BYTES, CertificateRequest, Proof, proven, read_request
from signer.pod_certificate_settings import LEAST_LIFE, MOST_LIFE
from svid.keys import KeyAlgorithm, public_bytes
from tests.pod_certificates import TYPES, body, csr
from tests.typed import typed

POD = {"metadata": {"name": "web", "uid": "uid-web"}}
ACCOUNT = {"metadata": {"name": "web", "uid": "uid-account"}}
NODE = {"metadata": {"name": "node-a", "uid": "uid-node"}}
KEY = KeyAlgorithm.EC_P256.generate()
# Too weak, and none of SVIDs.
SMALL, WIDE = rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP521R1())


def request(key: Any = KEY, **change: Any) -> dict[str, Any]:
    found = body(POD, ACCOUNT, NODE, key, **change)
    found["metadata"] |= {"uid": "uid-request", "name": "req-1", "resourceVersion": "7"}
    return found


def read(found: dict[str, Any]) -> CertificateRequest | None:
    return read_request(typed(PodCertificateRequestObject, found))


def flaw(found: dict[str, Any]) -> Reason:
    made = read(found)
    assert made is not None
    with pytest.raises(Refused) as caught:
        proven(made)
    return caught.value.reason


@pytest.mark.parametrize("algorithm", TYPES)
def test_both_encodings_are_read_and_the_newer_counts(algorithm: KeyAlgorithm) -> None:
    key = algorithm.generate()
    for found in (
        request(key),
        request(stubPKCS10Request=csr(key)),
        request(pkixPublicKey=None, proofOfPossession=None, stubPKCS10Request=csr(key)),
    ):
        made = read(found)
        assert made is not None
        assert made.flaw is None
        assert public_bytes(proven(made)) == public_bytes(key.public_key())


def test_what_it_says_of_its_pod() -> None:
    made = read(request(maxExpirationSeconds=7200, unverifiedUserAnnotations={"podsvid.io/dns-names": "a.b, c.d,a.b"}))
    assert made is not None
    assert made.path == "namespaces/default/podcertificaterequests/req-1"
    assert (str(made.claimed.pod), made.claimed.pod.uid) == ("default/web", "uid-web")
    assert (made.claimed.service_account, made.claimed.service_account_uid) == ("web", "uid-account")
    assert made.claimed.node_name == "node-a"
    assert made.most == timedelta(hours=2)
    assert made.dns_names == ("a.b", "c.d")


@pytest.mark.parametrize("kind", ["Issued", "Denied", "Failed", "Other"])
def test_what_is_decided_is_none(kind: str) -> None:
    assert read({**request(), "status": {"conditions": [{"type": kind, "status": "True"}]}}) is None
    assert read({**request(), "status": {"conditions": []}}) is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"proofOfPossession": base64.b64encode(b"x").decode()}, Reason.PROOF_OF_POSSESSION),
        ({"proofOfPossession": None}, Reason.PROOF_OF_POSSESSION),
        ({"pkixPublicKey": None, "proofOfPossession": None}, Reason.CSR_INVALID),
        ({"pkixPublicKey": "AAAA"}, Reason.CSR_INVALID),
        ({"pkixPublicKey": "no base64"}, Reason.CSR_INVALID),
        ({"pkixPublicKey": "A" * 40_000}, Reason.CSR_INVALID),
        ({"stubPKCS10Request": "AAAA"}, Reason.CSR_INVALID),
        ({"unverifiedUserAnnotations": {"spiffe/path-overriding": "/x"}}, Reason.INVALID_REQUEST),
        ({"unverifiedUserAnnotations": {"podsvid.io/dns-names": "x" * 9000}}, Reason.INVALID_REQUEST),
        (
            {"unverifiedUserAnnotations": {"podsvid.io/dns-names": ",".join(f"a{n}" for n in range(33))}},
            Reason.INVALID_REQUEST,
        ),
    ],
)
def test_what_nothing_mends(change: dict[str, Any], reason: Reason) -> None:
    assert flaw(request(**change)) is reason


def test_what_is_read_holds_no_more_of_a_proof_than_the_api_server_takes() -> None:
    longest, longer = (base64.b64encode(b"x" * n).decode() for n in (MAX_BYTES, MAX_BYTES + 3))
    for name in ("pkixPublicKey", "proofOfPossession", "stubPKCS10Request"):
        fits, none = read(request(**{name: longest})), read(request(**{name: longer}))
        assert fits is not None
        assert fits.flaw is None
        assert none is not None
        assert none.proof == Proof()
        assert flaw(request(**{name: longer})) is Reason.CSR_INVALID


def test_a_certificate_request_that_its_key_did_not_sign_proves_nothing() -> None:
    signed = base64.b64decode(csr(KEY))
    other = signed[:-1] + bytes([signed[-1] ^ 1])
    assert flaw(request(stubPKCS10Request=base64.b64encode(other).decode())) is Reason.PROOF_OF_POSSESSION


def test_of_another_pod_a_proof_is_none() -> None:
    found = request()
    found["spec"]["podUID"] = "uid-other"
    assert flaw(found) is Reason.PROOF_OF_POSSESSION


@pytest.mark.parametrize("key", [SMALL, WIDE], ids=["rsa-1024", "p-521"])
def test_keys_that_svids_are_not_for(key: Any) -> None:
    found = request()
    found["spec"]["pkixPublicKey"] = base64.b64encode(public_bytes(key.public_key())).decode()
    assert flaw(found) is Reason.KEY_WEAK


TEXT = st.one_of(
    st.none(), st.text(max_size=60), st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
)


@given(
    texts=st.fixed_dictionaries(
        dict.fromkeys(
            ("pkixPublicKey", "proofOfPossession", "stubPKCS10Request", "podUID", "podName", "nodeName"), TEXT
        )
    ),
    seconds=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    annotations=st.one_of(st.none(), st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=3)),
)
def test_whatever_it_says_it_is_read(
    texts: dict[str, str | None], seconds: int | None, annotations: dict[str, str] | None
) -> None:
    found = request()
    found["spec"] |= {**texts, "maxExpirationSeconds": seconds, "unverifiedUserAnnotations": annotations}
    made = read(found)
    assert made is not None
    with suppress(Refused):
        proven(made)
    assert LEAST_LIFE <= made.most <= MOST_LIFE
    assert len(made.dns_names) <= 32
