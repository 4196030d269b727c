"""Where the trust bundle and OpenID Connect's documents are served over HTTPS, and what of that contradicts itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.settings import Conflict
from svid.oidc import Issuer

if TYPE_CHECKING:
    from signer.config import SignerConfig

SPIFFE, WEB = "https_spiffe", "https_web"
PROFILES = (SPIFFE, WEB)
PROFILE_HELP = (
    "how that listener proves itself: https_spiffe (by the SVID spiffe://TRUST-DOMAIN/podsvid/signer) or https_web (by "
    "bundle_cert_file and bundle_key_file)"
)


def issuer(config: "SignerConfig") -> Issuer | None:
    """Whose keys verifiers look up; None where no token says it. Raises ValueError."""
    return Issuer.of(config.jwt_issuer, config.jwks_uri) if config.jwt_issuer else None


def files(chain: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Both, or none."""
    return None if chain is None or key is None else (chain, key)


def conflicts(config: "SignerConfig") -> Iterator[Conflict]:
    """What cannot be served like that."""
    web = config.bundle_listen is not None and config.bundle_profile == WEB
    pairs = (
        (web, "bundle_profile", "bundle_cert_file", "bundle_key_file", config.bundle_cert_file, config.bundle_key_file),
        (
            config.oidc_listen is not None,
            "oidc_listen",
            "oidc_cert_file",
            "oidc_key_file",
            config.oidc_cert_file,
            config.oidc_key_file,
        ),
    )
    for on, by, first, second, chain, key in pairs:
        if on and (chain is None or key is None):
            yield Conflict((by, first, second), "a certificate for others' eyes comes from files: give both")
        if not on and (chain is not None or key is not None):
            yield Conflict((by, first, second), "nothing uses these files with it; leave them out")
    if config.jwks_uri is not None and config.jwt_issuer is None:
        yield Conflict(("jwks_uri", "jwt_issuer"), "keys are looked up by the issuer of a token; set jwt_issuer")
    if config.oidc_listen is None and config.jwks_uri is None:
        return
    if config.jwt_issuer is None or not config.jwt_svids:
        if config.oidc_listen is not None:
            yield Conflict(
                ("oidc_listen", "jwt_issuer", "jwt_svids"),
                "verifiers look up the keys of JWT-SVIDs that name an issuer; set jwt_issuer and jwt_svids",
            )
        return
    try:
        issuer(config)
    except ValueError as error:
        yield Conflict(("jwt_issuer", "jwks_uri"), f"documents are served at {error}")
