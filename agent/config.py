"""The agent's settings: one typed model, filled from defaults, YAML, PODSVID_* variables and flags in that order.

Written by hand over dataclasses: a validation library would cost the agent a quarter of its start-up and memory budget.
"""

import argparse
import dataclasses
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from agent.errors import InvalidSetting
from csi.profile import PROFILES, default_profile_for
from svid.errors import InvalidSpiffeId
from svid.jwtsvid import JwtAlgorithm
from svid.spiffeid import TrustDomain

ENVIRONMENT_PREFIX = "PODSVID_"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)", re.ASCII)
_DRIVER = re.compile(r"[a-z]([-a-z0-9.]{0,61}[a-z])?", re.ASCII)
_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
MIN_PERIOD, MAX_PERIOD = timedelta(hours=1), timedelta(days=3650)
_PATTERN_LABEL = r"([a-z0-9-]|\{namespace\}|\{service_account\}|\{pod\})+"
_PATTERN = re.compile(rf"(\*\.)?{_PATTERN_LABEL}(\.{_PATTERN_LABEL})*", re.ASCII)
MIN_TTL, MAX_TTL = timedelta(seconds=2), timedelta(days=90)
# sun_path holds 107 bytes; the longest socket podsvid binds below kubelet's root adds this to the driver's name.
_MAX_SOCKET_PATH = 107
_REGISTRY_OVERHEAD = len("/plugins_registry/-01234567-reg.sock")


@dataclass(frozen=True, slots=True)
class DriverName:
    """A CSI driver name to register, and the name of the profile that its volumes follow."""

    name: str
    profile: str


def _trust_domain(text: str) -> TrustDomain:
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise ValueError(f"a trust domain name such as example.org ({error})") from None


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError("a duration such as 90s, 30m, 1h or 7d")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _ttl(text: str) -> timedelta:
    ttl = _duration(text)
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise ValueError("a duration from 2s to 90d")
    return ttl


def _period(text: str) -> timedelta:
    period = _duration(text)
    if not MIN_PERIOD <= period <= MAX_PERIOD:
        raise ValueError("a duration from 1h to 3650d")
    return period


def _jwt_algorithm(text: str) -> JwtAlgorithm:
    try:
        return JwtAlgorithm(text)
    except ValueError:
        raise ValueError("one of " + ", ".join(JwtAlgorithm)) from None


