"""OpenID Connect Discovery: the two documents by which verifiers that know no SPIFFE learn a trust domain's JWT keys.

Made of the bundle and of what is configured, and of nothing that a request says: an issuer that follows a Host header
is whatever a client wants it to be.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from svid.bundle import JwtAuthority, TrustBundle, jwk_members
from svid.errors import InvalidBundle
from svid.jws import JwtAlgorithm

WELL_KNOWN = "/.well-known/openid-configuration"
KEYS = "/keys"
# No port 0, no user, no query, no fragment, and a path that no server or client writes in another way.
_URL = re.compile(
    r"https://(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::[1-9][0-9]{0,4})?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?)",
    re.ASCII,
)
# What Kubernetes' own issuer says: nobody logs in here.
_NO_LOGIN = "urn:kubernetes:programmatic_authorization"


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who issues JWT-SVIDs, as they say it in `iss`, and where verifiers find the keys. Raises ValueError.

    Compared by verifiers byte by byte: nothing here is normalised.
    """

    url: str
    jwks_uri: str

    def __post_init__(self) -> None:
        for each in (self.url, self.jwks_uri):
            path_of(each)
        if self.keys_path == self.configuration_path:
            raise ValueError("the keys cannot be where the discovery document is")

    @classmethod
    def of(cls, url: str, jwks_uri: str | None) -> "Issuer":
        """With the keys below the issuer, unless they are elsewhere. Raises ValueError."""
        return cls(url, jwks_uri or url.removesuffix("/") + KEYS)

    @property
    def configuration_url(self) -> str:
        """Where verifiers look for the discovery document."""
        return self.url.removesuffix("/") + WELL_KNOWN

    @property
    def configuration_path(self) -> str:
        """The path of the discovery document (OpenID Connect Discovery 4.1)."""
        return path_of(self.url).removesuffix("/") + WELL_KNOWN

    @property
    def keys_path(self) -> str:
        """The path of the keys."""
        return path_of(self.jwks_uri) or "/"


def path_of(url: str) -> str:
    """The path of an issuer's or a key set's URL. Raises ValueError, which says what such a URL is."""
    found = _URL.fullmatch(url)
    path = "" if found is None else found["path"]
    if found is None or {".", ".."} & {*path.split("/")}:
        raise ValueError("an https:// URL with a lower-case host, without user, query, fragment, dots or escapes")
    return path


def configuration(bundle: TrustBundle, issuer: Issuer) -> bytes:
    """The discovery document. Raises InvalidBundle where there are no JWT keys: nobody may take that for a fact."""
    document = {
        "issuer": issuer.url,
        "jwks_uri": issuer.jwks_uri,
        "authorization_endpoint": _NO_LOGIN,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": _algorithms(_keys(bundle)),
        "claims_supported": ["sub", "aud", "exp", "iat", "iss"],
    }
    return _written(document)


def keys(bundle: TrustBundle) -> bytes:
    """The JWK Set, with what verifiers read and no member more: some refuse keys with certificates. Raises
    InvalidBundle where there are no JWT keys."""
    return _written({"keys": [_key(each) for each in _keys(bundle)]})


def algorithms_of(key: JwtAuthority) -> tuple[str, ...]:
    """With which algorithms it can have signed: one, but of an RSA key of which that was not recorded."""
    if key.algorithm is not None:
        return (key.algorithm,)
    return tuple(each.value for each in JwtAlgorithm if each.fits(key.public_key))


def _keys(bundle: TrustBundle) -> list[JwtAuthority]:
    # One for each key id: some verifiers read only one.
    found = {each.key_id: each for each in bundle.jwt_authorities}
    if not found:
        raise InvalidBundle(f"trust domain {bundle.trust_domain} has no JWT keys")
    return list(found.values())


def _key(key: JwtAuthority) -> dict[str, Any]:
    members: dict[str, Any] = {"kid": key.key_id, "use": "sig", **jwk_members(key.public_key)}
    algorithms = algorithms_of(key)
    if len(algorithms) == 1:
        members["alg"] = algorithms[0]
    return members


def _algorithms(found: Iterable[JwtAuthority]) -> list[str]:
    return sorted({algorithm for key in found for algorithm in algorithms_of(key)})


def _written(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"
