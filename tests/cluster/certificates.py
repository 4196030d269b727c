"""What kubelet asks for a pod's podCertificate volume, asked of a real API server."""

from __future__ import annotations

from .alone import Alone
from .api import ApiError, KubeApi, Object
from .waiting import wait_for

REQUESTS = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests"


def kubelet(alone: Alone, node: str) -> KubeApi:
    """The API server as a node's kubelet sees it."""
    pair = alone.authority.issue(node, f"system:node:{node}", "system:nodes")
    return KubeApi(alone.api.url, str(alone.authority.ca_cert), pair)


def ask(alone: Alone, by: KubeApi, request: Object) -> Object:
    """Make it, as soon as the API server's own caches know its pod."""
    made: list[Object] = []

    def taken() -> bool | str:
        try:
            made.append(by.create(REQUESTS, request))
        except ApiError as error:
            return str(error)
        return True

    wait_for("the API server to take the request", taken, progress=alone.progress)
    return made[0]


def decided(api: KubeApi, request: Object) -> Object | None:
    """Its status once it has a condition."""
    found = api.get(f"{REQUESTS}/{request['metadata']['name']}").get("status") or {}
    return found if found.get("conditions") else None
