"""Which lifetimes in the settings contradict each other."""

from collections.abc import Iterator
from datetime import timedelta

from runtime import durations
from runtime.settings import Conflict
from signer.model import TtlLimits


def conflicts(authority_ttl: timedelta, pod_most: timedelta | None, ttls: TtlLimits) -> Iterator[Conflict]:
    """Those; `pod_most`: x509_pod_max_ttl, where it is given."""
    if ttls.x509_ttl < ttls.x509_min_ttl:
        yield Conflict(("x509_ttl", "x509_min_ttl"), "the usual lifetime is below the shortest; change one of them")
    if ttls.x509_ttl > ttls.x509_max_ttl:
        yield Conflict(("x509_ttl", "x509_max_ttl"), "the usual lifetime is above the longest; change one of them")
    if pod_most is not None and pod_most < ttls.x509_ttl:
        yield Conflict(
            ("x509_pod_max_ttl", "x509_ttl"),
            "what a pod's author may get is below what every pod gets: raise it, or leave it out for x509_ttl",
        )
    if pod_most is not None and pod_most > ttls.x509_max_ttl:
        yield Conflict(
            ("x509_pod_max_ttl", "x509_max_ttl"),
            "what a pod's author may get is above the longest lifetime: lower it, or leave it out for x509_ttl",
        )
    if ttls.jwt_ttl > ttls.jwt_max_ttl:
        yield Conflict(("jwt_ttl", "jwt_max_ttl"), "the usual lifetime is above the longest; change one of them")
    # Half of an authority's life must outlast what it issues, or there would be no time to replace it.
    if authority_ttl < 4 * ttls.x509_max_ttl:
        yield Conflict(
            ("authority_ttl", "x509_max_ttl"),
            "an authority has to live four times as long as what it signs, so that it can be replaced in time: "
            f"set authority_ttl to {durations.text(4 * ttls.x509_max_ttl)} or more, or lower x509_max_ttl",
        )
