"""csi/ without an agent and without mounts: kubelet's requests, an identity, and small fakes of the two Protocols."""

import asyncio
import os
import stat
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from csi.attributes import parse_attributes
from csi.journal import Journal
from csi.model import Condition, Contents, Issued, PodRef, PodToken, Volume
from csi.mount import Targets
from csi.node import NodeService, NodeSettings
from csi.pb import csi_pb2
from csi.profile import PROFILES
from csi.reach import Reach
from csi.request import parse_publish
from csi.room import Bounds, Room
from csi.turns import VolumeTurns
from csi.volume import VolumeDirectory
from runtime.blocking import Blocking
from runtime.headers import Headers
from runtime.memory import MemoryUse
from runtime.tracing import NO_FACTS
from runtime.turns import Turns
from svid.authority import X509Authority
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, PrivateKey
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

UID, OTHER_UID = "0b6a9a4e-6a8e-4c1c-9f3c-111111111111", "0b6a9a4e-6a8e-4c1c-9f3c-222222222222"
KUBELET_ROOT = "/var/lib/kubelet"
DRIVER = "csi.podsvid.io"
# How long a step of another thread or task may take before the test is wrong.
PATIENCE = 30.0
NOW = datetime.now(UTC).replace(microsecond=0)
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
ISSUER = X509Authority.create(
    TrustDomain("example.org"), algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW
)

# What a pod's key is here.
KEY = KeyAlgorithm.EC_P256.generate()


def contents() -> Contents:
    """What a new SVID of the one pod makes of its volume."""
    key = KeyAlgorithm.EC_P256.generate()
    chain = ISSUER.issue(key.public_key(), WEB, ttl=timedelta(hours=1), now=NOW)
    return Contents(WorkloadIdentity((X509Svid(WEB, chain, key),), ISSUER.bundle))


def unchecked() -> X509Svid:
    """An SVID whose RSA key is found wanting by who looks at its numbers, which takes long for a large one."""
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    odd = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d, numbers.dmp1, numbers.dmq1, numbers.iqmp + 2, numbers.public_numbers
    )
    key = odd.private_key(unsafe_skip_rsa_key_validation=True)
    return X509Svid(WEB, ISSUER.issue(key.public_key(), WEB, ttl=timedelta(hours=1), now=NOW), key)


def issued() -> Issued:
    return Issued(contents(), NOW + timedelta(minutes=30))


def target(root: str | Path = KUBELET_ROOT, uid: str = UID, name: str = "spiffe") -> str:
    """kubelet's target_path of a pod's volume."""
    return f"{root}/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount"


def publish_request(
    root: str | Path = KUBELET_ROOT, uid: str = UID, volume_id: str = "csi-1", **attributes: str
) -> csi_pb2.NodePublishVolumeRequest:
    """A request that is good in every part."""
    request = csi_pb2.NodePublishVolumeRequest(volume_id=volume_id, target_path=target(root, uid), readonly=True)
    request.volume_capability.mount.SetInParent()
    for key, value in {
        "ephemeral": "true",
        "pod.name": "web-0",
        "pod.namespace": "default",
        "pod.uid": uid,
        "serviceAccount.name": "web",
    }.items():
        request.volume_context[f"csi.storage.k8s.io/{key}"] = value
    request.volume_context.update(attributes)
    return request


def unpublish_request(
    root: str | Path = KUBELET_ROOT, uid: str = UID, volume_id: str = "csi-1"
) -> csi_pb2.NodeUnpublishVolumeRequest:
    return csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target(root, uid))


def volume(root: str | Path = KUBELET_ROOT, uid: str = UID, volume_id: str = "csi-1", **attributes: str) -> Volume:
    """What the good request asks for."""
    return parse_publish(publish_request(root, uid, volume_id, **attributes), str(root), DRIVER).volume


@contextmanager
def plain_directory(
    base: Path, attributes: Mapping[str, str] | None = None, group: int | None = None
) -> Iterator[VolumeDirectory]:
    """A volume's inside in a plain directory of the host."""
    options = parse_attributes(attributes or {}, PROFILES["podsvid"])
    described = Volume("csi-1", str(base), (), PodRef("default", "web-0", UID, "web"), group, options)
    found = VolumeDirectory(os.open(base, os.O_RDONLY | os.O_DIRECTORY), described)
    try:
        yield found
    finally:
        found.close()


class Steps:
    """What was called, in order; where a call waits until it is let go, and what it raises then."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.failing: dict[str, Exception] = {}
        self._reached: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._held: dict[str, threading.Event] = {}

    def hold(self, name: str) -> None:
        self._held[name] = threading.Event()

    def release(self, name: str) -> None:
        self._held.pop(name).set()

    async def reached(self, name: str) -> None:
        """Return when a call of `name` has begun."""
        assert await asyncio.to_thread(self._reached[name].wait, PATIENCE), f"{name} was never called"

    def take(self, name: str) -> None:
        """For calls in threads."""
        held = self._began(name)
        if held is not None:
            assert held.wait(PATIENCE)
        self._fail(name)

    async def take_async(self, name: str) -> None:
        held = self._began(name)
        while held is not None and not held.is_set():
            await asyncio.sleep(0)
        self._fail(name)

    async def passed(self, name: str) -> None:
        """As `take_async`, of what no test counts among the steps unless it is held or fails."""
        if name in self._held or name in self.failing:
            await self.take_async(name)

    def _began(self, name: str) -> threading.Event | None:
        self.taken.append(name)
        self._reached[name].set()
        return self._held.get(name)

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]


class FakeMounts:
    """Implements csi.mount.Mounts: a directory counts as mounted from attach until detach."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.mounted: set[int] = set()

    def attach(self, directory: int, *, mode: int, group: int | None) -> None:
        self._steps.take("attach")
        self.mounted.add(os.fstat(directory).st_ino)

    def own(self) -> None:
        return None

    def attached(self, directory: int, parent: int, own: Container[int] | None = None) -> bool:
        return os.fstat(directory).st_ino in self.mounted

    def verify(self, directory: int, parent: int) -> None:
        self._steps.take("verify")

    def detach(self, parent: int, name: str) -> None:
        self._steps.take("detach")
        self.mounted.discard(os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino)


