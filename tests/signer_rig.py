"""A signer's parts over an API server in memory: tokens that it knows, pods, and a clock that only tests move."""

import argparse
import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.authority.connection import SignerSettings
from runtime.clock import Clock
from runtime.collector import tracing
from signer import config
from signer.attestation.tokens import REVIEWS
from signer.cluster.kube import Object
from signer.daemon import Replica
from signer.model import PodClaim
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube
from tests.ports import free_port

AUDIENCE = "signer.podsvid.io"
START = datetime(2030, 1, 1, tzinfo=UTC)
DRIVER = "csi.podsvid.io"


class StepClock:
    """Stands still until told. `at` is the time that it is; the wall clock may be `wrong` by something."""

    def __init__(self, at: datetime = START) -> None:
        self.at = self._begun = at
        self.wrong = timedelta(0)

    def now(self) -> datetime:
        return self.at + self.wrong

    def monotonic(self) -> float:
        return 1000.0 + (self.at - self._begun).total_seconds()

    def pass_by(self, **passed: float) -> None:
        self.at += timedelta(**passed)

    def set_by(self, **wrong: float) -> None:
        """Somebody sets the wall clock: no time passes."""
        self.wrong += timedelta(**wrong)


class Apart:
    """A clock whose seconds are another's."""

    def __init__(self, clock: Clock, monotonic: Callable[[], float]) -> None:
        self.now, self.monotonic = clock.now, monotonic


class Site:
    """An API server with a node, an agent and pods; `token` makes what TokenReview accepts."""

    def __init__(self, at: datetime = START) -> None:
        self.clock = StepClock(at)
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
        for key in ("annotations", "labels"):
            found = status.pop(key, None)
            if found:
                body["metadata"][key] = found
        body["status"].update(status)
        if f"/api/v1/namespaces/{namespace}" not in self.kube.objects:
            self.kube.put(f"/api/v1/namespaces/{namespace}", {})
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

    def agent(self, node: str = "node-a", life: float = 3600.0) -> str:
        """An agent's token on that node."""
        claim = PodClaim("podsvid", f"agent-{node}", f"agent-uid-{node}")
        return self.token(claim, account="podsvid-agent", namespace="podsvid", node=node, life=life)

    def known(self, like: str, token: str) -> None:
        """The API server takes `token`, another signature of the same claims, as it takes `like`."""
        self._users[token] = self._users[like]

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


@dataclass(frozen=True)
class Serving:
    """A signer replica in this process and what an agent of it needs."""

    replica: Replica
    address: str
    bundle_file: Path
    site: Site

    def settings(self, token: str, folder: Path, name: str = "token") -> SignerSettings:
        """For an agent with that token."""
        file = folder / name
        file.write_text(token)
        domain, run_dir = TrustDomain("example.org"), folder / f"{name}.run"
        return SignerSettings(self.address, self.bundle_file, file, AUDIENCE, domain, "test", run_dir=run_dir)


@asynccontextmanager
async def serving(
    site: Site,
    folder: Path,
    clock: Clock,
    *flags: str,
    port: int = 0,
    made: Callable[[Replica], object] = lambda _: None,
) -> AsyncIterator[Serving]:
    """A replica at `site` on a free port of the loopback, until left; `made` is told of it before it is ready."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    if not port:
        port = free_port()
    defaults = ("--trust-domain", "example.org", "--namespace", "podsvid", "--identity", "signer-1")
    addresses = ("--listen", f"127.0.0.1:{port}", "--metrics-listen", "off", "--admin-socket", str(folder / "a.sock"))
    # All of a test's agents come from one address.
    loaded = config.load(parser.parse_args([*defaults, *addresses, "--address-rate", "1000", *flags]), {})
    stopping = asyncio.Event()
    async with AsyncExitStack() as services:
        spans = services.enter_context(tracing(loaded.tracing_endpoint, "podsvid-signer", {}))
        replica = Replica(loaded, site.kube, clock, random.Random(7), spans)
        made(replica)
        running = asyncio.create_task(replica.run(stopping, services))
        try:
            while await replica.not_ready():
                await asyncio.wait([running], timeout=0.02)
                if running.done():
                    running.result()
            state = replica._rotation.state
            assert state is not None
            bundle_file = folder / "bundle.json"
            bundle_file.write_bytes(state.bundle.to_jwks())
            yield Serving(replica, f"127.0.0.1:{port}", bundle_file, site)
        finally:
            stopping.set()
            await running
