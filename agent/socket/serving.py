"""All that one volume's socket answers, put together: Workload API, SDS and health behind one endpoint."""

from dataclasses import dataclass
from typing import Protocol

import grpc

from agent.socket.connections import Mutator
from agent.socket.endpoint import CallMetrics, Endpoint, Limits
from agent.socket.health import Health
from agent.socket.sds import SdsMetrics, SecretDiscovery
from agent.socket.sds_secrets import SdsNames
from agent.socket.workload_api import JwtSource, WorkloadApi
from runtime.clock import Clock
from runtime.feed import Feed
from svid.identity import WorkloadIdentity


class SocketMetrics(CallMetrics, SdsMetrics, Protocol):
    """What all of it counts."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the volumes' sockets are served: limits, Envoy's names, and what is the same for all of them: handlers, and
    who sees the connections."""

    limits: Limits = Limits()
    sds: SdsNames = SdsNames()
    shared: tuple[grpc.GenericRpcHandler, ...] = ()
    mutator: Mutator | None = None

    def endpoint(
        self, feed: Feed[WorkloadIdentity], jwt_svids: JwtSource | None, clock: Clock, metrics: SocketMetrics, pod: str
    ) -> Endpoint:
        """An endpoint that is not open yet; without `jwt_svids` the JWT profile is not served."""
        api = WorkloadApi(feed, jwt_svids, clock)
        sds = SecretDiscovery(feed, self.sds, clock, metrics, pod)
        health = Health(feed, clock)
        handlers = (api.handlers(), sds.handlers(), health.handlers(), *self.shared)
        return Endpoint(handlers, self.limits, metrics, self.mutator)


USUAL = Serving()
