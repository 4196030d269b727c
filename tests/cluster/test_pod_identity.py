"""An unprivileged pod on a real kubelet gets its identity before it starts, keeps it fresh, and leaves nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from agent.pb import workload_pb2
from tests.go_tools import Progress

from . import signing
from .cluster import Cluster
from .host import ClusterError
from .image import TEST_IMAGE
from .node_agent import Agent, agent_of_signer, agent_process, files_below, mounts_at, register
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)

ACCOUNT = "web"
SPIFFE_ID = f"spiffe://{signing.TRUST_DOMAIN}/ns/default/sa/{ACCOUNT}"
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
    openssl verify -CAfile ca.crt -untrusted tls.crt tls.crt || exit 1
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


@pytest.fixture(scope="module", params=["embedded", "signer"])
def agent(request: pytest.FixtureRequest, cluster: Cluster, progress: Progress) -> Iterator[Agent]:
    """The agent as a process of the host, at the real kubelet's root; once with its own CA, once through a signer."""
    if request.param == "embedded":
        with agent_process(cluster, "agent", {"admin.sock"}, "--authority", "embedded", *LIFE) as running:
            yield running
        return
    signing.install(cluster, progress)
    cluster.api.remove(signing.SECRET)
    with (
        signing.signer_process(cluster, progress, "signer-pods", *LIFE, "--x509-max-ttl", TTL) as signer,
        agent_of_signer(cluster, progress, "agent-signer", signer) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def driver(cluster: Cluster, agent: Agent, progress: Progress) -> str:
    return register(cluster, agent, progress)


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
    assert "user 10001 groups 10001 20000" in cluster.pods.log(POD)
    # Of one moment: the pod goes on.
    found = printed()
    assert {spiffe_id for _, spiffe_id in found} == {SPIFFE_ID}
    assert len({serial for serial, _ in found}) == len(found) > ROTATIONS
    check()
    assert agent.volumes() == 1.0
    assert mounts_at(volumes)
    # The same identity over the Workload API, through the pod's own view of the volume.
    assert _workload_api_id(f"/proc/{cluster.pods.process(POD)}/root/identity/socket") == SPIFFE_ID

    cluster.pods.delete(POD)
    wait_for(
        "the pod to be gone",
        lambda: cluster.pods.find(POD) is None and not volumes.exists(),
        progress=progress,
        alive=agent.check,
    )
    assert agent.left(cluster.kubelet_root / "pods", uid) == []
    assert {path.name for path in files_below(agent.run_dir) if path.is_socket()} == agent.sockets
    # Gauges are read every two seconds.
    wait_for("no volume in the metrics", lambda: agent.volumes() == 0.0, progress=progress, alive=agent.check)


def _phase(cluster: Cluster) -> str:
    pod = cluster.pods.find(POD) or {}
    return str(pod.get("status", {}).get("phase", "not there"))


def _restarts(cluster: Cluster) -> int:
    pod = cluster.pods.find(POD) or {}
    return sum(each["restartCount"] for each in pod.get("status", {}).get("containerStatuses", []))


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
