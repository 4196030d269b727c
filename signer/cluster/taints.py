"""The start-up taint: no pod is scheduled to a new node before kubelet knows the driver there.

Nodes are born with the taint (node pools' start-up taints, or kubelet's --register-with-taints). Registration with
kubelet alone is not enough to go by: kubelet refuses volumes until it has put the driver into the node's CSINode.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from runtime.clock import Clock
from runtime.stopping import side_by_side
from signer.cluster.kube import KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.cluster.objects import CsiNode, Node
from signer.errors import Conflict, NotFound, SignerError

_log = logging.getLogger("podsvid.taints")
TAINT = "podsvid.io/agent-not-ready"
NODES = "/api/v1/nodes"
CSI_NODES = "/apis/storage.k8s.io/v1/csinodes"
# Seconds between tries, when the API server did not take one.
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class TaintedNode:
    """A node that carries the taint."""

    name: str
    resource_version: str
    # All of its taints, as they are.
    taints: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Registered:
    node: str
    drivers: frozenset[str]


class StartupTaint:
    """Takes the taint off nodes whose CSINode lists every one of `drivers`. One replica does at a time."""

    def __init__(self, api: KubeApi, drivers: frozenset[str], clock: Clock) -> None:
        self._api = api
        self._drivers = drivers
        self._nodes: Mirror[Node, TaintedNode] = Mirror(api, NODES, Node, read_node, clock)
        self._registered: Mirror[CsiNode, _Registered] = Mirror(api, CSI_NODES, CsiNode, _read_csi_node, clock)

    async def follow(self) -> None:
        """Keep what is known of nodes current, for ever."""
        await side_by_side(self._nodes.run(), self._registered.run())

    async def remove(self) -> None:
        """Take the taint off nodes as they become ready, for ever."""
        await self._nodes.wait_synced()
        await self._registered.wait_synced()
        while True:
            nodes, registered = self._nodes.changed.version, self._registered.changed.version
            tried = [await self._untaint(node) for node in self.ready()]
            waits = [
                asyncio.ensure_future(self._nodes.changed.wait_beyond(nodes)),
                asyncio.ensure_future(self._registered.changed.wait_beyond(registered)),
            ]
            try:
                await asyncio.wait(
                    waits, timeout=None if all(tried) else RETRY_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for wait in waits:
                    wait.cancel()

    def ready(self) -> list[TaintedNode]:
        """The nodes that carry the taint and need it no longer."""
        ready = {each.node for each in self._registered.values.values() if each.drivers >= self._drivers}
        return [node for node in self._nodes.values.values() if node.name in ready]

    async def _untaint(self, node: TaintedNode) -> bool:
        rest = [taint for taint in node.taints if taint.get("key") != TAINT]
        # Taints are one list to a merge patch: with the version, nobody else's change is undone.
        body: Object = {"metadata": {"resourceVersion": node.resource_version}, "spec": {"taints": rest or None}}
        try:
            await self._api.patch(f"{NODES}/{node.name}", body)
        except (Conflict, NotFound):
            return True  # the watch brings what it is now
        except SignerError as error:
            _log.warning(
                "start-up taint not removed; trying again",
                extra={"node": node.name, "reason": error.reason, "error": str(error)},
            )
            return False
        _log.info("start-up taint removed", extra={"node": node.name})
        return True


def read_node(node: Node) -> TaintedNode | None:
    """A node with the taint; None for any other."""
    taints = (node.spec.taints if node.spec else None) or []
    if not any(taint.get("key") == TAINT for taint in taints):
        return None
    return TaintedNode(node.metadata.name or "", node.metadata.resource_version or "", tuple(taints))


def _read_csi_node(node: CsiNode) -> _Registered:
    drivers = (node.spec.drivers if node.spec else None) or []
    return _Registered(node.metadata.name or "", frozenset(each.name or "" for each in drivers))
