"""The objects that are written: named, read by the product's own parsers before anybody sees them, and as YAML."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from podsvid.migrate.fields import Finding, Unfit, Verdict
from podsvid.migrate.scope import Scope
from podsvid.options import yaml_of
from signer.cluster.objects import FederatedTrustDomainObject, PolicyObject
from signer.federation.relation import KIND as FEDERATION
from signer.federation.relation import read_relation
from signer.policy.policy import read_policy

CLUSTER, NAMESPACED = "ClusterWorkloadIdentity", "WorkloadIdentity"
API_VERSION = "podsvid.io/v1alpha1"
# By which all that came of a migration is found, and taken away again.
LABEL = "podsvid.io/migrated-from"
# Pairs that are looked at, and overlaps that are told.
MAX_PAIRS, MAX_OVERLAPS = 200_000, 100
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_LONGEST_SLUG, _LONGEST_NAME = 200, 253


@dataclass(frozen=True, slots=True)
class Written:
    """One object. `source`: what it was made of; `scope`: whom a policy is for."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    source: str
    namespace: str = ""
    scope: Scope = field(default_factory=Scope)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    @property
    def key(self) -> tuple[str, str, str]:
        """No two objects of a cluster have the same."""
        return self.kind, self.namespace, self.name

    @property
    def order(self) -> tuple[int, bool, str]:
        """Smallest first: who wins of two that are made in the same second."""
        return -int(self.spec.get("priority", 0)), self.kind != NAMESPACED, self.name

    def document(self, product: str) -> dict[str, Any]:
        """As the API server takes it."""
        metadata: dict[str, Any] = {"name": self.name, "labels": {LABEL: product}}
        if self.namespace:
            metadata["namespace"] = self.namespace
        return {"apiVersion": API_VERSION, "kind": self.kind, "metadata": metadata, "spec": dict(self.spec)}


def checked(found: Written) -> Written:
    """The same, which the signer can use. Raises Unfit."""
    if not is_name(found.name):
        raise Unfit("its name is none that an object of Kubernetes may have", "give it another one")
    metadata = {"name": found.name, "namespace": found.namespace, "uid": "none-yet"}
    body = json.dumps({"metadata": metadata, "spec": found.spec}).encode()
    try:
        if found.kind == FEDERATION:
            relation = read_relation(msgspec.json.decode(body, type=FederatedTrustDomainObject))
            problem = relation.problem if relation is not None else "it has no name"
        else:
            policy = read_policy(msgspec.json.decode(body, type=PolicyObject))
            problem = policy.problem if policy is not None else "it has no name"
    except msgspec.MsgspecError:
        problem = "it has a text that no object may have"
    if problem:
        raise Unfit(f"podsvid does not take it: {problem}", "write the policy by hand" * (found.kind != FEDERATION))
    return found


def is_name(text: str) -> bool:
    """Whether an object may be called that."""
    return _NAME.fullmatch(text) is not None and ".." not in text and ".-" not in text and "-." not in text


def slug(path: str) -> str:
    """A name that is made of an ID's path."""
    return re.sub(r"[^a-z0-9]+", "-", path.lower())[:_LONGEST_SLUG].strip("-") or "root"


class Names:
    """Gives each object a name that no other has, the same in each run."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str, str], str] = {}

    def own(self, found: Written) -> Written:
        """`found`, under another name where its own is taken. Raises Unfit for the same object once more."""
        says = json.dumps(found.spec, sort_keys=True)
        digest = hashlib.sha256(json.dumps([says, found.source]).encode("utf-8", "surrogatepass")).hexdigest()[:8]
        # With the digest, too, it is to be a name that the API server takes.
        short = found.name[: _LONGEST_NAME - len(digest) - 1].rstrip("-.")
        for name in (found.name, f"{short}-{digest}"):
            named = replace(found, name=name)
            if named.key not in self._taken:
                self._taken[named.key] = says
                return named
            if self._taken[named.key] == says:
                break
        raise Unfit("it is there twice", "nothing: the first one is written", Verdict.NEEDLESS)


def overlaps(written: Sequence[Written]) -> Iterator[Finding]:
    """Policies that may be for one pod and say different things: SPIRE gives it all, podsvid one of them."""
    policies = [each for each in written if each.kind != FEDERATION]
    by_namespace: dict[str, list[Written]] = {}
    says = {each.key: json.dumps(_says(each), sort_keys=True) for each in policies}
    for each in policies:
        by_namespace.setdefault(each.namespace or each.scope.namespace, []).append(each)
    looked_at = told = 0
    for one, other in _pairs(by_namespace):
        looked_at += 1
        if looked_at > MAX_PAIRS or told >= MAX_OVERLAPS:
            yield Finding(
                Verdict.OVERLAPS,
                "more objects",
                "there are more that may be for the same pod",
                "migrate fewer at a time",
            )
            return
        if says[one.key] == says[other.key] or not one.scope.meets(other.scope):
            continue
        told += 1
        first, second = sorted((one, other), key=lambda each: each.order)
        by = (
            "priority" if first.order[0] != second.order[0] else "kind" if first.order[1] != second.order[1] else "name"
        )
        which = f"by its {by} that is {first.name}"
        if by == "name":
            which = f"the older, or {first.name}, whose name comes first, where both are made in the same second"
        yield Finding(
            Verdict.OVERLAPS,
            f"{first} and {second}",
            f"both may be for one pod: SPIRE gives it an SVID of each, podsvid one: {which}",
            "give the one that is meant a higher `priority`, or let their selectors exclude each other"
            if by == "name"
            else "nothing, if that one is meant",
        )


def _pairs(by_namespace: Mapping[str, Sequence[Written]]) -> Iterator[tuple[Written, Written]]:
    everywhere = by_namespace.get("", ())
    for namespace, several in by_namespace.items():
        for number, each in enumerate(several):
            for other in (*several[number + 1 :], *(everywhere if namespace else ())):
                yield each, other


def _says(policy: Written) -> dict[str, Any]:
    beside = ("podSelector", "namespaceSelector", "serviceAccounts", "priority")
    spec = {key: value for key, value in policy.spec.items() if key not in beside}
    if policy.namespace:
        # The same in a policy of one namespace as in one of the cluster.
        spec["spiffeIDTemplate"] = spec["spiffeIDTemplate"].replace("{namespace}", policy.namespace)
    return spec


def as_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """Documents as `kubectl apply -f` takes them."""
    return "---\n".join(map(yaml_of, documents))


def file_name(number: int, document: Mapping[str, Any]) -> str:
    """Of a file for one object: in the order of the standard output."""
    return f"{number:04}-{str(document['kind']).lower()}-{str(document['metadata']['name'])[:100]}.yaml"
