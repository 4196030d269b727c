"""How the texts of the signer's own kinds of settings are read."""

from pathlib import Path

from runtime import settings
from svid.dnsnames import is_pattern
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain


def path_template(text: str) -> str:
    """A template of SPIFFE IDs' paths. Raises ValueError, as all of these do."""
    if not text.startswith("/") or len(text) > 1024:
        raise ValueError("a path such as /ns/{namespace}/sa/{service_account}")
    return text


def dns_pattern(text: str) -> str:
    """A DNS name in which a pod's own names are left open."""
    if not is_pattern(text):
        raise ValueError(
            "DNS names in lower case, where {namespace}, {service_account} and {pod} stand for the pod's own "
            "and a leading *. for one label"
        )
    return text


def key_algorithm(text: str) -> KeyAlgorithm:
    """A key algorithm by its word."""
    try:
        return KeyAlgorithm(text)
    except ValueError:
        raise ValueError("one of " + ", ".join(KeyAlgorithm)) from None


def federated(text: str) -> tuple[TrustDomain, Path]:
    """A trust domain and the file that has its bundle."""
    name, equals, path = text.partition("=")
    if not equals:
        raise ValueError("TRUST-DOMAIN=FILE with an absolute path")
    return settings.trust_domain(name), settings.absolute(path)
