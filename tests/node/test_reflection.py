"""Reflection and health on a pod's socket, as grpcurl and probes use them: no SPIFFE header."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from agent.metrics import Metrics
from agent.socket import reflection
from agent.socket.endpoint import Endpoint
from agent.socket.health import Health
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.here_sockets import alone

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# The service and its messages as the specification's file has them: name, number, type, repeated.
FIELDS = {
    "X509SVIDResponse": {"svids": 1, "crl": 2, "federated_bundles": 3},
    "X509SVID": {"spiffe_id": 1, "x509_svid": 2, "x509_svid_key": 3, "bundle": 4, "hint": 5},
    "X509BundlesResponse": {"crl": 1, "bundles": 2},
    "JWTSVIDRequest": {"audience": 1, "spiffe_id": 2},
    "JWTSVIDResponse": {"svids": 1},
    "JWTSVID": {"spiffe_id": 1, "svid": 2, "hint": 3},
    "JWTBundlesResponse": {"bundles": 1},
    "ValidateJWTSVIDRequest": {"audience": 1, "svid": 2},
    "ValidateJWTSVIDResponse": {"spiffe_id": 1, "claims": 2},
    "X509SVIDRequest": {},
    "X509BundlesRequest": {},
    "JWTBundlesRequest": {},
}


class StepClock:
    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def served(main: Callable[[Any, Feed[WorkloadIdentity], StepClock], Awaitable[Any]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
            feed: Feed[WorkloadIdentity] = Feed()
            clock = StepClock()
            handlers = [Health(feed, clock).handlers(), *reflection.handlers()]
            endpoint = Endpoint(handlers, alone(), Metrics())
            await endpoint.open(str(Path(base, "socket")))
            try:
                async with grpc.aio.insecure_channel(f"unix:{base}/socket") as channel, asyncio.timeout(30):
                    await main(channel, feed, clock)
            finally:
                await endpoint.close()

    asyncio.run(run())


def identity(clock: StepClock) -> WorkloadIdentity:
    issuer = X509Authority.create(
        TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=clock.at
    )
    key, web = KeyAlgorithm.EC_P256.generate(), SpiffeId.parse("spiffe://example.org/web")
    chain = issuer.issue(key.public_key(), web, ttl=timedelta(hours=1), now=clock.at)
    return WorkloadIdentity((X509Svid(web, chain, key),), issuer.bundle)


@pytest.mark.spec("EP-21", "EP-19", "WL-4", "C-10")
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_shows_the_workload_api_as_it_is_specified_and_nothing_more(version: str) -> None:
    async def main(channel: Any, feed: Feed[WorkloadIdentity], clock: StepClock) -> None:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {each.name for each in (await call.read()).list_services_response.service}
        assert {"SpiffeWorkloadAPI", "grpc.health.v1.Health"} <= names
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="SpiffeWorkloadAPI"))
        answer = (await call.read()).file_descriptor_response
        files = [descriptor_pb2.FileDescriptorProto.FromString(each) for each in answer.file_descriptor_proto]
        (file,) = [each for each in files if each.service]
        assert (file.package, [each.name for each in file.service]) == ("", ["SpiffeWorkloadAPI"])
        streams = {each.name: each.server_streaming for each in file.service[0].method}
        assert streams == {
            "FetchX509SVID": True,
            "FetchX509Bundles": True,
            "FetchJWTSVID": False,
            "FetchJWTBundles": True,
            "ValidateJWTSVID": False,
        }
        assert not any(each.client_streaming for each in file.service[0].method)
        assert {each.name: {f.name: f.number for f in each.field} for each in file.message_type} == FIELDS
        call.cancel()

    served(main)


def test_health_follows_the_svid() -> None:
    async def main(channel: Any, feed: Feed[WorkloadIdentity], clock: StepClock) -> None:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )(b"")
        assert (await watch.read()).status == NOT_SERVING
        assert (await check(b"")).status == NOT_SERVING
        feed.publish(identity(clock))
        assert (await watch.read()).status == SERVING
        named = health_pb2.HealthCheckRequest(service="SpiffeWorkloadAPI").SerializeToString()
        assert (await check(named)).status == SERVING
        clock.at += timedelta(hours=2)
        assert (await check(b"")).status == NOT_SERVING
        feed.publish(identity(clock))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health_pb2.HealthCheckRequest(service="other").SerializeToString())
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(b"\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        watch.cancel()

    served(main)
