"""A node under faults: a real agent, the stand-in kubelet, pods with volumes, and who looks at them meanwhile."""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
from cryptography import x509

from agent.pb import node_admin_pb2, workload_pb2
from podsvid.quickstart.errors import StandInError
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume, volume_id_of
from tests.chaos.link import Link
from tests.chaos.reader import Expected, look
from tests.faketime import SetClock
from tests.processes import end
from tests.signer_process import process as signer_process
from tests.signer_rig import AUDIENCE
from tests.support import DRIVER, HEADER, ROOT, Host, first, pod

TRUST_DOMAIN = "example.org"
TTL = 60
# Seconds within which everything must be well again after a fault.
BOUND = 90.0
REPUBLISH_SECONDS = 5.0
# The embedded authority is made at the clock's zero and is valid from there on: the node's clock starts later.
FIRST_OFFSET, LAST_OFFSET = 5 * 86400, 10 * 86400
RUN_DIR_OPTIONS = "size=512k,nr_inodes=400"
MAX_RSS = 200e6
# Descriptors of a process that serves sockets: of each some, and of programs' connections.
MOST_EXPOSED = 600


class Violated(AssertionError):
    """Something that must hold did not."""


@dataclass
class Running:
    """A pod whose volume is published."""

    pod: Pod
    volume: PodVolume
    target: Path

    @property
    def spiffe_id(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/ns/{self.pod.namespace}/sa/{self.pod.service_account}"

    @property
    def volume_id(self) -> str:
        return volume_id_of(self.pod.uid, self.volume.name)


class Source(Protocol):
    """Where SVIDs come from, and so which pods there can be."""

    @property
    def flags(self) -> list[str]:
        """For the agent."""
        ...

    def next_pod(self) -> tuple[Pod, PodVolume]:
        """One that does not run."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Embedded:
    """The agent's own authority."""

    def __init__(self) -> None:
        self._made = 0

    @property
    def flags(self) -> list[str]:
        return []

    def next_pod(self) -> tuple[Pod, PodVolume]:
        self._made += 1
        return pod(f"p{self._made}", f"account-{self._made}"), PodVolume()

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return


class Signer:
    """A signer in a process of its own, at the other end of a link."""

    def __init__(self, base: Path, port: int, rng: random.Random, pods: int = 600, *more: str) -> None:
        self._base = base
        self._more = more
        # How often workers of this process were.
        self.worker_kills = 0
        self._port = port
        self._pods = pods
        self._known: dict[str, Any] = {}
        self._next = 0
        self.link = Link(port, rng)
        self._stack = AsyncExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def flags(self) -> list[str]:
        files = ("--signer-bundle", str(self._known["bundle"]), "--agent-token-file", str(self._base / "token"))
        return ["--authority", "signer", "--signer-address", f"127.0.0.1:{self.link.port}", *files]

    def next_pod(self) -> tuple[Pod, PodVolume]:
        """In turn, so that one runs again only long after it ran before."""
        namespace, name, uid, token, _, account = self._known["pods"][self._next % self._pods]
        self._next += 1
        tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
        return Pod(namespace, name, uid, account), PodVolume(tokens=tokens)

    async def start(self) -> None:
        await self.link.start()
        await self.run()
        (self._base / "token").write_text(self._known["agents"][0])

    async def run(self) -> None:
        """Start the process, after a kill too: it finds its authorities again."""
        self.worker_kills = 0
        entering = signer_process(
            self._base, self._pods, 1, self._port, "--x509-ttl", f"{TTL}s", "--x509-min-ttl", "10s", *self._more
        )
        self.process, self._known = await asyncio.to_thread(self._stack.enter_context, entering)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def workers(self) -> list[int]:
        """Their processes, the one first that has most of the agent's connections."""
        assert self.process is not None
        pid = self.process.pid
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        # One that has ended and is not waited for has no descriptors: it is none.
        opened = {each: count for each in found if (count := _descriptors(each))}
        return sorted(opened, key=lambda each: -opened[each])

    async def stop(self) -> None:
        await self.link.stop()
        await self._stack.aclose()


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


@dataclass
class Streams:
    """Programs that follow sockets for ever, reconnecting; what they must not see is in `wrong`."""

    wrong: list[str] = field(default_factory=list)
    messages: int = 0

    async def follow(self, running: Running, link: Path) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 1000))
        async with grpc.aio.insecure_channel(f"unix:{link}/socket", options=options) as channel:
            while True:
                call = channel.unary_stream(
                    "/SpiffeWorkloadAPI/FetchX509SVID",
                    request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
                    response_deserializer=workload_pb2.X509SVIDResponse.FromString,
                )(workload_pb2.X509SVIDRequest(), metadata=HEADER)
                with suppress(grpc.aio.AioRpcError):
                    async for answer in call:
                        self.messages += 1
                        if [each.spiffe_id for each in answer.svids] != [running.spiffe_id]:
                            self.wrong.append(f"{running.pod.name} was sent {answer.svids[0].spiffe_id}")
                await asyncio.sleep(0.2)


