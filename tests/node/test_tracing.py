"""Traces as a collector gets them: a real agent and a real signer, one trace from kubelet's call to the signature."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import AUDIENCE
from tests.support import DRIVER, IS_ROOT, ROOT, host

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes OTLP over gRPC and keeps what it got: spans by name, each with its resource's facts."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[Any, dict[str, str]]] = {}
        self.raw = b""

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> Any:
        self.raw += request.SerializeToString()
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.name] = (span, facts(resource.resource.attributes))
        return trace_service_pb2.ExportTraceServiceResponse()


def facts(attributes: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes}


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield found, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_one_trace_from_kubelets_call_to_the_signature() -> None:
    async def run(site: Mapping[str, Any], base: Path, endpoint: str) -> list[str]:
        namespace, name, uid, token, _, account = site["pods"][0]
        (base / "token").write_text(site["agents"][0])
        with host() as here:
            here.environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
            here.start(
                *("--authority", "signer", "--signer-address", site["address"], "--signer-bundle", site["bundle"]),
                *("--agent-token-file", str(base / "token"), "--tracing-endpoint", endpoint),
            )
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await kubelet.wait_registered(DRIVER)
                tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
                pod, volume = Pod(namespace, name, uid, account), PodVolume(tokens=tokens)
                await kubelet.publish(pod, volume)
                await kubelet.unpublish(pod, volume)
                assert await asyncio.to_thread(here.stop) == 0
        return [token, site["agents"][0]]

    with collecting() as (collector, endpoint):
        with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
            base = Path(folder)
            flags = ("--tracing-endpoint", endpoint)
            with process(base, 1, 1, free_port(), *flags) as (_, site):
                secrets = asyncio.run(run(site, base, endpoint))
        found = {name: span for name, (span, _) in collector.spans.items()}
        publish = found["NodePublishVolume"]
        assert {each.trace_id for each in found.values()} == {publish.trace_id}
        by_id = {span.span_id: name for name, span in found.items()}
        assert {name: by_id.get(span.parent_span_id, "") for name, span in found.items()} == {
            "NodePublishVolume": "",
            "mint": "NodePublishVolume",
            "attest, decide, sign": "mint",
            "attest the pod": "attest, decide, sign",
            "decide": "attest, decide, sign",
            "sign": "attest, decide, sign",
            "mount": "NodePublishVolume",
            "write and serve": "NodePublishVolume",
        }
        assert collector.spans["sign"][1]["service.name"] == "podsvid-signer"
        assert collector.spans["mint"][1]["service.name"] == "podsvid-agent"
        assert facts(publish.attributes)["k8s.pod.name"] == "p0"
        assert facts(found["attest, decide, sign"].attributes)["podsvid.spiffe_id"].endswith("/sa/account-0")
        assert not [secret for secret in secrets if secret.encode() in collector.raw]


def test_a_refused_volume_is_a_failed_span_with_its_reason_and_no_words() -> None:
    async def run(endpoint: str) -> None:
        with host() as here:
            here.environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
            here.start("--tracing-endpoint", endpoint)
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await kubelet.wait_registered(DRIVER)
                web, volume = Pod("default", "web", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111"), PodVolume()
                target = kubelet.target_path(web, volume)
                target.parent.mkdir(parents=True)
                target.write_text("in the way")
                with pytest.raises(Exception, match="MountVolume"):
                    await kubelet.publish(web, volume)
                assert await asyncio.to_thread(here.stop) == 0

    with collecting() as (collector, endpoint):
        asyncio.run(run(endpoint))
        span, _ = collector.spans["NodePublishVolume"]
        assert span.status.code == 2  # STATUS_CODE_ERROR
        assert span.status.message == "INVALID_REQUEST"
        assert list(span.events) == []


def test_a_collector_that_is_away_costs_spans_and_nothing_else() -> None:
    async def run() -> None:
        with host() as here:
            here.start("--tracing-endpoint", f"http://127.0.0.1:{free_port()}")
            async with StandInKubelet(here.kubelet_root) as kubelet:
                await kubelet.wait_registered(DRIVER)
                web = Pod("default", "web", "0b6a9a4e-6a8e-4c1c-9f3c-111111111111")
                await kubelet.publish(web, PodVolume())
                await kubelet.unpublish(web, PodVolume())
                assert await asyncio.to_thread(here.stop) == 0

    asyncio.run(run())


def test_without_a_collector_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import json, sys, agent.daemon, agent.authority.signer, signer.daemon; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    assert [name for name in json.loads(done.stdout) if name.startswith("opentelemetry")] == []
