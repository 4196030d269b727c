"""A signer's parts over an API server in memory: tokens that it knows, pods, and a clock that only tests move."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from signer.kube import Object
from signer.model import PodClaim
from signer.tokens import REVIEWS
from tests.fake_kube import FakeKube

AUDIENCE = "signer.podsvid.io"
START = datetime(2030, 1, 1, tzinfo=UTC)
DRIVER = "csi.podsvid.io"


class StepClock:
    """Stands still until told."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def pass_by(self, **passed: float) -> None:
        self.at += timedelta(**passed)


class Site:
    """An API server with a node, an agent and pods; `token` makes what TokenReview accepts."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.kube = FakeKube(self.clock)
        self.kube.hooks[REVIEWS] = self._review
        self.reviews = 0
        self._users: dict[str, tuple[str, dict[str, Any]]] = {}

    def pod(
        self,
        name: str,
        *,
        node: str = "node-a",
        account: str = "web",
        namespace: str = "default",
        uid: str = "",
        driver: str | None = DRIVER,
        **status: Any,
    ) -> PodClaim:
        body: Object = {
            "metadata": {"name": name, **({"uid": uid} if uid else {})},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "volumes": [{"name": "identity", "csi": {"driver": driver}}] if driver else [],
            },
            "status": {"phase": "Running"},
        }
        annotations = status.pop("annotations", None)
        if annotations:
            body["metadata"]["annotations"] = annotations
        body["status"].update(status)
        stored = self.kube.put(f"/api/v1/namespaces/{namespace}/pods/{name}", body)
        return PodClaim(namespace, name, stored["metadata"]["uid"])

    def remove(self, claim: PodClaim) -> None:
        self.kube.remove(f"/api/v1/namespaces/{claim.namespace}/pods/{claim.name}")

    def token(
        self,
        claim: PodClaim | None,
        *,
        account: str = "web",
        namespace: str = "",
        node: str | None = "node-a",
        audience: str = AUDIENCE,
        life: float = 3600.0,
        known: bool = True,
    ) -> str:
        """A token of the pod; `known` False: the API server refuses it, as it does when its pod is deleted."""
        namespace = namespace or (claim.namespace if claim else "default")
        extra: dict[str, list[str]] = {}
        kubernetes: dict[str, Any] = {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": f"sa-{account}"},
        }
        if claim is not None:
            kubernetes["pod"] = {"name": claim.name, "uid": claim.uid}
            extra["authentication.kubernetes.io/pod-name"] = [claim.name]
            extra["authentication.kubernetes.io/pod-uid"] = [claim.uid]
        if node is not None:
            kubernetes["node"] = {"name": node, "uid": f"uid-{node}"}
            extra["authentication.kubernetes.io/node-name"] = [node]
            extra["authentication.kubernetes.io/node-uid"] = [f"uid-{node}"]
        subject = f"system:serviceaccount:{namespace}:{account}"
        expiry = int((self.clock.at + timedelta(seconds=life)).timestamp())
        claims = {"sub": subject, "aud": [audience], "exp": expiry, "n": len(self._users), "kubernetes.io": kubernetes}
        text = ".".join(_b64(part) for part in ({"alg": "none"}, claims)) + ".eHh4"
        if known:
            self._users[text] = (audience, {"username": subject, "uid": f"sa-{account}", "extra": extra})
        return text

    def agent(self, node: str = "node-a") -> str:
        """An agent's token on that node."""
        claim = PodClaim("podsvid", f"agent-{node}", f"agent-uid-{node}")
        return self.token(claim, account="podsvid-agent", namespace="podsvid", node=node)

    def _review(self, body: Object) -> Object:
        self.reviews += 1
        token, audiences = body["spec"]["token"], body["spec"]["audiences"]
        found = self._users.get(token)
        if found is None or found[0] not in audiences or _expiry(token) <= self.clock.at.timestamp():
            return {"status": {"authenticated": False, "error": "invalid bearer token"}}
        return {"status": {"authenticated": True, "audiences": audiences, "user": found[1]}}


def _b64(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _expiry(token: str) -> float:
    claims = token.split(".")[1]
    return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
