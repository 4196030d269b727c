"""The documents for verifiers by OpenID Connect: what each of these requires, and libraries that others wrote."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet

from svid import oidc
from svid.authority import X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.errors import InvalidBundle
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.oidc import Issuer
from svid.spiffeid import SpiffeId, TrustDomain

NOW = datetime.now(UTC)
TD = TrustDomain("example.org")
WEB = SpiffeId(TD, "/ns/default/sa/web")
KEYS = {each: JwtSigningKey.create(each) for each in JwtAlgorithm if each.value != "PS512"}
ISSUER = Issuer.of("https://oidc.example.org/prod", None)
AUTHORITIES = tuple(
    certificate
    for algorithm in (KeyAlgorithm.EC_P256, KeyAlgorithm.ED25519, KeyAlgorithm.ML_DSA_65)
    for certificate in X509Authority.create(
        TD, algorithm=algorithm, lifetime=timedelta(days=1), now=NOW
    ).bundle.x509_authorities
)


def bundle(*keys: JwtAuthority) -> TrustBundle:
    return TrustBundle(TD, AUTHORITIES, keys, sequence=7)


def documents(found: TrustBundle, issuer: Issuer = ISSUER) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads(oidc.configuration(found, issuer)), json.loads(oidc.keys(found))


def token(key: JwtSigningKey) -> str:
    issued = key.issue(WEB, ["sts.example.com"], ttl=timedelta(minutes=5), now=datetime.now(UTC), issuer=ISSUER.url)
    return issued.token


Documents = tuple[dict[str, Any], dict[str, Any]]


def _public_url(text: str) -> bool:
    found = urlsplit(text)
    return found.scheme == "https" and found.port is None and not (found.query or found.fragment or found.username)


def _each_key(check: Callable[[dict[str, Any]], bool]) -> Callable[[Documents], bool]:
    return lambda found: all(check(key) for key in found[1]["keys"])


MEMBERS = {"RSA": {"n", "e"}, "EC": {"crv", "x", "y"}}
# What relying parties require of the documents, and of tokens' algorithms.
REQUIRED: dict[str, dict[str, Callable[[Documents], bool]]] = {
    "OpenID Connect Discovery": {
        "required members": lambda found: (
            {
                "issuer",
                "authorization_endpoint",
                "jwks_uri",
                "response_types_supported",
                "subject_types_supported",
                "id_token_signing_alg_values_supported",
            }
            <= set(found[0])
        ),
        "no member twice or empty": lambda found: all(found[0].values()),
    },
    "AWS": {
        "https, no port, no query": lambda found: _public_url(found[0]["issuer"]) and _public_url(found[0]["jwks_uri"]),
        "at most 100 keys": lambda found: 0 < len(found[1]["keys"]) <= 100,
        "a kid each": _each_key(lambda key: bool(key["kid"])),
        "claims_supported": lambda found: {"sub", "aud", "exp", "iat", "iss"} <= set(found[0]["claims_supported"]),
        "RSA or ECDSA": _each_key(lambda key: key["kty"] in ("RSA", "EC")),
    },
    "Google": {
        "RS256 or ES256": lambda found: set(found[0]["id_token_signing_alg_values_supported"]) <= {"RS256", "ES256"},
        "an upload has kid, kty, alg, use and no certificates": _each_key(
            lambda key: set(key) == {"kid", "use", "alg", "kty"} | MEMBERS[key["kty"]] and key["use"] == "sig"
        ),
    },
    "Entra": {
        "RS256": lambda found: found[0]["id_token_signing_alg_values_supported"] == ["RS256"],
        "kid in the metadata": _each_key(lambda key: bool(key["kid"])),
    },
    "OpenBao": {"no key that go-jose does not know": _each_key(lambda key: key["kty"] in ("RSA", "EC"))},
    "kube-apiserver": {
        "issuer and keys are https": lambda found: all(
            found[0][each].startswith("https://") for each in ("issuer", "jwks_uri")
        ),
        "no key that go-jose 2 does not know": _each_key(lambda key: key["kty"] in ("RSA", "EC")),
        "RS, PS, ES only": lambda found: all(
            re.fullmatch("(RS|PS|ES)(256|384|512)", each) for each in found[0]["id_token_signing_alg_values_supported"]
        ),
    },
    "PyJWT": {"use is sig or absent": _each_key(lambda key: key.get("use", "sig") == "sig")},
}


@pytest.mark.parametrize(("party", "rule"), [(party, rule) for party, rules in REQUIRED.items() for rule in rules])
def test_what_relying_parties_require(party: str, rule: str) -> None:
    """With the default algorithm, and in the middle of a rotation of its keys."""
    found = documents(bundle(KEYS[JwtAlgorithm.RS256].public, JwtSigningKey.create(JwtAlgorithm.RS256).public))
    assert REQUIRED[party][rule](found), f"{party}: {rule}"


def test_the_checks_of_what_is_required_see_what_is_wrong() -> None:
    configuration, keys = documents(bundle(KEYS[JwtAlgorithm.RS256].public))
    spiffe = json.loads(bundle(KEYS[JwtAlgorithm.RS256].public).to_jwks())
    for wrong, broken in (
        (({**configuration, "issuer": "https://oidc.example.org:8443"}, keys), "AWS: https, no port, no query"),
        ((configuration, {"keys": []}), "AWS: at most 100 keys"),
        ((configuration, {"keys": [{**keys["keys"][0], "x5c": ["AAAA"]}]}), "Google: an upload"),
        ((configuration, {"keys": [{"kty": "AKP", "kid": "a"}]}), "OpenBao: no key"),
        ((configuration, spiffe), "PyJWT: use is"),
    ):
        party, rule = broken.split(": ", 1)
        (check,) = [check for name, check in REQUIRED[party].items() if name.startswith(rule)]
        assert not check(wrong), broken


@pytest.mark.parametrize("algorithm", list(KEYS))
def test_pyjwt_finds_the_key_and_takes_the_token(algorithm: JwtAlgorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    found = oidc.keys(bundle(*(each.public for each in KEYS.values())))
    client = jwt.PyJWKClient(ISSUER.jwks_uri)
    monkeypatch.setattr(client, "fetch_data", lambda: json.loads(found))
    key = client.get_signing_key_from_jwt(token(KEYS[algorithm]))
    claims = jwt.decode(
        token(KEYS[algorithm]), key, algorithms=[algorithm.value], audience="sts.example.com", issuer=ISSUER.url
    )
    assert claims["sub"] == str(WEB)


@pytest.mark.parametrize("algorithm", list(KEYS))
def test_joserfc_takes_the_token_and_no_other_algorithm_of_the_key(algorithm: JwtAlgorithm) -> None:
    keys = KeySet.import_key_set(json.loads(oidc.keys(bundle(*(each.public for each in KEYS.values())))))
    found = joserfc_jwt.decode(token(KEYS[algorithm]), keys, algorithms=[algorithm.value])
    assert found.claims["iss"] == ISSUER.url


def test_only_jwt_keys_are_in_it_whatever_authorities_there_are() -> None:
    configuration, keys = documents(bundle(KEYS[JwtAlgorithm.ES256].public))
    assert [each["kty"] for each in keys["keys"]] == ["EC"]
    assert configuration["id_token_signing_alg_values_supported"] == ["ES256"]


def test_what_a_key_signed_with_is_said_where_it_is_known_and_not_guessed() -> None:
    rsa = KEYS[JwtAlgorithm.PS256].public
    configuration, keys = documents(bundle(rsa, KEYS[JwtAlgorithm.ES384].public))
    assert [each["alg"] for each in keys["keys"]] == ["PS256", "ES384"]
    assert configuration["id_token_signing_alg_values_supported"] == ["ES384", "PS256"]
    # Read from a Secret of a signer that did not record it: of EC keys the curve says it.
    vague = bundle(replace(rsa, algorithm=None), replace(KEYS[JwtAlgorithm.ES384].public, algorithm=None))
    configuration, keys = documents(vague)
    assert [each.get("alg") for each in keys["keys"]] == [None, "ES384"]
    assert set(configuration["id_token_signing_alg_values_supported"]) == {
        "ES384",
        *(each.value for each in JwtAlgorithm if each.slow),
    }


def test_a_key_id_stands_once() -> None:
    key = KEYS[JwtAlgorithm.ES256].public
    _, keys = documents(bundle(key, replace(key, algorithm=None)))
    assert len(keys["keys"]) == 1


def test_no_keys_make_no_document() -> None:
    """`{"keys": []}` would be obeyed."""
    for make in (oidc.keys, lambda found: oidc.configuration(found, ISSUER)):
        with pytest.raises(InvalidBundle, match="no JWT keys"):
            make(bundle())


@pytest.mark.parametrize(
    ("issuer", "jwks_uri", "discovery", "keys"),
    [
        ("https://a.example", None, "/.well-known/openid-configuration", "/keys"),
        ("https://a.example/", None, "/.well-known/openid-configuration", "/keys"),
        ("https://a.example/x/y", None, "/x/y/.well-known/openid-configuration", "/x/y/keys"),
        ("https://a.example/x/", None, "/x/.well-known/openid-configuration", "/x/keys"),
        ("https://[fd00::1]:8443/x", None, "/x/.well-known/openid-configuration", "/x/keys"),
        ("https://a.example/x", "https://b.example/jwks.json", "/x/.well-known/openid-configuration", "/jwks.json"),
        ("https://a.example/x", "https://b.example", "/x/.well-known/openid-configuration", "/"),
    ],
)
def test_paths_are_the_issuers(issuer: str, jwks_uri: str | None, discovery: str, keys: str) -> None:
    found = Issuer.of(issuer, jwks_uri)
    assert (found.configuration_path, found.keys_path) == (discovery, keys)
    configuration, _ = documents(bundle(KEYS[JwtAlgorithm.ES256].public), found)
    assert configuration["issuer"] == issuer, "compared byte by byte with iss"
    assert configuration["jwks_uri"] == (jwks_uri or issuer.removesuffix("/") + "/keys")
    if jwks_uri is None:
        assert urlsplit(configuration["jwks_uri"]).path == keys


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "https://",
        "https://a.example?x",
        "https://a.example/#x",
        "https://user@a.example",
        "https://A.example",
        "https://a.example:0",
        "https://a.example//x",
        "https://a.example/../x",
        "https://a.example/./x",
        "https://a.example/%2e",
        "https://a.example/ x",
        "https://a.example/x\n",
        "https://a.example/\u00e4",
    ],
)
def test_urls_that_somebody_would_write_in_another_way(url: str) -> None:
    for issuer, jwks_uri in ((url, None), ("https://a.example", url)):
        with pytest.raises(ValueError, match="https:// URL"):
            Issuer.of(issuer, jwks_uri)


def test_keys_are_not_where_the_discovery_document_is() -> None:
    with pytest.raises(ValueError, match="discovery"):
        Issuer.of("https://a.example/x", "https://b.example/x/.well-known/openid-configuration")


@given(st.text(max_size=30))
def test_whatever_is_taken_is_read_back_as_it_was(tail: str) -> None:
    try:
        issuer = Issuer.of(f"https://a.example/{tail}", None)
    except ValueError:
        return
    assert issuer.configuration_path.endswith(oidc.WELL_KNOWN)
    assert "//" not in issuer.configuration_path
    assert urlsplit(issuer.url).path.removesuffix("/") + oidc.WELL_KNOWN == issuer.configuration_path
    assert re.fullmatch(r"[!-~]+", issuer.configuration_path)
