"""An API server in memory, behind HTTP: what the real client is tried against where there is no cluster."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from signer.cluster.kube import Object
from signer.errors import ApiUnavailable, Conflict, Forbidden, Gone, NotFound, SignerError
from tests.fake_kube import FakeKube

_STATUSES: tuple[tuple[type[SignerError], int], ...] = (
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Gone, 410),
    (ApiUnavailable, 503),
)


def application(kube: FakeKube, asked: list[web.Request]) -> web.Application:
    """`asked` gets every request."""

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        try:
            return await _answer(kube, request)
        except SignerError as error:
            status = next(number for kind, number in _STATUSES if isinstance(error, kind))
            return web.json_response({"kind": "Status", "message": str(error), "code": status}, status=status)

    found = web.Application(client_max_size=64 << 20)
    found.router.add_route("*", "/{path:.*}", answer)
    return found


async def _answer(kube: FakeKube, request: web.Request) -> web.StreamResponse:
    path, query = request.path, dict(request.query)
    body: Object = json.loads(await request.read() or b"{}")
    if request.method == "POST":
        return web.json_response(await kube.create(path, body), status=201)
    if request.method == "PUT":
        return web.json_response(await kube.replace(path, body))
    if request.method == "PATCH":
        return web.json_response(await kube.patch(path, body))
    if request.method == "DELETE":
        await kube.delete(path, body)
        return web.json_response({"kind": "Status"})
    if path in kube.objects:
        return web.json_response(await kube.get(path))
    if "watch" in query:
        events = aiter(kube.watched(path, query))
        response = web.StreamResponse()
        # A watch that cannot begin is an error, not a stream.
        first = await anext(events)
        await response.prepare(request)
        await response.write(json.dumps(first).encode() + b"\n")
        async for each in events:
            await response.write(json.dumps(each).encode() + b"\n")
        return response
    if "/" in path and not any(key.rpartition("/")[0] == path for key in kube.objects) and _names_one(path):
        raise NotFound(f"{path} is not there")
    return web.json_response(kube.listed(path, query))


def _names_one(path: str) -> bool:
    """Whether the path is an object's: in a namespace, collections are at an odd place after it."""
    parts = path.strip("/").split("/")
    rest = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts[:-2] else parts[2:]
    return len(rest) % 2 == 0


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
