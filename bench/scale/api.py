"""An API server in memory, over HTTP, in a process of its own: lists in pages, watches, conflicts, TokenReviews.

python -m bench.scale.api KEYFILE PORT NODES PODS POLICIES SERVICES NAMESPACES: until it is ended. It speaks what
tests/fake_kube.py does (tests/unit/test_scale.py runs the signer's client against both), and keeps objects as the bytes
that it sends, so that 150,000 pods are no burden to it. POST /bench/churn?minute=N: so many pods change a minute from
then on. GET /bench/asked: how many requests there were, by kind.
"""

import asyncio
import base64
import gc
import json
import sys
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from bench.scale.population import Cluster, Tokens
from signer.attestation.tokens import JWKS, REVIEWS
from signer.cluster.kube import Object
from signer.errors import Conflict, Gone, NotFound, SignerError
from tests.fake_kube import _merge, _selected
from tests.signer_process import REVIEW

HISTORY = 20_000
# Seconds between bookmarks of a watch in which nothing happens; and between slices of the churn.
BOOKMARK_SECONDS = 60.0
CHURN_SECONDS = 0.05
_CODES: Mapping[type[SignerError], int] = {NotFound: 404, Conflict: 409, Gone: 410}


@dataclass(frozen=True, slots=True)
class Event:
    """A change, as a watch tells of it."""

    version: int
    kind: str
    path: str
    data: bytes

    def of(self, collection: str, query: Mapping[str, str]) -> bool:
        """Whether a watch of that collection sees it."""
        if self.path.rpartition("/")[0] != collection and _wide(self.path) != collection:
            return False
        return not _selects(query) or _selected(query, json.loads(self.data))

    @property
    def line(self) -> bytes:
        return b'{"type":"%b","object":%b}\n' % (self.kind.encode(), self.data)


