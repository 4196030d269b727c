"""Which files a volume holds and what is in them (DESIGN: The volume)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from csi.keystore import keystore, truststore
from csi.model import Contents, VolumeOptions
from svid.identity import WorkloadIdentity

SOCKET, SOCKET_LINKS = "socket", ("spire-agent.sock", "api.sock")
KEYSTORE, TRUSTSTORE, PASSWORD = "keystore.p12", "truststore.p12", "keystore.password"
KEYSTORE_FILES = (KEYSTORE, TRUSTSTORE, PASSWORD)


@dataclass(frozen=True, slots=True)
class File:
    """A file's content; `secret` when it lets its reader act as the pod, `lasting` when few renewals change it."""

    content: bytes
    secret: bool = False
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """`roles` maps what a file holds to its name."""

    name: str
    help: str
    roles: Mapping[str, str]
    keystores: bool = False


def _bundle_map(identity: WorkloadIdentity) -> bytes:
    # gRPC (A87) reads X.509 entries only, and of a bundle with any other entry nothing at all.
    bundles = [replace(each, jwt_authorities=(), refresh_hint=None) for each in (identity.bundle, *identity.federated)]
    return (
        b'{"trust_domains": {'
        + b", ".join(
            json.dumps(each.trust_domain.name).encode() + b": " + each.to_jwks().strip()
            for each in bundles
            if each.x509_authorities
        )
        + b"}}\n"
    )


@dataclass(frozen=True)
class _Encoded:
    """An identity; what several files have of it is encoded once."""

    identity: WorkloadIdentity

    @cached_property
    def chain(self) -> bytes:
        return self.identity.default.chain_pem()

    @cached_property
    def key(self) -> bytes:
        return self.identity.default.key_pem()


@dataclass(frozen=True, slots=True)
class _Role:
    secret: bool
    render: Callable[[_Encoded], bytes]
    lasting: bool = False


_ROLES: Mapping[str, _Role] = MappingProxyType(
    {
        "certificate": _Role(False, lambda of: of.chain),
        "key": _Role(True, lambda of: of.key),
        "bundle": _Role(False, lambda of: of.identity.bundle.to_pem(), lasting=True),
        "combined": _Role(True, lambda of: of.key + of.chain),
        "jwks": _Role(False, lambda of: of.identity.bundle.to_jwks(), lasting=True),
        "bundle map": _Role(False, lambda of: _bundle_map(of.identity), lasting=True),
        "jwt jwks": _Role(False, lambda of: of.identity.bundle.to_jwt_jwks(), lasting=True),
    }
)
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "certificate": "chain, leaf first, no root, PEM",
        "key": "private key, PKCS#8, PEM",
        "bundle": "X.509 authorities of the own trust domain, PEM",
        "combined": "key, then chain, PEM",
        "jwks": "trust bundle of the own trust domain, SPIFFE JWKS",
        "bundle map": "X.509 trust bundles by trust domain, federated ones too (gRPC A87)",
        "jwt jwks": "JWT keys of the own trust domain, JWKS",
    }
)
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        each.name: each
        for each in (
            Layout(
                "spiffe",
                "podsvid's own",
                {
                    "certificate": "tls.crt",
                    "key": "tls.key",
                    "bundle": "ca.crt",
                    "combined": "credential-bundle.private-key.pem",
                    "jwks": "bundle.json",
                },
            ),
            Layout(
                "cert-manager",
                "csi-driver-spiffe, Kubernetes TLS Secrets",
                {"certificate": "tls.crt", "key": "tls.key", "bundle": "ca.crt"},
            ),
            Layout(
                "istio",
                "workload-certs of an Istio sidecar",
                {"certificate": "cert-chain.pem", "key": "key.pem", "bundle": "root-cert.pem"},
            ),
            Layout(
                "grpc",
                "proxyless gRPC's file watcher",
                {
                    "certificate": "certificates.pem",
                    "key": "private_key.pem",
                    "bundle": "ca_certificates.pem",
                    "bundle map": "trust_bundles.json",
                },
            ),
            Layout(
                "spiffe-helper",
                "the names in spiffe-helper's examples",
                {
                    "certificate": "svid.pem",
                    "key": "svid_key.pem",
                    "bundle": "svid_bundle.pem",
                    "jwt jwks": "jwt_bundle.json",
                },
            ),
            Layout("combined", "HAProxy and others that read one file", {"combined": "tls.pem", "bundle": "ca.crt"}),
            Layout("keystore", "Java", {}, keystores=True),
            Layout("socket", "spiffe-csi: no files", {}),
        )
    }
)


def file_names(options: VolumeOptions) -> list[str]:
    """Every name that a volume with `options` shows beside `..data`, doubles included."""
    layout = LAYOUTS[options.layout]
    names = [*{**layout.roles, **dict(options.file_names)}.values()]
    names += [file.name for file in options.jwt_files]
    if options.has_keystores:
        names += KEYSTORE_FILES
    return [*names, SOCKET, *SOCKET_LINKS]


def lasting(options: VolumeOptions) -> frozenset[str]:
    """The names of the files that most renewals do not change."""
    chosen, roles = dict(options.file_names), LAYOUTS[options.layout].roles
    names = {chosen.get(role, name) for role, name in roles.items() if _ROLES[role].lasting}
    return frozenset(names | {TRUSTSTORE, PASSWORD} if options.has_keystores else names)


def render(options: VolumeOptions, contents: Contents, password: str) -> Mapping[str, File]:
    """File name to content. `password` is that of the keystores. Raises InvalidKey for a key no keystore holds."""
    identity = contents.identity
    encoded = _Encoded(identity)
    chosen = dict(options.file_names)
    files = {
        chosen.get(role, name): File(_ROLES[role].render(encoded), _ROLES[role].secret, _ROLES[role].lasting)
        for role, name in LAYOUTS[options.layout].roles.items()
    }
    for file in options.jwt_files:
        if file.name in contents.jwt_svids:
            files[file.name] = File(contents.jwt_svids[file.name].token.encode(), secret=True)
    if options.has_keystores:
        files[KEYSTORE] = File(keystore(identity.default, password), secret=True)
        files[TRUSTSTORE] = File(truststore(identity.bundle, password), lasting=True)
        files[PASSWORD] = File(password.encode(), secret=True, lasting=True)
    return files
