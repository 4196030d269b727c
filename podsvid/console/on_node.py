"""What one node's agent tells by its admin socket: the console of a node, and of the quickstart."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.pb import node_admin_pb2 as pb
from podsvid.console.picture import NodeLook, Picture, at, utc
from podsvid.node import Agent
from podsvid.output import to_json
from podsvid.waiting import Waiting

_NO_SIGNER = "a node's agent does not know the authorities' life: run podsvid console with a kubeconfig"
_NO_POLICY = "a node's agent does not know policies: run podsvid explain with a kubeconfig"
_NO_EVENTS = "a node's agent sees no events"
_QUICKSTARTS_POLICY = "the quickstart has an authority of its own and no signer, so no policies"
_QUICKSTARTS_EVENTS = "without Kubernetes there are none"


@dataclass(frozen=True, slots=True)
class OnNode:
    """The agent whose admin socket is at `socket`; `kind`: node or quickstart. Seconds for one answer, and of rest.

    `bundle`: where it is its own authority, a file with that one's certificate.
    """

    socket: str
    kind: str = "node"
    seconds: float = 10.0
    every: float = 2.0
    now: Callable[[], datetime] = utc
    bundle: Path | None = None

    def unseen(self) -> Picture:
        quickstart = self.kind == "quickstart"
        missing = {} if quickstart else {"authority": _NO_SIGNER}
        return Picture(self.kind, "quickstart" if quickstart else self.socket, missing=missing)

    def look(self, keep: Callable[[Picture], None]) -> None:
        """Raises what `podsvid node ls` does."""
        found = self._agent().ask("List", pb.ListRequest(), pb.ListResponse)
        volumes = json.loads(to_json(found))["volumes"]
        unseen, seen_at = self.unseen(), at(self.now())
        node = NodeLook("quickstart" if self.kind == "quickstart" else "this node", tuple(volumes), seen_at=seen_at)
        own = _authority(self.bundle, volumes) if self.bundle is not None else None
        keep(Picture(unseen.kind, unseen.name, True, (node,), own, unseen.missing, seen_at if own else ""))

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
                "policy": _QUICKSTARTS_POLICY if quickstart else _NO_POLICY,
                "events": _QUICKSTARTS_EVENTS if quickstart else _NO_EVENTS,
            },
        }

    def _agent(self) -> Agent:
        # What is waited for is said on the page, not on the terminal that nobody looks at.
        return Agent(self.socket, Waiting(self.seconds, tell=lambda _: None, longer=""))


def _authority(bundle: Path, volumes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """As `authority show` has it, of the one that has signed what volumes hold; None while none does."""
    # What is in no console of a cluster takes its time to load.
    from cryptography import x509

    from svid.certificates import certificates_from_pem, extension

    # A volume's files are replaced, and in the end removed, by others.
    with suppress(OSError, ValueError):
        for each in certificates_from_pem(bundle.read_bytes()):
            found = extension(each, x509.SubjectKeyIdentifier)
            name = found.value.digest.hex() if found else ""
            signed = [volume for volume in volumes if volume.get("authority_id") == name]
            if signed:
                began = at(each.not_valid_before_utc)
                lane = {
                    "kind": "KIND_X509",
                    "id": name,
                    "stage": "active",
                    "prepared_at": began,
                    "activated_at": began,
                    "not_after": at(each.not_valid_after_utc),
                    "svids": len(signed),
                    "svids_known": True,
                }
                return {"trust_domain": signed[0]["spiffe_id"].split("/")[2], "authorities": [lane]}
    return None
