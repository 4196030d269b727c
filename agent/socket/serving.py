"""All that one volume's socket answers, put together: Workload API, SDS and health behind one endpoint."""

from dataclasses import dataclass
from typing import Protocol

import grpc

from agent.socket.accounts import Account
from agent.socket.endpoint import Endpoint
from agent.socket.guard import CallMetrics
from agent.socket.health import Health
from agent.socket.relay import Relay
from agent.socket.sds import SdsMetrics, SecretDiscovery
from agent.socket.sds_secrets import SdsNames
from agent.socket.workload_api import JwtSource, WorkloadApi
from runtime.clock import Clock
from runtime.feed import Followed
from svid.handed import Identity


class SocketMetrics(CallMetrics, SdsMetrics, Protocol):
    """What all of it counts."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the volumes' sockets are served: Envoy's names, and what is the same for all of them: handlers, and what is
    before gRPC."""

    sds: SdsNames = SdsNames()
    shared: tuple[grpc.GenericRpcHandler, ...] = ()
    relay: Relay | None = None

    def endpoint(
        self,
        feed: Followed[Identity],
        jwt_svids: JwtSource | None,
        clock: Clock,
        metrics: SocketMetrics,
        pod: str,
        account: Account,
    ) -> Endpoint:
        """An endpoint that is not open yet; without `jwt_svids` the JWT profile is not served. `pod` names it in logs,
        `account` bounds it."""
        api = WorkloadApi(feed, jwt_svids, clock)
        sds = SecretDiscovery(feed, self.sds, clock, metrics, pod)
        health = Health(feed, clock)
        handlers = (api.handlers(), sds.handlers(), health.handlers(), *self.shared)
        return Endpoint(handlers, account, metrics, self.relay)
