"""The signer's front door, as an agent comes to it that asks for what it must not have."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa

from svid.keys import KeyAlgorithm
from tests.go_tools import Progress

from . import signing
from .api import Object
from .cluster import Cluster
from .fleet import forget
from .installation import NAMESPACE, component
from .layout import NODE
from .signing import AUDIENCE, TRUST_DOMAIN, Refusal, SignerClient, request_for
from .waiting import wait_for

OTHER = "node-b"
# At once, and of them all: a node has refused reviews of so many tokens, and then nobody reviews for it.
_AT_ONCE, _MOST = 10, 800


@dataclass(frozen=True)
class Knock:
    """What was asked, of which pod (namespace/name), and what the caller was told."""

    reason: str
    how: str
    pod: str
    answer: str

    @property
    def is_event(self) -> bool:
        """Whether the signer writes one on the pod, too: its author could mend that."""
        return self.reason in ("KEY_WEAK", "POD_WITHOUT_DRIVER")


class Door:
    """`namespace` has the pod `served`, which runs at the kubelet."""

    def __init__(self, cluster: Cluster, client: SignerClient, namespace: str) -> None:
        self._cluster = cluster
        self._api = cluster.api
        self._client = client
        self._namespace = namespace
        self._agents = {
            NODE: next(each for each in component(cluster, "agent") if each["spec"].get("nodeName") == NODE),
            OTHER: signing.pod(cluster, "agent-b", OTHER, "podsvid-agent", namespace=NAMESPACE, driver=None),
        }
        self._served = self._api.get(f"/api/v1/namespaces/{namespace}/pods/served")

    def knocks(self) -> Iterator[Knock]:
        """One after another: what is found there depends on what was before, and all of it still holds in the end."""
        served, token = self._served, self._token(self._served)
        key, thief = KeyAlgorithm.EC_P256.generate(), KeyAlgorithm.EC_P256.generate()
        second = self._pod("second")
        yield self._asked("POD_TOKEN_MISSING", "no token of the pod comes with the call", served, "")
        yield self._asked("POD_TOKEN_INVALID", "the pod's token is none", served, "not.a.token")
        old = signing.expired_token(self._cluster, "default", self._namespace, AUDIENCE, served)
        yield self._asked("POD_TOKEN_EXPIRED", "the pod's token is two hours old", served, old)
        elsewhere = self._api.token("default", self._namespace, "elsewhere", served)
        yield self._asked("POD_TOKEN_AUDIENCE", "the pod's token is for another audience", served, elsewhere)
        unbound = self._api.token("default", self._namespace, AUDIENCE)
        yield self._asked("POD_TOKEN_UNBOUND", "a token of the account that is bound to no pod", served, unbound)
        yield self._asked("POD_TOKEN_REPLAYED", "one pod's token for another pod", served, self._token(second))
        yield self._asked("POD_ON_OTHER_NODE", "the agent of another node asks", served, token, node=OTHER)
        yield self._asked("CSR_INVALID", "the certificate request is none", served, token, csr=b"\x30\x00")
        stolen = request_for(key, signed_by=thief)
        yield self._asked("PROOF_OF_POSSESSION", "a certificate request for another's key", served, token, csr=stolen)
        weak = request_for(rsa.generate_private_key(65537, 1024))
        yield self._asked("KEY_WEAK", "a key of RSA with 1024 bits", served, token, csr=weak)
        yield self._asked("INVALID_REQUEST", "a token of 40,000 characters", served, "x" * 40_000)
        yield self._knock(
            "NOT_ENTITLED",
            "a JWT-SVID for another identity than the pod's",
            served,
            lambda: self._client.mint_jwt(
                self._agent(NODE), token, served, f"spiffe://{TRUST_DOMAIN}/ns/kube-system/sa/admin", "api"
            ),
        )
        none = self._pod("no-volume", driver=None)
        yield self._asked("POD_WITHOUT_DRIVER", "the pod has no volume of podsvid", none, self._token(none), node=OTHER)
        yield self._finished()
        yield from self._gone()
        yield self._often("BUSY", "one bad token after another, of keys that nobody knows", second, self._strange)
        right = self._token(second)
        yield self._often("RATE_LIMITED", "one mint after another", second, lambda: right)

    def _finished(self) -> Knock:
        pod = self._pod("finished")
        token, path = self._token(pod), f"/api/v1/namespaces/{self._namespace}/pods/finished/status"
        self._api.patch(path, {"status": {"phase": "Succeeded"}})
        return self._until("POD_FINISHED", "the pod has come to its end", pod, token)

    def _gone(self) -> Iterator[Knock]:
        gone, replaced = self._pod("gone"), self._pod("replaced")
        tokens = self._token(gone), self._token(replaced)
        for pod, token in zip((gone, replaced), tokens, strict=True):
            self._client.mint(self._agent(OTHER), token, pod)
            forget(self._cluster, self._namespace, pod["metadata"]["name"])
        self._pod("replaced")
        yield self._until("POD_NOT_FOUND", "the pod was deleted a moment ago", gone, tokens[0])
        yield self._until("POD_UID_MISMATCH", "another pod has the name of one that was deleted", replaced, tokens[1])

    def _pod(self, name: str, driver: str | None = signing.DRIVER) -> Object:
        """On a node without a kubelet: nothing runs it, and nothing takes it away."""
        return signing.pod(self._cluster, name, OTHER, "default", namespace=self._namespace, driver=driver)

    def _token(self, pod: Object) -> str:
        return self._api.token("default", self._namespace, AUDIENCE, pod)

    def _agent(self, node: str) -> str:
        return self._api.token("podsvid-agent", NAMESPACE, AUDIENCE, self._agents[node])

    def _strange(self) -> str:
        parts = ({"alg": "RS256", "kid": secrets.token_hex(8)}, {"sub": "nobody", "exp": 4_000_000_000})
        texts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts]
        return ".".join([*texts, secrets.token_urlsafe(32)])

    def _asked(
        self, reason: str, how: str, pod: Object, token: str, *, node: str = NODE, csr: bytes | None = None
    ) -> Knock:
        return self._knock(reason, how, pod, lambda: self._client.mint(self._agent(node), token, pod, csr=csr))

    def _knock(self, reason: str, how: str, pod: Object, call: Callable[[], object]) -> Knock:
        try:
            call()
        except Refusal as refusal:
            assert refusal.reason == reason, refusal
            return self._found(refusal, how, pod)
        raise AssertionError(f"{how}: that was signed")

    def _found(self, refusal: Refusal, how: str, pod: Object) -> Knock:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        return Knock(refusal.reason, how, name, f"{refusal.code.name}, {refusal.reason}: {refusal.message}")

    def _until(self, reason: str, how: str, pod: Object, token: str) -> Knock:
        """What was told to the signer comes there in a moment, and a review of a token counts for some seconds."""
        last: list[Refusal] = []

        def refused() -> bool | str:
            try:
                self._client.mint(self._agent(OTHER), token, pod)
            except Refusal as refusal:
                last[:] = [refusal]
                return refusal.reason == reason or refusal.reason
            return "signed"

        wait_for(reason, refused, progress=lambda _: None)
        return self._found(last[0], how, pod)

    def _often(self, reason: str, how: str, pod: Object, token: Callable[[], str]) -> Knock:
        """By the other node's agent, until it is refused so. Of a pod by itself: the log has all of these refusals."""
        agent = self._agent(OTHER)

        def refusal(number: int) -> Refusal | None:
            try:
                self._client.mint(agent, token(), pod)
            except Refusal as found:
                return found if found.reason == reason else None
            return None

        with ThreadPoolExecutor(_AT_ONCE) as asking:
            for start in range(0, _MOST, 5 * _AT_ONCE):
                found = [each for each in asking.map(refusal, range(start, start + 5 * _AT_ONCE)) if each is not None]
                if found:
                    return self._found(found[0], how, pod)
        raise AssertionError(f"{reason} was never said")


@contextmanager
def door(cluster: Cluster, progress: Progress, namespace: str) -> Iterator[Door]:
    """Of the signer that the chart has installed."""
    signing.node(cluster, OTHER)
    (signer,) = component(cluster, "signer")
    client = SignerClient(f"{signer['status']['podIP']}:8443", signing.published_roots(cluster, progress))
    try:
        yield Door(cluster, client, namespace)
    finally:
        client.close()
