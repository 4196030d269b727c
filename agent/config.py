"""The agent's settings."""

import argparse
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

from csi.profile import PROFILES, default_profile_for
from runtime import advice, durations, loading, settings
from runtime.loading import Examined
from runtime.settings import Conflict, setting
from svid.jws import JwtAlgorithm
from svid.spiffeid import TrustDomain

_DRIVER = re.compile(r"[a-z]([-a-z0-9.]{0,61}[a-z])?", re.ASCII)
_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
# sun_path holds 107 bytes; the longest socket podsvid binds below kubelet's root adds this to the driver's name.
_MAX_SOCKET_PATH = settings.MAX_SOCKET_PATH
_REGISTRY_OVERHEAD = len("/plugins_registry/-01234567-reg.sock")
# Below the run directory.
_RUN_OVERHEAD = len("/.admin.sock")


@dataclass(frozen=True, slots=True)
class DriverName:
    """A CSI driver name to register, and the name of the profile that its volumes follow."""

    name: str
    profile: str


def _address(text: str) -> str:
    try:
        settings.host_and_port(text)
    except ValueError:
        raise ValueError("HOST:PORT such as podsvid-signer.podsvid.svc:8443 or [fd00::1]:8443") from None
    return text


def _driver(text: str) -> DriverName:
    name, equals, profile = text.partition("=")
    if not _DRIVER.fullmatch(name):
        raise ValueError("driver names of at most 63 a-z 0-9 . - , first and last a letter, each NAME or NAME=PROFILE")
    profile = profile if equals else default_profile_for(name)
    if profile not in PROFILES:
        raise ValueError("NAME=PROFILE with a profile out of " + ", ".join(PROFILES))
    return DriverName(name, profile)


