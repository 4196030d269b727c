"""SPIFFE Federation: what a trust domain publishes for others (Trust_Domain_and_Bundle.md 4, Federation.md 5.2)."""

from dataclasses import replace
from datetime import timedelta

from svid.bundle import TrustBundle
from svid.errors import InvalidBundle

# Federation.md 4.1 and 5: what is advised where none is said.
REFRESH_HINT = timedelta(minutes=5)


def bundle_document(bundle: TrustBundle, refresh_hint: timedelta) -> bytes:
    """The bundle as partners fetch it, with its sequence and how often to look.

    Raises InvalidBundle for one without X.509 authorities or a sequence: partners obey an empty bundle, and order what
    they got by the sequence.
    """
    if not bundle.x509_authorities or bundle.sequence is None:
        raise InvalidBundle(f"the trust bundle of {bundle.trust_domain} is not one to publish")
    return replace(bundle, refresh_hint=refresh_hint).to_jwks()
