"""What is refused behind the first check: each by its own words, so that no other check stands in for the one meant."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448

from svid.authority import X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.certificates import certificates_from_der, certificates_from_pem, to_der, to_pem
from svid.errors import InvalidKey, InvalidSvid, IssuanceRefused
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtKeyring, JwtSigningKey, KeyringPolicy
from svid.jwtsvid import check_jwt_svid
from svid.keys import KeyAlgorithm, key_from_pem, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.unit.svid import test_chains, test_jwtsvid

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TD, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
EC = KeyAlgorithm.EC_P256
ISSUER = X509Authority.create(TD, algorithm=EC, lifetime=timedelta(days=1), now=NOW)
POLICY = KeyringPolicy(JwtAlgorithm.ES256, signing_period=24 * HOUR, lead=2 * HOUR, token_ttl=HOUR)


def test_an_svid_is_its_certificates_and_nobody_elses() -> None:
    key = EC.generate()
    chain = ISSUER.issue(key.public_key(), WEB, ttl=HOUR, now=NOW)
    X509Svid(WEB, chain, key).check(ISSUER.bundle, NOW)
    admin = SpiffeId.parse("spiffe://example.org/ns/default/sa/admin")
    with pytest.raises(InvalidSvid, match=f"certificate is for {WEB}, not for {admin}"):
        X509Svid(admin, chain, key).check(ISSUER.bundle, NOW)
    with pytest.raises(InvalidSvid, match="private key does not match"):
        X509Svid(WEB, chain, EC.generate()).check(ISSUER.bundle, NOW)


@pytest.mark.parametrize(
    ("spiffe_id", "ttl", "dns_names", "why"),
    [
        (SpiffeId.parse("spiffe://partner.test/web"), HOUR, (), "^spiffe://partner.test/web is not of trust domain"),
        (TD.id, HOUR, (), "^an SVID needs a SPIFFE ID with a path"),
        (WEB, timedelta(0), (), "lifetime must be positive"),
        (WEB, HOUR, ("web.example.org", "*.example.org"), r"'\*\.example\.org' is not a DNS name"),
        (WEB, HOUR, ("10.0.0.1",), "'10.0.0.1' is not a DNS name"),
    ],
)
def test_what_an_authority_does_not_sign_it_says_before_it_signs(
    spiffe_id: SpiffeId, ttl: timedelta, dns_names: tuple[str, ...], why: str
) -> None:
    with pytest.raises(IssuanceRefused, match=why):
        ISSUER.issue(EC.generate().public_key(), spiffe_id, ttl=ttl, now=NOW, dns_names=dns_names)


def test_an_authority_that_has_ended_signs_nothing() -> None:
    ends = ISSUER.not_after
    ISSUER.issue(EC.generate().public_key(), WEB, ttl=HOUR, now=ends - timedelta(seconds=1))
    for now in (ends, ends + HOUR):
        with pytest.raises(IssuanceRefused, match=r"authority expired at .* needs a new one"):
            ISSUER.issue(EC.generate().public_key(), WEB, ttl=HOUR, now=now)


def root(path_length: int | None) -> X509Authority:
    """An authority that may have others below it."""
    made = test_chains.Ca("root", path_length=path_length)
    return X509Authority(TD, (made.certificate,), made.key, TrustBundle(TD, (made.certificate,)))


def test_an_intermediate_ends_with_what_is_above_it_and_has_room_there() -> None:
    above = root(1)
    below = above.issue_intermediate(EC.generate(), lifetime=timedelta(days=365), now=NOW)
    assert below.not_after == above.not_after == below.chain[0].not_valid_after_utc
    assert above.issue_intermediate(EC.generate(), lifetime=HOUR, now=NOW).not_after == NOW + HOUR
    with pytest.raises(IssuanceRefused, match="the authority above expired"):
        above.issue_intermediate(EC.generate(), lifetime=HOUR, now=above.not_after)
    for full in (root(0), below):
        with pytest.raises(IssuanceRefused, match="leaves no room"):
            full.issue_intermediate(EC.generate(), lifetime=HOUR, now=NOW)
    with pytest.raises(IssuanceRefused, match="lifetime must be positive"):
        root(None).issue_intermediate(EC.generate(), lifetime=timedelta(0), now=NOW)


def bent(**changes: Any) -> Callable[[], X509Authority]:
    return lambda: replace(ISSUER, **changes)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (bent(chain=()), "has no certificate"),
        (bent(private_key=EC.generate()), "key does not match its certificate"),
        (bent(bundle=TrustBundle(PARTNER)), "authority bundle is of partner.test, not example.org"),
        (lambda: of_a_leaf(), "not a CA certificate with keyCertSign"),
        (lambda: of_a_ca_that_may_not_sign(), "not a CA certificate with keyCertSign"),
    ],
)
def test_what_is_no_authority(make: Callable[[], X509Authority], why: str) -> None:
    with pytest.raises(IssuanceRefused, match=why):
        make()


def of_a_leaf() -> X509Authority:
    key = EC.generate()
    return replace(ISSUER, chain=ISSUER.issue(key.public_key(), WEB, ttl=HOUR, now=NOW), private_key=key)


def of_a_ca_that_may_not_sign() -> X509Authority:
    made = test_chains.Ca("root", cert_sign=False)
    return replace(ISSUER, chain=(made.certificate,), private_key=made.key)


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("number", ["1e999", "-1e999", "-1", "true", '"1"', "[1]"])
def test_a_time_is_a_finite_number(name: str, number: str) -> None:
    claims = {**test_jwtsvid.GOOD, name: 0}
    text = json.dumps(claims).replace(f'"{name}": 0', f'"{name}": {number}')
    with pytest.raises(InvalidSvid, match=f"{name} is (not a number|negative)"):
        test_jwtsvid.check(test_jwtsvid.signed(test_jwtsvid.header(), text))


def test_of_a_domain_with_very_many_keys_a_token_without_kid_costs_so_much_and_no_more() -> None:
    signing = JwtSigningKey.create(JwtAlgorithm.ES256)
    others = tuple(JwtAuthority(f"k{n}", JwtAlgorithm.ES256.generate().public_key()) for n in range(16))
    token = test_jwtsvid.signed({"alg": "ES256"}, test_jwtsvid.GOOD, signing)

    def check(*keys: JwtAuthority) -> None:
        check_jwt_svid(token, {TD: TrustBundle(TD, jwt_authorities=keys)}, "db", NOW)

    check(*others[:15], signing.public)
    with pytest.raises(InvalidSvid, match="signature does not match"):
        check(*others, signing.public)


def test_a_ring_whose_keys_are_in_another_order_is_damaged() -> None:
    ring = JwtKeyring.create(POLICY, NOW).advance(POLICY, NOW + 22 * HOUR)
    document = json.loads(ring.to_json())
    assert len(document["keys"]) == 2
    document["keys"].reverse()
    with pytest.raises(InvalidKey, match="not in the order in which they sign"):
        JwtKeyring.from_json(json.dumps(document).encode())


def test_a_ring_is_refused_without_a_word_of_what_is_in_it() -> None:
    document = json.loads(JwtKeyring.create(POLICY, NOW).to_json())
    secret = "a-word-of-a-key"
    for change in (
        {"keys": [{**document["keys"][0], "algorithm": secret}]},
        {"keys": [{**document["keys"][0], "signs_from": secret}]},
        {"keys": [{secret: 1}]},
        {"keys": secret},
        {"token_ttl_seconds": secret},
        {"sequence": secret},
        {"version": secret},
    ):
        with pytest.raises(InvalidKey) as caught:
            JwtKeyring.from_json(json.dumps({**document, **change}).encode())
        assert secret not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    with pytest.raises(InvalidKey) as caught:
        JwtKeyring.from_json(b'{"keys": ' + secret.encode())
    assert secret not in str(caught.value)


def test_no_private_key_is_part_of_a_repr() -> None:
    """Whatever the library makes of its keys' own repr some day."""
    key, signing = EC.generate(), JwtSigningKey.create(JwtAlgorithm.ES256)
    svid = X509Svid(WEB, ISSUER.issue(key.public_key(), WEB, ttl=HOUR, now=NOW), key)
    for each in (svid, ISSUER, signing, JwtKeyring.create(POLICY, NOW)):
        assert "private_key" not in repr(each)


