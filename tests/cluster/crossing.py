"""Pods of two trust domains that talk to each other: mutual TLS and JWT-SVIDs, by what each of them has at a moment."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.pb import workload_pb2
from podsvid.quickstart.pods import Pod, PodVolume
from signer.authority.state import AuthorityState
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from tests.interop.rig import registered
from tests.support import DEADLINE, HEADER, Host, host

from .alone import Alone
from .api import Object
from .fleet import met
from .signing import AUDIENCE, SECRET

FOR = "db"


@dataclass(frozen=True)
class Papers:
    """What somebody proves himself with, and whom he believes."""

    chain: bytes
    key: bytes
    trusted: dict[TrustDomain, TrustBundle]

    @classmethod
    def of(cls, volume: Path) -> Papers:
        """A pod's, of one moment (layout grpc)."""
        folder = os.open(volume / "..data", os.O_PATH | os.O_DIRECTORY)
        here = Path(f"/proc/self/fd/{folder}")
        try:
            chain, key = ((here / name).read_bytes() for name in ("certificates.pem", "private_key.pem"))
            found = json.loads((here / "trust_bundles.json").read_bytes())["trust_domains"]
        finally:
            os.close(folder)
        names = {TrustDomain(name): json.dumps(bundle).encode() for name, bundle in found.items()}
        return cls(chain, key, {name: TrustBundle.from_jwks(name, bundle) for name, bundle in names.items()})

    def context(self, other: TrustDomain, *, serves: bool) -> ssl.SSLContext:
        """Of mutual TLS with somebody of that trust domain, and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.chain + b"\n" + self.key)
            file.flush()
            context.load_cert_chain(file.name)
        context.load_verify_locations(cadata=self.trusted[other].to_pem().decode())
        return context


def handshake(server: tuple[SpiffeId, Papers], client: tuple[SpiffeId, Papers]) -> None:
    """Each takes the other for its ID, by that ID's trust domain. Raises ssl.SSLError, AssertionError, KeyError."""
    serves = server[1].context(client[0].trust_domain, serves=True)
    calls = client[1].context(server[0].trust_domain, serves=False)
    serving, calling = met(serves, calls)
    for each, expected in ((calling, server[0]), (serving, client[0])):
        shown: Any = each.getpeercert()
        names = [value for kind, value in shown["subjectAltName"] if kind == "URI"]
        assert names == [str(expected)]


@dataclass(frozen=True)
class Member:
    """A pod with its volume."""

    spiffe_id: SpiffeId
    volume: Path
    socket: Path

    @property
    def papers(self) -> tuple[SpiffeId, Papers]:
        """Now."""
        return self.spiffe_id, Papers.of(self.volume)

    async def token(self) -> str:
        """A JWT-SVID for `FOR`. Raises grpc.RpcError."""
        request = workload_pb2.JWTSVIDRequest(audience=[FOR])
        return str((await self._ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)).svids[0].svid)

    async def takes(self, token: str) -> str:
        """Whose token it says this is. Raises grpc.RpcError where it refuses it."""
        request = workload_pb2.ValidateJWTSVIDRequest(audience=FOR, svid=token)
        return str((await self._ask("ValidateJWTSVID", request, workload_pb2.ValidateJWTSVIDResponse)).spiffe_id)

    async def _ask(self, method: str, request: Any, answer: Any) -> Any:
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            call: Any = channel.unary_unary(
                f"/SpiffeWorkloadAPI/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return await call(request, metadata=HEADER, timeout=DEADLINE)


@asynccontextmanager
async def member(
    alone: Alone, domain: str, address: str, roots: bytes, agent: Object, pod: Object
) -> AsyncIterator[Member]:
    """An agent of that trust domain on the node of these pods, and the volume of the one that is no agent."""
    metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
    token = alone.api.token(account, metadata["namespace"], AUDIENCE, pod)
    passed = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
    of_agent = alone.api.token("podsvid-agent", agent["metadata"]["namespace"], AUDIENCE, agent)
    with host() as here:
        _write(here, of_agent, roots)
        here.start(
            *("--trust-domain", domain, "--node-name", pod["spec"]["nodeName"], "--authority", "signer"),
            *("--signer-address", address, "--signer-bundle", str(here.base / "roots.pem")),
            *("--agent-token-file", str(here.base / "token")),
        )
        async with registered(here) as kubelet:
            made = Pod(metadata["namespace"], metadata["name"], metadata["uid"], account)
            volume = PodVolume(attributes={"layout": "grpc"}, tokens=passed)
            target = await kubelet.publish_until(made, volume, timeout=DEADLINE)
            spiffe_id = SpiffeId(TrustDomain(domain), f"/ns/{made.namespace}/sa/{account}")
            yield Member(spiffe_id, target, here.short(target) / "socket")


def _write(here: Host, token: str, roots: bytes) -> None:
    (here.base / "roots.pem").write_bytes(roots)
    (here.base / "token").write_text(token)


@dataclass(frozen=True)
class Thief:
    """Somebody with a copy of an authority's keys, who says that he is `victim`."""

    victim: SpiffeId
    state: AuthorityState

    @classmethod
    def of(cls, alone: Alone, victim: SpiffeId) -> Thief:
        """Has read the Secret."""
        data = base64.b64decode(alone.api.get(SECRET)["data"]["state.json"])
        return cls(victim, AuthorityState.from_json(data, victim.trust_domain))

    def papers(self, trusted: dict[TrustDomain, TrustBundle]) -> tuple[SpiffeId, Papers]:
        """Made now."""
        key, now = KeyAlgorithm.EC_P256.generate(), datetime.now(UTC)
        chain = self.state.active_x509.issue(key.public_key(), self.victim, ttl=timedelta(hours=1), now=now)
        return self.victim, Papers(to_pem(chain), key_to_pem(key), trusted)

    def token(self) -> str:
        """Made now."""
        key = self.state.active_jwt
        assert key is not None
        return key.issue(self.victim, [FOR], ttl=timedelta(minutes=5), now=datetime.now(UTC)).token

    async def deceives(self, other: Member) -> tuple[bool, bool]:
        """Whether that pod takes his X509-SVID, and his JWT-SVID."""
        papers = other.papers
        try:
            await asyncio.to_thread(handshake, papers, self.papers(papers[1].trusted))
            by_x509 = True
        except (ssl.SSLError, AssertionError):
            by_x509 = False
        try:
            by_jwt = await other.takes(self.token()) == str(self.victim)
        except grpc.RpcError:
            by_jwt = False
        return by_x509, by_jwt


class Crossing:
    """Requests between two pods, each way, again and again: what failed, and how often it did not."""

    def __init__(self, *members: Member) -> None:
        self._members = members
        self.done = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        """For ever."""
        while True:
            for serving, calling in permutations(self._members, 2):
                try:
                    await asyncio.to_thread(handshake, serving.papers, calling.papers)
                    assert await serving.takes(await calling.token()) == str(calling.spiffe_id)
                    self.done += 1
                except (OSError, ValueError, grpc.RpcError, AssertionError, KeyError) as error:
                    self.failed.append(f"{calling.spiffe_id} -> {serving.spiffe_id}: {error!r}")
            await asyncio.sleep(0.05)
