"""An API server whose objects a tenant made as large as etcd takes them, and a signer's mirrors that follow it.

python -m tests.big_objects serve PORT NUMBER BYTES SHAPE    until it is ended
python -m tests.big_objects follow PORT                      prints {"floor", "peak", "pods", ...}, memory in KiB
"""

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

# What is large in an object.
SHAPES = ("spec", "escaped", "labels", "annotations", "drivers")
# Of each collection that a tenant writes to.
COLLECTIONS = {
    "/api/v1/pods": "pod",
    "/api/v1/services": "service",
    "/api/v1/configmaps": "config map",
    "/apis/podsvid.io/v1alpha1/workloadidentities": "policy",
}
EMPTY = ("/api/v1/namespaces", "/apis/podsvid.io/v1alpha1/clusterworkloadidentities")
EVENTS = 20
_CHUNK = 256 * 1024


# Stands for the number of an object in what a kind has in common: to make each anew takes longer than to read it.
_NUMBER = "@@"


def pattern(kind: str, size: int, shape: str) -> bytes:
    """The objects of a kind as JSON, of `size` bytes in etcd."""
    metadata: dict[str, Any] = {
        "name": "podsvid-bundle" if kind == "config map" else f"o{_NUMBER}",
        "namespace": f"evil-{_NUMBER}",
        "uid": f"{kind}-{_NUMBER}",
        "creationTimestamp": "2030-01-01T00:00:00Z",
        "resourceVersion": "1",
    }
    fill = "a" * size
    many = {f"label-{_NUMBER}-{n}": "v" * 40 for n in range(size // 60)}
    if shape == "labels":
        metadata["labels"] = many
    if shape == "annotations":
        metadata["annotations"] = {"evil": fill}
    body: dict[str, Any] = {"metadata": metadata}
    if kind == "pod":
        volumes = [{"name": "x", "csi": {"driver": f"d{n}.{'x' * 40}"}} for n in range(size // 80)]
        body["spec"] = {
            "containers": [{"name": "c", "image": "x", "env": [{"name": "A", "value": fill}]}]
            if shape == "spec"
            else [],
            "nodeName": "n",
            "serviceAccountName": "default",
            "volumes": volumes if shape == "drivers" else [],
        }
        body["status"] = {"phase": "Pending"}
    elif kind == "service":
        body["spec"] = {"selector": many if shape == "labels" else {"app": "x"}, "externalName": fill}
    elif kind == "policy":
        # What no schema with bounds would take; it may be there from before.
        body["spec"] = {"podSelector": {"matchLabels": many}, "hint": fill}
    else:
        body["data"] = {"ca.crt": fill}
    text = json.dumps(body)
    # As Go spells it.
    return (text.replace("a" * size, "\\u003c" * size) if shape == "escaped" else text).encode()


def numbered(text: bytes, number: int) -> bytes:
    """One of a pattern: it shares no name, key or value of a label with another."""
    return text.replace(_NUMBER.encode(), b"%d" % number)


def application(number: int, size: int, shape: str) -> web.Application:
    """Lists in parts, and watches that tell of each object again."""
    patterns = {kind: pattern(kind, size, shape) for kind in COLLECTIONS.values()}

    async def collection(request: web.Request) -> web.StreamResponse:
        kind = COLLECTIONS.get(request.path)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        total = number if kind else 0
        if request.query.get("watch"):
            for each in range(min(total, EVENTS)):
                assert kind is not None
                await response.write(b'{"type":"MODIFIED","object":' + numbered(patterns[kind], each) + b"}\n")
            await response.write(b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"99"}}}\n')
            await asyncio.sleep(3600)
        start = int(request.query.get("continue") or 0)
        end = min(total, start + int(request.query.get("limit") or total))
        more = str(end) if end < total else ""
        await response.write(b'{"metadata":{"resourceVersion":"1","continue":"%s"},"items":[' % more.encode())
        for each in range(start, end):
            assert kind is not None
            text = (b"," if each > start else b"") + numbered(patterns[kind], each)
            for at in range(0, len(text), _CHUNK):
                await response.write(text[at : at + _CHUNK])
        await response.write(b"]}")
        await response.write_eof()
        return response

    async def served(request: web.Request) -> web.StreamResponse:
        try:
            return await collection(request)
        except ConnectionError:
            return web.Response()  # it was too much for whoever asked

    app = web.Application()
    for path in (*COLLECTIONS, *EMPTY):
        app.router.add_get(path, served)
    return app


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


async def follow(port: int) -> dict[str, int]:
    """What it costs to know everything of that server and to hear of changes, beside being there."""
    from kubernetes.aio import client

    from runtime.clock import SystemClock
    from signer.attestation.pods import Pods
    from signer.cluster.kube_client import KubeClient
    from signer.policy.policies import Policies
    from signer.policy.policy import PolicySettings
    from signer.publishing.config_maps import Publisher, bundle_map
    from svid.spiffeid import TrustDomain

    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{port}"
    api, clock, domain = KubeClient(configuration), SystemClock(), TrustDomain("example.org")
    pods = Pods(api, clock)
    policies = Policies(api, PolicySettings(domain), timedelta(hours=1), clock)
    publisher = Publisher(api, "", (bundle_map("podsvid-bundle"),), "podsvid.io/spiffe", domain, clock)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    floor = memory("VmRSS")
    loops = [asyncio.create_task(each.run()) for each in (pods, policies, publisher)]
    async with asyncio.timeout(100):
        await asyncio.gather(pods.wait_synced(), policies.wait_synced(), publisher._copies[0][1].wait_synced())
        mirrors: list[Any] = [pods._mirror, publisher._copies[0][1], policies._namespaced, policies._services]
        # Until the last of what the watches tell was heard.
        quiet = 0
        while quiet < 8:
            now = [each.last_contact for each in mirrors]
            await asyncio.sleep(0.2)
            quiet = quiet + 1 if now == [each.last_contact for each in mirrors] else 0
    lost = sum(each.lost_since is not None for each in mirrors)
    counts = {"pods": len(mirrors[0].values), "copies": len(mirrors[1].values), "policies": len(mirrors[2].values)}
    found = {"floor": floor, "peak": memory("VmHWM"), "lost": lost, **counts}
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    await api.close()
    return found


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        port, number, size, shape = sys.argv[2:]
        web.run_app(
            application(int(number), int(size), shape), host="127.0.0.1", port=int(port), print=None, access_log=None
        )
    else:
        print(json.dumps(asyncio.run(follow(int(sys.argv[2])))))
