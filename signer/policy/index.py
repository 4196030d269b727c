"""Where to look: the policies and Services that can concern a pod, without going through all there are."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import TypeAlias

from signer.model import LivePod
from signer.policy.policy import Policy, Selector, Service

# Services of one pod that are looked at; a certificate has room for the names of ten.
MAX_SERVICES = 256
Key: TypeAlias = tuple[str, str, str]
_ANY: Key = ("any", "", "")


class Index:
    """Kept by what its mirrors observe. Of a namespace's policies the oldest `most` count."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._namespaced: dict[str, dict[str, Policy]] = {}
        self._counted: dict[str, Mapping[str, Policy]] = {}
        self._cluster: dict[Key, dict[str, Policy]] = {}
        self._services: dict[Key, list[Service]] = {}
        self._labels: dict[str, Mapping[str, str]] = {}

    def policy(self, old: Policy | None, new: Policy | None) -> None:
        """A policy came, changed or went."""
        if old is not None:
            self._drop(old)
        if new is None:
            return
        if new.namespace:
            self._namespaced.setdefault(new.namespace, {})[new.uid] = new
            self._counted.pop(new.namespace, None)
        else:
            for key in _keys(new):
                self._cluster.setdefault(key, {})[new.uid] = new

    def service(self, old: Service | None, new: Service | None) -> None:
        """A Service came, changed or went."""
        if old is not None:
            bucket = self._services.get(_key(old), [])
            at = bisect_left(bucket, old.name, key=_name)
            if bucket[at : at + 1] == [old]:
                del bucket[at]
            if not bucket:
                self._services.pop(_key(old), None)
        if new is not None:
            insort(self._services.setdefault(_key(new), []), new, key=_name)

    def namespace(self, old: tuple[str, Mapping[str, str]] | None, new: tuple[str, Mapping[str, str]] | None) -> None:
        """A namespace came, changed or went: its name and labels."""
        # Another one of the same name may have come before this one's end was told.
        if old is not None and self._labels.get(old[0]) is old[1]:
            del self._labels[old[0]]
        if new is not None:
            self._labels[new[0]] = new[1]

    def labels(self, namespace: str) -> Mapping[str, str]:
        """Of a namespace."""
        return self._labels.get(namespace, {})

    def counts(self, policy: Policy) -> bool:
        """Whether it is one of the oldest of its namespace."""
        return not policy.namespace or policy.uid in self._counting(policy.namespace)

    def policies(self, pod: LivePod) -> Iterable[Policy]:
        """All that match the pod are among them."""
        labels = self.labels(pod.namespace).items()
        keys = chain(
            (_ANY, ("account", pod.service_account, "")),
            (("namespace", key, value) for key, value in labels),
            (("pod", key, value) for key, value in pod.labels.items()),
        )
        found = (self._cluster[key].values() for key in keys if key in self._cluster)
        return chain(self._counting(pod.namespace).values(), *found)

    def services(self, pod: LivePod) -> Iterator[Service]:
        """All that select the pod are among them, up to a bound: by label, then by name."""
        keys = ((pod.namespace, key, value) for key, value in pod.labels.items())
        return islice(chain.from_iterable(self._services[key] for key in keys if key in self._services), MAX_SERVICES)

    def _counting(self, namespace: str) -> Mapping[str, Policy]:
        if namespace not in self._counted:
            if namespace not in self._namespaced:
                return {}
            oldest = sorted(self._namespaced[namespace].values(), key=lambda each: (each.created, each.name, each.uid))
            self._counted[namespace] = {each.uid: each for each in oldest[: self._most]}
        return self._counted[namespace]

    def _drop(self, old: Policy) -> None:
        if old.namespace:
            there = self._namespaced.get(old.namespace, {})
            there.pop(old.uid, None)
            self._counted.pop(old.namespace, None)
            if not there:
                self._namespaced.pop(old.namespace, None)
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


def _key(service: Service) -> Key:
    # Any of its labels will do: the pod must have all.
    return (service.namespace, *service.selector[0]) if service.selector else (service.namespace, "", "")


def _name(service: Service) -> str:
    return service.name
