"""The bundle as other trust domains fetch it."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from svid.bundle import TrustBundle
from svid.errors import InvalidBundle
from svid.federation import bundle_document
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from tests.unit.svid.test_bundle import BUNDLE, TD, authority

HINT = timedelta(minutes=5)
KEY = JwtSigningKey.create(JwtAlgorithm.RS256).public
OWN = replace(BUNDLE, jwt_authorities=(KEY,), sequence=2**53 + 1)


@pytest.mark.spec("TD-3", "TD-5", "TD-6", "TD-7", "TD-8")
def test_it_says_its_sequence_and_how_often_to_look() -> None:
    document = json.loads(bundle_document(OWN, HINT))
    assert document["spiffe_sequence"] == 2**53 + 1
    assert document["spiffe_refresh_hint"] == 300
    assert TrustBundle.from_jwks(TD, bundle_document(OWN, HINT)) == replace(OWN, refresh_hint=HINT)


def test_its_keys_are_of_kinds_and_uses_that_everybody_knows() -> None:
    """SPIRE 1.13 refuses a bundle for one use that it does not know, go-jose for one kind of key."""
    several = tuple(
        certificate
        for each in (KeyAlgorithm.EC_P256, KeyAlgorithm.RSA_2048, KeyAlgorithm.ML_DSA_65)
        for certificate in authority(each).bundle.x509_authorities
    )
    keys = json.loads(bundle_document(replace(OWN, x509_authorities=several), HINT))["keys"]
    assert {each["use"] for each in keys} == {"x509-svid", "jwt-svid"}
    assert {each["kty"] for each in keys} == {"EC", "RSA"}
    assert all("alg" not in each for each in keys), "parameters that the specification does not define"


@pytest.mark.parametrize("unfit", [replace(OWN, x509_authorities=()), replace(OWN, sequence=None)])
def test_what_partners_would_obey_or_could_not_order_is_not_made(unfit: TrustBundle) -> None:
    with pytest.raises(InvalidBundle):
        bundle_document(unfit, HINT)
