"""An unprivileged pod on a real kubelet gets its identity before it starts, keeps it fresh, and leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from agent.pb import workload_pb2
from tests.go_tools import Progress
from tests.ports import free_port
from tests.processes import end

from . import chart, signing
from .cluster import Cluster
from .host import ClusterError
from .image import TEST_IMAGE
from .layout import NODE
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)

ROOT = Path(__file__).parents[2]
TRUST_DOMAIN = "cluster.test"
ACCOUNT = "web"
SPIFFE_ID = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{ACCOUNT}"
POD = "web"
ROTATIONS = 3
# Half of it is between two of them, and half is left then for a busy machine.
TTL = "20s"
LIFE = ("--x509-ttl", TTL, "--x509-min-ttl", "10s")

# The container's first act is to look: kubelet starts it only after NodePublishVolume has returned, so an
# identity that is not whole at that point is a failure and not something to wait for.
WORKLOAD = r"""
set -eu
cd /identity
for name in tls.crt tls.key ca.crt; do
  [ -s $name ] || { echo "absent: $name"; exit 1; }
done
[ -S socket ] || { echo "absent: socket"; exit 1; }
echo "user $(id -u) groups $(id -G)"
if ( : > own-file ) 2>/dev/null; then echo "the volume is writable"; exit 1; fi
trap 'exit 0' TERM
last=
while :; do
  serial=$(openssl x509 -in tls.crt -noout -serial)
  if [ "$serial" != "$last" ]; then
    openssl verify -CAfile ca.crt tls.crt || exit 1
    # Both are read while the files may be replaced: only a pair that stays wrong is wrong.
    for attempt in 1 2 3; do
      of_cert=$(openssl x509 -in tls.crt -noout -pubkey)
      of_key=$(openssl pkey -in tls.key -pubout)
      [ "$of_cert" = "$of_key" ] && break
      [ $attempt = 3 ] && { echo "tls.key is not the key of tls.crt"; exit 1; }
      sleep 0.2
    done
    echo "$serial $(openssl x509 -in tls.crt -noout -ext subjectAltName | grep -o 'URI:.*')"
    last=$serial
  fi
  sleep 0.5
done
"""


@dataclass(frozen=True)
class Agent:
    """The agent under test and what it may leave behind."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    log: Path
    url: str
    sockets: frozenset[str]

    def check(self) -> None:
        """Fail the test if the agent has ended."""
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]

    def volumes(self) -> float:
        """The metric of published volumes."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        found = re.search(r"^podsvid_volumes(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])


@pytest.fixture(scope="module", params=["embedded", "signer"])
def agent(request: pytest.FixtureRequest, cluster: Cluster, progress: Progress) -> Iterator[Agent]:
    """The agent as a process of the host, at the real kubelet's root; once with its own CA, once through a signer."""
    if request.param == "embedded":
        with _agent(cluster, "agent", {"admin.sock"}, "--authority", "embedded", *LIFE) as running:
            yield running
        return
    signing.install(cluster, progress)
    cluster.api.remove(signing.SECRET)
    # An agent's pod on this node: what the projected token of the DaemonSet is bound to.
    body = signing.pod(cluster, "agent", NODE, "podsvid-agent", namespace=signing.NAMESPACE, driver=None)
    ttls = (*LIFE, "--x509-max-ttl", TTL)
    with signing.signer_process(cluster, progress, "signer-pods", *ttls) as signer:
        flags = signing.agent_flags(cluster, progress, signer, body)
        with _agent(cluster, "agent-signer", {"admin.sock", "to-signer.sock"}, *flags) as running:
            yield running
    cluster.api.delete(f"/api/v1/namespaces/{signing.NAMESPACE}/pods/agent", grace_seconds=0)


@contextmanager
def _agent(cluster: Cluster, name: str, sockets: set[str], *flags: str) -> Iterator[Agent]:
    home = cluster.directory / name
    home.mkdir()
    listen = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "podsvid", "agent", *flags]
    command += ["--trust-domain", TRUST_DOMAIN, "--node-name", NODE, "--kubelet-root", str(cluster.kubelet_root)]
    command += ["--state-dir", str(home / "state"), "--run-dir", str(home / "run")]
    command += ["--metrics-listen", listen]
    log = cluster.logs / f"{name}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=cluster.child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Agent(process, home / "run", log, f"http://{listen}", frozenset(sockets))
    finally:
        end(process)


