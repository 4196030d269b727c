"""How long SVIDs live: what the cluster's settings, a policy and a pod's author each have to say, and what was clipped.

The cluster's settings are the frame of all. In it a policy says how long; where none does, `x509_ttl` holds. A pod's
author may ask for less, and for more only up to the policy's `x509TTL`, or to `x509_pod_max_ttl` where it has none:
whoever may create a pod does not decide how long a stolen SVID is good for.
"""

from collections.abc import Sequence
from datetime import timedelta

from runtime import durations
from signer.model import Entitlement, TtlLimits
from signer.pod_certificate_settings import LEAST_LIFE


def usual(limits: TtlLimits, given: Entitlement) -> timedelta:
    """The lifetime of an X.509-SVID for which nobody asked."""
    return min(max(given.x509_ttl or limits.x509_ttl, limits.x509_min_ttl), limits.x509_max_ttl)


def longest(limits: TtlLimits, given: Entitlement) -> timedelta:
    """The most that a pod's author gets."""
    bound = limits.x509_pod_max_ttl if given.x509_ttl is None else given.x509_ttl
    return min(max(bound, limits.x509_min_ttl), limits.x509_max_ttl)


def granted(limits: TtlLimits, given: Entitlement, wish: timedelta, written: str = "") -> tuple[timedelta, str]:
    """What a pod's author gets who asks for `wish`, and for people what of it was clipped; empty when nothing was.

    `written` is the wish as it stands in the pod; empty when nobody said.
    """
    found = min(max(wish, limits.x509_min_ttl), longest(limits, given))
    if found == wish:
        return found, ""
    asked, why = written or durations.text(wish), _why(limits, given, below=found > wish)
    return found, f"ttl {asked} was asked for, {durations.text(found)} is granted: {why}"


def pod_certificate(limits: TtlLimits, given: Entitlement, most: timedelta) -> timedelta:
    """The lifetime of a certificate that kubelet asks for with `most`, from its beginning to its end."""
    return min(max(usual(limits, given), LEAST_LIFE), most)


def pod_certificates(limits: TtlLimits, given: Entitlement, mosts: Sequence[timedelta]) -> str:
    """For people: how long those of podCertificate sources live, the first of which has the least `most`, the last the
    greatest; and what else than policy says so. Empty where there are none."""
    if not mosts:
        return ""
    said = usual(limits, given)
    least, most = (pod_certificate(limits, given, each) for each in (mosts[0], mosts[-1]))
    found = durations.text(least) if least == most else f"{durations.text(least)} to {durations.text(most)}"
    if said < LEAST_LIFE:
        return f"{found}, as none lives for less (it would be {durations.text(said)})"
    return found if least == said else f"{found}, as maxExpirationSeconds says (it would be {durations.text(said)})"


def jwt(limits: TtlLimits, given: Entitlement) -> timedelta:
    """The lifetime of a JWT-SVID; no pod asks for one."""
    return min(given.jwt_ttl or limits.jwt_ttl, limits.jwt_max_ttl)


def clipped(limits: TtlLimits, x509_ttl: tuple[timedelta | None, str], jwt_ttl: tuple[timedelta | None, str]) -> str:
    """What a policy says and no pod gets, for its author and as written there; empty when pods get all of it."""
    said = []
    for name, (ttl, text), below, least, above, most in (
        ("x509TTL", x509_ttl, "x509_min_ttl", limits.x509_min_ttl, "x509_max_ttl", limits.x509_max_ttl),
        ("jwtTTL", jwt_ttl, "", timedelta(0), "jwt_max_ttl", limits.jwt_max_ttl),
    ):
        if ttl is not None and not least <= ttl <= most:
            bound, what = (least, f"below {below}") if ttl < least else (most, f"above {above}")
            said.append(f"{name} {text or durations.text(ttl)} is {what}: {durations.text(bound)} is granted")
    return "; ".join(said)


def _why(limits: TtlLimits, given: Entitlement, *, below: bool) -> str:
    if below:
        return "no SVID of this cluster lives shorter (x509_min_ttl)"
    if given.x509_ttl is None and limits.x509_pod_max_ttl < limits.x509_max_ttl:
        return "the cluster's limit for what a pod asks for (x509_pod_max_ttl); a policy with x509TTL may allow more"
    if given.x509_ttl is not None and given.x509_ttl <= limits.x509_max_ttl:
        said = given.x509_ttl_text or durations.text(given.x509_ttl)
        return f"policy {given.decided_by} gives x509TTL {said}"
    return "no SVID of this cluster lives longer (x509_max_ttl)"