def test_a_key_that_cannot_be_read_is_not_quoted() -> None:
    good = key_to_pem(EC.generate()).decode()
    middle = good.splitlines()[1]
    for data in (good.replace("MI", "XX", 1), good[:-40], good.replace("BEGIN", "BEGUN"), f"{middle}\n"):
        with pytest.raises(InvalidKey) as caught:
            key_from_pem(data.encode())
        assert middle[8:24] not in str(caught.value)
        assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["P-521", "secp256k1", "Ed448"],
)
def test_a_key_that_is_not_listed_is_not_read(key: Any) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(InvalidKey, match="key algorithm is not one of"):
        key_from_pem(data)


def test_certificates_that_are_cut_short_are_no_fewer_certificates() -> None:
    chain = (*ISSUER.chain, *ISSUER.chain)
    assert certificates_from_der(to_der(chain)) == certificates_from_pem(to_pem(chain)) == chain
    for cut in (1, 2, len(to_der(ISSUER.chain)) - 5):
        with pytest.raises(ValueError, match=r"^DER certificate is cut short$"):
            certificates_from_der(to_der(chain)[:-cut])
    for data in (to_pem(chain)[:-20], to_pem(chain)[:-200]):
        with pytest.raises(ValueError, match=r"a PEM block is cut short|no PEM certificates can be read"):
            certificates_from_pem(data)


def test_a_file_that_was_mixed_up_with_a_key_is_not_quoted() -> None:
    key = key_to_pem(EC.generate()).decode()
    body = key.splitlines()[1]
    for data in (key, key.replace("PRIVATE KEY", "CERTIFICATE"), f"-----BEGIN CERTIFICATE-----\n{body}!\n"):
        with pytest.raises(ValueError, match=r"\w") as caught:
            certificates_from_pem(data.encode())
        assert body[8:24] not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
