"""Conditions in an object's status, as Kubernetes has them everywhere."""

from runtime.clock import Clock
from signer.cluster.kube import Object

# Kubernetes' own bound is 32 KiB; nobody reads so much.
_MAX_MESSAGE = 1024


def condition(kind: str, *, holds: bool, reason: str, message: str, generation: int) -> Object:
    """One of them, without its time."""
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message[:_MAX_MESSAGE],
        "observedGeneration": generation,
    }


def with_times(present: Object, status: Object, clock: Clock) -> Object:
    """`status` with each condition's time: the old one while its status is the same."""
    old = {each.get("type"): each for each in present.get("conditions") or []}
    now = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for each in status["conditions"]:
        before = old.get(each["type"]) or {}
        since = before.get("lastTransitionTime") if before.get("status") == each["status"] else None
        conditions.append({**each, "lastTransitionTime": since or now})
    return {**status, "conditions": conditions}