class Store:
    """Objects by their paths, as JSON. Every change has a version, and watchers are told of it."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        # By the collection over all namespaces.
        self._members: dict[str, dict[str, None]] = {}
        self._version = 100
        self._oldest = 100
        self._history: deque[Event] = deque()
        self._snapshots: dict[str, list[str]] = {}
        self._watchers: set[asyncio.Queue[Event]] = set()

    @property
    def version(self) -> int:
        """Of the last change."""
        return self._version

    def fill(self, path: str, body: Object) -> None:
        """Store an object before anybody watches."""
        self._objects[path] = self._stored(path, body, None)
        self._members.setdefault(_wide(path), {})[path] = None
        self._oldest = self._version

    def put(self, path: str, body: Object) -> Object:
        """Store an object and tell of it."""
        old = self._objects.get(path)
        self._objects[path] = data = self._stored(path, body, json.loads(old) if old else None)
        self._members.setdefault(_wide(path), {})[path] = None
        self._tell("MODIFIED" if old else "ADDED", path, data)
        return body

    def get(self, path: str) -> bytes:
        """Raises NotFound."""
        if path not in self._objects:
            raise NotFound(f"{path} is not there")
        return self._objects[path]

    def list(self, path: str, query: Mapping[str, str]) -> bytes:
        """A page, or all of it. Raises Gone when the page before is forgotten."""
        token, limit = query.get("continue", ""), int(query.get("limit", 0))
        at, _, rest = token.partition(":")
        if token:
            if at not in self._snapshots:
                raise Gone("the list has to begin again")
            paths, start = self._snapshots[at], int(rest)
        else:
            at, start = f"{self._version}.{uuid.uuid4().hex[:8]}", 0
            members = self._members.get(_wide(f"{path}/x"), {})
            paths = [each for each in members if each.rpartition("/")[0] == path or _wide(each) == path]
            if _selects(query):
                paths = [each for each in paths if _selected(query, json.loads(self._objects[each]))]
        page = paths[start : start + limit] if limit else paths
        metadata: Object = {"resourceVersion": at.partition(".")[0]}
        if limit and start + limit < len(paths):
            self._snapshots[at] = paths
            metadata["continue"] = f"{at}:{start + limit}"
        else:
            self._snapshots.pop(at, None)
        items = b",".join(self._objects[each] for each in page if each in self._objects)
        return b'{"kind":"List","apiVersion":"v1","metadata":%b,"items":[%b]}' % (json.dumps(metadata).encode(), items)

    def create(self, path: str, body: Object) -> Object:
        """Raises Conflict."""
        metadata = dict(body.get("metadata") or {})
        name = metadata.get("name") or f"{metadata.get('generateName', 'x-')}{self._version}"
        if f"{path}/{name}" in self._objects:
            raise Conflict(f"{name} already exists")
        for each in ("uid", "resourceVersion"):
            metadata.pop(each, None)
        return self.put(f"{path}/{name}", {**body, "metadata": {**metadata, "name": name}})

    def replace(self, path: str, body: Object) -> Object:
        """Of an object, or its status. Raises NotFound, Conflict."""
        target = path.removesuffix("/status")
        old = self._unchanged(target, body)
        return self.put(target, {**old, "status": body.get("status", {})} if target != path else body)

    def patch(self, path: str, body: Object) -> Object:
        """A merge patch. Raises NotFound, Conflict."""
        target = path.removesuffix("/status")
        return self.put(target, _merge(self._unchanged(target, body), body))

    def delete(self, path: str, body: Object | None = None) -> None:
        """Raises NotFound, Conflict."""
        found: Object = json.loads(self.get(path))
        for name, wanted in ((body or {}).get("preconditions") or {}).items():
            if wanted != found["metadata"][name]:
                raise Conflict(f"{path} has another {name}")
        del self._objects[path]
        del self._members[_wide(path)][path]
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        self._tell("DELETED", path, json.dumps(found).encode())

    def follow(self, version: int) -> "asyncio.Queue[Event]":
        """Every event since that version and from now on; `forget` it in the end. Raises Gone."""
        if version < self._oldest:
            raise Gone("too old")
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for event in self._history:
            if event.version > version:
                queue.put_nowait(event)
        self._watchers.add(queue)
        return queue

    def forget(self, queue: "asyncio.Queue[Event]") -> None:
        """Nobody reads it any more."""
        self._watchers.discard(queue)

    def _unchanged(self, path: str, body: Object) -> Object:
        old: Object = json.loads(self.get(path))
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise Conflict(f"{path} has changed")
        return old

    def _stored(self, path: str, body: Object, old: Object | None) -> bytes:
        metadata = body["metadata"] = dict(body.get("metadata") or {})
        self._version += 1
        parts = path.split("/")
        metadata.setdefault("name", parts[-1])
        if "namespaces" in parts[:-2]:
            metadata.setdefault("namespace", parts[parts.index("namespaces") + 1])
        uid = old["metadata"]["uid"] if old else metadata.get("uid")
        metadata["uid"] = uid or str(uuid.uuid4())
        metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        metadata["resourceVersion"] = str(self._version)
        return json.dumps(body, separators=(",", ":")).encode()

    def _tell(self, kind: str, path: str, data: bytes) -> None:
        event = Event(self._version, kind, path, data)
        self._history.append(event)
        if len(self._history) > HISTORY:
            self._oldest = self._history.popleft().version
        for each in self._watchers:
            each.put_nowait(event)


def _selects(query: Mapping[str, str]) -> bool:
    return "labelSelector" in query or "fieldSelector" in query


def _wide(path: str) -> str:
    """The collection over all namespaces of an object's path."""
    base = path.rpartition("/")[0]
    parts = base.split("/")
    if "namespaces" in parts[:-2]:
        at = parts.index("namespaces")
        return "/".join([*parts[:at], *parts[at + 2 :]])
    return base


def _is_collection(path: str) -> bool:
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    return len(rest) == 1


