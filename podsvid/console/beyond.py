"""What lies beyond a cluster's own authorities: its federations, and what is wrong with these or with what signs."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

import msgspec

from podsvid.by_kubeconfig import NOT_FOUND, NotTold
from podsvid.doctor import answers, objects, rules, trust
from podsvid.doctor.finding import Finding
from podsvid.doctor.kinds import Weight
from podsvid.doctor.looking import Seen
from podsvid.kept import Metadata

_Kind = TypeVar("_Kind")
# Each may bring bundles of 768 KiB along, which the page does not show.
MOST_FEDERATIONS: Final = 100
_OTHER: Final = (
    "it is of another version than this podsvid, which cannot judge its authorities: use that of its version"
)
_PATH: Final = "/apis/podsvid.io/v1alpha1/federatedtrustdomains"


class Reads(Protocol):
    """What of a KubeconfigCluster is needed; it raises SignerError."""

    def read(self, path: str, query: dict[str, str], kind: type[_Kind]) -> _Kind: ...


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    trust_domain: str = ""
    bundle_endpoint_url: str = msgspec.field(default="", name="bundleEndpointURL")


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    sequence: int | None = None
    fetched_at: str = ""
    next_poll: str = ""
    earliest_not_after: str = ""
    conditions: tuple[objects.Said, ...] | None = None


class _Federation(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata
    spec: _Spec = _Spec()
    status: _Status | None = None


class _More(msgspec.Struct, frozen=True, rename="camel"):
    next: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    items: tuple[msgspec.Raw, ...]
    metadata: _More = _More()


@dataclass(frozen=True, slots=True)
class Federations:
    """`shown`: as the page has them. `declared`: as doctor's rules do. `more`: there are others that were not read."""

    shown: tuple[dict[str, Any], ...] = ()
    declared: tuple[objects.Declared, ...] = ()
    more: bool = False


def federations(cluster: Reads) -> Federations:
    """Those of the cluster; none where it does not know the kind. Raises SignerError."""
    try:
        found = cluster.read(_PATH, {"limit": str(MOST_FEDERATIONS)}, _List)
        kept = [msgspec.json.decode(each, type=_Federation) for each in found.items]
        declared = tuple(msgspec.json.decode(each, type=objects.Declared) for each in found.items)
    except NotTold as error:
        if error.status == NOT_FOUND:
            return Federations()
        raise
    except msgspec.DecodeError as error:
        raise NotTold(f"{_PATH} has what is no FederatedTrustDomain: {error}") from None
    return Federations(tuple(map(_shown, kept)), declared, bool(found.metadata.next))


def _shown(each: _Federation) -> dict[str, Any]:
    status = each.status or _Status()
    said = {condition.type: condition for condition in status.conditions or ()}
    wrong = [f"{said[name].reason}: {said[name].message}" for name in ("Ready", "Fetched")
             if name in said and said[name].status == "False"]  # fmt: skip
    ready = said.get("Ready")
    return {
        "name": each.metadata.name,
        "trust_domain": each.spec.trust_domain,
        "url": each.spec.bundle_endpoint_url,
        "ready": bool(ready and ready.status == "True"),
        # Nobody has looked at it yet, or no signer runs.
        "unseen": ready is None,
        "sequence": status.sequence,
        "fetched_at": status.fetched_at,
        "next_poll": status.next_poll,
        "earliest_not_after": status.earliest_not_after,
        # One look that fails often says both.
        "errors": list(dict.fromkeys(wrong)),
    }


def findings(status: dict[str, Any] | None, found: Federations, now: datetime) -> tuple[dict[str, Any], ...]:
    """What doctor's rules say of a signer's `authority show` and of federations, the worst first."""
    seen = Seen("", federations=found.declared)
    try:
        seen.authority = msgspec.convert(status, answers.Status) if status else None
    except msgspec.ValidationError:
        # Of another version: the page shows what of it it understands, and does not say that nothing is wrong.
        seen.authority = answers.Status(
            to_do=tuple(_texts(status, "to_do")), warnings=(*_texts(status, "warnings"), _OTHER)
        )
    made = [*trust.authorities(seen, now), *rules.federations(seen, now)]
    return tuple(_told(each) for each in sorted(made, key=lambda each: each.weight))


def _texts(status: dict[str, Any] | None, key: str) -> list[str]:
    found = (status or {}).get(key)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _told(each: Finding) -> dict[str, Any]:
    bad = each.weight in (Weight.BROKEN, Weight.WRONG)
    return {"reason": each.reason, "bad": bad, "seen": each.seen, "to_do": each.to_do, "link": each.link}
