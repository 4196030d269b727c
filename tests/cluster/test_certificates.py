"""Pods without a csi volume: a real kubelet asks for their certificates, and they speak to those that have one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from svid.certificates import certificates_from_pem
from tests.go_tools import Progress
from tests.pod_certificates import source, spiffe_id, trust

from . import signing
from .api import Object
from .cluster import Cluster
from .fleet import handshake
from .host import ClusterError
from .node_agent import agent_of_signer, register
from .signing import TRUST_DOMAIN, SignerProcess
from .traffic import running, serial, target, workload
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


@pytest.fixture(scope="module")
def signer(cluster: Cluster, progress: Progress) -> Iterator[SignerProcess]:
    signing.install(cluster, progress, "podCertificates.enabled=true")
    cluster.api.remove(signing.SECRET)
    with ExitStack() as ending:
        found = ending.enter_context(
            signing.signer_process(cluster, progress, "signer-certificates", "--pod-certificates", "true")
        )
        agent = ending.enter_context(agent_of_signer(cluster, progress, "agent-certificates", found))
        register(cluster, agent, progress)
        signing.account(cluster, "web")
        yield found
        for name in ("csi", "certified", "refused"):
            if cluster.pods.find(name) is not None:
                cluster.pods.delete(name)
        # Kubelet takes volumes down after the pods are gone from the API, by the agent.
        wait_for("the pods' volumes to be gone", lambda: agent.volumes() == 0, progress=progress)


def certified(name: str, key_type: str = "ECDSAP256") -> Object:
    """A pod that starts when its certificate is there."""
    pod = workload(name)
    pod["spec"]["serviceAccountName"] = "web"
    pod["spec"]["volumes"] = [
        {
            "name": "identity",
            "projected": {"sources": [source(key_type), trust(TRUST_DOMAIN)]},
        }
    ]
    return pod


def folder(cluster: Cluster, name: str) -> Path:
    pod = cluster.pods.find(name)
    assert pod is not None
    uid = str(pod["metadata"]["uid"])
    return cluster.kubelet_root / "pods" / uid / "volumes/kubernetes.io~projected/identity"


def notes(cluster: Cluster, name: str) -> list[str]:
    found = cluster.api.get(EVENTS)["items"]
    return [f"{each['reason']} {each['note']}" for each in found if each["regarding"].get("name") == name]


def starts(cluster: Cluster, name: str, progress: Progress, signer: SignerProcess) -> None:
    try:
        wait_for(f"pod {name}", lambda: running(cluster, name), progress=progress, alive=signer.check)
    except ClusterError as error:
        log = signer.log.read_text(errors="replace")[-4000:]
        pytest.fail(f"{error}\n{cluster.pods.describe(name)}\n{notes(cluster, name)}\n{log}")


def test_a_pod_without_the_driver_speaks_to_one_with_it_and_is_renewed(
    cluster: Cluster, signer: SignerProcess, progress: Progress
) -> None:
    for pod in (workload("csi"), certified("certified")):
        cluster.pods.create(pod)
    for name in ("csi", "certified"):
        starts(cluster, name, progress, signer)
    ours, theirs = folder(cluster, "certified"), target(cluster, "csi")
    leaf = certificates_from_pem((ours / "tls.crt").read_bytes())[0]
    assert spiffe_id(leaf) == f"spiffe://{TRUST_DOMAIN}/ns/default/sa/web"
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=1)
    handshake(ours, theirs)
    handshake(theirs, ours)
    # Keys are in kubelet's memory only: when it is started again it asks for every pod anew, and the pod goes on.
    before = serial(ours)
    with cluster.killed("kubelet"):
        pass
    wait_for("another certificate", lambda: serial(ours) != before, progress=progress, alive=signer.check)
    handshake(ours, theirs)
    handshake(theirs, ours)
    (line, *_) = [each for each in signer.audit() if each.get("kind") == "pod_certificate"]
    assert (line["pod"], line["service_account"]) == ("default/certified", "web")


def test_a_key_that_policy_does_not_want_is_denied_as_the_pods_events_say(
    cluster: Cluster, signer: SignerProcess, progress: Progress
) -> None:
    """P-521 is a key type of kubelet's, and none of SVIDs."""
    cluster.pods.create(certified("refused", key_type="ECDSAP521"))

    def told() -> bool | str:
        found = notes(cluster, "refused")
        return any("UnsupportedKeyType" in each for each in found) or "; ".join(found)

    wait_for("kubelet's event", told, progress=progress, alive=signer.check)