class FakeWorkloads:
    """Implements csi.ports.Workloads: writes one file, remembers what it was told."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.tokens: list[tuple[str, PodToken | None]] = []
        self.republications: list[tuple[str, PodToken | None]] = []
        self.adopted: list[tuple[str, Contents | None, datetime | None]] = []
        self.directories: list[VolumeDirectory] = []
        self.health = Condition(False, "fine")

    async def key(self, volume: Volume) -> PrivateKey:
        await self._steps.passed("key")
        return KEY

    async def issue(self, volume: Volume, token: PodToken | None, key: PrivateKey) -> Issued:
        assert key is KEY
        self.tokens.append((volume.id, token))
        await self._steps.take_async("issue")
        return issued()

    async def open(self, volume: Volume, directory: VolumeDirectory, issued: Issued) -> None:
        self.directories.append(directory)
        assert stat.S_ISDIR(os.fstat(directory.descriptor).st_mode)
        os.close(os.open("tls.key", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory.descriptor))
        await self._steps.take_async("open")

    async def adopt(
        self,
        volume: Volume,
        directory: VolumeDirectory,
        contents: Contents | None,
        renew_at: datetime | None,
    ) -> None:
        self.directories.append(directory)
        await self._steps.take_async(f"adopt {volume.id}")
        self.adopted.append((volume.id, contents, renew_at))

    def complete(self) -> None:
        self._steps.taken.append("complete")

    async def close(self, volume_id: str) -> None:
        await self._steps.take_async("close")

    def republished(self, volume_id: str, token: PodToken | None) -> None:
        self.republications.append((volume_id, token))

    def condition(self, volume_id: str) -> Condition:
        return self.health


@dataclass
class SpanSeen:
    """Implements runtime.tracing.Span."""

    name: str
    facts: dict[str, str]

    def note(self, facts: Mapping[str, str]) -> None:
        self.facts.update(facts)


@dataclass
class Tracer:
    """Implements runtime.tracing.Tracing and keeps the spans."""

    spans: list[SpanSeen] = field(default_factory=list)

    def span(
        self, name: str, facts: Mapping[str, str] = NO_FACTS, caller: Headers = ()
    ) -> AbstractContextManager[SpanSeen]:
        @contextmanager
        def open_span() -> Iterator[SpanSeen]:
            self.spans.append(SpanSeen(name, dict(facts)))
            yield self.spans[-1]

        return open_span()

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ()


@dataclass
class Rig:
    """A node service over fakes, with its kubelet root on the host's disk."""

    root: Path
    node: NodeService
    steps: Steps
    mounts: FakeMounts
    workloads: FakeWorkloads
    journal: Journal
    tracer: Tracer
    observed: list[str]
    room: Room

    def made(self) -> list[str]:
        """What is in the pod's directory of CSI volumes, and in the one target."""
        base = self.root / "pods" / UID / "volumes" / "kubernetes.io~csi" / "spiffe"
        return sorted(str(path.relative_to(base)) for path in base.rglob("*"))

    async def adopt(self) -> None:
        """As a new process does, all of it before kubelet calls."""
        await self.node.look()
        await self.node.adopt()

    async def publish(self, request: csi_pb2.NodePublishVolumeRequest | None = None) -> None:
        await self.node.publish(request or publish_request(self.root), DRIVER, PROFILES["podsvid"])

    async def unpublish(self, **changes: str) -> None:
        await self.node.unpublish(unpublish_request(self.root, **changes))


USUAL = Bounds()


@asynccontextmanager
async def rig(
    base: Path,
    mint_deadline: float = 30.0,
    bounds: Bounds = USUAL,
    memory: Callable[[], MemoryUse | None] = lambda: None,
    turns: Turns | None = None,
    turn_deadline: float = 30.0,
    making: Turns | None = None,
    ending: Turns | None = None,
    reach: Reach | None = None,
    threads: int = 2,
) -> AsyncIterator[Rig]:
    """A Rig below `base`; kubelet has made the directories of two pods. With one thread, what has to be done in threads
    is done in the order in which it was asked for.
    """
    root = base / "kubelet"
    for uid in (UID, OTHER_UID):
        Path(target(root, uid)).parent.mkdir(parents=True, exist_ok=True)
    room = Room(bounds, memory)
    steps, tracer, observed = Steps(), Tracer(), list[str]()
    mounts, workloads, journal = FakeMounts(steps), FakeWorkloads(steps), Journal(base / "journal", str(root))
    with ThreadPoolExecutor(threads) as executor:
        node = NodeService(
            NodeSettings("node-1", str(root), mint_deadline),
            Targets(str(root), mounts),
            workloads,
            journal,
            Blocking(executor),
            lambda result, seconds: observed.append(result),
            tracer,
            room,
            VolumeTurns(turns or Turns(1000), making or Turns(1000), ending or Turns(1000), turn_deadline),
            reach,
        )
        try:
            yield Rig(root, node, steps, mounts, workloads, journal, tracer, observed, room)
        finally:
            node.close()
