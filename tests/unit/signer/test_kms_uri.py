"""How a key in a cloud's KMS is named, and where keys are made there; and which setting takes which."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer import key_uri, kms_uri, pkcs11_uri
from signer.kms_uri import MAX_URI, AwsAccount, AwsKey, AwsPlace, GoogleKey, GoogleRing
from signer.upstream.chosen import at_hand, key_seconds
from signer.upstream.kms import KmsCaKey
from tests.unit.signer.test_openbao import loaded

AT = AwsAccount("aws", "eu-west-1", "111122223333")
ID = "11223344-1234-1122-2233-112233445566"
RING = "projects/org-pki/locations/europe-west1/keyRings/podsvid"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"awskms:///arn:aws:kms:eu-west-1:111122223333:key/{ID}", AwsKey(AT, f"key/{ID}")),
        ("awskms:///arn:aws:kms:eu-west-1:111122223333:alias/pki/ca", AwsKey(AT, "alias/pki/ca")),
        (
            f"awskms:///arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-{'0a' * 16}",
            AwsKey(AwsAccount("aws-us-gov", "us-gov-west-1", "111122223333"), f"key/mrk-{'0a' * 16}"),
        ),
        (f"gcpkms://{RING}/cryptoKeys/ca/cryptoKeyVersions/3", GoogleKey(f"{RING}/cryptoKeys/ca/cryptoKeyVersions/3")),
    ],
)
def test_a_key_is_named_as_its_cloud_names_it(text: str, found: AwsKey | GoogleKey) -> None:
    assert key_uri.parse(text) == found
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("awskms:///arn:aws:kms:eu-west-1:111122223333:alias/podsvid", AwsPlace(AT, "podsvid")),
        ("awskms:///arn:aws:kms:eu-west-1:111122223333:alias/a/b-c_d", AwsPlace(AT, "a/b-c_d")),
        (f"gcpkms://{RING}", GoogleRing(RING)),
        (f"gcpkms://{RING}?protection-level=software", GoogleRing(RING, hardware=False)),
    ],
)
def test_a_place_is_what_keys_are_below(text: str, found: AwsPlace | GoogleRing) -> None:
    assert key_uri.parse_place(text) == found
    assert str(found) == text
    assert key_uri.parse_place(f"gcpkms://{RING}?protection-level=hsm") == GoogleRing(RING)


@pytest.mark.parametrize(
    "text",
    [
        "awskms:///",
        f"awskms:///{ID}",
        f"awskms://localhost/arn:aws:kms:eu-west-1:111122223333:key/{ID}",
        f"awskms:///arn:aws:acm-pca:eu-west-1:111122223333:key/{ID}",
        f"awskms:///arn:aws:kms:eu-west-1:1111:key/{ID}",
        f"awskms:///arn:aws:kms:eu west-1:111122223333:key/{ID}",
        f"awskms:///arn:aws:kms:eu-west-1:111122223333:key/{ID}\n",
        f"awskms:///arn:aws:kms:eu-west-1:111122223333:key/{ID}/..",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/aws/s3",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/a.b",
        f"awskms:///{'a' * MAX_URI}",
        f"gcpkms://{RING}/cryptoKeys/ca",
        f"gcpkms://{RING}/cryptoKeys/ca/cryptoKeyVersions/0",
        f"gcpkms://{RING}/cryptoKeys/../cryptoKeyVersions/1",
        f"gcpkms:///{RING}/cryptoKeys/ca/cryptoKeyVersions/1",
        f"gcpkms://{RING}",
        "https://example.org/SECRET",
        "",
    ],
)
def test_what_names_no_key_is_told_the_form(text: str) -> None:
    forms = r"^(awskms:///arn:aws:kms:REGION|gcpkms://projects/PROJECT|pkcs11:token=)"
    with pytest.raises(ValueError, match=forms) as caught:
        key_uri.parse(text)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"awskms:///arn:aws:kms:eu-west-1:111122223333:key/{ID}",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/aws",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/aws/podsvid",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/podsvid/",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/" + "a" * 129,
        f"gcpkms://{RING}/cryptoKeys/ca/cryptoKeyVersions/1",
        f"gcpkms://{RING}?protection-level=external",
        f"gcpkms://{RING}?key=SECRET",
    ],
)
def test_what_is_no_place_is_told_the_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(awskms:///arn:aws:kms:REGION|gcpkms://projects/PROJECT)") as caught:
        key_uri.parse_place(text)
    assert "SECRET" not in str(caught.value)


@given(st.text(max_size=200) | st.text("arnws:kmseu-t1/0.9", max_size=80).map("awskms:///arn:aws:kms:".__add__))
def test_whatever_stands_there_is_a_key_or_refused(text: str) -> None:
    for parse in (key_uri.parse, key_uri.parse_place):
        with suppress(ValueError):
            assert str(parse(text)) == text.replace("?protection-level=hsm", "")


def test_the_settings_take_them_where_they_take_a_tokens() -> None:
    uri = f"gcpkms://{RING}/cryptoKeys/ca/cryptoKeyVersions/1"
    found = loaded({"upstream_cert_file": "/ca.crt", "upstream_key_uri": uri})
    files = found.above.files
    assert files.key_uri == kms_uri.parse_google_key(uri)
    above = at_hand(files)
    assert isinstance(getattr(above, "key", None), KmsCaKey)
    token = pkcs11_uri.parse("pkcs11:token=a;object=b?module-path=/m")
    assert (key_seconds(None), key_seconds(token), key_seconds(files.key_uri)) == (0.0, 20.0, 20.0)
    place = "awskms:///arn:aws:kms:eu-west-1:111122223333:alias/podsvid"
    assert loaded({"authority_key_uri": place, "jwt_algorithm": "ES256"}).keys.place == AwsPlace(AT, "podsvid")
