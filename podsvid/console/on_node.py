"""What one node's agent tells by its admin socket: the console of a node, and of the quickstart."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent.pb import node_admin_pb2 as pb
from podsvid.console.picture import NodeLook, Picture, at, utc
from podsvid.node import Agent
from podsvid.output import to_json
from podsvid.waiting import Waiting

_NO_SIGNER = "a node's agent does not know the authorities' life: run podsvid console with a kubeconfig"
_NO_POLICY = "a node's agent does not know policies: run podsvid explain with a kubeconfig"
_NO_EVENTS = "a node's agent sees no events"
_OF_QUICKSTART = "the quickstart has an authority of its own and no signer, so no policies, rotations and events"


@dataclass(frozen=True, slots=True)
class OnNode:
    """The agent whose admin socket is at `socket`; `kind`: node or quickstart. Seconds for one answer, and of rest."""

    socket: str
    kind: str = "node"
    seconds: float = 10.0
    every: float = 2.0
    now: Callable[[], datetime] = utc

    def unseen(self) -> Picture:
        quickstart = self.kind == "quickstart"
        missing = {"authority": _OF_QUICKSTART if quickstart else _NO_SIGNER}
        return Picture(self.kind, "quickstart" if quickstart else self.socket, missing=missing)

    def look(self, keep: Callable[[Picture], None]) -> None:
        """Raises what `podsvid node ls` does."""
        found = self._agent().ask("List", pb.ListRequest(), pb.ListResponse)
        volumes = json.loads(to_json(found))["volumes"]
        unseen = self.unseen()
        node = NodeLook(
            "quickstart" if self.kind == "quickstart" else "this node", tuple(volumes), seen_at=at(self.now())
        )
        keep(Picture(unseen.kind, unseen.name, True, (node,), None, unseen.missing))

    def explain(self, namespace: str, pod: str) -> dict[str, Any]:
        """Raises what `podsvid node explain` does."""
        request = pb.ExplainRequest(namespace=namespace, pod=pod)
        found = self._agent().ask("Explain", request, pb.ExplainResponse)
        quickstart = self.kind == "quickstart"
        return {
            "pod": f"{namespace}/{pod}",
            "node": "",
            "policy": None,
            "on_node": json.loads(to_json(found)),
            "events": [],
            "notes": [],
            "missing": {
                "policy": _OF_QUICKSTART if quickstart else _NO_POLICY,
                "events": _OF_QUICKSTART if quickstart else _NO_EVENTS,
            },
        }

    def _agent(self) -> Agent:
        # What is waited for is said on the page, not on the terminal that nobody looks at.
        return Agent(self.socket, Waiting(self.seconds, tell=lambda _: None, longer=""))
