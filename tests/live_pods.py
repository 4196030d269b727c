"""Pods as a list, for what asks for them by namespace."""

from collections.abc import Iterable

from signer.model import LivePod
from signer.policy.policies import Policies


class Fixed:
    """Implements signer.policy.statuses.LivePods."""

    def __init__(self, pods: Iterable[LivePod]) -> None:
        self._pods = list(pods)
        self.looked_at: list[str] = []

    def namespaces(self) -> set[str]:
        return {each.namespace for each in self._pods}

    def of_namespace(self, namespace: str) -> list[LivePod]:
        self.looked_at.append(namespace)
        return [each for each in self._pods if each.namespace == namespace]


async def write_status(policies: Policies, pods: Iterable[LivePod]) -> None:
    """As if all pods were changed to these."""
    policies.statuses.namespace_changed("")
    await policies.statuses.write(Fixed(pods))
