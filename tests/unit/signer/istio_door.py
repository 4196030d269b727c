"""The CA that Istio's proxies ask, of real parts over the API server in memory; only gRPC's context is a stand-in."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from signer.attestation.placed import PlacedPods
from signer.attestation.pods import Pods
from signer.attestation.proxies import Proxies, ProxySettings
from signer.attestation.tokens import OfflineTokens, TokenReviews
from signer.authority.state import AuthorityState
from signer.cluster.events import Events
from signer.cluster.witness import Witness
from signer.errors import Reason
from signer.front.audit import Audit
from signer.front.calls import Context
from signer.front.istio import REFUSED, IstioService
from signer.front.limits import NodeLimits
from signer.front.pace import Pace
from signer.front.statuses import ISTIO_CODES
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.model import PodClaim
from signer.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from signer.policy.policies import Policies
from signer.policy.policy import CLUSTER, GROUP, PolicySettings
from svid.keys import KeyAlgorithm, PrivateKey
from svid.spiffeid import TrustDomain
from tests.signer_rig import AUDIENCE, Site
from tests.unit.signer.door import Call, FakeGate, followed, nothing, said
from tests.unit.signer.test_lifecycle import first
from tests.unit.signer.test_minting import SETTINGS, roomy

TD = TrustDomain("example.org")
ISTIO_CA = "istio-ca"
OUTAGE = timedelta(minutes=10)
ZTUNNEL = ("istio-system", "ztunnel")
KEY = KeyAlgorithm.EC_P256.generate()


def csr(*uris: str, key: PrivateKey = KEY, critical: bool = False) -> str:
    """PEM, as a proxy sends it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(each) for each in uris])
        builder = builder.add_extension(names, critical=critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def spiffe(namespace: str, account: str, domain: str = "example.org") -> str:
    return f"spiffe://{domain}/ns/{namespace}/sa/{account}"


class Refusal(Exception):
    """What a proxy is told."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


class ProxyCall(Call):
    async def abort(self, code: grpc.StatusCode, details: str, trailing: object = ()) -> None:
        raise Refusal(code, details)


@dataclass(frozen=True)
class Answer:
    elements: tuple[str, ...]

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.elements[0].encode())

    @property
    def roots(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.elements[-1].encode())

    @property
    def life(self) -> timedelta:
        return self.leaf.not_valid_after_utc - self.leaf.not_valid_before_utc

    @property
    def names(self) -> x509.SubjectAlternativeName:
        return self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    @property
    def identity(self) -> str:
        (found,) = self.names.get_values_for_type(x509.UniformResourceIdentifier)
        return found


class IstioDoor:
    """A service of real parts; `clusters`: those that a proxy may name."""

    def __init__(
        self,
        state: AuthorityState,
        *clusters: str,
        ztunnels: frozenset[tuple[str, str]] = frozenset({ZTUNNEL}),
        of_node: tuple[int, int, int] = (1000, 1000, 1000),
        of_pod: tuple[int, int, int] = (1000, 1000, 1000),
    ) -> None:
        self.site = Site()
        kube, clock = self.site.kube, self.site.clock
        self.state: AuthorityState | None = state
        self.pods, self.placed = Pods(kube, clock), PlacedPods()
        self.pods.observers.append(self.placed.pod_changed)
        self.policies = Policies(kube, PolicySettings(TD), OUTAGE, clock)
        self.metrics, self.witness, self.gate = Metrics(), Witness(clock), FakeGate()
        offline = OfflineTokens(kube, AUDIENCE, self.witness)
        reviews = TokenReviews(kube, ISTIO_CA, offline, self.witness)
        self.proxies = Proxies(
            ProxySettings(ztunnels, frozenset(clusters), OUTAGE), reviews, self.pods, self.placed, self.witness
        )
        self.events = Events(kube, "one", clock)
        self.service = IstioService(
            TD,
            self.proxies,
            self.policies,
            Minting(lambda: self.state, replace(SETTINGS), clock),
            NodeLimits(*of_node, clock),
            NodeLimits(*of_pod, clock, of="pod"),
            self.gate,
            Pace(1000.0, 1000.0, lambda: asyncio.get_running_loop().time()),
            self.events,
            Audit(clock),
            self.metrics,
        )

    def proxy(self, name: str = "web", **more: Any) -> PodClaim:
        return self.site.pod(name, driver=None, **more)

    def ztunnel(self, node: str = "node-a", name: str = "") -> PodClaim:
        return self.proxy(name or f"ztunnel-{node}", node=node, namespace=ZTUNNEL[0], account=ZTUNNEL[1])

    def token(self, claim: PodClaim, **more: Any) -> str:
        if claim.namespace == ZTUNNEL[0]:
            more.setdefault("account", ZTUNNEL[1])
        return self.site.token(claim, **{"audience": ISTIO_CA, **more})

    def policy(self, name: str, **spec: Any) -> None:
        self.site.kube.put(f"{GROUP}/{CLUSTER}/{name}", {"metadata": {"name": name}, "spec": spec})

    async def ask(
        self,
        token: str | None,
        request: str | None = None,
        *,
        seconds: int = 0,
        metadata: dict[str, Any] | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        left: float | None = None,
    ) -> Answer:
        message = IstioCertificateRequest(csr=csr() if request is None else request, validity_duration=seconds)
        if metadata is not None:
            message.metadata.update(metadata)
        return await self.call(message, token, headers, left)

    async def call(
        self,
        message: IstioCertificateRequest,
        token: str | None,
        headers: tuple[tuple[str, str], ...] = (),
        left: float | None = None,
    ) -> Answer:
        bearer = () if token is None else (("authorization", f"Bearer {token}"),)
        context = ProxyCall(("user-agent", "test"), *bearer, *headers)
        context.left = left
        found: IstioCertificateResponse = await self.service.create_certificate(said(message), cast(Context, context))
        return Answer(tuple(found.cert_chain))

    def silent(self, token: str) -> "asyncio.Future[Any]":
        """A call whose message never comes."""
        context = ProxyCall(("user-agent", "test"), ("authorization", f"Bearer {token}"))
        return asyncio.ensure_future(self.service.create_certificate(nothing(), cast(Context, context)))

    async def impersonate(self, token: str, namespace: str, account: str, **more: Any) -> Answer:
        """As a ztunnel asks."""
        wanted = spiffe(namespace, account)
        more.setdefault("request", csr(wanted, critical=True))
        return await self.ask(token, metadata={"ImpersonatedIdentity": wanted}, **more)

    def mints(self, result: str) -> float:
        labels = {"kind": "istio", "result": result}
        return self.metrics.registry.get_sample_value("podsvid_signer_mint_duration_seconds_count", labels) or 0.0

    async def told(self) -> None:
        """Wait until the mirrors have what was put last."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def events_of(self, namespace: str) -> list[tuple[str, str, str]]:
        """Pod, reason and note of each that was written."""
        await asyncio.sleep(3.0)
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        found = [body for key, body in self.site.kube.objects.items() if key.startswith(path)]
        return [(each["regarding"]["name"], each["reason"], each["note"]) for each in found]


def at_istios_door(
    test: Callable[[IstioDoor], Awaitable[None]],
    door: Callable[[AuthorityState], IstioDoor] = IstioDoor,
    state: AuthorityState | None = None,
) -> None:
    begun = state or roomy(first())
    followed(lambda: door(begun), test)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(each) for each in caplog.records if each.name == "podsvid.audit"]


@contextmanager
def refused(caplog: pytest.LogCaptureFixture, reason: Reason) -> Iterator[list[dict[str, Any]]]:
    """A proxy hears one text and whether to come again; the audit log has all of it, in one line."""
    caplog.set_level("INFO", "podsvid.audit")
    before, found = len(lines(caplog)), list[dict[str, Any]]()
    with pytest.raises(Refusal) as caught:
        yield found
    (line,) = lines(caplog)[before:]
    assert (line["msg"], line["kind"], line["reason"]) == ("mint refused", "istio", reason.value), line["why"]
    assert (caught.value.code, caught.value.text) == (ISTIO_CODES[reason], REFUSED)
    found.append(line)