@pytest.fixture(scope="module")
def driver(cluster: Cluster, agent: Agent, progress: Progress) -> str:
    """The driver's name, once the API server knows it and kubelet has registered it."""
    (definition,) = (each for each in chart.render(f"trustDomain={TRUST_DOMAIN}") if each["kind"] == "CSIDriver")
    cluster.api.apply([definition])
    name = str(definition["metadata"]["name"])

    def registered() -> bool:
        found = cluster.api.find(f"/apis/storage.k8s.io/v1/csinodes/{NODE}") or {}
        return name in [each["name"] for each in found.get("spec", {}).get("drivers") or []]

    wait_for("kubelet to register the driver", registered, progress=progress, alive=agent.check)
    return name


def _pod(driver: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "serviceAccountName": ACCOUNT,
            "hostNetwork": True,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 5,
            "securityContext": {"runAsUser": 10001, "runAsGroup": 10001, "runAsNonRoot": True, "fsGroup": 20000},
            "containers": [
                {
                    "name": "main",
                    "image": TEST_IMAGE,
                    "imagePullPolicy": "Never",
                    "args": ["-c", WORKLOAD],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [{"name": "identity", "mountPath": "/identity", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "identity", "csi": {"driver": driver, "readOnly": True}}],
        },
    }


def test_a_pod_is_served_from_its_first_instruction_to_its_end(
    cluster: Cluster, agent: Agent, driver: str, progress: Progress
) -> None:
    signing.account(cluster, ACCOUNT)
    uid = str(cluster.pods.create(_pod(driver))["metadata"]["uid"])
    volumes = cluster.kubelet_root / "pods" / uid / "volumes" / "kubernetes.io~csi"

    def printed() -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = re.findall(
            r"^serial=([0-9A-F]+) URI:(\S+)$", cluster.pods.log(POD), re.MULTILINE
        )
        return found

    def check() -> None:
        agent.check()
        assert _restarts(cluster) == 0, cluster.pods.describe(POD)

    def rotated() -> bool | str:
        count = len(printed())
        return True if count > ROTATIONS else f"{max(count - 1, 0)} rotations, pod {_phase(cluster)}"

    try:
        wait_for(f"{ROTATIONS} rotations", rotated, progress=progress, alive=check)
    except ClusterError as error:
        pytest.fail(f"{error}\n{cluster.pods.describe(POD)}\n{agent.log.read_text(errors='replace')[-4000:]}")
    log = cluster.pods.log(POD)
    assert "user 10001 groups 10001 20000" in log
    assert {spiffe_id for _, spiffe_id in printed()} == {SPIFFE_ID}
    assert len({serial for serial, _ in printed()}) == len(printed()) > ROTATIONS
    check()
    assert agent.volumes() == 1.0
    assert _mounts_at(volumes)
    # The same identity over the Workload API, through the pod's own view of the volume.
    assert _workload_api_id(f"/proc/{cluster.pods.process(POD)}/root/identity/socket") == SPIFFE_ID

    cluster.pods.delete(POD)
    wait_for(
        "the pod to be gone",
        lambda: cluster.pods.find(POD) is None and not volumes.exists(),
        progress=progress,
        alive=agent.check,
    )
    assert _mounts_at(cluster.kubelet_root / "pods" / uid) == []
    assert _files(agent.run_dir / "journal") == []
    assert {path.name for path in agent.run_dir.rglob("*") if path.is_socket()} == agent.sockets
    assert [path for path in (cluster.kubelet_root / "pods").rglob("*") if path.is_socket()] == []
    # Gauges are read every two seconds.
    wait_for("no volume in the metrics", lambda: agent.volumes() == 0.0, progress=progress, alive=agent.check)


def _phase(cluster: Cluster) -> str:
    pod = cluster.pods.find(POD) or {}
    return str(pod.get("status", {}).get("phase", "not there"))


def _restarts(cluster: Cluster) -> int:
    pod = cluster.pods.find(POD) or {}
    return sum(each["restartCount"] for each in pod.get("status", {}).get("containerStatuses", []))


def _mounts_at(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def _workload_api_id(address: str) -> str:
    with grpc.insecure_channel(f"unix:{address}") as channel:
        fetch = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )
        stream = fetch(
            workload_pb2.X509SVIDRequest(),
            metadata=(("workload.spiffe.io", "true"),),
            timeout=60,
            wait_for_ready=True,
        )
        answer = next(iter(stream))
        stream.cancel()
        return str(answer.svids[0].spiffe_id)
