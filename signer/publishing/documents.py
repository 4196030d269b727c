"""What verifiers without an agent fetch: the bundle for other trust domains, and OpenID Connect's two documents."""

from dataclasses import dataclass
from datetime import timedelta

from svid import oidc
from svid.bundle import TrustBundle
from svid.errors import InvalidBundle
from svid.federation import bundle_document
from svid.oidc import Issuer


@dataclass(frozen=True, slots=True)
class Publication:
    """What the settings say of it. `issuer`: None where JWT-SVIDs name none, or one whose keys nobody can look up;
    `token_issuer` is what they name."""

    refresh_hint: timedelta
    issuer: Issuer | None = None
    token_issuer: str = ""


@dataclass(frozen=True, slots=True)
class Documents:
    """As bytes, each whole; one that there is not yet is None."""

    sequence: int
    bundle: bytes
    configuration: bytes | None = None
    keys: bytes | None = None

    @classmethod
    def of(cls, bundle: TrustBundle, by: Publication) -> "Documents | None":
        """Those of the own trust domain's bundle; None for a bundle that is not one to publish."""
        try:
            made = bundle_document(bundle, by.refresh_hint)
        except InvalidBundle:
            return None
        sequence = bundle.sequence or 0
        if by.issuer is None or not bundle.jwt_authorities:
            return cls(sequence, made)
        return cls(sequence, made, oidc.configuration(bundle, by.issuer), oidc.keys(bundle))
