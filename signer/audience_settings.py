"""Who reads the trust and never acknowledges it, as the settings have it; which lifetimes leave them no time."""

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from runtime import durations
from runtime.settings import Conflict
from signer import istio_settings, pod_certificate_settings, public_settings

if TYPE_CHECKING:
    from signer.config import SignerConfig

# Trust domains that poll the trust bundle, and verifiers that read the keys of JWT-SVIDs as OpenID Connect has it.
# The others come with settings of their own only: pods that have Kubernetes' certificates, and trust by
# ClusterTrustBundles; Istio's proxies, which hear of roots with their certificates.
FEDERATION, OIDC, POD_CERTIFICATES, ISTIO = "federation", "oidc", "pod_certificates", "istio"
AUDIENCES = (FEDERATION, OIDC)
HELP = (
    "who reads the trust and never acknowledges it, so that new authorities wait: federation (trust domains that "
    "poll the bundle; on with bundle_listen), oidc (readers of JWT-SVIDs' keys; on with jwt_issuer)"
)
# Of the SPIFFE Federation's "three to five times the refresh hint": who misses four polls still has the fifth.
POLLS = 5
# For how long readers of keys keep them at most, whatever they are told: libraries and clouds do for up to a day.
KEYS_KEPT = timedelta(days=1)
# For how long they are told to. What obeys reads anew within a forced rotation.
KEYS_MAX_AGE = timedelta(seconds=60)
# Partners by podsvid and by SPIRE's server look four times in a hint, a tenth late at worst; then it has to get to
# their workloads. Podsvid looks every half a minute at most, whatever the hint.
LOOKS = 3
LEAST_LOOK = timedelta(seconds=45)
MIN_HINT, MAX_HINT = timedelta(minutes=1), timedelta(days=1)
# Of the wanted life of an authority: what it has to have at least where that is short (a CA above dates what it
# certifies some time after it was asked).
LEAST = 0.75


def audiences(config: "SignerConfig") -> frozenset[str]:
    """Those that are on: that the settings name, and that come with others."""
    found = set(config.trust_audiences)
    if config.bundle_listen is not None:
        found.add(FEDERATION)
    if config.jwt_svids and _discoverable(config):
        # Tokens that name an issuer are for who looks its keys up.
        found.add(OIDC)
    if config.pod_certificates:
        found.add(POD_CERTIFICATES)
    if config.istio_listen is not None:
        found.add(ISTIO)
    return frozenset(found)


def settle(audience: str, kind: str, config: "SignerConfig") -> timedelta:
    """How long a new authority of a kind is published before all of that audience have it."""
    if audience == FEDERATION:
        return POLLS * config.bundle_hint
    if audience == POD_CERTIFICATES:
        return pod_certificate_settings.SETTLE if kind == "x509" else timedelta(0)
    if audience == ISTIO:
        return istio_settings.settle(config) if kind == "x509" else timedelta(0)
    if kind != "jwt":
        return timedelta(0)
    # A web server that has a copy may have it as late as is hinted.
    most = KEYS_KEPT + config.bundle_hint
    # Who only has an issuer may have no such readers: that is no reason not to start.
    return most if _named(config) else min(most, config.jwt_key_period / 2)


def told(audience: str, config: "SignerConfig") -> timedelta:
    """How long one is published before those of that audience have it who read as often as they are told."""
    if audience == FEDERATION:
        return max(config.bundle_hint / LOOKS, LEAST_LOOK)
    return KEYS_MAX_AGE if audience == OIDC else timedelta(0)


def renewed(audience: str) -> float:
    """Of the life of a certificate, by when those have another one who hear of roots by it; else none."""
    return istio_settings.RENEWED if audience == ISTIO else 0.0


def conflicts(config: "SignerConfig") -> Iterator[Conflict]:
    """What leaves those that are on without the time that they need before an authority signs."""
    if OIDC in config.trust_audiences and not config.jwt_svids:
        yield Conflict(("trust_audiences", "jwt_svids"), "without JWT-SVIDs nobody reads keys of them; leave oidc out")
    on = audiences(config)
    # Authorities of pods' certificates live for four hours at least anyway, and all for four times x509_max_ttl.
    for audience, names in ((FEDERATION, ("bundle_hint",)), (OIDC, _brought_by(config))):
        if audience not in on:
            continue
        waits = settle(audience, "x509", config)
        least = _whole(4 * waits / LEAST)
        if config.authority_ttl < least:
            yield Conflict(
                (*names, "authority_ttl"),
                f"{_needs(audience, waits)}, and what it replaces signs for half of its life: set authority_ttl to "
                f"{durations.text(least)} or more{_or_lower(audience)}",
            )
        # Periods of two days were always enough; a copy's delay is taken off the time before.
        waits = settle(audience, "jwt", config)
        if audience == OIDC:
            waits = KEYS_KEPT if _named(config) else timedelta(0)
        if config.jwt_svids and config.jwt_key_period < 2 * waits:
            yield Conflict(
                (*names, "jwt_key_period"),
                f"{_needs(audience, waits)}, which has to be half of the period at most: set jwt_key_period to "
                f"{durations.text(2 * waits)} or more{_or_lower(audience)}",
            )


def _whole(duration: timedelta) -> timedelta:
    return timedelta(seconds=math.ceil(duration.total_seconds()))


def _named(config: "SignerConfig") -> bool:
    return OIDC in config.trust_audiences or config.oidc_listen is not None


def _discoverable(config: "SignerConfig") -> bool:
    try:
        return public_settings.issuer(config) is not None
    except ValueError:
        return False


def _brought_by(config: "SignerConfig") -> tuple[str, ...]:
    return ("trust_audiences",) if OIDC in config.trust_audiences else ("oidc_listen",)


def _needs(audience: str, waits: timedelta) -> str:
    why = f"{POLLS} times bundle_hint" if audience == FEDERATION else "for which readers keep keys"
    return f"a new authority is published for {durations.text(waits)} ({why}) before it signs"


def _or_lower(audience: str) -> str:
    return ", or lower bundle_hint" if audience == FEDERATION else ""
