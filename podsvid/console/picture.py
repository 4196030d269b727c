"""What the console shows: of each node and of the authorities the documents that commands print by `-o json`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class NodeLook:
    """One node's agent. `volumes`: those of `node ls`. `missing`: why they could not be had, or are those of before.

    `seen_at`: when it said so, by this machine's clock (RFC 3339); empty: it was not asked yet, or never answered.
    `left_out`: how many more volumes it has than are kept.
    """

    node: str
    volumes: tuple[dict[str, Any], ...] = ()
    missing: str = ""
    seen_at: str = ""
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "volumes": self.volumes,
            "missing": self.missing,
            "seen_at": self.seen_at,
            "left_out": self.left_out,
        }


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known by now. `kind`: node, cluster or quickstart; `name`: which. `looked`: a first look has ended.

    `authority` is what `authority show` printed at `authority_at`. `missing`: why a part could not be had, by `nodes`
    (not even who runs is known), `unasked` (of nodes, the rest), `authority`, `leader` (of what only that signer knows)
    and `federations`. `federations` and `findings`: as
    beyond.py makes them; the former as they were at `federations_at`.
    """

    kind: str
    name: str
    looked: bool = False
    nodes: tuple[NodeLook, ...] = ()
    authority: dict[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    authority_at: str = ""
    federations: tuple[dict[str, Any], ...] = ()
    federations_at: str = ""
    findings: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "looked": self.looked,
            "nodes": [each.to_json() for each in self.nodes],
            "authority": self.authority,
            "missing": dict(self.missing),
            "authority_at": self.authority_at,
            "federations": self.federations,
            "federations_at": self.federations_at,
            "findings": self.findings,
        }

    def lost(self, why: str) -> "Picture":
        """The same where nothing of it can be had any more: what was seen stays, and none of it passes for what is."""
        missing = {**self.missing, "nodes": why}
        if self.authority is not None:
            missing["authority"] = why
        if self.federations_at:
            missing["federations"] = why
        return replace(
            self, looked=True, nodes=tuple(replace(each, missing=why) for each in self.nodes), missing=missing
        )


def utc() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


def at(moment: datetime) -> str:
    """As a picture has it."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Source(Protocol):
    """Where it comes from. Both methods wait, on threads of the console's."""

    @property
    def every(self) -> float:
        """Seconds of rest between two looks: what one costs those who answer."""
        ...

    def unseen(self) -> Picture:
        """Before the first look."""
        ...

    def look(self, keep: Callable[[Picture], None]) -> None:
        """Look once, and `keep` what is known by then, as often as something is. What cannot be had is said in it."""
        ...

    def explain(self, namespace: str, pod: str) -> dict[str, Any]:
        """The document of `podsvid explain`. Raises what that raises."""
        ...
