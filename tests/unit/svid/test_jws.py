"""Signatures of JWTs, held against a library that others wrote and against the examples of the RFCs."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from svid.bundle import JwtKey
from svid.jws import JwtAlgorithm, JwtPrivateKey
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import SpiffeId

DATA = b"eyJhbGciOiJFUzI1NiJ9.e30"
RSA = rsa.generate_private_key(65537, 2048)
KEYS: dict[JwtAlgorithm, JwtPrivateKey] = {
    each: each.generate() if each.value[0] == "E" else RSA for each in JwtAlgorithm
}
ANOTHER_RSA = rsa.generate_private_key(65537, 2048)
# RFC 7515 A.2.1 and A.3.1.
PAYLOAD = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
N = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgN"
    "MsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xs"
    "mtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)
OF_RSA = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1d"
    "nZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwu"
    "sC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
X, Y = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
OF_EC = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"


def bytes_of(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def number(text: str) -> int:
    return int.from_bytes(bytes_of(text), "big")


def test_the_examples_of_the_rfc() -> None:
    key: JwtKey = rsa.RSAPublicNumbers(65537, number(N)).public_key()
    data = f"eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}".encode()
    assert JwtAlgorithm.RS256.verifies(bytes_of(OF_RSA), data, key)
    key = ec.EllipticCurvePublicNumbers(number(X), number(Y), ec.SECP256R1()).public_key()
    data = f"eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}".encode()
    assert JwtAlgorithm.ES256.verifies(bytes_of(OF_EC), data, key)


@pytest.mark.parametrize("algorithm", JwtAlgorithm)
def test_what_is_signed_here_verifies_elsewhere_and_the_other_way_round(algorithm: JwtAlgorithm) -> None:
    key, theirs = KEYS[algorithm], jwt.get_algorithm_by_name(algorithm.value)
    assert theirs.verify(DATA, key.public_key(), algorithm.sign(DATA, key))
    assert algorithm.verifies(theirs.sign(DATA, key), DATA, key.public_key())


@pytest.mark.parametrize("algorithm", [each for each in JwtAlgorithm if each.value[0] == "R"])
def test_a_token_is_that_of_another_library_to_the_byte(algorithm: JwtAlgorithm) -> None:
    # Of those whose signatures have no chance in them.
    key = JwtSigningKey.of(RSA, algorithm)
    now, web = datetime(2026, 6, 1, tzinfo=UTC), SpiffeId.parse("spiffe://example.org/web")
    svid = key.issue(web, ["db", "größer"], ttl=timedelta(minutes=5), now=now)
    headers = {"kid": key.key_id, "typ": "JWT"}
    assert svid.token == jwt.encode(dict(svid.claims), RSA, algorithm=algorithm.value, headers=headers)


@pytest.mark.parametrize("algorithm", JwtAlgorithm)
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7), of_data=st.booleans())
@settings(max_examples=60, deadline=None)
def test_nothing_of_what_was_signed_may_change(algorithm: JwtAlgorithm, at: int, bit: int, of_data: bool) -> None:
    key = KEYS[algorithm]
    signature, data = bytearray(algorithm.sign(DATA, key)), bytearray(DATA)
    changed = data if of_data else signature
    changed[at % len(changed)] ^= 1 << bit
    assert not algorithm.verifies(bytes(signature), bytes(data), key.public_key())


@pytest.mark.parametrize("algorithm", JwtAlgorithm)
@pytest.mark.parametrize("other", JwtAlgorithm)
def test_a_signature_is_good_for_its_own_algorithm_and_key_only(algorithm: JwtAlgorithm, other: JwtAlgorithm) -> None:
    signature = algorithm.sign(DATA, KEYS[algorithm])
    assert other.verifies(signature, DATA, KEYS[algorithm].public_key()) == (other is algorithm)
    another = other.generate() if other.value[0] == "E" else ANOTHER_RSA
    assert not other.verifies(signature, DATA, another.public_key())


@pytest.mark.parametrize("algorithm", [each for each in JwtAlgorithm if each.value[0] == "E"])
def test_an_ecdsa_signature_has_one_spelling(algorithm: JwtAlgorithm) -> None:
    key: Any = KEYS[algorithm]
    signature = algorithm.sign(DATA, key)
    half = len(signature) // 2
    r, s = signature[:half], signature[half:]
    # The numbers are the same in the second; the third is how X.509 writes them.
    der = key.sign(DATA, ec.ECDSA(hashes.SHA256()))
    for wrong in (b"", r, r + b"\0" + s, signature + b"\0", b"\0" * len(signature), b"\xff" * len(signature), der):
        assert not algorithm.verifies(wrong, DATA, key.public_key())


@pytest.mark.parametrize("length", [0, 20, padding.PSS.MAX_LENGTH])
def test_a_salt_has_the_length_of_the_hash(length: Any) -> None:
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), length)
    signature = RSA.sign(DATA, scheme, hashes.SHA256())
    assert not JwtAlgorithm.PS256.verifies(signature, DATA, RSA.public_key())


def test_the_hash_of_the_mask_is_that_of_the_data() -> None:
    scheme = padding.PSS(padding.MGF1(hashes.SHA1()), 32)
    signature = RSA.sign(DATA, scheme, hashes.SHA256())
    assert not JwtAlgorithm.PS256.verifies(signature, DATA, RSA.public_key())


def test_a_header_says_what_signed() -> None:
    key = JwtSigningKey.create(JwtAlgorithm.ES384)
    now, web = datetime(2026, 6, 1, tzinfo=UTC), SpiffeId.parse("spiffe://example.org/web")
    svid = key.issue(web, ["db"], ttl=timedelta(minutes=5), now=now)
    header = json.loads(bytes_of(svid.token.split(".")[0]))
    assert header == {"alg": "ES384", "kid": key.key_id, "typ": "JWT"}
