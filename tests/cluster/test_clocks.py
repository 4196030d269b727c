"""A signer whose clock is wrong by up to a minute, at a real kubelet's pods; and one of them that ends without a token.

Only the signer's process has another clock, for all that it does: what it signs, its TLS, how it judges tokens and the
ends of pods. The node, its pods and the API server have the true one.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import jwt
import pytest

from csi.pb import csi_pb2
from podsvid.quickstart.pods import Pod, PodVolume
from podsvid.quickstart.request import publish_request
from svid.certificates import certificates_from_pem, serial_of
from tests.faketime import LIBRARY, SetClock
from tests.go_tools import Progress

from . import signing, traffic
from .api import Object
from .cluster import Cluster
from .fleet import handshake
from .node_agent import Agent, agent_of_signer, gauge, register
from .signing import AUDIENCE, DRIVER, NAMESPACE, ROOT, SECRET, Refusal, SignerClient, SignerProcess
from .test_rotation import authority
from .waiting import wait_for

pytestmark = [
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the package libfaketime, which sets clocks of processes"),
]
ACCOUNT, AGENT, FIRST, SHORT, LEAVING = "clocks", "agent-clocks", "clock-first", "clock-short", "clock-leaving"
# Seconds. What a clock signs that is behind by a minute has a third of its life yet, and is renewed soon.
TTL, BEHIND = 90, -60
OTHERS = (-15, 15, 60)
# Of the pod that is deleted; and for how long the API server takes a token that has ended.
GRACE, LEEWAY = 120, 60
FLAGS = ("--x509-ttl", f"{TTL}s", "--x509-min-ttl", "10s", "--x509-max-ttl", f"{TTL}s")
# A call is between two looks at the one clock while the other one's is looked at.
NEARLY = 5.0


@dataclass
class Site:
    """A node with a real kubelet, and a signer that can be replaced."""

    cluster: Cluster
    progress: Progress
    clock: SetClock
    stack: ExitStack
    signer: SignerProcess
    agent: Agent

    def restart_signer(self) -> None:
        """Another process at the same address: it has no certificate yet."""
        self.signer.process.terminate()
        self.signer.process.wait()
        port = int(self.signer.address.rpartition(":")[2])
        self.signer = self.stack.enter_context(_signer(self.cluster, self.progress, self.clock, port))

    def running(self, name: str) -> Path:
        """Wait until kubelet has started the pod; its volume."""
        wait_for(name, lambda: traffic.running(self.cluster, name), progress=self.progress, alive=self.agent.check)
        return traffic.target(self.cluster, name)

    def rotate(self, name: str) -> str:
        """`podsvid node rotate`: why the pod has got no new SVID; else nothing."""
        socket = str(self.agent.run_dir / "admin.sock")
        command = [sys.executable, "-m", "podsvid", "node", "rotate", f"default/{name}", "--socket", socket]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def renewed(self, folder: Path, before: int) -> None:
        """Wait until there is another SVID than that."""
        wait_for("a renewal", lambda: traffic.serial(folder) != before, progress=self.progress, alive=self.agent.check)

    def differs(self, ahead: float) -> bool | str:
        """Whether the metrics of both sides say by how much the signer's clock is ahead."""
        node = self.agent.gauge("podsvid_node_clock_behind_seconds")
        signer = gauge(self.signer.url, "podsvid_signer_clock_ahead_seconds")
        return all(abs(each - ahead) < NEARLY for each in (node, signer)) or f"node {node:.1f}, signer {signer:.1f}"

    def minted(self, uid: str) -> list[Object]:
        """The audit lines of what a pod was given."""
        return [line for line in self.signer.audit() if line["event"] == "mint allowed" and line["pod_uid"] == uid]


@dataclass(frozen=True)
class Look:
    """What a volume held at that time, by the node's clock."""

    at: datetime
    ends: datetime
    serial: str