def _secret_name(text: str) -> str:
    if len(text) > 253 or not text.isascii() or not text.isprintable():
        raise ValueError("a secret's name of at most 253 printable characters; empty switches it off")
    return text


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything `podsvid agent` can be told. Field names are the YAML keys; flags use dashes."""

    trust_domain: TrustDomain = setting(settings.trust_domain, "trust domain of every SVID (required)", required=True)
    node_name: str = setting(
        settings.matching(_NODE, "a node name: lower-case letters, digits, dashes and dots"),
        "this node's name as Kubernetes knows it (default: the host name)",
    )
    driver_names: tuple[DriverName, ...] = setting(
        settings.listed(_driver, pairs=True),
        "CSI driver names (CSIDriver objects), NAME or NAME=PROFILE with profile " + ", ".join(PROFILES),
        "csi.podsvid.io",
    )
    kubelet_root: Path = setting(settings.absolute, "kubelet's --root-dir", "/var/lib/kubelet")
    state_dir: Path = setting(
        settings.absolute, "where the embedded authority is kept; survives reboots", "/var/lib/podsvid"
    )
    run_dir: Path = setting(settings.absolute, "where the journal is kept; emptied by a reboot", "/run/podsvid")
    authority: str = setting(
        settings.choice("embedded", "file", "signer"), "where SVIDs come from: embedded, file or signer", "embedded"
    )
    ca_cert_file: Path | None = setting(settings.absolute, "authority file: PEM chain, issuing certificate first")
    ca_key_file: Path | None = setting(
        settings.absolute, "authority file: PEM private key of the issuing certificate", secret=True
    )
    ca_bundle_file: Path | None = setting(
        settings.absolute, "authority file: PEM root certificates (default: the last of --ca-cert-file)"
    )
    signer_address: str | None = setting(_address, "authority signer: HOST:PORT of the signer")
    signer_bundle: Path | None = setting(
        settings.absolute,
        "authority signer: trust bundle for the first contact, JWKS or PEM (ConfigMap podsvid-bundle)",
    )
    agent_token_file: Path | None = setting(
        settings.absolute, "authority signer: projected service account token of the agent", secret=True
    )
    signer_audience: str = setting(
        settings.matching(re.compile(r"[!-~]{1,253}"), "printable characters without spaces"),
        "authority signer: audience of that token and of the pods'",
        "signer.podsvid.io",
    )
    x509_ttl: timedelta = setting(settings.ttl, "lifetime of an X.509-SVID, 2s to 90d", "1h")
    x509_min_ttl: timedelta = setting(settings.ttl, "shortest lifetime that a volume's ttl attribute gets", "1m")
    x509_max_ttl: timedelta | None = setting(
        settings.ttl, "longest lifetime that a volume's ttl attribute gets (default: x509_ttl)"
    )
    dns_names: tuple[str, ...] = setting(
        settings.listed(settings.dns_pattern),
        "DNS names that pods may ask for, such as {service_account}.{namespace}.svc or *.{namespace}.svc",
        "",
    )
    jwt_svids: bool = setting(
        settings.boolean, "issue JWT-SVIDs; authority file does where it has a jwt_key_file", "true"
    )
    jwt_ttl: timedelta = setting(settings.ttl, "lifetime of a JWT-SVID, 2s to 90d", "5m")
    jwt_algorithm: JwtAlgorithm = setting(
        settings.jwt_algorithm, "JWT-SVID signatures: RS256 (what clouds take), ES256, ...", "RS256"
    )
    jwt_issuer: str | None = setting(settings.url, "iss of JWT-SVIDs, for OpenID Connect federation (default: none)")
    jwt_jti: bool = setting(
        settings.boolean, "give each JWT-SVID a jti of its own; none is handed out twice then", "false"
    )
    jwt_key_period: timedelta = setting(
        settings.period, "authority embedded: how long a JWT key signs, 1h to 3650d", "30d"
    )
    jwt_key_file: Path | None = setting(
        settings.absolute, "authority file: PEM private key that signs JWT-SVIDs", secret=True
    )
    jwt_bundle_file: Path | None = setting(
        settings.absolute, "authority file: SPIFFE JWKS whose JWT keys are published beside that key (for its rotation)"
    )
    federated_bundles: tuple[tuple[TrustDomain, Path], ...] = setting(
        settings.listed(settings.federated, pairs=True),
        "trust bundles of other trust domains, TRUST-DOMAIN=FILE (JWKS or PEM), re-read",
        "",
    )
    sds_svid_name: str = setting(_secret_name, "SDS name of the default SVID", "default")
    sds_bundle_name: str = setting(_secret_name, "SDS name of the own trust bundle", "ROOTCA")
    sds_all_bundles_name: str = setting(_secret_name, "SDS name of all trust bundles, federated ones included", "ALL")
    sds_spiffe_validator: bool = setting(
        settings.boolean, "SDS trust bundles are for Envoy's SPIFFE validator; false: plain trusted_ca", "true"
    )
    socket_connections: int = setting(
        settings.number(1, 65536), "connections open at once on one volume's socket", "64"
    )
    socket_calls: int = setting(
        settings.number(1, 65536), "calls (streams) of one pod open at once, on all its volumes' sockets", "1024"
    )
    socket_rate: int = setting(settings.number(1, 100000), "new calls a second of one pod", "500")
    socket_burst: int = setting(settings.number(1, 100000), "new calls of one pod at once", "2000")
    socket_user: int = setting(
        settings.number(1, 2**31 - 1),
        "user and group id of the process that serves pods' sockets; nothing else on the node may have it",
        "2100000000",
    )
    socket_memory: int = setting(
        settings.number(64, 65536), "MiB of data that the process that serves pods' sockets may have", "224"
    )
    socket_quarantine: bool = setting(
        settings.boolean,
        "pods whose sockets cost the process of all sockets too much are served by another one, or closed for a while",
        "true",
    )
    volumes: int = setting(settings.number(1, 65536), "volumes of the node; a publish beyond is refused", "1000")
    pod_volumes: int = setting(settings.number(1, 65536), "volumes of one pod; a publish beyond is refused", "16")
    volumes_memory: int = setting(
        settings.number(1, 1048576), "MiB of all volumes' files; a publish that would exceed it is refused", "160"
    )
    memory_headroom: int = setting(
        settings.number(0, 1048576),
        "MiB below the agent's memory limit that stay free: a publish that would need them is refused",
        "32",
    )
    publishes: int = setting(
        settings.number(1, 1024), "new volumes made at once; one namespace's are at most half of them", "8"
    )
    key_threads: int = setting(
        settings.number(1, 64), "RSA keys made at once; each takes a core for up to a second or two", "1"
    )
    key_queue: int = setting(settings.number(1, 4096), "RSA keys of new volumes that one pod may have waiting", "16")
    jwt_queue: int = setting(settings.number(1, 65536), "JWT-SVIDs that one pod may have waiting to be minted", "128")
    metrics_listen: tuple[str, int] | None = setting(
        settings.listen, "address of /metrics, and of /healthz and /readyz, or off", "127.0.0.1:9099"
    )
    health_listen: tuple[str, int] | None = setting(
        settings.listen,
        "address of /healthz and /readyz alone, for probes: who crowds metrics_listen does not reach it; or off",
        "off",
    )
    tracing_endpoint: str | None = setting(
        settings.collector, "URL of an OpenTelemetry collector (OTLP over gRPC) that gets traces (default: none)"
    )
    docs_url: str = setting(advice.address, advice.HELP, "")
    log_format: str = setting(settings.choice("json", "text"), "json or text", "json")
    log_level: str = setting(
        settings.choice("debug", "info", "warning", "error"), "debug, info, warning or error", "info"
    )
    volumes_without_mounts: bool = setting(
        settings.boolean, "UNSAFE, for quickstart on hosts that allow no mounts: volumes are plain directories", "false"
    )

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        """What contradicts each other; `given` are the settings that somebody said."""
        yield from self._authority_conflicts(given)
        yield from self._lifetime_conflicts(given)
        if not self.driver_names:
            yield Conflict(("driver_names",), "driver_names is empty; name at least one")
        for what, names in (
            ("driver_names", [driver.name for driver in self.driver_names]),
            ("federated_bundles", [domain.name for domain, _ in self.federated_bundles]),
        ):
            if len(set(names)) != len(names):
                yield Conflict((what,), "it has a name twice; leave one out")
        if any(domain == self.trust_domain for domain, _ in self.federated_bundles):
            yield Conflict(
                ("federated_bundles", "trust_domain"),
                "it is the own trust domain, whose bundle the authority has; leave it out",
            )
        called = {each: getattr(self, each) for each in ("sds_svid_name", "sds_bundle_name", "sds_all_bundles_name")}
        for one, other in combinations([each for each, name in called.items() if name], 2):
            if called[one] == called[other]:
                yield Conflict((one, other), "Envoy could ask for one of them only; give another name, or an empty one")
        yield from _place_conflicts(self)
        yield from settings.address_conflicts(metrics_listen=self.metrics_listen, health_listen=self.health_listen)

    def _authority_conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        for name in _NEEDED[self.authority]:
            if getattr(self, name) is None:
                yield Conflict(("authority", name), "this authority needs it: give it, or choose another authority")
        for name in _OF_AUTHORITIES:
            if name not in given or self.authority in _OF_AUTHORITIES[name]:
                continue
            if name in _TO_THE_SIGNER and self.authority == "embedded":
                why = "this node would have a CA that nobody else trusts: choose authority signer, or leave it out"
            elif self.authority == "signer" and name not in _FILES:
                why = "the signer decides that: set it there, and leave it out here"
            else:
                why = f"it is for authority {' and '.join(_OF_AUTHORITIES[name])}: choose that, or leave it out"
            yield Conflict(("authority", name), why)
        if self.authority == "file" and self.jwt_key_file is None:
            if self.jwt_bundle_file is not None:
                yield Conflict(("jwt_bundle_file", "jwt_key_file"), "its keys go beside that one: give both, or none")
            if self.jwt_svids and "jwt_svids" in given:
                yield Conflict(("jwt_svids", "jwt_key_file"), "JWT-SVIDs need that key: give it, or set it to false")

    def _lifetime_conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        if self.authority == "signer":
            return
        if "x509_min_ttl" in given and self.x509_min_ttl > self.x509_ttl:
            yield Conflict(("x509_min_ttl", "x509_ttl"), "the shortest lifetime is above the usual one; lower it")
        longest = self.x509_max_ttl
        if longest is not None and longest < self.x509_ttl:
            yield Conflict(
                ("x509_max_ttl", "x509_ttl"),
                f"the longest lifetime is below the usual one; set it to {durations.text(self.x509_ttl)} or more",
            )
        if longest is not None and "x509_min_ttl" in given and longest < self.x509_min_ttl:
            yield Conflict(("x509_max_ttl", "x509_min_ttl"), "the longest lifetime is below the shortest; raise it")

    @property
    def issues_jwt(self) -> bool:
        """Whether there is a JWT profile."""
        return self.jwt_svids and (self.authority != "file" or self.jwt_key_file is not None)


# Of which authority a setting is, where it is not every one's. The others would not look at it.
_OF_AUTHORITIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("signer_address", "signer_bundle", "agent_token_file"), ("signer",)),
        **dict.fromkeys(("ca_cert_file", "ca_key_file", "ca_bundle_file"), ("file",)),
        **dict.fromkeys(("jwt_key_file", "jwt_bundle_file"), ("file",)),
        **dict.fromkeys(
            (
                *("x509_ttl", "x509_min_ttl", "x509_max_ttl", "dns_names", "federated_bundles"),
                *("jwt_svids", "jwt_ttl", "jwt_algorithm", "jwt_issuer", "jwt_jti"),
            ),
            ("embedded", "file"),
        ),
        "jwt_key_period": ("embedded",),
    }
)
_TO_THE_SIGNER = frozenset({"signer_address", "signer_bundle", "agent_token_file"})
_FILES = frozenset(name for name, where in _OF_AUTHORITIES.items() if where == ("file",))
_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embedded": (),
        "file": ("ca_cert_file", "ca_key_file"),
        "signer": ("signer_address", "signer_bundle", "agent_token_file"),
    }
)


def _place_conflicts(config: AgentConfig) -> Iterator[Conflict]:
    name = max((driver.name for driver in config.driver_names), key=len, default="")
    longest = len(os.fsencode(config.kubelet_root)) + _REGISTRY_OVERHEAD + len(name)
    if longest > _MAX_SOCKET_PATH:
        yield Conflict(
            ("kubelet_root", "driver_names"),
            f"the path is too long: its sockets would take {longest} bytes, {_MAX_SOCKET_PATH} are possible",
        )
    longest = len(os.fsencode(config.run_dir)) + _RUN_OVERHEAD
    if longest > _MAX_SOCKET_PATH:
        yield Conflict(
            ("run_dir",),
            f"the path is too long: its sockets would take {longest} bytes, {_MAX_SOCKET_PATH} are possible",
        )
    if config.authority == "embedded" and config.state_dir.is_relative_to(config.run_dir):
        yield Conflict(
            ("state_dir", "run_dir"),
            "a reboot empties the one, and the authority in the other has to survive it; give each its own place",
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and a flag for every setting."""
    settings.add_arguments(parser, AgentConfig)


def load(arguments: argparse.Namespace, environment: Mapping[str, str]) -> AgentConfig:
    """See runtime.loading.load; the node's name is the host's when nobody says another. Raises InvalidSetting."""
    return loading.load(AgentConfig, arguments, environment, node_name=_host)


def examine(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Examined[AgentConfig]:
    """The same, and what is wrong with it."""
    return loading.examine(AgentConfig, arguments, environment, node_name=_host)


def _host(_: Mapping[str, object]) -> str:
    return socket.gethostname().lower()
