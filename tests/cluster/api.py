"""The few calls of the Kubernetes API that the cluster tests make."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from .pki import Pair

# Kubernetes objects as they travel; the tests read a few fields of each.
Object = dict[str, Any]

_CALL_SECONDS = 20.0


# Kinds whose collections are not called by the kind's name in lower case with an s.
_PLURALS = {
    "WorkloadIdentity": "workloadidentities",
    "ClusterWorkloadIdentity": "clusterworkloadidentities",
    "NetworkPolicy": "networkpolicies",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
}
_CLUSTER_WIDE = {
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "CSIDriver",
    "CustomResourceDefinition",
    "ClusterWorkloadIdentity",
    "FederatedTrustDomain",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ClusterTrustBundle",
    "CSINode",
}


def collection(body: Object) -> str:
    """The path of the collection that an object belongs to."""
    version, kind = str(body["apiVersion"]), str(body["kind"])
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    if kind in _CLUSTER_WIDE:
        return f"{base}/{plural}"
    return f"{base}/namespaces/{body['metadata'].get('namespace', 'default')}/{plural}"


class ApiError(Exception):
    """The API server refused a call. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class KubeApi:
    """A connection to the API server, an administrator's or a service account's."""

    def __init__(self, url: str, ca_cert: str, client: Pair | None, token: str = "") -> None:
        self.url = url
        self._ca_cert = ca_cert
        self._token = token
        self._tls = ssl.create_default_context(cafile=ca_cert)
        if client is not None:
            self._tls.load_cert_chain(client.cert, client.key)

    def as_token(self, token: str) -> KubeApi:
        """The same API server with a service account's token."""
        return KubeApi(self.url, self._ca_cert, None, token)

    def ready(self) -> bool | str:
        """Whether it serves; or what it says instead, for `wait_for`."""
        try:
            return self.text("/readyz") == "ok"
        except ApiError as error:
            return f"not ready ({error.status})"
        except OSError:
            return False

    def text(self, path: str) -> str:
        """GET whose answer is plain text, such as a log. Raises ApiError, OSError."""
        return self._call("GET", path, None).decode(errors="replace")

    def get(self, path: str) -> Object:
        """Read an object. Raises ApiError, OSError."""
        return self._json("GET", path, None)

    def find(self, path: str) -> Object | None:
        """Read an object that may not exist. Raises ApiError, OSError."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection. Raises ApiError, OSError."""
        return self._json("POST", path, body)

    def replace(self, path: str, body: Object) -> Object:
        """Write an object, or a subresource of one. Raises ApiError, OSError."""
        return self._json("PUT", path, body)

    def patch(self, path: str, body: Object) -> Object:
        """JSON merge patch. Raises ApiError, OSError."""
        answer: Object = json.loads(self._call("PATCH", path, body, "application/merge-patch+json"))
        return answer

    def delete(self, path: str, *, grace_seconds: int | None = None) -> None:
        """Ask for an object's deletion. Raises ApiError, OSError."""
        options = None if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        self._json("DELETE", path, options)

    def remove(self, path: str) -> None:
        """Delete an object that may not exist. Raises ApiError, OSError."""
        try:
            self.delete(path)
        except ApiError as error:
            if error.status != 404:
                raise

    def apply(self, documents: Iterable[Object]) -> None:
        """Create each object, or replace the one that is there. Raises ApiError, OSError."""
        for body in documents:
            path = collection(body)
            try:
                self.create(path, body)
            except ApiError as error:
                if error.status != 409:
                    raise
                name = body["metadata"]["name"]
                version = self.get(f"{path}/{name}")["metadata"]["resourceVersion"]
                body = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
                self.replace(f"{path}/{name}", body)

    def token(
        self, account: str, namespace: str, audience: str = "", pod: Object | None = None, seconds: int = 3600
    ) -> str:
        """A token of the service account, bound to `pod` where given; without audience for the API server itself."""
        spec: Object = {"expirationSeconds": seconds, **({"audiences": [audience]} if audience else {})}
        if pod is not None:
            metadata = pod["metadata"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "uid": metadata["uid"],
            }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.create(path, body)["status"]["token"])

    def _json(self, method: str, path: str, body: Object | None) -> Object:
        answer: Object = json.loads(self._call(method, path, body))
        return answer

    def _call(self, method: str, path: str, body: Object | None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": kind,
                **({"Authorization": f"Bearer {self._token}"} if self._token else {}),
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=_CALL_SECONDS, context=self._tls) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode(errors="replace")[:1000]) from None