def review(body: Object) -> Object:
    """What a token says is so: whoever made it has the cluster's key, and what it costs to look is not the signer's."""
    payload = body["spec"]["token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    known = claims["kubernetes.io"]
    extra = {
        "authentication.kubernetes.io/pod-name": [known["pod"]["name"]],
        "authentication.kubernetes.io/pod-uid": [known["pod"]["uid"]],
        "authentication.kubernetes.io/node-name": [known["node"]["name"]],
        "authentication.kubernetes.io/node-uid": [known["node"]["uid"]],
    }
    user = {"username": claims["sub"], "uid": known["serviceaccount"]["uid"], "extra": extra}
    return {"status": {"authenticated": True, "audiences": body["spec"]["audiences"], "user": user}}


class Server:
    """Answers over HTTP from a store, and lets pods change."""

    def __init__(self, store: Store, keys: Object, cluster: Cluster, review_seconds: float) -> None:
        self._store = store
        self._keys = json.dumps(keys).encode()
        self._cluster = cluster
        self._review_seconds = review_seconds
        self._jobs = [pod for pod in range(cluster.pods) if cluster.is_job(pod)]
        self._churning: asyncio.Task[None] | None = None
        self.reviews = 0
        # By kind, what the signers asked for.
        self.asked: Counter[str] = Counter()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post(REVIEWS, self._review)
        app.router.add_post("/bench/churn", self._churn)
        app.router.add_get("/bench/asked", self._counted)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _review(self, request: web.Request) -> web.Response:
        self.reviews += 1
        self.asked["reviews"] += 1
        answer = review(json.loads(await request.read()))
        await asyncio.sleep(self._review_seconds)
        return _json(answer)

    async def _counted(self, request: web.Request) -> web.Response:
        return _json(self.asked)

    async def _churn(self, request: web.Request) -> web.Response:
        self._churning = asyncio.create_task(self._change(float(request.query["minute"])))
        return web.Response()

    async def _change(self, minute: float) -> None:
        """Half of the changes are of a status, which nobody keeps; a third of labels; the others are Jobs' pods."""
        done, begun = 0, asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(CHURN_SECONDS)
            due = int((asyncio.get_running_loop().time() - begun) * minute / 60)
            for number in range(done, due):
                self._change_one(number)
            done = due

    def _change_one(self, number: int) -> None:
        kind, cluster = number % 6, self._cluster
        if kind == 5 and self._jobs:
            path, body = cluster.pod(self._jobs[number // 6 % len(self._jobs)])
            body["metadata"]["uid"] = str(uuid.uuid4())
            self._store.delete(path)
        else:
            pod = cluster.nodes + number * 7907 % (cluster.pods - cluster.nodes)
            path, body = cluster.pod(pod, number if kind in (3, 4) else 0)
            body["status"] = {**body["status"], "podIP": f"10.1.{number // 250 % 250}.{number % 250}"}
        self._store.put(path, body)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked[_kind(request)] += 1
        try:
            return await self._answer(request)
        except SignerError as error:
            return _json({"kind": "Status", "message": str(error)}, _CODES[type(error)])

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        queue = self._store.follow(int(request.query["resourceVersion"]))
        try:
            response = web.StreamResponse()
            await response.prepare(request)
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(float(request.query.get("timeoutSeconds", 300))):
                    # Of this watch: what is told of other collections is no word to who follows this one.
                    due = asyncio.get_running_loop().time() + BOOKMARK_SECONDS
                    while True:
                        event = await self._next(queue, due)
                        if event.kind == "BOOKMARK" or event.of(request.path, request.query):
                            await response.write(event.line)
                            due = asyncio.get_running_loop().time() + BOOKMARK_SECONDS
            return response
        finally:
            self._store.forget(queue)

    async def _next(self, queue: "asyncio.Queue[Event]", due: float) -> Event:
        """What is told next; a bookmark where nothing is until it is due."""
        try:
            async with asyncio.timeout_at(due):
                return await queue.get()
        except TimeoutError:
            version = self._store.version
            data = json.dumps({"metadata": {"resourceVersion": str(version)}}).encode()
            return Event(version, "BOOKMARK", "", data)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, store = request.path, self._store
        if path == JWKS:
            return web.Response(body=self._keys, content_type="application/json")
        if request.method == "GET":
            if not _is_collection(path):
                return web.Response(body=store.get(path), content_type="application/json")
            if request.query.get("watch") == "true":
                return await self._watch(request)
            return web.Response(body=store.list(path, request.query), content_type="application/json")
        sent = await request.read()
        body = json.loads(sent) if sent else {}
        if request.method == "DELETE":
            store.delete(path, body)
            return _json({"kind": "Status", "status": "Success"})
        do = {"POST": store.create, "PUT": store.replace, "PATCH": store.patch}[request.method]
        return _json(do(path, body), 201 if request.method == "POST" else 200)


def _kind(request: web.Request) -> str:
    if request.method != "GET":
        return "writes"
    if request.query.get("watch") == "true":
        return "watches"
    return "reads" if request.path == JWKS or not _is_collection(request.path) else "lists"


def _json(body: Object, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")


async def main(key_file: Path, port: int, cluster: Cluster) -> None:
    store = Store()
    for path, body in cluster.objects():
        store.fill(path, body)
    gc.freeze()
    server = Server(store, Tokens(key_file).keys(), cluster, REVIEW / 1000)
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), Cluster(*map(int, sys.argv[3:]))))