class World:
    """The node. `excused` volumes need not be well until the next `settle`."""

    def __init__(self, host: Host, source: Source, rng: random.Random, pods: int, *, patient: bool = False) -> None:
        self.host = host
        self.source = source
        self.rng = rng
        self.kubelet = StandInKubelet(host.kubelet_root)
        self.running: dict[str, Running] = {}
        self._clock = SetClock(host.base)
        self.streams = Streams()
        self.republish_failures = 0
        # Whether pauses may take minutes.
        self.patient = patient
        # Pods that came in the middle of trouble: kubelet takes them down when it is over.
        self.later: list[Running] = []
        self._wanted = pods
        self._links: dict[str, Path] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._excused: set[str] = set()
        self._expected = host.base / "expected.json"
        self._findings = host.base / "findings.txt"
        self._reader: subprocess.Popen[bytes] | None = None
        self._services = AsyncExitStack()
        self.recoveries: list[tuple[str, float]] = []
        # By what was killed: seconds until another pod's socket answered. How often pods were moved, and where.
        self.back: dict[str, list[float]] = {}
        self.moves: Counter[str] = Counter()
        self._agents: list[int] = []

    # --- life

    @property
    def run_dir(self) -> Path:
        return self.host.base / "r"

    @property
    def agent(self) -> int:
        """The agent's process id."""
        assert self.host.process is not None
        return self.host.process.pid

    async def start(self) -> None:
        self.run_dir.mkdir()
        _run("mount", "-t", "tmpfs", "-o", RUN_DIR_OPTIONS, "tmpfs", str(self.run_dir))
        self._services.callback(_run, "umount", "-l", str(self.run_dir))
        await self.source.start()
        self._services.push_async_callback(self.source.stop)
        if isinstance(self.source, Embedded):
            self.host.environment = {**self.host.environment, **self._clock.environment}
        self.start_agent()
        await self.kubelet.start()
        self._services.push_async_callback(self.kubelet.stop)
        await self.kubelet.wait_registered(DRIVER, timeout=BOUND)
        if isinstance(self.source, Embedded):
            self.set_clock(FIRST_OFFSET)
        self._expect()
        self._reader = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.reader", str(self._expected), str(self._findings)], cwd=ROOT
        )
        self._services.callback(end, self._reader)
        for _ in range(self._wanted):
            await self.add()
        republishing = asyncio.create_task(self._republish())
        self._services.push_async_callback(_cancelled, republishing)
        await self.settle("start")

    async def empty(self) -> None:
        """All pods go; nothing may be left of them. Raises Violated."""
        for name in list(self.running):
            await self.remove(name)
        await self.settle("the last pod went")
        code = await asyncio.to_thread(self.host.stop)
        left = [str(path) for path in self.run_dir.iterdir()]
        if code or left:
            raise Violated(f"the agent ended with {code} at SIGTERM and left {left}")

    async def stop(self) -> None:
        """Take everything down, whatever state it is in."""
        for task in self._following.values():
            await _cancelled(task)
        if self.host.process is not None and self.host.process.poll() is None:
            self.host.kill()
        await self._services.aclose()

    def start_agent(self) -> None:
        self.host.start(*self.source.flags, ttl=f"{TTL}s")
        self._agents.append(self.agent)

    def kill_agent(self) -> None:
        self.host.kill()

    @property
    def server(self) -> int:
        """The process that serves sockets; the agent itself while there is none."""
        return self.host.processes()[:2][-1]

    def kill_server(self) -> None:
        """kill -9, where there is one now."""
        found = self.server
        if found != self.agent:
            with suppress(ProcessLookupError):
                os.kill(found, signal.SIGKILL)

    def set_clock(self, offset: float) -> None:
        """The node's clock from now on, in seconds ahead of the true one; everybody on the node has the same."""
        self._clock.set(offset)
        self._expect()

    @property
    def ahead(self) -> float:
        """By how much the node's clock is ahead of the true one, in seconds."""
        return self._clock.ahead

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    # --- pods

    async def add(self) -> Running:
        """A new pod, published as kubelet does: again and again until it is."""
        each, volume = self.source.next_pod()
        target = await self.kubelet.publish_until(each, volume, timeout=BOUND)
        return self.published(each, volume, target)

    def published(self, each: Pod, volume: PodVolume, target: Path) -> Running:
        running = self.running[each.name] = Running(each, volume, target)
        if each.name not in self._links:
            self._links[each.name] = self.host.short(target)
        if len(self._following) < 8:
            task = asyncio.create_task(self.streams.follow(running, self._links[each.name]))
            self._following[each.name] = task
        self._expect()
        return running

    async def forget(self, name: str) -> Running:
        """The pod is going: from now on nothing is expected of it."""
        running = self.running.pop(name)
        self._expect()
        following = self._following.pop(name, None)
        if following is not None:
            await _cancelled(following)
        return running

    async def remove(self, name: str) -> None:
        running = await self.forget(name)
        await self.kubelet.unpublish_until(running.pod, running.volume, timeout=BOUND)
        self._gone(running)

    def _gone(self, running: Running) -> None:
        if running.target.exists():
            raise Violated(f"{running.target} is still there after its unpublish")

    def link(self, name: str) -> Path:
        """A short path of the pod's volume."""
        return self._links[name]

    def serial(self, name: str) -> int:
        """Of the SVID that is in the pod's volume."""
        chain = (self.running[name].target / "tls.crt").read_bytes()
        return x509.load_pem_x509_certificate(chain).serial_number

    def pick(self, count: int) -> list[str]:
        return self.rng.sample(sorted(self.running), min(count, len(self.running)))

    @contextmanager
    def excused(self, *names: str) -> Iterator[None]:
        """Inside, and until the next `settle`, these pods' volumes may be missing or not valid; without names: all."""
        self._excused |= set(names or self.running)
        self._expect()
        yield

    def _expect(self) -> None:
        volumes = {
            str(each.target): each.spiffe_id for each in self.running.values() if each.pod.name not in self._excused
        }
        Expected(volumes, self.ahead).write(self._expected)

    async def _republish(self) -> None:
        """kubelet's calls for running pods, for ever."""
        while True:
            for each in list(self.running.values()):
                await asyncio.sleep(REPUBLISH_SECONDS / max(len(self.running), 1))
                await self.republish(each)

    async def republish(self, each: Running) -> None:
        if each.pod.name not in self.running:
            return
        try:
            await self.kubelet.republish(each.pod, each.volume)
        except StandInError:
            # While the agent is away, or has no descriptors, that is so; kubelet comes again.
            self.republish_failures += 1

    # --- the admin socket

    async def rotate(self, names: list[str]) -> list[str]:
        """Ask for renewals at once; what failed, in the agent's words."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        failed = []
        async with grpc.aio.insecure_channel(f"unix:{self.run_dir}/admin.sock", options=options) as channel:
            call: Any = channel.unary_unary(
                "/podsvid.agent.v1.NodeAdmin/Rotate",
                request_serializer=node_admin_pb2.RotateRequest.SerializeToString,
                response_deserializer=node_admin_pb2.RotateResponse.FromString,
            )
            requests = [node_admin_pb2.RotateRequest(namespace="default", pod=name) for name in names]
            answers = await asyncio.gather(*(call(each, timeout=40) for each in requests), return_exceptions=True)
            failed += [str(each.details()) for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        return failed

    async def states(self) -> dict[str, str]:
        """Each volume's state by `podsvid node ls`."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{self.run_dir}/admin.sock", options=options) as channel:
            call: Any = channel.unary_unary(
                "/podsvid.agent.v1.NodeAdmin/List",
                request_serializer=node_admin_pb2.ListRequest.SerializeToString,
                response_deserializer=node_admin_pb2.ListResponse.FromString,
            )
            answer = await call(node_admin_pb2.ListRequest(), timeout=20)
        return {f"{each.namespace}/{each.pod}": each.state for each in answer.volumes}

    # --- what must hold

    async def settle(self, what: str) -> None:
        """Wait until all is well, as long as that may take; then expect all of it again. Raises Violated."""
        started = time.monotonic()
        while self.later:
            came = self.later.pop()
            await self.kubelet.unpublish_until(came.pod, came.volume, timeout=BOUND)
            self._gone(came)
        await asyncio.gather(*(self.republish(each) for each in list(self.running.values())))
        while (wrong := await self._wrong()) is not None:
            self._check()
            if time.monotonic() - started > BOUND:
                raise Violated(f"not well {BOUND:.0f} s after {what}: {wrong}")
            await asyncio.sleep(0.1)
        self.recoveries.append((what, time.monotonic() - started))
        self._excused.clear()
        self._expect()
        self._check()

    def _check(self) -> None:
        if self._findings.exists():
            raise Violated(f"the reader saw: {self._findings.read_text()[:2000]}")
        assert self._reader is not None
        if self._reader.poll() is not None:
            raise Violated("the reader ended by itself")
        if self.streams.wrong:
            raise Violated(f"a stream saw: {self.streams.wrong[:5]}")
        assert self.host.process is not None
        if self.host.process.poll() is not None:
            raise Violated(f"the agent ended by itself with {self.host.process.returncode}")

    async def _wrong(self) -> str | None:
        """The first thing that is not as it should be; None when all is well."""
        try:
            self.kubelet.registration(DRIVER)
            states = await self.states()
        except (StandInError, grpc.aio.AioRpcError) as error:
            return str(error)[:300]
        wanted = {f"{each.pod.namespace}/{each.pod.name}" for each in self.running.values()}
        if set(states) != wanted:
            return f"volumes {sorted(set(states) ^ wanted)[:5]} are there or not there"
        ill = {name: state for name, state in states.items() if state != "ok"}
        if ill:
            return f"{len(ill)} volumes are not ok, {sorted(ill.items())[:3]}"
        for each in self.running.values():
            found = look(each.target, each.spiffe_id, self.now())
            if found is not None:
                return f"{each.pod.name}: {found.text}"
        return self._left() or await self._silent()

    def _left(self) -> str | None:
        """What is there and belongs to nobody."""
        mounts = sorted(self.host.mounts())
        if mounts != sorted(str(each.target) for each in self.running.values()):
            return f"{len(mounts)} mounts for {len(self.running)} volumes"
        ids = {each.volume_id for each in self.running.values()}
        journal = {Path(name).stem for name in self.host.journal()}
        if journal != ids:
            return f"journal entries {sorted(journal ^ ids)[:3]} are there or not there"
        directories = list(self.kubelet.pods_dir.glob("*/volumes/kubernetes.io~csi/*"))
        if len(directories) != len(self.running):
            return f"{len(directories)} volumes' directories for {len(self.running)} pods"
        places = [name for each in self.running.values() for name in os.listdir(each.target) if name.startswith("..so")]
        if places:
            return f"places of sockets in volumes: {places}"
        agent, *others = self.host.processes()
        if len(others) > 3:
            return f"{len(others)} processes for pods' sockets"
        orphans = [each for each in _exposed_of(self._agents) if each not in others]
        if orphans:
            return f"processes of an agent that has ended: {orphans}"
        for each, most in ((agent, 80 + 5 * len(self.running)), *((each, MOST_EXPOSED) for each in others)):
            with suppress(FileNotFoundError):
                descriptors = len(os.listdir(f"/proc/{each}/fd"))
                if descriptors > most:
                    return f"{descriptors} descriptors of process {each}"
        rss = int(Path(f"/proc/{self.agent}/statm").read_text().split()[1]) * resource.getpagesize()
        return f"{rss / 1e6:.0f} MB" if rss > MAX_RSS else None

    async def _silent(self) -> str | None:
        """A socket that does not answer with its own pod, out of a few."""
        for name in self.pick(3):
            running = self.running[name]
            try:
                answer = await asyncio.wait_for(first(self._links[name] / "socket"), 5)
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                return f"{name}'s socket: {type(error).__name__}"
            if [each.spiffe_id for each in answer.svids] != [running.spiffe_id]:
                return f"{name}'s socket speaks for {answer.svids[0].spiffe_id}"
        return None

    # --- tools of faults

    @contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """SIGSTOP until left."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def within(self, seconds: float, work: Awaitable[Any]) -> "asyncio.Task[Any]":
        """Start `work` and let it go on for some part of `seconds`."""
        task = asyncio.ensure_future(work)
        await asyncio.sleep(self.rng.uniform(0.0, seconds))
        return task


Action = Callable[[World], Awaitable[None]]


def _exposed_of(agents: list[int]) -> list[int]:
    """The processes for sockets that these agents started."""
    found, parents = [], [b"%d" % pid for pid in agents]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"agent.exposed" in words and words[words.index(b"agent.exposed") + 2] in parents:
                found.append(int(path.parent.name))
    return found


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
