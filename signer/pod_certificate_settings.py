"""podsvid as a Kubernetes signer of PodCertificateRequests: its name, what the API server and kubelet bound of their
lifetimes, and what contradicts it in the settings."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from runtime.settings import Conflict

if TYPE_CHECKING:
    from signer.config import SignerConfig

# Of ClusterTrustBundles, too.
SIGNER_NAME = "podsvid.io/spiffe"
# The one annotation of a source's author that is taken: DNS names, as `dnsNames` of a csi volume has them.
DNS_NAMES = "podsvid.io/dns-names"
HELP = (
    f"certify pods' projected podCertificate volumes of signer {SIGNER_NAME} (Kubernetes 1.35 or newer, where it is "
    "switched on)"
)
# The API server takes none that lives for less, or more.
LEAST_LIFE, MOST_LIFE = timedelta(hours=1), timedelta(days=91)
# What a source gets that names no maxExpirationSeconds.
USUAL_SECONDS = 24 * 3600
# Kubelet follows ClusterTrustBundles and brings volumes up to date every minute or two; then a program reads again.
SETTLE = timedelta(minutes=10)


def name(config: "SignerConfig") -> str:
    """Whose podCertificate sources are looked for in pods; empty for nobody's."""
    return SIGNER_NAME if config.pod_certificates else ""


def longest(seconds: int) -> timedelta:
    """The most that a certificate lives whose source, or request, has this maxExpirationSeconds."""
    return max(timedelta(seconds=min(max(seconds, 0), int(MOST_LIFE.total_seconds()))), LEAST_LIFE)


def conflicts(config: "SignerConfig") -> Iterator[Conflict]:
    """Lifetimes below the API server's."""
    if config.pod_certificates and config.x509_max_ttl < LEAST_LIFE:
        yield Conflict(
            ("pod_certificates", "x509_max_ttl"),
            "the API server takes no pod certificate that lives for less than an hour: set x509_max_ttl to 1h or "
            "more, or use csi volumes",
        )