@dataclass
class Leaving:
    """A pod that is deleted and serves on: all that its volume held, to its end."""

    site: Site
    body: Object
    target: Path
    peer: Path
    last_token: str
    looks: list[Look] = field(default_factory=list)
    # What renewals that were asked for after the last token's end said.
    asked: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    def follow(self) -> datetime:
        """Look and shake hands again and again; when the volume is gone, by the node's clock. Raises ssl.SSLError."""
        ended = jwt.decode(self.last_token, options={"verify_signature": False})["exp"]
        passed = False
        while not self.stop.wait(0.3):
            try:
                leaf = certificates_from_pem((self.target / "tls.crt").read_bytes())[0]
                self.looks.append(Look(datetime.now(UTC), leaf.not_valid_after_utc, serial_of(leaf)))
                handshake(self.target, self.peer)
            except FileNotFoundError:
                if not (self.target / "..data").exists():
                    return datetime.now(UTC)
                raise
            if not passed and time.time() > ended + LEEWAY and not self._is_good():
                self._pass()
                passed = True
            if passed and len(self.by_ended_token()) < 2:
                self.asked.append(self.site.rotate(LEAVING))
        raise AssertionError("given up")

    def by_ended_token(self) -> list[Object]:
        """The audit lines of what it was given by that token since."""
        return [line for line in self.site.minted(self.uid) if line["ended_token"]]

    def _is_good(self) -> bool:
        review = {"spec": {"token": self.last_token, "audiences": [AUDIENCE]}}
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        return bool(self.site.cluster.api.create(path, review)["status"].get("authenticated"))

    def _pass(self) -> None:
        """In the place of what kubelet brought last, which lives for ten minutes at least."""
        passed = {AUDIENCE: {"token": self.last_token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
        request = publish_request(
            Pod("default", LEAVING, self.uid, ACCOUNT),
            PodVolume("identity", tokens=passed),
            self.target,
            tokens_in_secrets=True,
            mount_group=False,
        )
        with grpc.insecure_channel(f"unix:{self.site.cluster.kubelet_root}/plugins/{DRIVER}/csi.sock") as channel:
            channel.unary_unary(
                "/csi.v1.Node/NodePublishVolume",
                csi_pb2.NodePublishVolumeRequest.SerializeToString,
                csi_pb2.NodePublishVolumeResponse.FromString,
            )(request, timeout=60)


@pytest.fixture(scope="module")
def site(cluster: Cluster, progress: Progress) -> Iterator[Site]:
    """A signer that is behind from its start on; one of the pods is asked for and cannot be given what it wants."""
    signing.install(cluster, progress)
    cluster.api.remove(SECRET)
    signing.account(cluster, ACCOUNT)
    folder = cluster.directory / "clocks"
    folder.mkdir()
    clock = SetClock(folder, BEHIND)
    with ExitStack() as stack:
        signer = stack.enter_context(_signer(cluster, progress, clock))
        agent = stack.enter_context(agent_of_signer(cluster, progress, AGENT, signer))
        register(cluster, agent, progress)
        for name in (FIRST, LEAVING, SHORT):
            cluster.pods.create(_pod(name))
        yield Site(cluster, progress, clock, stack, signer, agent)
        _delete_pods(cluster)


@pytest.fixture(scope="module")
def leaving(site: Site) -> Iterator[tuple[Leaving, Future[datetime]]]:
    """Deleted before the first test, so that its last token ends in time; the signer is ahead by then."""
    target, peer = site.running(LEAVING), site.running(FIRST)
    body = site.cluster.pods.find(LEAVING)
    assert body is not None
    token = signing.expired_token(site.cluster, ACCOUNT, "default", AUDIENCE, body, time.time() + 3)
    site.cluster.pods.delete(LEAVING)
    found = Leaving(site, site.cluster.pods.find(LEAVING) or {}, target, peer, token)
    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(found.follow)
        yield found, following
        found.stop.set()


def test_pods_start_and_are_renewed_whatever_the_signers_clock_says(
    site: Site, leaving: tuple[Leaving, Future[datetime]]
) -> None:
    first = site.running(FIRST)
    wait_for("the difference", lambda: site.differs(BEHIND), progress=site.progress)
    site.renewed(first, traffic.serial(first))
    # One that has ended by the node's clock when it is signed.
    wait_for("kubelet to say so", lambda: "CLOCKS_DIFFER" in site.cluster.pods.describe(SHORT), progress=site.progress)
    said = site.cluster.pods.describe(SHORT)
    assert all(each in said for each in ("this node's clock says", "the authority's said", " s behind")), said
    assert traffic.running(site.cluster, SHORT) is not True

    pods = [first]
    for ahead in OTHERS:
        # So that the next renewal is soon.
        site.clock.set(BEHIND)
        assert site.rotate(FIRST) == ""
        before = traffic.serial(first)
        site.clock.set(ahead)
        if ahead == OTHERS[-1]:
            site.restart_signer()
        site.cluster.pods.create(_pod(f"clock-{ahead}"))
        pods.append(site.running(f"clock-{ahead}"))
        site.renewed(first, before)
        wait_for("the difference", lambda ahead=ahead: site.differs(ahead), progress=site.progress)  # type: ignore[misc]
        for one in pods:
            for other in pods:
                handshake(one, other)
    assert "ahead of the API server's" in authority(site.signer, "show")
    pods.append(site.running(SHORT))
    handshake(first, pods[-1])


def test_a_pod_that_is_deleted_is_served_to_the_end_of_its_grace_period(
    site: Site, leaving: tuple[Leaving, Future[datetime]]
) -> None:
    found, following = leaving
    until = datetime.fromisoformat(found.body["metadata"]["deletionTimestamp"])
    gone_at = following.result()
    assert gone_at >= until - timedelta(seconds=1)
    assert [each for each in found.looks if each.ends <= each.at] == []
    lines = site.minted(found.uid)
    site.progress(
        f"{len(found.looks)} looks and handshakes, {len(lines)} SVIDs, of them by the ended token "
        f"{sum(each['ended_token'] for each in lines)}; gone {(gone_at - until).total_seconds():+.1f} s after its end"
    )
    assert found.by_ended_token(), found.asked
    first = next(number for number, line in enumerate(lines) if line["ended_token"])
    # Kubelet brings no other.
    assert all(line["ended_token"] for line in lines[first:])
    late = {line["serial"] for line in lines[first:]}
    assert late & {each.serial for each in found.looks}
    assert max(each.ends for each in found.looks if each.serial in late) <= until + timedelta(seconds=60)

    wait_for("the pod to be gone", lambda: site.cluster.pods.find(LEAVING) is None, progress=site.progress)
    agent_pod = site.cluster.pods.find(AGENT, NAMESPACE)
    assert agent_pod is not None
    client = SignerClient(site.signer.address, signing.published_roots(site.cluster, site.progress))
    try:
        with pytest.raises(Refusal) as refused:
            agent_token = site.cluster.api.token("podsvid-agent", NAMESPACE, AUDIENCE, agent_pod)
            client.mint(agent_token, found.last_token, found.body)
    finally:
        client.close()
    assert refused.value.reason in ("POD_NOT_FOUND", "POD_TOKEN_EXPIRED")
    assert site.minted(found.uid) == lines
    _delete_pods(site.cluster)
    wait_for("nothing to be left", lambda: _left(site), progress=site.progress)


def _left(site: Site) -> bool | str:
    """Whether nothing of any pod is left on the node; else what is."""
    left = site.agent.left(site.cluster.kubelet_root / "pods")
    return (not left and site.agent.volumes() == 0.0) or ", ".join(left)


def _signer(
    cluster: Cluster, progress: Progress, clock: SetClock, port: int = 0
) -> AbstractContextManager[SignerProcess]:
    environment = clock.environment
    return signing.signer_process(cluster, progress, "signer-clocks", *FLAGS, port=port, environment=environment)


def _pod(name: str) -> Object:
    """It ignores its end where it has time."""
    body = traffic.workload(name)
    spec = body["spec"]
    spec |= {"serviceAccountName": ACCOUNT, "hostNetwork": True}
    if name == LEAVING:
        spec["terminationGracePeriodSeconds"] = GRACE
        spec["containers"][0]["command"] = ["/bin/sh", "-ec", "trap '' TERM; while :; do sleep 1; done"]
    if name == SHORT:
        spec["volumes"][0]["csi"]["volumeAttributes"] = {"ttl": "30s"}
    return body


def _delete_pods(cluster: Cluster) -> None:
    for pod in cluster.api.get("/api/v1/namespaces/default/pods")["items"]:
        name = str(pod["metadata"]["name"])
        if name.startswith("clock-"):
            cluster.api.delete(f"/api/v1/namespaces/default/pods/{name}", grace_seconds=0)
