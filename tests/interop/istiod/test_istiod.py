"""istiod without its CA: a sidecar that it configures, whose certificates and istiod's own are podsvid's."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from podsvid.quickstart.pods import Pod, PodVolume
from svid.certificates import certificates_from_pem
from tests import go_tools
from tests.cluster import signing
from tests.cluster.api import Object
from tests.cluster.signing import TRUST_DOMAIN
from tests.cluster.traffic import serial
from tests.cluster.waiting import say, wait_for
from tests.interop.istio.mesh import CLUSTER, ISTIO, NODES, Door, Mesh
from tests.interop.istio.proxies import ISTIOD, Sidecar, Traffic, sidecars, until
from tests.interop.kubernetes import kubernetes
from tests.interop.rig import registered
from tests.interop.suites import HERE
from tests.ports import free_port
from tests.processes import end
from tests.support import IS_ROOT, host

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="mounts need root"),
    pytest.mark.timeout(300),
]
LIFE = "8s"
QUICK = (
    *("--x509-min-ttl", "2s", "--x509-ttl", LIFE, "--x509-max-ttl", LIFE, "--retire-after", "1s"),
    *("--outage-limit", "6s", "--reissue-over", "2s", "--forced-reissue-over", "2s"),
)
NETWORKING, SECURITY = "networking.istio.io/v1", "security.istio.io/v1"


class Istiod:
    """One that runs in `home`, and may be started anew."""

    def __init__(self, mesh: Mesh, home: Path) -> None:
        self.home = home
        self.port, self._http = free_port(), free_port()
        self._mesh = mesh
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it is ready."""
        config = {"trustDomain": TRUST_DOMAIN, "enablePrometheusMerge": False}
        (self.home / "mesh.yaml").write_text(json.dumps(config))
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "POD_NAME": "istiod",
            "POD_NAMESPACE": ISTIO,
            "CLUSTER_ID": CLUSTER,
            "ENABLE_CA_SERVER": "false",
            # Envoy is upstream's, which lacks Istio's own filters.
            "PILOT_ENABLE_METADATA_EXCHANGE": "false",
            "INJECTION_WEBHOOK_CONFIG_NAME": "",
            "VALIDATION_WEBHOOK_CONFIG_NAME": "",
        }
        command = [str(self._mesh.programs["pilot-discovery"]), "discovery", "--meshConfig", "mesh.yaml"]
        command += ["--kubeconfig", str(self._mesh.cluster.kubeconfig), "--httpsAddr", "", "--grpcAddr", ""]
        command += ["--httpAddr", f"127.0.0.1:{self._http}", "--secureGRPCAddr", f"127.0.0.1:{self.port}"]
        command += ["--monitoringAddr", f"127.0.0.1:{free_port()}", "--shutdownDuration", "0s"]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.home, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for("istiod", self._ready, progress=say, alive=self.check)

    def stop(self) -> None:
        """If it runs."""
        if self._process is not None:
            end(self._process)

    def serial(self) -> int:
        """Of the certificate that proxies know it by."""
        shown = ssl.get_server_certificate(("127.0.0.1", self.port), timeout=10)
        return certificates_from_pem(shown.encode())[0].serial_number

    def check(self) -> None:
        """Fail the test if it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "log").read_text(errors="replace")[-4000:]

    def _ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._http}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
        return False


def module() -> Path:
    """Where Istio's sources are: its resources, and the template of its proxies' bootstrap."""
    go = shutil.which("go", path=go_tools.SEARCH_PATH)
    assert go is not None, "the programs were built by it"
    done = subprocess.run(
        [go, "mod", "download", "-json", "istio.io/istio"],
        cwd=HERE / "istiod" / "tools" / "istiod",
        env={**os.environ, "GOFLAGS": "-mod=readonly", "GOWORK": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(json.loads(done.stdout)["Dir"])


@pytest.fixture(scope="module")
def mesh(programs: Mapping[str, Path]) -> Iterator[Mesh]:
    with tempfile.TemporaryDirectory(prefix="id", dir="/tmp") as folder, kubernetes(Path(folder) / "k") as found:
        made = Mesh(found, programs)
        made.install()
        crds = (module() / "manifests/charts/base/files/crd-all.gen.yaml").read_text()
        made.api.apply([each for each in yaml.safe_load_all(crds) if each])
        signing.account(made.cluster, "istiod", ISTIO)
        yield made


class _App(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"hi\n")

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""


@contextmanager
def app() -> Iterator[int]:
    """What stands behind the sidecar: its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _App)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def with_volume(mesh: Mesh, door: Door, folder: Path, work: Callable[[Path], None]) -> None:
    """`work` with istiod's volume, of an agent on its node: the name that proxies call it by is in its certificate."""
    names: Object = {"serviceAccounts": ["istiod"], "dnsNameTemplates": [ISTIOD]}
    mesh.policy("istiod", names)
    agent = signing.pod(mesh.cluster, "agent", NODES[0], "podsvid-agent", namespace="podsvid", driver=None)
    flags = signing.agent_flags(mesh.cluster, say, door.signer, agent, folder)
    body = signing.pod(mesh.cluster, "istiod", NODES[0], "istiod", namespace=ISTIO)
    token = mesh.token(body, signing.AUDIENCE)
    volume = PodVolume(tokens={signing.AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}})
    with host() as here:
        here.start("--trust-domain", TRUST_DOMAIN, *flags)
        async with registered(here) as kubelet:
            pod = Pod(ISTIO, "istiod", body["metadata"]["uid"], "istiod")
            await asyncio.to_thread(work, await kubelet.publish(pod, volume))


