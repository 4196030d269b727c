"""The port that Istio's proxies call: its books, its own certificate, and the parts behind it put together."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

from runtime.clock import Clock
from runtime.listening import shown
from signer.attestation.placed import PlacedPods
from signer.attestation.pods import Pods
from signer.attestation.proxies import Proxies, ProxySettings
from signer.attestation.tokens import OfflineTokens, TokenReviews
from signer.cluster.events import Events
from signer.cluster.kube import KubeApi
from signer.front import budget
from signer.front.admission import Admission
from signer.front.audit import Audit
from signer.front.door import Door
from signer.front.istio import BURST, POD_AT_ONCE, POD_BURST, POD_RATE, RATE, IstioService
from signer.front.limits import NodeLimits
from signer.front.pace import Pace
from signer.front.server import AgentServer, Here
from signer.front.tls import ServerIdentity
from signer.istio_settings import IstioSettings
from signer.keystore.keys import Keys
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.policy.policies import Policies

_log = logging.getLogger("podsvid.signer")
# Proxies call when they renew, and keep connections that nobody needs between.
IDLE_SECONDS: Final = 5
# A server with an older certificate has no long streams to wait for.
STAYS_SECONDS: Final = 60.0
_OPTIONS: Mapping[str, int] = MappingProxyType(
    {
        "grpc.max_receive_message_length": budget.PROXY_MESSAGE,
        "grpc.max_concurrent_streams": budget.PROXY_STREAMS,
        "grpc.server.max_pending_requests": budget.PROXY_PENDING // 2,
        "grpc.server.max_pending_requests_hard_limit": budget.PROXY_PENDING,
        "grpc.max_connection_idle_ms": IDLE_SECONDS * 1000,
    }
)


class _Nowhere:
    """Implements Places: nobody is expected from anywhere, as every pod may have a proxy."""

    def __contains__(self, address: object) -> bool:
        return False

    def within(self, network: str) -> Collection[str]:
        return ()


class IstioListener:
    """Serves Istio's CA API as `settings` say. `witness`: by whose clock what the API server dates is judged."""

    def __init__(
        self,
        settings: IstioSettings,
        api: KubeApi,
        offline: OfflineTokens,
        pods: Pods,
        policies: Policies,
        minting: Minting,
        events: Events,
        audit: Audit,
        metrics: Metrics,
        keys: Keys,
        clock: Clock,
        witness: Clock,
    ) -> None:
        self._address = settings.address
        placed = PlacedPods()
        pods.observers.append(placed.pod_changed)
        proxies = Proxies(
            ProxySettings(settings.ztunnels, settings.clusters, settings.outage_limit),
            TokenReviews(api, settings.audience, offline, witness, told=metrics.token_checked),
            pods,
            placed,
            witness,
        )
        admission = Admission(
            settings.address_rate,
            lambda kind: metrics.turned_away(f"istio_{kind}"),
            time.monotonic,
            expected=_Nowhere(),
            strangers=budget.PROXY_STRANGERS,
            waiting=budget.PROXY_WAITING,
            agents=budget.PROXY_CONNECTIONS,
            of_node=budget.CONNECTIONS_OF_PROXY,
            # Any pod has one good token: with it nobody is to bring as many bad ones as it likes.
            lenient=False,
        )
        # A ztunnel's connection is its node's.
        rate, burst = budget.bytes_of_node(settings.node_rate, settings.node_burst)
        door = Door(admission, rate, burst, budget.PROXY_GREETING)
        metrics.watch_proxies(lambda: float(admission.agents), lambda: float(admission.strangers))
        at_once = min(settings.node_concurrency, budget.PROXY_MINTS // 4)
        service = IstioService(
            settings.trust_domain,
            proxies,
            policies,
            minting,
            NodeLimits(settings.node_rate, settings.node_burst, at_once, clock),
            NodeLimits(POD_RATE, POD_BURST, POD_AT_ONCE, clock, of="pod"),
            door,
            Pace(RATE, BURST, clock.monotonic),
            events,
            audit,
            metrics,
        )
        self._server = AgentServer(
            Here(service.handlers()),
            door,
            settings.address,
            settings.folder,
            clock,
            keys,
            ServerIdentity(clock, settings.names, lasting=True),
            _OPTIONS,
            STAYS_SECONDS,
        )
        self.renew = self._server.renew
        self.close = self._server.close

    @property
    def serving(self) -> bool:
        """Whether it has a certificate and listens."""
        return self._server.serving

    async def serve(self, *first: Callable[[], Awaitable[object]]) -> None:
        """For ever, once all that is to come `first` has come about and there is a certificate. Raises OSError."""
        await self._server.open(*first)
        _log.info("signer serving Istio's proxies", extra={"address": shown(*self._address)})
        await asyncio.Event().wait()  # the stop
