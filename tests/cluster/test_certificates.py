"""Pods without a csi volume: a real kubelet asks for their certificates, and they speak to those that have one."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import pytest
from cryptography import x509

from signer.authority.slots import Stage
from svid.certificates import certificates_from_pem
from tests.go_tools import Progress
from tests.pod_certificates import source, spiffe_id, trust

from . import signing
from .api import Object
from .cluster import Cluster
from .fleet import handshake
from .host import ClusterError
from .node_agent import agent_of_signer, register
from .rounds import held, trusted
from .signing import TRUST_DOMAIN, SignerProcess, stored_state
from .test_rotation import authority
from .traffic import Traffic, running, serial, target, workload
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)
FLAGS = ("--pod-certificates", "true", "--reissue-over", "5s", "--forced-reissue-over", "20s")
BY_KUBELET = ("certified", "second")
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


@pytest.fixture(scope="module")
def signer(cluster: Cluster, progress: Progress) -> Iterator[SignerProcess]:
    signing.install(cluster, progress, "podCertificates.enabled=true")
    cluster.api.remove(signing.SECRET)
    with ExitStack() as ending:
        found = ending.enter_context(
            signing.signer_process(cluster, progress, "signer-certificates", *FLAGS, program="tests.cluster.sooner")
        )
        agent = ending.enter_context(agent_of_signer(cluster, progress, "agent-certificates", found))
        register(cluster, agent, progress)
        signing.account(cluster, "web")
        yield found
        for name in ("csi", "certified", "second", "refused"):
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


def started(cluster: Cluster, signer: SignerProcess, progress: Progress) -> dict[str, Path]:
    """A pod with a csi volume and two with a podCertificate volume, those of before where they are: what each has."""
    for pod in (workload("csi"), certified("certified"), certified("second")):
        if cluster.pods.find(pod["metadata"]["name"]) is None:
            cluster.pods.create(pod)
    for name in ("csi", *BY_KUBELET):
        starts(cluster, name, progress, signer)
    return {"csi": target(cluster, "csi"), **{name: folder(cluster, name) for name in BY_KUBELET}}


@contextmanager
def speaking(folders: Iterable[Path]) -> Iterator[Traffic]:
    traffic = Traffic(list(folders))
    thread = threading.Thread(target=traffic.run)
    thread.start()
    try:
        yield traffic
    finally:
        traffic.stop()
        thread.join()


def issuer(one: Path) -> str:
    return held(one).authority


def trusts(one: Path, authority_id: str) -> bool:
    return any(
        each.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex() == authority_id
        for each in trusted(one)
    )


def refused_activation(signer: SignerProcess) -> str:
    """What a person is told who would have the prepared authority sign now."""
    done = subprocess.run(
        [sys.executable, "-m", "podsvid", "authority", "activate", "--socket", str(signer.admin_socket)],
        cwd=signing.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "TRANSITION_REFUSED" in done.stderr) == (1, True), done
    return done.stderr


def test_a_rotation_fails_no_handshake_of_pods_that_never_acknowledge(
    cluster: Cluster, signer: SignerProcess, progress: Progress
) -> None:
    folders = started(cluster, signer, progress)
    by_kubelet = [folders[name] for name in BY_KUBELET]
    before = stored_state(cluster).active_x509_id
    with speaking(folders.values()) as traffic:
        authority(signer, "rotate", "--no-wait")

        def prepared() -> str:
            found = stored_state(cluster).find("x509", Stage.PREPARED)
            return found.id if found is not None else ""

        wait_for("a prepared authority", lambda: bool(prepared()), progress=progress, alive=signer.check)
        new = prepared()
        # Whoever acknowledges does so in a moment; these pods have no other word in it.
        wait_for(
            "the refusal to have the new authority sign already",
            lambda: "verifiers that never acknowledge (pod_certificates)" in refused_activation(signer),
            progress=progress,
            alive=signer.check,
        )
        wait_for(
            "kubelet to bring the new root",
            lambda: all(trusts(each, new) for each in by_kubelet),
            progress=progress,
            alive=signer.check,
        )
        assert stored_state(cluster).active_x509_id == before
        wait_for(
            "the new authority to sign",
            lambda: stored_state(cluster).active_x509_id == new,
            progress=progress,
            alive=signer.check,
        )
        wait_for("the csi volume's new SVID", lambda: issuer(folders["csi"]) == new, progress=progress)
        # Nothing pulls their renewal forward, and the old authority stays trusted until what it issued has ended.
        assert [issuer(each) for each in by_kubelet] == [before, before]
        assert all(trusts(each, before) for each in folders.values())
        apart = traffic.done
        wait_for("handshakes of both authorities' SVIDs", lambda: traffic.done > apart + 100, progress=progress)
        with cluster.killed("kubelet"):
            pass
        wait_for(
            "kubelet's new certificates",
            lambda: all(issuer(each) == new for each in by_kubelet),
            progress=progress,
            alive=signer.check,
        )
        after = traffic.done
        wait_for("handshakes afterwards", lambda: traffic.done > after + 100, progress=progress)
    progress(f"{traffic.done} handshakes, {len(traffic.failures)} failed")
    assert traffic.failures == []


def test_after_a_theft_kubelet_takes_the_stolen_root_away_and_a_pod_that_is_made_again_is_well_at_once(
    cluster: Cluster, signer: SignerProcess, progress: Progress
) -> None:
    folders = started(cluster, signer, progress)
    by_kubelet = [folders[name] for name in BY_KUBELET]
    for one, other in permutations(folders.values(), 2):
        handshake(one, other)
    stolen = stored_state(cluster).active_x509_id
    out = authority(signer, "rotate", "--forced")
    progress(f"forced rotation:\n{out}")
    # Agents have done as they were told when it ends; these pods are waited for by nobody.
    assert not trusts(folders["csi"], stolen)
    began = time.monotonic()
    wait_for(
        "kubelet to take the stolen root away",
        lambda: not any(trusts(each, stolen) for each in by_kubelet),
        progress=progress,
        alive=signer.check,
    )
    progress(f"kubelet had taken it away {time.monotonic() - began:.0f} s after the forced rotation's end")
    # What the thief may have: an SVID of the stolen authority. Its owner is no better off, until the pod is made again.
    thief = folders["certified"]
    assert issuer(thief) == stolen
    for verifier in (folders["csi"], folders["second"]):
        for server, client in ((verifier, thief), (thief, verifier)):
            with pytest.raises(ssl.SSLError):
                handshake(server, client)
    shown = authority(signer, "show")
    assert f"pods with podCertificate volumes may have SVIDs of {stolen}, which was abandoned, until" in shown
    for name in BY_KUBELET:
        cluster.pods.delete(name)
    wait_for("the pods to be gone", lambda: not any(map(cluster.pods.find, BY_KUBELET)), progress=progress)
    again = started(cluster, signer, progress)
    new = stored_state(cluster).active_x509_id
    assert [issuer(each) for each in again.values()] == [new] * 3
    for one, other in permutations(again.values(), 2):
        handshake(one, other)
