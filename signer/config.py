"""The signer's settings."""

import argparse
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from runtime import advice, loading, settings
from runtime.loading import Examined
from runtime.settings import Conflict, setting
from signer import (
    above,
    audience_settings,
    awspca_settings,
    certmanager_settings,
    googlecas_settings,
    istio_settings,
    key_uri,
    kms_uri,
    lifetime_settings,
    openbao_settings,
    pod_certificate_settings,
    public_settings,
    setting_texts,
    spire_settings,
    upstream_settings,
    worker_settings,
)
from signer.key_settings import KeySettings
from signer.key_uri import CaKey, KeyPlace
from signer.model import TtlLimits
from signer.upstream_settings import UpstreamSettings
from svid.authority import MAX_BACKDATE
from svid.jws import JwtAlgorithm
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain

_name, _namespace = setting_texts.name, setting_texts.namespace
# Below the admin socket's directory: where gRPC listens behind the signer's own door.
_DOOR_OVERHEAD = len("/door-01234567/9999h")
ADDRESSES = ("listen", "metrics_listen", "health_listen", "bundle_listen", "oidc_listen", "istio_listen")
_wait = settings.duration(most=timedelta(days=7))
_lease = settings.duration(timedelta(seconds=3), timedelta(minutes=5))


@dataclass(frozen=True, slots=True)
class SignerConfig:
    """Everything `podsvid signer` can be told. Field names are the YAML keys; flags use dashes."""

    trust_domain: TrustDomain = setting(settings.trust_domain, "trust domain of every SVID (required)", required=True)
    listen: tuple[str, int] | None = setting(settings.listen, "address of the API for agents", "[::]:8443")
    metrics_listen: tuple[str, int] | None = setting(
        settings.listen, "address of /metrics, and of /healthz and /readyz, or off", "127.0.0.1:9099"
    )
    health_listen: tuple[str, int] | None = setting(
        settings.listen,
        "address of /healthz and /readyz alone, for probes: who crowds metrics_listen does not reach it; or off",
        "off",
    )
    admin_socket: Path = setting(
        settings.absolute, "where `podsvid authority` talks to this replica", "/run/podsvid-signer/admin.sock"
    )
    kubeconfig: Path | None = setting(settings.absolute, "kubeconfig file (default: the cluster that this pod is in)")
    namespace: str = setting(_namespace, "namespace of the signer's own objects (default: that of this pod)")
    identity: str = setting(_name, "this replica's name (default: the host name, which is the pod's)")
    audience: str = setting(
        setting_texts.printable, "audience of the tokens that agents and pods present", "signer.podsvid.io"
    )
    driver_names: tuple[str, ...] = setting(
        settings.listed(_name), "CSI drivers of which a pod must mount one", "csi.podsvid.io"
    )
    agent_namespace: str = setting(_namespace, "namespace of the agents (default: --namespace)")
    agent_service_account: str = setting(_name, "service account of the agents", "podsvid-agent")
    state_secret: str = setting(_name, "Secret that holds the authorities", "podsvid-authority")
    state_key_file: Path | None = setting(
        settings.absolute,
        "32 bytes (raw or base64) that encrypt that Secret's content (default: not encrypted)",
        secret=True,
    )
    upstream_cert_file: Path | None = setting(
        settings.absolute, "PEM chain of an upstream CA that signs the authorities (default: self-signed roots)"
    )
    upstream_key_file: Path | None = setting(settings.absolute, "PEM private key of the upstream CA", secret=True)
    upstream_key_uri: CaKey | None = setting(
        key_uri.parse,
        "that key in a PKCS#11 token or a KMS, in place of the file (or of tls.key): "
        "pkcs11:token=NAME;object=NAME?module-path=/PATH&pin-source=file:/PATH, "
        f"{kms_uri.WANTED_AWS_KEY} or {kms_uri.WANTED_GOOGLE_KEY}",
        secret=True,
    )
    upstream_bundle_file: Path | None = setting(
        settings.absolute, "PEM roots of the upstream CA (default: the last certificate of its chain)"
    )
    upstream_dir: Path | None = setting(
        settings.absolute,
        "an upstream CA as a Secret's volume shows it, in place of the files above: tls.crt, tls.key and, where there "
        "is one, ca.crt",
    )
    upstream_root_interval: timedelta = setting(
        settings.duration(timedelta(seconds=1), timedelta(days=1)), "how often a CA above is asked for its roots", "5m"
    )
    upstream: str = setting(
        settings.choice(*upstream_settings.KINDS),
        "which kind of CA signs the authorities: files (upstream_dir, or upstream_cert_file and upstream_key_file; "
        "without any, each authority is its own root), openbao (or Vault), cert-manager, aws-pca, google-cas or spire",
        "files",
    )
    openbao_address: str | None = setting(
        openbao_settings.address, "https:// URL of OpenBao or Vault, host and port; http:// only on the loopback"
    )
    openbao_ca_file: Path | None = setting(settings.absolute, "PEM of the CA of its server certificate, re-read")
    openbao_namespace: str | None = setting(openbao_settings.path, "namespace there (default: the root namespace)")
    openbao_mount: str = setting(openbao_settings.path, "where the PKI engine is mounted", "pki")
    openbao_issuer: str | None = setting(
        openbao_settings.path, "issuer of that engine, by name or id (default: the engine's default)"
    )
    openbao_auth: str = setting(
        settings.choice(*openbao_settings.METHODS),
        "how the signer logs in: kubernetes (its service account's token), token, approle or cert",
        "kubernetes",
    )
    openbao_auth_mount: str | None = setting(
        openbao_settings.path, "where that method is mounted (default: at its name)"
    )
    openbao_role: str | None = setting(
        openbao_settings.path, "role for the login by kubernetes or cert (of cert: default: any that fits)"
    )
    openbao_token_file: Path | None = setting(
        settings.absolute,
        "of kubernetes: the projected service account token; of token: the token itself; read at each use",
        secret=True,
    )
    openbao_role_id: str | None = setting(setting_texts.printable, "of approle: the role id")
    openbao_secret_id_file: Path | None = setting(
        settings.absolute, "of approle: file with the secret id, read at each use", secret=True
    )
    openbao_cert_file: Path | None = setting(settings.absolute, "of cert: PEM chain of the signer's client certificate")
    openbao_key_file: Path | None = setting(settings.absolute, "of cert: PEM key of that certificate", secret=True)
    cert_manager_issuer_name: str | None = setting(_name, "cert-manager's issuer that certifies the authorities")
    cert_manager_issuer_kind: str = setting(
        settings.matching(certmanager_settings.KIND, "a kind, such as Issuer or ClusterIssuer"), "its kind", "Issuer"
    )
    cert_manager_issuer_group: str = setting(
        settings.matching(certmanager_settings.GROUP, "an API group, such as cert-manager.io"),
        "the API group of that kind: of an external issuer its own",
        "cert-manager.io",
    )
    cert_manager_namespace: str = setting(
        _namespace, "where CertificateRequests are made, and an Issuer is (default: --namespace)"
    )
    aws_pca_arns: tuple[str, ...] = setting(
        settings.listed(awspca_settings.arn),
        "ARNs of AWS Private CAs: the first certifies the authorities, the roots of all are trusted",
        "",
    )
    aws_pca_template: str = setting(
        settings.choice(*awspca_settings.TEMPLATES),
        "by which template: the blank one leaves out the usage digitalSignature",
        awspca_settings.TEMPLATES[0],
    )
    google_cas_pool: str | None = setting(
        settings.matching(googlecas_settings.POOL, "projects/PROJECT/locations/LOCATION/caPools/POOL"),
        "pool of Google's Certificate Authority Service that certifies the authorities",
    )
    google_cas_ca: str | None = setting(
        settings.matching(googlecas_settings.CA, "the name of a CA of that pool"), "a CA of it (default: any)"
    )
    spire_address: str | None = setting(spire_settings.address, "HOST:PORT of the SPIRE server of this trust domain")
    spire_agent_socket: Path | None = setting(
        settings.absolute,
        "socket of a SPIRE agent's Workload API, which gives the signer an SVID of a downstream entry",
    )
    spire_svid_dir: Path | None = setting(
        settings.absolute, "in place of that socket: a folder with that SVID in tls.crt, tls.key and ca.crt, re-read"
    )
    spire_spiffe_id: SpiffeId | None = setting(
        spire_settings.spiffe_id, "the ID of that SVID, of several that the agent gives; no pod gets it"
    )
    authority_ttl: timedelta = setting(
        settings.duration(), "lifetime of an X.509 authority; replaced at half of it", "30d"
    )
    authority_algorithm: KeyAlgorithm = setting(setting_texts.key_algorithm, "key of an X.509 authority", "ec-p256")
    authority_key_uri: KeyPlace | None = setting(
        key_uri.parse_place,
        "PKCS#11 token or KMS that the authorities' keys are made in and never leave, so that it signs every SVID: "
        "pkcs11:token=NAME?module-path=/PATH&pin-source=file:/PATH, "
        f"{kms_uri.WANTED_AWS_PLACE} or {kms_uri.WANTED_GOOGLE_RING} (default: they are in the Secret)",
        secret=True,
    )
    authority_keys_return: bool = setting(
        settings.boolean, "beside authority_key_uri: make new keys for the Secret again, the way back from it", "false"
    )
    x509_ttl: timedelta = setting(settings.ttl, "lifetime of an X.509-SVID, 2s to 90d", "1h")
    x509_min_ttl: timedelta = setting(settings.ttl, "shortest lifetime that a wish or a policy gets", "1m")
    x509_pod_max_ttl: timedelta | None = setting(
        settings.ttl, "longest lifetime that a volume's ttl gets where no policy has an x509TTL (default: x509_ttl)"
    )
    x509_backdate: timedelta = setting(
        settings.duration(most=MAX_BACKDATE),
        "how long ago an X.509-SVID begins when it is issued: nodes and peers whose clocks are behind by as much take "
        "it at once, 0s to 10m",
        "2m",
    )
    x509_max_ttl: timedelta = setting(settings.ttl, "longest lifetime that a policy or x509_pod_max_ttl gives", "24h")
    jwt_svids: bool = setting(settings.boolean, "issue JWT-SVIDs", "true")
    jwt_ttl: timedelta = setting(settings.ttl, "lifetime of a JWT-SVID, 2s to 90d", "5m")
    jwt_max_ttl: timedelta = setting(settings.ttl, "longest lifetime that a policy gets", "1h")
    jwt_algorithm: JwtAlgorithm = setting(
        settings.jwt_algorithm, "JWT-SVID signatures: RS256 (what clouds take), ES256, ...", "RS256"
    )
    jwt_issuer: str | None = setting(settings.url, "iss of JWT-SVIDs, for OpenID Connect federation (default: none)")
    jwks_uri: str | None = setting(
        settings.url, "where verifiers find the keys of JWT-SVIDs (default: jwt_issuer and /keys)"
    )
    jwt_jti: bool = setting(settings.boolean, "give each JWT-SVID a jti of its own", "false")
    jwt_key_period: timedelta = setting(settings.period, "how long a JWT authority signs, 1h to 3650d", "30d")
    default_path: str = setting(
        setting_texts.path_template,
        "path of the SPIFFE ID of a pod without a policy",
        "/ns/{namespace}/sa/{service_account}",
    )
    require_policy: bool = setting(settings.boolean, "refuse pods that no policy matches", "false")
    policies_per_namespace: int = setting(
        settings.number(1, 100000), "WorkloadIdentities of one namespace that count, the oldest first", "100"
    )
    services_per_namespace: int = setting(
        settings.number(1, 100000), "Services of one namespace that give their pods DNS names, the oldest first", "5000"
    )
    pods_per_namespace: int = setting(
        settings.number(1, 1000000),
        "pods of one namespace that get SVIDs, the oldest first, beside agents",
        "10000",
    )
    dns_names: tuple[str, ...] = setting(
        settings.listed(settings.dns_pattern), "DNS names that pods without a policy may ask for", ""
    )
    cluster_domain: str = setting(_name, "the cluster's DNS domain, for names of Services", "cluster.local")
    federated_bundles: tuple[tuple[TrustDomain, Path], ...] = setting(
        settings.listed(settings.federated, pairs=True),
        "trust bundles of other trust domains, TRUST-DOMAIN=FILE (JWKS or PEM), re-read",
        "",
    )
    trust_audiences: tuple[str, ...] = setting(
        settings.listed(settings.choice(*audience_settings.AUDIENCES)), audience_settings.HELP, ""
    )
    pod_certificates: bool = setting(settings.boolean, pod_certificate_settings.HELP, "false")
    istio_listen: tuple[str, int] | None = setting(settings.listen, istio_settings.LISTEN, "off")
    istio_names: tuple[str, ...] = setting(settings.listed(istio_settings.dns_name), istio_settings.NAMES)
    istio_audience: str = setting(setting_texts.printable, istio_settings.AUDIENCE_HELP, istio_settings.AUDIENCE)
    istio_clusters: tuple[str, ...] = setting(settings.listed(istio_settings.name), istio_settings.CLUSTERS, "")
    istio_ztunnels: tuple[str, ...] = setting(settings.listed(istio_settings.account), istio_settings.ZTUNNELS, "")
    istio_root_config_map: str = setting(_name, istio_settings.ROOTS, istio_settings.ROOT_CONFIG_MAP)
    bundle_hint: timedelta = setting(
        settings.duration(audience_settings.MIN_HINT, audience_settings.MAX_HINT),
        "how often who polls the bundle is to (spiffe_refresh_hint), 1m to 1d; with federation a new authority is "
        "published for five times as long before it signs",
        "5m",
    )
    bundle_listen: tuple[str, int] | None = setting(
        settings.listen, "address where anybody may fetch the trust bundle over HTTPS, or off", "off"
    )
    bundle_profile: str = setting(
        settings.choice(*public_settings.PROFILES), public_settings.PROFILE_HELP, public_settings.SPIFFE
    )
    bundle_cert_file: Path | None = setting(settings.absolute, "of https_web: PEM chain, re-read")
    bundle_key_file: Path | None = setting(settings.absolute, "of https_web: PEM key, re-read", secret=True)
    oidc_listen: tuple[str, int] | None = setting(
        settings.listen, "address of the documents of OpenID Connect, over HTTPS, at jwt_issuer's path; or off", "off"
    )
    oidc_cert_file: Path | None = setting(settings.absolute, "PEM chain of that listener, re-read")
    oidc_key_file: Path | None = setting(settings.absolute, "PEM key of it, re-read", secret=True)
    bundle_config_map: str = setting(_name, "ConfigMap that the trust bundle is published as", "podsvid-bundle")
    bundle_namespaces: str = setting(
        setting_texts.label_selector,
        "label selector of the namespaces that get it (default: all)",
        "",
    )
    acknowledge_within: timedelta = setting(
        _wait, "how long a missing agent can hold up the activation of a new authority", "15m"
    )
    reissue_over: timedelta = setting(
        _wait, "a rotation's early renewals are spread over this time, longer by reissue_rate", "10m"
    )
    forced_reissue_over: timedelta = setting(
        _wait, "a forced rotation's renewals are spread over this time, longer by reissue_rate", "90s"
    )
    reissue_rate: int = setting(
        settings.number(1, 100000),
        "SVIDs a second that a rotation renews early at most, of all nodes: a large cluster's takes longer",
        "300",
    )
    outage_limit: timedelta = setting(
        _wait, "how long pods that have an identity are renewed while the API server is away", "1h"
    )
    retire_after: timedelta = setting(
        _wait, "how much longer than its last SVID an old authority stays trusted, beside outage_limit", "5m"
    )
    lease: timedelta = setting(
        _lease, "how long after a leader's death another one leads at the latest, 3s to 5m", "15s"
    )
    node_rate: int = setting(settings.number(1, 100000), "mints a second that one node gets", "50")
    node_burst: int = setting(settings.number(1, 100000), "mints at once that one node gets", "1000")
    node_concurrency: int = setting(settings.number(1, 100000), "mints of one node in flight", "64")
    address_rate: int = setting(
        settings.number(1, 100000),
        "new connections a second that one address gets, twice as many at once: more where many nodes share one",
        "5",
    )
    workers: int | None = setting(settings.number(1, worker_settings.MOST), worker_settings.HELP)
    startup_taint: bool = setting(
        settings.boolean, "take the taint podsvid.io/agent-not-ready off nodes where kubelet knows the driver", "false"
    )
    tracing_endpoint: str | None = setting(
        settings.collector, "URL of an OpenTelemetry collector (OTLP over gRPC) that gets traces (default: none)"
    )
    docs_url: str = setting(advice.address, advice.HELP, "")
    log_format: str = setting(settings.choice("json", "text"), "json or text", "json")
    log_level: str = setting(
        settings.choice("debug", "info", "warning", "error"), "debug, info, warning or error", "info"
    )

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        """What contradicts each other; `given` are the settings that somebody said."""
        if self.listen is None:
            yield Conflict(("listen",), "agents need the signer's API; give it an address")
        yield from self.above.conflicts(given)
        yield from self.keys.conflicts()
        yield from lifetime_settings.conflicts(self.authority_ttl, self.x509_pod_max_ttl, self.ttls)
        yield from audience_settings.conflicts(self)
        yield from public_settings.conflicts(self)
        yield from pod_certificate_settings.conflicts(self)
        yield from istio_settings.conflicts(self)
        if not self.driver_names:
            yield Conflict(("driver_names",), "driver_names is empty; name at least one")
        if len(set(self.driver_names)) != len(self.driver_names):
            yield Conflict(("driver_names",), "it has a name twice; leave one out")
        domains = [domain for domain, _ in self.federated_bundles]
        if len(set(domains)) != len(domains):
            yield Conflict(("federated_bundles",), "it has a trust domain twice; leave one out")
        if self.trust_domain in domains:
            yield Conflict(
                ("federated_bundles", "trust_domain"), "it is the own trust domain, whose bundle is here; leave it out"
            )
        yield from settings.address_conflicts(**{name: getattr(self, name) for name in ADDRESSES})
        directory = len(os.fsencode(self.admin_socket.parent))
        yield from settings.too_long(
            "admin_socket", max(directory + _DOOR_OVERHEAD, len(os.fsencode(self.admin_socket)) + 1)
        )

    @property
    def keys(self) -> KeySettings:
        """Where the authorities' private keys are."""
        jwt = self.jwt_algorithm if self.jwt_svids else None
        return KeySettings(self.authority_key_uri, self.authority_keys_return, self.authority_algorithm, jwt)

    @property
    def above(self) -> UpstreamSettings:
        """The CA that certifies the authorities."""
        return above.of(self)

    @property
    def ttls(self) -> TtlLimits:
        """How long SVIDs live."""
        return TtlLimits(
            x509_ttl=self.x509_ttl,
            x509_min_ttl=self.x509_min_ttl,
            x509_pod_max_ttl=self.x509_pod_max_ttl or self.x509_ttl,
            x509_max_ttl=self.x509_max_ttl,
            jwt_ttl=self.jwt_ttl,
            jwt_max_ttl=self.jwt_max_ttl,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and a flag for every setting."""
    settings.add_arguments(parser, SignerConfig)


def load(arguments: argparse.Namespace, environment: Mapping[str, str]) -> SignerConfig:
    """See runtime.loading.load. Raises InvalidSetting."""
    return loading.load(SignerConfig, arguments, environment, **_fallbacks())


def examine(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Examined[SignerConfig]:
    """The same, and what is wrong with it."""
    return loading.examine(SignerConfig, arguments, environment, **_fallbacks())


def _fallbacks() -> dict[str, object]:
    return {
        "namespace": setting_texts.own_namespace(),
        "agent_namespace": lambda values: values["namespace"],
        "cert_manager_namespace": lambda values: values["namespace"],
        "istio_names": lambda values: istio_settings.usual_names(values["namespace"], values["cluster_domain"]),
        "identity": socket.gethostname().lower(),
    }
