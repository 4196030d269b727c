"""Where to look: the policies that can concern a pod, without going through all there are."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TypeAlias

from signer.cluster.objects import PolicyObject
from signer.cluster.places import Age, Places
from signer.model import LivePod
from signer.policy.policy import Policy, read_outline, read_policy
from signer.policy.selector import Selector

Key: TypeAlias = tuple[str, str, str]
_ANY: Key = ("any", "", "")


class Index:
    """Kept by what its mirrors observe. Of a namespace's policies the oldest `most` count."""

    def __init__(self, most: int) -> None:
        self._most = most
        # One text for however many.
        self._too_many = (
            f"its namespace has more than {most} WorkloadIdentities (policies_per_namespace), and only the oldest are "
            "read: this one is taken to be for all pods of the namespace, and refuses those that it wins; delete some"
        )
        self._namespaced: dict[str, Places[Policy]] = {}
        # Namespaces with a place for one that is still an outline.
        self._free: set[str] = set()
        self._cluster: dict[Key, dict[str, Policy]] = {}
        self._labels: dict[str, Mapping[str, str]] = {}

    def read(self, body: PolicyObject) -> Policy | None:
        """What is to be kept of an object: the whole policy where it counts, else its outline."""
        places = self._namespaced.get(body.metadata.namespace or "")
        if places is None or places.room(_age(body)):
            return read_policy(body)
        return read_outline(body, self._too_many)

    def outline(self, policy: Policy) -> Policy:
        """What is to be kept of one that counts no more."""
        return policy.outline(self._too_many)

    def policy(self, old: Policy | None, new: Policy | None) -> Policy | None:
        """A policy came, changed or went. Answers with one that was kept whole and counts no more, if there is one."""
        if old is not None:
            self._drop(old)
        if new is None:
            return None
        if new.namespace:
            places = self._namespaced.setdefault(new.namespace, Places(self._most, _rank))
            places.add(new)
            self._note_free(new.namespace, places)
            return places.over
        for key in _keys(new):
            self._cluster.setdefault(key, {})[new.uid] = new
        return None

    def due(self) -> list[Policy]:
        """Outlines of policies that count, to be read again: one of each namespace that has some."""
        return [found for each in sorted(self._free) if (found := self._namespaced[each].due) is not None]

    def is_due(self, policy: Policy) -> bool:
        """Whether it is one of those, or behind one."""
        places = self._namespaced.get(policy.namespace)
        return policy.left_out and places is not None and places.room(policy.age)

    def namespace(self, old: tuple[str, Mapping[str, str]] | None, new: tuple[str, Mapping[str, str]] | None) -> None:
        """A namespace came, changed or went: its name and labels."""
        # Another one of the same name may have come before this one's end was told.
        if old is not None and self._labels.get(old[0]) is old[1]:
            del self._labels[old[0]]
        if new is not None:
            self._labels[new[0]] = new[1]

    def knows(self, namespace: str) -> bool:
        """Whether it was read."""
        return namespace in self._labels

    def labels(self, namespace: str) -> Mapping[str, str]:
        """Of a namespace; none of one that was not read."""
        return self._labels.get(namespace, {})

    def policies(self, pod: LivePod) -> Iterable[Policy]:
        """All that match the pod are among them; of those that are left out the one that ranks first."""
        labels = self.labels(pod.namespace).items()
        keys = chain(
            (_ANY, ("account", pod.service_account, "")),
            (("namespace", key, value) for key, value in labels),
            (("pod", key, value) for key, value in pod.labels.items()),
        )
        found = (self._cluster[key].values() for key in keys if key in self._cluster)
        places = self._namespaced.get(pod.namespace)
        return chain(places.deciding if places is not None else (), *found)

    def _note_free(self, namespace: str, places: Places[Policy]) -> None:
        if places.due is not None:
            self._free.add(namespace)
        else:
            self._free.discard(namespace)

    def _drop(self, old: Policy) -> None:
        if old.namespace:
            places = self._namespaced[old.namespace]
            places.remove(old)
            self._note_free(old.namespace, places)
            if places.empty:
                del self._namespaced[old.namespace]
            return
        for key in _keys(old):
            bucket = self._cluster.get(key, {})
            bucket.pop(old.uid, None)
            if not bucket:
                self._cluster.pop(key, None)


def _keys(policy: Policy) -> list[Key]:
    """Of what a pod must have for a cluster policy to match, that which the fewest have."""
    for kind, selector in (("namespace", policy.namespaces), ("pod", policy.pods)):
        found = _narrowest(kind, selector)
        if found:
            return found
    return [("account", each, "") for each in policy.service_accounts] or [_ANY]


def _narrowest(kind: str, selector: Selector) -> list[Key]:
    wanted = [each for each in selector.requirements if each.operator == "In" and each.values]
    if not wanted:
        return []
    least = min(wanted, key=lambda each: len(each.values))
    return [(kind, least.key, value) for value in least.values]


def _age(body: PolicyObject) -> Age:
    return (body.metadata.creation_timestamp or "", body.metadata.name or "", body.metadata.uid or "")


def _rank(policy: Policy) -> tuple[tuple[bool, int, bool, str, str], str]:
    return (policy.rank, policy.uid)
