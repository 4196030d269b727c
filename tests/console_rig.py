"""A console whose source says what a test wants, and who asks it as a browser would, or would not."""

import http.client
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from podsvid.console.picture import NodeLook, Picture
from podsvid.console.serving import Console

PATIENCE = 30.0


@dataclass
class Told:
    """A source that says what it is told to, and notes what it was asked for."""

    picture: Picture = field(default_factory=lambda: Picture("node", "here", looked=True))
    explained: Callable[[str, str], dict[str, Any]] = lambda namespace, pod: {"pod": f"{namespace}/{pod}"}
    every: float = 0.05
    looks: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    fails: Exception | None = None
    looked: threading.Event = field(default_factory=threading.Event)

    def unseen(self) -> Picture:
        return Picture(self.picture.kind, self.picture.name)

    def look(self, keep: Callable[[Picture], None]) -> None:
        self.looks += 1
        if self.fails is not None:
            raise self.fails
        keep(self.picture)
        self.looked.set()

    def explain(self, namespace: str, pod: str) -> dict[str, Any]:
        self.asked.append((namespace, pod))
        return self.explained(namespace, pod)


@dataclass(frozen=True)
class Answer:
    """What came back. `headers` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Its document."""
        return json.loads(self.body)


def token_of(console: Console) -> str:
    """What the URL has behind the #."""
    return console.url.partition("#token=")[2]


def ask(
    console: Console, path: str, method: str = "GET", token: str | None = "", host: str = "", tag: str = ""
) -> Answer:
    """`token`: the right one where it is empty, none where it is None. `host`: the right one where it is empty."""
    headers = {"Host": host or f"127.0.0.1:{console.port}"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token or token_of(console)}"
    if tag:
        headers["If-None-Match"] = tag
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def volume(pod: str, **more: Any) -> dict[str, Any]:
    """One of `node ls`, valid from 2026 on for a century."""
    return {
        "volume_id": f"csi-{pod}",
        "namespace": "shop",
        "pod": pod,
        "state": "ok",
        "spiffe_id": "spiffe://example.org/ns/shop/sa/web",
        "serial": "5e01",
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2126-01-01T00:00:00Z",
        "renew_at": "2076-01-01T00:00:00Z",
        **more,
    }


def picture(*volumes: dict[str, Any], **more: Any) -> Picture:
    """Of one node with these, seen in the middle of 2026."""
    node = NodeLook("node-1", volumes, seen_at="2026-06-01T00:00:00Z")
    return Picture("cluster", "https://there:6443", True, (node,), **more)
