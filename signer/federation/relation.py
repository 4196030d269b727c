"""A FederatedTrustDomain: another trust domain, and where its bundle is published. Written by the cluster's admins."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import msgspec

from runtime import durations
from signer.cluster.objects import FederatedTrustDomainObject
from signer.errors import SignerError
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem, to_pem
from svid.errors import InvalidBundle, InvalidSpiffeId
from svid.spiffeid import SpiffeId, TrustDomain

COLLECTION = "/apis/podsvid.io/v1alpha1/federatedtrustdomains"
KIND = "FederatedTrustDomain"
MAX_URL = 2048
# Bytes of a spec as JSON; etcd takes 1.5 MiB.
MAX_SPEC = 1024 * 1024
LEAST_STALE, MOST_STALE = timedelta(minutes=10), timedelta(days=365)


class InvalidRelation(SignerError):
    """It says something that cannot be followed."""

    reason = "FEDERATION_UNUSABLE"


class Profile(StrEnum):
    """How the endpoint proves to be the one (SPIFFE_Federation.md 5.2)."""

    WEB = "https_web"
    SPIFFE = "https_spiffe"


@dataclass(frozen=True, slots=True)
class Relation:
    """One of them. `trust_domain` is None where its name cannot be read; `problem` says why it cannot be used.

    `endpoint_id`: whom `https_spiffe` wants to meet. `bootstrap`: the bundle that counts until one was fetched.
    `ca_bundle`: PEM of the authorities that `https_web` trusts; empty: the system's. `max_stale`: how long a bundle is
    believed that could not be fetched again; None: for ever. `fetched_at`: when it was last, by its status.
    """

    uid: str
    name: str
    created: str
    generation: int = 0
    trust_domain: TrustDomain | None = None
    url: str = ""
    profile: Profile = Profile.WEB
    endpoint_id: SpiffeId | None = None
    bootstrap: TrustBundle | None = None
    ca_bundle: str = ""
    max_stale: timedelta | None = None
    problem: str = ""
    fetched_at: datetime | None = None

    @property
    def since(self) -> datetime | None:
        """Since when nothing newer is known: it was fetched then, or made."""
        return self.fetched_at or _time(self.created)

    @property
    def path(self) -> str:
        """Of the object."""
        return f"{COLLECTION}/{self.name}"


def read_relation(body: FederatedTrustDomainObject) -> Relation | None:
    """What an object says; what cannot be used of it is its `problem`."""
    metadata = body.metadata
    if not metadata.uid or not metadata.name:
        return None
    base: dict[str, Any] = {
        "uid": metadata.uid,
        "name": metadata.name,
        "created": metadata.creation_timestamp or "",
        "generation": metadata.generation or 0,
        "fetched_at": _time((body.status.fetched_at if body.status else None) or ""),
    }
    try:
        if len(body.spec) > MAX_SPEC:
            raise InvalidRelation(f"its spec is longer than {MAX_SPEC >> 10} KiB")
        spec = msgspec.json.decode(body.spec)
        if not isinstance(spec, dict):
            raise InvalidRelation("its spec cannot be read")
        # It stays known by its name: another object for the same domain is younger still.
        base["trust_domain"] = TrustDomain.parse(_text(spec, "trustDomain"))
        return Relation(**base, **_rest(spec, base["trust_domain"]))
    except (InvalidRelation, InvalidSpiffeId, InvalidBundle) as error:
        return Relation(**base, problem=str(error))
    except (ValueError, RecursionError):
        return Relation(**base, problem="its spec cannot be read")


def endpoint_url(text: str) -> str:
    """A URL that a bundle may be fetched from, of an object or a redirect (5.2.1.1). Raises InvalidRelation."""
    if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidRelation(f"bundleEndpointURL is no URL, or longer than {MAX_URL} characters")
    try:
        found = urlsplit(text)
        host, _ = found.hostname, found.port
    except ValueError:
        raise InvalidRelation("bundleEndpointURL is no URL") from None
    if found.scheme != "https":
        raise InvalidRelation("bundleEndpointURL has to begin with https://")
    if "@" in found.netloc:
        raise InvalidRelation("bundleEndpointURL has a user or password, which the specification forbids")
    if not host:
        raise InvalidRelation("bundleEndpointURL names no host")
    if is_refused(host):
        raise InvalidRelation(f"bundleEndpointURL names {host}, where no trust domain is published")
    return text


def is_refused(address: str) -> bool:
    """Whether it is an address that no partner has: link-local, where clouds tell machines their secrets; multicast."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    found = mapped or found
    return found.is_link_local or found.is_multicast or found.is_unspecified


def _rest(spec: Mapping[str, Any], trust_domain: TrustDomain) -> dict[str, Any]:
    profile, endpoint_id = _profile(spec)
    ca_bundle = _text(spec, "caBundle")
    if ca_bundle and profile is not Profile.WEB:
        raise InvalidRelation("caBundle is for the profile https_web; https_spiffe goes by trustDomainBundle")
    if ca_bundle:
        try:
            # Written anew: what stands around the certificates is not everybody's PEM.
            ca_bundle = to_pem(certificates_from_pem(ca_bundle.encode())).decode()
        except ValueError as error:
            raise InvalidRelation(f"caBundle: {error}") from None
    bootstrap = None
    if _text(spec, "trustDomainBundle"):
        try:
            bootstrap = TrustBundle.from_jwks(trust_domain, _text(spec, "trustDomainBundle").encode())
        except InvalidBundle as error:
            raise InvalidRelation(f"trustDomainBundle: {error}") from None
    return {
        "url": endpoint_url(_text(spec, "bundleEndpointURL")),
        "profile": profile,
        "endpoint_id": endpoint_id,
        "bootstrap": bootstrap,
        "ca_bundle": ca_bundle,
        "max_stale": _stale(_text(spec, "maxStale")),
    }


def _profile(spec: Mapping[str, Any]) -> tuple[Profile, SpiffeId | None]:
    given = spec.get("bundleEndpointProfile")
    if not isinstance(given, dict):
        raise InvalidRelation("bundleEndpointProfile is missing: its type is https_web or https_spiffe")
    try:
        profile = Profile(_text(given, "type"))
    except ValueError:
        raise InvalidRelation("bundleEndpointProfile.type is neither https_web nor https_spiffe") from None
    text = _text(given, "endpointSPIFFEID")
    if (profile is Profile.SPIFFE) != bool(text):
        raise InvalidRelation(
            "bundleEndpointProfile.endpointSPIFFEID says whom https_spiffe wants to meet; https_web has none"
        )
    if not text:
        return profile, None
    endpoint_id = SpiffeId.parse(text)
    if not endpoint_id.path:
        raise InvalidRelation("bundleEndpointProfile.endpointSPIFFEID is a trust domain's ID and no workload's")
    return profile, endpoint_id


def _stale(text: str) -> timedelta | None:
    try:
        return durations.parse(text, LEAST_STALE, MOST_STALE) if text else None
    except durations.InvalidDuration as error:
        raise InvalidRelation(f"maxStale {text[:80]!r} is not {error}") from None


def _text(spec: Mapping[str, Any], key: str) -> str:
    found = spec.get(key)
    if found is not None and not isinstance(found, str):
        raise InvalidRelation(f"{key} is of another type than its schema says")
    return found or ""


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