def serves(sidecar: Sidecar, port: int) -> bool:
    """Whether its Envoy has been told to listen there."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{sidecar.admin}/listeners", timeout=5) as answer:
        return f"127.0.0.1:{port}" in answer.read().decode()
    return False


def listens(mesh: Mesh, to: int, *ports: int) -> None:
    """Have istiod tell the Envoy of pod `web` to listen there, for callers with a certificate only."""
    ingress = [
        {
            "port": {"number": port, "protocol": "HTTP", "name": f"http-{port}"},
            "bind": "127.0.0.1",
            "defaultEndpoint": f"127.0.0.1:{to}",
            "captureMode": "NONE",
        }
        for port in ports
    ]
    spec = {"workloadSelector": {"labels": {"app": "web"}}, "ingress": ingress, "egress": [{"hosts": ["./none"]}]}
    strict: Object = {"mtls": {"mode": "STRICT"}}
    mesh.api.apply(
        [
            {"apiVersion": NETWORKING, "kind": "Sidecar", "metadata": {"name": "web"}, "spec": spec},
            {"apiVersion": SECURITY, "kind": "PeerAuthentication", "metadata": {"name": "all"}, "spec": strict},
        ]
    )


def test_a_sidecar_of_istiod_speaks_through_a_rotation_and_a_restart(
    mesh: Mesh, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pods = {
        "api": mesh.pod("api-1", "api", NODES[1]),
        "web": mesh.pod("web-1", "web", NODES[0], labels={"app": "web", "security.istio.io/tlsMode": "istio"}),
    }

    def speak(volume: Path) -> None:
        # As a pod mounts it: the third file that istiod looks for is ca.crt beside the two.
        home = tmp_path / "istiod"
        (home / "var/run/secrets/istiod").mkdir(parents=True)
        (home / "var/run/secrets/istiod/tls").symlink_to(volume)
        istiod = Istiod(mesh, home)
        template = str(module() / "tools/packaging/common/envoy_bootstrap.json")
        of_istiod = {"proxyBootstrapTemplatePath": template, "discoveryAddress": f"{ISTIOD}:{istiod.port}"}
        try:
            istiod.start()
            folder = tmp_path_factory.mktemp("p")
            with app() as port, sidecars(mesh, door, folder, pods, LIFE, istiod=of_istiod) as proxies:
                api, web = proxies["api"], proxies["web"]
                listens(mesh, port, web.inbound)
                traffic = Traffic([api])
                until("requests to get through", traffic.both_ways, proxies)
                with pytest.raises((urllib.error.URLError, OSError)):
                    urllib.request.urlopen(f"http://127.0.0.1:{web.inbound}/", timeout=10)
                with traffic.running():
                    before = [(each.issuer(), each.trusted()) for each in (api, web)]
                    door.authority("rotate", "--no-wait")

                    def rotated() -> bool:
                        now = [(each.issuer(), each.trusted()) for each in (api, web)]
                        return all(
                            issuer != was and len(trusted) == 1 and trusted != had
                            for (issuer, trusted), (was, had) in zip(now, before, strict=True)
                        )

                    until("the rotation's end", rotated, proxies)
                    until("istiod to serve what its volume has", lambda: istiod.serial() == serial(volume), proxies)
                    istiod.stop()
                    until("requests without istiod", traffic.both_ways, proxies)
                    istiod.start()
                    more = free_port()
                    # It speaks with the sidecar again, each with what the new authority has signed.
                    listens(mesh, port, web.inbound, more)
                    until("what istiod says now", lambda: serves(web, more), proxies)
                say(f"{traffic.done} requests, {len(traffic.failures)} failed")
                assert traffic.failures == []
                assert traffic.done > 100
        finally:
            istiod.stop()

    with mesh.serving("signer-istiod", *QUICK) as door:
        asyncio.run(with_volume(mesh, door, tmp_path, speak))
