"""Health of a socket: SERVING while there is a valid SVID, and not a moment longer."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from agent.socket.health import Health
from runtime.feed import Feed
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.x509svid import X509Svid
from tests.fake_authority import HOUR, SPIFFE_ID, StepClock, root

Status = health_pb2.HealthCheckResponse


class Aborted(Exception):
    """How a call ended."""


class Context:
    """As much of grpc's as is used."""

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise Aborted(code.name)


def ask(health: Health, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    context: Any = Context()
    return Status.FromString(asyncio.run(health._check(request, context))).status


@pytest.mark.parametrize("service", ["", "SpiffeWorkloadAPI"])
def test_serving_is_having_an_svid_that_has_not_ended(service: str) -> None:
    clock = StepClock()
    feed: Feed[WorkloadIdentity] = Feed()
    health = Health(feed, clock)
    assert ask(health, service) == Status.NOT_SERVING
    x509, key = root(clock.at), KeyAlgorithm.EC_P256.generate()
    svid = X509Svid(SPIFFE_ID, x509.issue(key.public_key(), SPIFFE_ID, ttl=HOUR, now=clock.at), key)
    feed.publish(WorkloadIdentity((svid,), x509.bundle))
    assert ask(health, service) == Status.SERVING
    clock.at += HOUR
    assert ask(health, service) == Status.NOT_SERVING


def test_a_service_that_is_not_here_and_bytes_that_are_no_request() -> None:
    health = Health(Feed(), StepClock())
    with pytest.raises(Aborted, match="NOT_FOUND"):
        ask(health, "envoy")
    context: Any = Context()
    with pytest.raises(Aborted, match="INVALID_ARGUMENT"):
        asyncio.run(health._check(b"\xff", context))
