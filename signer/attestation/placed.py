"""Which pods of which service account run on which node: for those who ask for the pods of their own node.

Kept along: nobody goes through all pods for one call.
"""

import asyncio
from contextlib import suppress

from signer.model import LivePod

_Key = tuple[str, str, str]


class PlacedPods:
    """Those that have a node and have not finished, static ones aside, by node, namespace and service account."""

    def __init__(self) -> None:
        self._pods: dict[_Key, tuple[LivePod, ...]] = {}
        self._awaited: dict[_Key, list[asyncio.Event]] = {}

    def of(self, node: str, namespace: str, account: str) -> tuple[LivePod, ...]:
        """Those that are known."""
        return self._pods.get((node, namespace, account), ())

    async def appeared(self, node: str, namespace: str, account: str, seconds: float) -> None:
        """Wait for one, so long at most: who asks may have seen a new pod before it was told of here."""
        key = (node, namespace, account)
        if key in self._pods:
            return
        event = asyncio.Event()
        waiting = self._awaited.setdefault(key, [])
        waiting.append(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()
        finally:
            waiting.remove(event)
            if not waiting:
                self._awaited.pop(key, None)

    def pod_changed(self, old: LivePod | None, new: LivePod | None) -> None:
        """To be told of each change."""
        before, after = _key(old), _key(new)
        if before is not None and old is not None:
            left = tuple(each for each in self._pods.get(before, ()) if each.uid != old.uid)
            if left:
                self._pods[before] = left
            else:
                self._pods.pop(before, None)
        if after is not None and new is not None:
            self._pods[after] = (*self._pods.get(after, ()), new)
            for each in self._awaited.get(after, ()):
                each.set()


def _key(pod: LivePod | None) -> _Key | None:
    if pod is None or pod.finished or pod.mirror or not pod.node_name:
        return None
    return (pod.node_name, pod.namespace, pod.service_account)
