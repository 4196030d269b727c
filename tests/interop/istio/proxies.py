"""pilot-agents that get their pods' certificates, and the real Envoys that they start and give them to."""

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.api import Object
from tests.cluster.signing import TRUST_DOMAIN
from tests.cluster.waiting import say, wait_for
from tests.conformance import envoy
from tests.interop.istio.mesh import CLUSTER, NAME, Door, Mesh, issuer, spiffe_id
from tests.ports import free_port
from tests.processes import end

# Where pilot-agent has it; relative to its working directory, which in a pod is the root.
SOCKET = Path("var/run/secrets/workload-spiffe-uds/socket")
ROOTS = Path("var/run/secrets/istio/root-cert.pem")
ISTIOD = "istiod.istio-system.svc"


@dataclass
class Sidecar:
    """One pod's pilot-agent, and its Envoy unless it has none."""

    account: str
    home: Path
    inbound: int = field(default_factory=free_port)
    outbound: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> str:
        """What both said, and pilot-agent's effective configuration."""
        return (self.home / "log").read_text(errors="replace")

    @property
    def out(self) -> Path:
        """Where pilot-agent writes what it has got: OUTPUT_CERTS."""
        return self.home / "out"

    def check(self) -> None:
        """Fail the test if it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.log[-4000:]

    def serial(self) -> int:
        """Of the certificate that Envoy has now; 0 while it has none."""
        found = self._asked("/certs").get("certificates", [])
        chains = [each["cert_chain"][0] for each in found if each.get("cert_chain")]
        return int(chains[0]["serial_number"], 16) if chains else 0

    def trusted(self) -> set[str]:
        """Serial numbers of the roots that Envoy has now."""
        found = self._asked("/certs").get("certificates", [])
        return {one["serial_number"] for each in found for one in each.get("ca_cert", [])}

    def issuer(self) -> bytes:
        """Which authority signed what pilot-agent has."""
        return issuer((self.out / "cert-chain.pem").read_bytes())

    def updates(self) -> int:
        """How many times Envoy was given another certificate or other roots."""
        text = self._read("/stats?filter=ssl_context_update_by_sds")
        return max((int(line.rpartition(": ")[2]) for line in text.splitlines() if ": " in line), default=0)

    def _asked(self, path: str) -> dict[str, Any]:
        with suppress(OSError):
            found: dict[str, Any] = json.loads(self._read(path))
            return found
        return {}

    def _read(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10) as answer:
            text: bytes = answer.read()
        return text.decode()


@contextmanager
def sidecars(
    mesh: Mesh,
    door: Door,
    folder: Path,
    pods: dict[str, Object],
    ttl: str,
    *,
    with_envoy: bool = True,
    istiod: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Sidecar]]:
    """One for each pod, by its account; the Envoy of each calls that of the next.

    With the address of an istiod, and what a template of it has beside it, the last Envoy's configuration is of that.
    """
    names = list(pods)
    found = {name: Sidecar(name, folder / name) for name in names}
    stop = threading.Event()
    kubelet = threading.Thread(target=_keep_roots, args=(mesh, list(found.values()), stop))
    wait_for("istio-ca-root-cert", lambda: bool(mesh.roots()), progress=say, alive=door.signer.check)
    try:
        for number, name in enumerate(names):
            peer = found[names[(number + 1) % len(names)]]
            by = istiod if name == names[-1] else None
            _start(mesh, door, found[name], pods[name], peer, ttl, with_envoy, by)
        kubelet.start()
        yield found
    except BaseException:
        for each in found.values():
            print(f"--- {each.account}\n{each.log[-6000:]}")
        raise
    finally:
        stop.set()
        if kubelet.ident is not None:
            kubelet.join()
        running = [each.process for each in found.values() if each.process is not None]
        for process in running:
            # They drain for some seconds, side by side.
            process.terminate()
        for process in running:
            end(process)


def _keep_roots(mesh: Mesh, proxies: list[Sidecar], stop: threading.Event) -> None:
    """As kubelet does with a ConfigMap, though sooner."""
    while not stop.wait(0.5):
        with suppress(OSError):
            roots = mesh.roots()
            for each in proxies:
                if (each.home / ROOTS).read_text() != roots:
                    new = each.home / f"{ROOTS}.new"
                    new.write_text(roots)
                    new.rename(each.home / ROOTS)


def _start(
    mesh: Mesh,
    door: Door,
    one: Sidecar,
    pod: Object,
    peer: Sidecar,
    ttl: str,
    with_envoy: bool,
    istiod: Mapping[str, str] | None,
) -> None:
    home = one.home
    secrets = home / "var/run/secrets"
    for each in (secrets / "tokens", secrets / "istio", home / "etc/istio/proxy", home / "etc/istio/pod", one.out):
        each.mkdir(parents=True)
    (secrets / "tokens/istio-token").write_text(mesh.token(pod))
    (home / ROOTS).write_text(mesh.roots())
    (home / "hosts").write_text(f"127.0.0.1 localhost {NAME} {ISTIOD}\n")
    labels = pod["metadata"].get("labels", {})
    (home / "etc/istio/pod/labels").write_text("".join(f'{name}="{value}"\n' for name, value in labels.items()))
    (home / "envoy.json").write_text(json.dumps(_bootstrap(one, peer)))
    proxy: dict[str, Any] = {
        "binaryPath": str(envoy.binary()),
        "statusPort": free_port(),
        "proxyAdminPort": one.admin,
        "concurrency": 1,
        "terminationDrainDuration": "1s",
    }
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "INSTANCE_IP": "127.0.0.1",
        "POD_NAME": pod["metadata"]["name"],
        "POD_NAMESPACE": pod["metadata"]["namespace"],
        "SERVICE_ACCOUNT": pod["spec"]["serviceAccountName"],
        "CA_ADDR": f"{NAME}:{door.address.rpartition(':')[2]}",
        "TRUST_DOMAIN": TRUST_DOMAIN,
        "ISTIO_META_CLUSTER_ID": CLUSTER,
        "SECRET_TTL": ttl,
        "OUTPUT_CERTS": "out",
        "MINIMUM_DRAIN_DURATION": "1s",
    }
    if istiod is not None:
        # Nothing is redirected to Envoy here: it listens where a Sidecar object says.
        environment["ISTIO_META_INTERCEPTION_MODE"] = "NONE"
        environment.update({name: str(free_port()) for name in ("ENVOY_STATUS_PORT", "ENVOY_PROMETHEUS_PORT")})
        proxy.update(istiod)
    else:
        # Nobody is there: nothing but certificates is wanted of the control plane.
        proxy.update(customConfigFile=str(home / "envoy.json"), discoveryAddress="127.0.0.1:1")
    if not with_envoy:
        environment["DISABLE_ENVOY"] = "true"
    # The names are in no DNS here; the agent reads this file first.
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    script = 'mount --bind hosts /etc/hosts && exec "$0" proxy sidecar'
    with (home / "log").open("wb") as log:
        one.process = subprocess.Popen(
            [*alone, script, str(mesh.programs["pilot-agent"])],
            cwd=home,
            env={**environment, "PROXY_CONFIG": json.dumps(proxy)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _bootstrap(one: Sidecar, peer: Sidecar) -> dict[str, Any]:
    found = envoy.bootstrap(
        sds_socket=one.home / SOCKET,
        api_type="GRPC",
        bundle="ROOTCA",
        inbound=(one.inbound, spiffe_id(peer.account)),
        outbound=(one.outbound, peer.inbound, spiffe_id(peer.account)),
    )
    for context in _downstream(found):
        # Who resumes a session shows no certificate.
        context.update(disable_stateless_session_resumption=True, disable_stateful_session_resumption=True)
    return {**found, "admin": {"address": envoy.at(one.admin)}}


def _downstream(bootstrap: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for listener in bootstrap["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            if "transport_socket" in chain:
                yield chain["transport_socket"]["typed_config"]


class Traffic:
    """Requests through each Envoy to the next, each over a connection of its own, without a pause worth naming."""

    def __init__(self, proxies: list[Sidecar]) -> None:
        self._ports = [each.outbound for each in proxies]
        self._stop = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    def once(self, port: int) -> str:
        """Empty, or what went wrong."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                return "" if answer.read() == b"hi\n" else "another answer"
        except OSError as error:
            return repr(error)

    def both_ways(self) -> bool | str:
        """Whether all get through, for `wait_for`."""
        found = [why for why in map(self.once, self._ports) if why]
        return not found or "; ".join(found)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until left."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for port in self._ports:
                why = self.once(port)
                self.done += 1
                if why:
                    self.failures.append(f"{time.strftime('%H:%M:%S')} {port} {why}")


def until(what: str, ready: Any, proxies: dict[str, Sidecar]) -> None:
    """Look until it holds; who has ended fails the test."""

    def alive() -> None:
        for each in proxies.values():
            each.check()

    wait_for(what, ready, progress=say, alive=alive)
