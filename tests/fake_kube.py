"""An API server in memory: stored objects, resource versions, conflicts, watches. Stands in where a cluster is absent.

It passes the same contract as the real client does (tests/node/test_kube_contract.py).
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping
from operator import itemgetter

from runtime.clock import Clock
from signer.cluster import decoding
from signer.cluster.decoding import Event, Kept, Page
from signer.cluster.kube import Object
from signer.errors import ApiUnavailable, Conflict, Forbidden, Gone, NotFound

Hook = Callable[[Object], Object]


class FakeKube:
    """Implements signer.cluster.kube.KubeApi.

    `writes` lists (method, path) of every change that was asked for; `down` makes every call fail; `denied` holds
    (method, path) prefixes that RBAC refuses; `hooks` answer a create instead of storing it (TokenReview).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._version = 100
        self._history: list[tuple[int, str, str, Object]] = []
        self._changed = asyncio.Event()
        self.objects: dict[str, Object] = {}
        self.reads: list[str] = []
        self.writes: list[tuple[str, str]] = []
        self.denied: set[tuple[str, str]] = set()
        self.missing: set[str] = set()
        self.hooks: dict[str, Hook] = {}
        self._down = False
        # By the first part of the tokens with which they are gone on from, until the next compaction.
        self._snapshots: dict[str, tuple[int, list[Object]]] = {}

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        self._down = value
        self._wake()

    def put(self, path: str, body: Object) -> Object:
        """Store an object as if somebody else had done it; `path` is the object's own."""
        stored = copy.deepcopy(body)
        stored.setdefault("metadata", {})
        name = path.rpartition("/")[2]
        stored["metadata"].setdefault("name", name)
        old = self.objects.get(path)
        stored["metadata"]["uid"] = (old or stored)["metadata"].get("uid") or str(uuid.uuid4())
        stored["metadata"].setdefault("creationTimestamp", self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        parts = path.split("/")
        if "namespaces" in parts[:-2]:
            stored["metadata"].setdefault("namespace", parts[parts.index("namespaces") + 1])
        self._store("MODIFIED" if old else "ADDED", path, stored)
        return copy.deepcopy(stored)

    def remove(self, path: str) -> None:
        """Delete an object as if somebody else had done it."""
        found = self.objects.pop(path)
        self._event("DELETED", path, found)

    async def get(self, path: str) -> Object:
        self._check("get", path)
        self.reads.append(path)
        return copy.deepcopy(self._find(path))

    async def read(self, path: str, kind: type[Kept]) -> Kept:
        return decoding.one(json.dumps(await self.get(path)).encode(), kind)

    async def list(self, path: str, kind: type[Kept], query: Mapping[str, str] | None = None) -> Page[Kept]:
        return decoding.page(json.dumps(self.listed(path, query)).encode(), kind)

    def listed(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """The List object: `limit` objects of those that there were when its first part was asked for."""
        self._check("list", path)
        self.reads.append(path)
        if path in self.missing:
            raise NotFound(f"{path} is not served")
        query = query or {}
        snapshot, _, begin = query.get("continue", "").partition(".")
        if snapshot and snapshot not in self._snapshots:
            raise Gone("the token is too old")
        if not snapshot:
            items = [each for key, each in sorted(self.objects.items()) if _member(key, path)]
            snapshot = str(len(self.reads))
            self._snapshots[snapshot] = (self._version, [each for each in items if _selected(query, each)])
        version, found = self._snapshots[snapshot]
        start = int(begin or 0)
        end = start + (int(query.get("limit", "0")) or len(found))
        if not begin and end >= len(found):
            del self._snapshots[snapshot]
        more = f"{snapshot}.{end}" if end < len(found) else ""
        return {"metadata": {"resourceVersion": str(version), "continue": more}, "items": found[start:end]}

    async def create(self, path: str, body: Object) -> Object:
        self._check("create", path)
        self.writes.append(("create", path))
        hook = self.hooks.get(path)
        if hook is not None:
            return hook(copy.deepcopy(body))
        if path in self.missing:
            raise NotFound(f"{path} is not served")
        metadata = body.get("metadata") or {}
        name = metadata.get("name") or f"{metadata.get('generateName', 'x-')}{len(self.writes)}"
        if f"{path}/{name}" in self.objects:
            raise Conflict(f"{name} already exists")
        stored = copy.deepcopy(body)
        stored.setdefault("metadata", {}).pop("uid", None)
        stored["metadata"].pop("resourceVersion", None)
        stored["metadata"]["name"] = name
        return self.put(f"{path}/{name}", stored)

    async def replace(self, path: str, body: Object) -> Object:
        self._check("replace", path)
        self.writes.append(("replace", path))
        status = path.endswith("/status")
        target = path.removesuffix("/status")
        old = self._find(target)
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise Conflict(f"{target} has changed")
        new = {**copy.deepcopy(old), "status": copy.deepcopy(body.get("status", {}))} if status else copy.deepcopy(body)
        new["metadata"] = {**new.get("metadata", {}), "uid": old["metadata"]["uid"]}
        return self.put(target, new)

    async def patch(self, path: str, body: Object) -> Object:
        self._check("patch", path)
        self.writes.append(("patch", path))
        target = path.removesuffix("/status")
        old = self._find(target)
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise Conflict(f"{target} has changed")
        merged = _merge(copy.deepcopy(old), body)
        return self.put(target, merged)

    async def delete(self, path: str, body: Object | None = None) -> None:
        self._check("delete", path)
        self.writes.append(("delete", path))
        found = self._find(path)
        for name, wanted in ((body or {}).get("preconditions") or {}).items():
            if wanted != found["metadata"][name]:
                raise Conflict(f"{path} has another {name}")
        self.remove(path)

    async def watch(self, path: str, kind: type[Kept], query: Mapping[str, str]) -> AsyncIterator[Event[Kept]]:
        async for each in self.watched(path, query):
            yield decoding.event(json.dumps(each).encode(), kind)

    async def watched(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Object]:
        """Events {"type", "object"}."""
        self._check("list", path)
        if path in self.missing:
            raise NotFound(f"{path} is not served")
        seen = int(query["resourceVersion"])
        if self._history and seen < self._history[0][0] - 1:
            raise Gone("too old")
        while True:
            # What is new only: a benchmark's history is long, and each watch wakes at each of its events.
            for version, kind, key, each in self._history[bisect_right(self._history, seen, key=itemgetter(0)) :]:
                seen = version
                if _member(key, path) and _selected(query, each):
                    yield {"type": kind, "object": each}
            changed = self._changed
            await changed.wait()
            self._check("list", path)

    def compact(self) -> None:
        """Forget the past: watches from before must list again."""
        self._version += 1
        self._history = [(self._version, "BOOKMARK", "", {})]
        self._snapshots.clear()
        self._wake()

    def _find(self, path: str) -> Object:
        if path not in self.objects:
            raise NotFound(f"{path} is not there")
        return self.objects[path]

    def _check(self, method: str, path: str) -> None:
        if self._down:
            raise ApiUnavailable("the API server is down")
        if any(method == verb and path.startswith(prefix) for verb, prefix in self.denied):
            raise Forbidden(f"cannot {method} {path}")

    def _store(self, kind: str, path: str, stored: Object) -> None:
        self._version += 1
        stored["metadata"]["resourceVersion"] = str(self._version)
        self.objects[path] = stored
        self._event(kind, path, stored)

    def _event(self, kind: str, path: str, each: Object) -> None:
        if kind == "DELETED":
            self._version += 1
            each = copy.deepcopy(each)
            each["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, kind, path, copy.deepcopy(each)))
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _member(key: str, collection: str) -> bool:
    """Whether the object at `key` is of `collection`, which may span all namespaces."""
    base, _, name = key.rpartition("/")
    if base == collection:
        return True
    parts = base.split("/")
    if "namespaces" not in parts[:-2]:
        return False
    at = parts.index("namespaces")
    return bool(name) and "/".join([*parts[:at], *parts[at + 2 :]]) == collection


def _selected(query: Mapping[str, str], each: Object) -> bool:
    field, _, name = query.get("fieldSelector", "").partition("=")
    assert field in ("", "metadata.name", "spec.signerName"), "the fake knows no other field"
    part, _, key = field.partition(".")
    return _selects(query.get("labelSelector", ""), each) and (not field or each[part].get(key) == name)


def _selects(selector: str, each: Object) -> bool:
    labels = (each.get("metadata") or {}).get("labels") or {}
    wanted = [part.partition("=") for part in selector.split(",") if part]
    return all(labels.get(key) == value if equals else key in labels for key, equals, value in wanted)


def _merge(old: Object, change: Object) -> Object:
    for key, value in change.items():
        if value is None:
            old.pop(key, None)
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        else:
            old[key] = copy.deepcopy(value)
    return old
