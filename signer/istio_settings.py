"""podsvid as the CA of Istio's proxies: where, for whom, and what contradicts that in the settings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.settings import Conflict, matching
from svid.dnsnames import is_pattern, is_reserved
from svid.spiffeid import TrustDomain

if TYPE_CHECKING:
    from signer.config import SignerConfig

LISTEN = "address of the CA that Istio's proxies ask (istio.v1.auth.IstioCertificateService), or off"
NAMES = (
    "DNS names in that listener's certificate: those by which proxies call it (default: podsvid-istio.NAMESPACE.svc, "
    "and the same with .cluster_domain)"
)
AUDIENCE, AUDIENCE_HELP = "istio-ca", "audience of the service account tokens that proxies present there"
CLUSTERS = "the clusterids that proxies may name; none is always good (default: any)"
ZTUNNELS = (
    "NAMESPACE/ACCOUNT of the ztunnels, which get certificates for the pods of their node (default: nobody gets one "
    "for another)"
)
ROOTS = "ConfigMap in which proxies find the roots (root-cert.pem), while istio_listen is on"
ROOT_CONFIG_MAP, ROOT_KEY = "istio-ca-root-cert", "root-cert.pem"
# Proxies read roots with each certificate, of which they want another at half of its life, or a little later; some try
# more than once.
RENEWED = 0.55
name = matching(re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]{0,251}[A-Za-z0-9])?", re.ASCII), "a cluster's name")
account = matching(
    re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII),
    "NAMESPACE/ACCOUNT, such as istio-system/ztunnel",
)


def dns_name(text: str) -> str:
    """A name that a client may call a server by. Raises ValueError."""
    if not is_pattern(text) or "{" in text or "*" in text or len(text) > 253 or is_reserved(text):
        raise ValueError("a DNS name in lower case, and none of the signer's own")
    return text


@dataclass(frozen=True, slots=True)
class IstioSettings:
    """`clusters` empty: any. `ztunnels`: (namespace, service account) of each. `folder`: where gRPC listens behind the
    signer's own door. The last ones are the settings of these names: nodes' proxies have them beside their agents."""

    trust_domain: TrustDomain
    address: tuple[str, int]
    names: tuple[str, ...]
    audience: str
    clusters: frozenset[str]
    ztunnels: frozenset[tuple[str, str]]
    folder: Path
    outage_limit: timedelta
    address_rate: int
    node_rate: int
    node_burst: int
    node_concurrency: int


def of(config: "SignerConfig") -> IstioSettings | None:
    """None: it is off."""
    if config.istio_listen is None:
        return None
    accounts = frozenset((namespace, name) for namespace, _, name in (e.partition("/") for e in config.istio_ztunnels))
    return IstioSettings(
        trust_domain=config.trust_domain,
        address=config.istio_listen,
        names=config.istio_names,
        audience=config.istio_audience,
        clusters=frozenset(config.istio_clusters),
        ztunnels=accounts,
        folder=config.admin_socket.parent,
        outage_limit=config.outage_limit,
        address_rate=config.address_rate,
        node_rate=config.node_rate,
        node_burst=config.node_burst,
        node_concurrency=config.node_concurrency,
    )


def usual_names(namespace: str, cluster_domain: str) -> tuple[str, ...]:
    """By which pods of the cluster call the chart's Service."""
    short = f"podsvid-istio.{namespace}.svc"
    return (short, f"{short}.{cluster_domain}")


def own_names(config: "SignerConfig") -> frozenset[str]:
    """What no pod may be called, whatever a policy says: proxies would send it their tokens."""
    return frozenset(() if config.istio_listen is None else config.istio_names)


def settle(config: "SignerConfig") -> timedelta:
    """How long a new authority is published before all proxies have its root: they hear of it as they renew."""
    return config.x509_max_ttl * RENEWED


def conflicts(config: "SignerConfig") -> Iterator[Conflict]:
    """What cannot be served like that."""
    if config.istio_listen is None:
        return
    if not config.istio_names:
        yield Conflict(("istio_listen", "istio_names"), "proxies call the CA by a DNS name; name one at least")
    if config.istio_audience == config.audience:
        yield Conflict(
            ("istio_audience", "audience"),
            "a pod's token for agents would be good for a proxy's certificate, and the other way; choose another",
        )
    if config.istio_root_config_map in (config.bundle_config_map, f"{config.state_secret}-abandoned"):
        yield Conflict(
            ("istio_root_config_map", "bundle_config_map"), "one ConfigMap cannot be two of the signer's; rename one"
        )