def _matching(form: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not form.fullmatch(text):
            raise ValueError(what)
        return text

    return parse


def _choice(*accepted: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in accepted:
            raise ValueError("one of " + ", ".join(accepted))
        return text

    return parse


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError("an absolute path without ..")
    return path


def _listen(text: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("HOST:PORT such as 127.0.0.1:9099, or off")
    return host.strip("[]"), int(port)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _listed(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Comma-separated values; an empty text has none."""

    def parse_all(text: str) -> tuple[Any, ...]:
        return tuple(parse(part.strip()) for part in text.split(",")) if text.strip() else ()

    return parse_all


def _driver(text: str) -> DriverName:
    name, equals, profile = text.partition("=")
    if not _DRIVER.fullmatch(name):
        raise ValueError("driver names of at most 63 a-z 0-9 . - , first and last a letter, each NAME or NAME=PROFILE")
    profile = profile if equals else default_profile_for(name)
    if profile not in PROFILES:
        raise ValueError("NAME=PROFILE with a profile out of " + ", ".join(PROFILES))
    return DriverName(name, profile)


def _federated(text: str) -> tuple[TrustDomain, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise ValueError("TRUST-DOMAIN=FILE with an absolute path")
    return _trust_domain(name), _absolute(path)


def _dns_pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise ValueError(
            "DNS names in lower case, where {namespace}, {service_account} and {pod} stand for the pod's own "
            "and a leading *. for one label"
        )
    return text


def _secret_name(text: str) -> str:
    if len(text) > 253 or not text.isascii() or not text.isprintable():
        raise ValueError("a secret's name of at most 253 printable characters; empty switches it off")
    return text


def _url(text: str) -> str:
    if not text.startswith("https://") or len(text) > 1024 or not text.isascii() or " " in text:
        raise ValueError("an https:// URL")
    return text


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text[:12]) <= high:
            raise ValueError(f"a number from {low} to {high}")
        return int(text)

    return parse


def _setting(parse: Callable[[str], Any], help_text: str, default: str | None = None) -> Any:
    return field(metadata={"parse": parse, "help": help_text, "default": default})


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything `podsvid agent` can be told. Field names are the YAML keys; flags use dashes."""

    trust_domain: TrustDomain = _setting(_trust_domain, "trust domain of every SVID (required)")
    node_name: str = _setting(
        _matching(_NODE, "a node name: lower-case letters, digits, dashes and dots"),
        "this node's name as Kubernetes knows it (default: the host name)",
    )
    driver_names: tuple[DriverName, ...] = _setting(
        _listed(_driver),
        "CSI driver names (CSIDriver objects), NAME or NAME=PROFILE with profile " + ", ".join(PROFILES),
        "csi.podsvid.io",
    )
    kubelet_root: Path = _setting(_absolute, "kubelet's --root-dir", "/var/lib/kubelet")
    state_dir: Path = _setting(_absolute, "where the embedded authority is kept; survives reboots", "/var/lib/podsvid")
    run_dir: Path = _setting(_absolute, "where the journal is kept; emptied by a reboot", "/run/podsvid")
    authority: str = _setting(_choice("embedded", "file"), "where SVIDs come from: embedded or file", "embedded")
    ca_cert_file: Path | None = _setting(_absolute, "authority file: PEM chain, issuing certificate first")
    ca_key_file: Path | None = _setting(_absolute, "authority file: PEM private key of the issuing certificate")
    ca_bundle_file: Path | None = _setting(
        _absolute, "authority file: PEM root certificates (default: the last of --ca-cert-file)"
    )
    x509_ttl: timedelta = _setting(_ttl, "lifetime of an X.509-SVID, 2s to 90d", "1h")
    x509_min_ttl: timedelta = _setting(_ttl, "shortest lifetime that a volume's ttl attribute gets", "1m")
    x509_max_ttl: timedelta | None = _setting(
        _ttl, "longest lifetime that a volume's ttl attribute gets (default: x509_ttl)"
    )
    dns_names: tuple[str, ...] = _setting(
        _listed(_dns_pattern),
        "DNS names that pods may ask for, such as {service_account}.{namespace}.svc or *.{namespace}.svc",
        "",
    )
    jwt_svids: bool = _setting(_boolean, "issue JWT-SVIDs; authority file does where it has a jwt_key_file", "true")
    jwt_ttl: timedelta = _setting(_ttl, "lifetime of a JWT-SVID, 2s to 90d", "5m")
    jwt_algorithm: JwtAlgorithm = _setting(
        _jwt_algorithm, "JWT-SVID signatures: RS256 (what clouds take), ES256, ...", "RS256"
    )
    jwt_issuer: str | None = _setting(_url, "iss of JWT-SVIDs, for OpenID Connect federation (default: none)")
    jwt_jti: bool = _setting(_boolean, "give each JWT-SVID a jti of its own; none is handed out twice then", "false")
    jwt_key_period: timedelta = _setting(_period, "authority embedded: how long a JWT key signs, 1h to 3650d", "30d")
    jwt_key_file: Path | None = _setting(_absolute, "authority file: PEM private key that signs JWT-SVIDs")
    jwt_bundle_file: Path | None = _setting(
        _absolute, "authority file: SPIFFE JWKS whose JWT keys are published beside that key (for its rotation)"
    )
    federated_bundles: tuple[tuple[TrustDomain, Path], ...] = _setting(
        _listed(_federated), "trust bundles of other trust domains, TRUST-DOMAIN=FILE (JWKS or PEM), re-read", ""
    )
    sds_svid_name: str = _setting(_secret_name, "SDS name of the default SVID", "default")
    sds_bundle_name: str = _setting(_secret_name, "SDS name of the own trust bundle", "ROOTCA")
    sds_all_bundles_name: str = _setting(_secret_name, "SDS name of all trust bundles, federated ones included", "ALL")
    sds_spiffe_validator: bool = _setting(
        _boolean, "SDS trust bundles are for Envoy's SPIFFE validator; false: plain trusted_ca", "true"
    )
    socket_connections: int = _setting(_number(1, 65536), "connections open at once on one volume's socket", "256")
    socket_calls: int = _setting(_number(1, 65536), "calls (streams) open at once on one volume's socket", "1024")
    socket_rate: int = _setting(_number(1, 100000), "new calls a second on one volume's socket", "500")
    socket_burst: int = _setting(_number(1, 100000), "new calls at once on one volume's socket", "2000")
    metrics_listen: tuple[str, int] | None = _setting(
        _listen, "address of /healthz, /readyz and /metrics, or off", "127.0.0.1:9099"
    )
    log_format: str = _setting(_choice("json", "text"), "json or text", "json")
    log_level: str = _setting(_choice("debug", "info", "warning", "error"), "debug, info, warning or error", "info")
    volumes_without_mounts: bool = _setting(
        _boolean, "UNSAFE, for quickstart on hosts that allow no mounts: volumes are plain directories", "false"
    )

    def __post_init__(self) -> None:
        if self.authority == "file" and (self.ca_cert_file is None or self.ca_key_file is None):
            raise InvalidSetting("authority is file, which needs ca_cert_file and ca_key_file")
        if not self.driver_names:
            raise InvalidSetting("driver_names is empty; name at least one")
        for what, names in (
            ("driver_names", [driver.name for driver in self.driver_names]),
            ("federated_bundles", [domain.name for domain, _ in self.federated_bundles]),
        ):
            if len(set(names)) != len(names):
                raise InvalidSetting(f"{what} has a name twice: {', '.join(names)}")
        if any(domain == self.trust_domain for domain, _ in self.federated_bundles):
            raise InvalidSetting(f"federated_bundles has {self.trust_domain}, which is the own trust domain")
        sds = [name for name in (self.sds_svid_name, self.sds_bundle_name, self.sds_all_bundles_name) if name]
        if len(set(sds)) != len(sds):
            raise InvalidSetting(f"two of the sds names are the same: {', '.join(sds)}")
        name = max((driver.name for driver in self.driver_names), key=len)
        longest = len(os.fsencode(self.kubelet_root)) + _REGISTRY_OVERHEAD + len(name)
        if longest > _MAX_SOCKET_PATH:
            raise InvalidSetting(
                f"kubelet_root {self.kubelet_root} is too long: its sockets would take {longest} bytes, "
                f"{_MAX_SOCKET_PATH} are possible"
            )

    @property
    def issues_jwt(self) -> bool:
        """Whether there is a JWT profile."""
        return self.jwt_svids and (self.authority != "file" or self.jwt_key_file is not None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and a flag for every setting."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with these settings in snake_case")
    for each in dataclasses.fields(AgentConfig):
        default = each.metadata["default"]
        help_text = each.metadata["help"] + (f" (default: {default})" if default else "")
        flag = "--" + each.name.replace("_", "-")
        if each.metadata["parse"] is _boolean:
            hidden = each.metadata["help"].startswith("UNSAFE")
            shown = argparse.SUPPRESS if hidden else help_text
            parser.add_argument(flag, dest=each.name, nargs="?", const="true", metavar="true|false", help=shown)
        else:
            parser.add_argument(flag, dest=each.name, help=help_text)


def load(arguments: argparse.Namespace, environment: Mapping[str, str]) -> AgentConfig:
    """The settings from flags over environment over file over defaults. Raises InvalidSetting naming key and value."""
    names = {each.name for each in dataclasses.fields(AgentConfig)}
    given: dict[str, tuple[str, str]] = {}
    path = arguments.config or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    if path:
        given.update({key: (value, f"in {path}") for key, value in _read_file(Path(path), names).items()})
    for name in names:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            given[name] = (environment[variable], f"in {variable}")
        flag = getattr(arguments, name, None)
        if flag is not None:
            given[name] = (flag, "from --" + name.replace("_", "-"))
    values: dict[str, Any] = {}
    for each in dataclasses.fields(AgentConfig):
        text, where = given.get(each.name, (each.metadata["default"], "by default"))
        values[each.name] = None if text is None else _parse(each, text, where)
    if values["trust_domain"] is None:
        raise InvalidSetting(
            "trust_domain is missing: give --trust-domain, PODSVID_TRUST_DOMAIN or trust_domain in YAML"
        )
    if values["node_name"] is None:
        values["node_name"] = socket.gethostname().lower()
    return AgentConfig(**values)


def _parse(setting: "dataclasses.Field[Any]", text: str, where: str) -> Any:
    try:
        return setting.metadata["parse"](text)
    except ValueError as error:
        raise InvalidSetting(f"{setting.name} {where} is {text[:200]!r}; accepted: {error}") from None


def _read_file(path: Path, names: set[str]) -> dict[str, str]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InvalidSetting(f"config file {path} is not YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidSetting(f"config file {path} must be a mapping of settings")
    found = {}
    for key, value in document.items():
        if key not in names:
            raise InvalidSetting(f"{key!r} in {path} is no setting; accepted: {', '.join(sorted(names))}")
        if isinstance(value, bool):
            value = "true" if value else "false"
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = ",".join(value)
        if not isinstance(value, str):
            raise InvalidSetting(
                f"{key} in {path} is {value!r}; accepted: text, so put it in quotes, or a list of texts"
            )
        found[key] = value
    return found
