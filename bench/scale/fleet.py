"""Many agents in one process: each the agent's own client of the signer, with a connection, a token and pods.

python -m bench.scale.fleet FOLDER ADDRESS FIRST END NODES PODS POLICIES SERVICES NAMESPACES: the agents of those nodes,
told what to do by lines of JSON on stdin; each is answered by a line. Times are the host's clock.
"""

import asyncio
import contextvars
import functools
import gc
import inspect
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import agent.authority.connection
import agent.authority.proven
from agent.authority.connection import SignerSettings
from agent.authority.endings import SERVICE, explain
from agent.authority.protocol import EarlyRenewal, MintRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AuthorityRefused, AuthorityUnavailable
from agent.workload.rotation import RotationScheduler
from bench.scale.population import TRUST_DOMAIN, Cluster, Tokens
from csi.model import PodToken
from runtime.clock import SystemClock
from signer.pb import signer_pb2
from svid.keys import KeyAlgorithm, PrivateKey, signature_hash
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid
from tests.signer_rig import AUDIENCE

# Seconds: of a report of what is held, as the agent's; after a mint that failed.
REPORT_SECONDS, AGAIN_SECONDS = 1.0, 2.0
MINT_SECONDS = 60.0
# What Python's collector looks at is what came since: it would go through gigabytes of agents at each time.
GARBAGE = (200_000, 1_000, 1_000)
# An SVID that was re-issued is not due again in this run.
RENEWED = timedelta(days=1)
# A renewal is drawn between these parts of a life, as the signer says.
EARLIEST, LATEST = 0.4, 0.5
# Of whose task it is: what its connections come from.
ADDRESS: contextvars.ContextVar[str] = contextvars.ContextVar("address", default="")


class Loop(asyncio.SelectorEventLoop):
    """Connections of an agent's tasks come from its own address, and go to one of the replicas, as by a Service."""

    # Those of the Service: any of them, by chance; empty: whatever was asked for.
    ports: Sequence[int] = ()

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        if self.ports and options.get("sock") is None:
            port = random.choice(self.ports)
        if ADDRESS.get() and options.get("sock") is None:
            options["local_addr"] = (ADDRESS.get(), 0)
        return await super().create_connection(protocol_factory, host, port, **options)


@dataclass(frozen=True, slots=True)
class Shared:
    """What the agents of a process have in common: a key, since making keys is not what is measured."""

    cluster: Cluster
    tokens: Tokens
    key: PrivateKey
    csr: bytes


class Agent:
    """One node's agent and what became of its pods' SVIDs."""

    def __init__(self, shared: Shared, node: int, settings: SignerSettings) -> None:
        self._shared = shared
        self._rng = random.Random(node)
        self._place = contextvars.copy_context()
        self._place.run(ADDRESS.set, shared.cluster.address(node))
        self.scheduler = RotationScheduler(self._renew, SystemClock(), self._rng)
        # The directives that were drawn for, by authority.
        self._drawn: set[str] = set()
        self.window = 0.0
        self.authority = SignerAuthority(settings, SystemClock(), random.Random(node))
        self.pods = shared.cluster.mounted(node)
        # By pod: of which authority its SVID is.
        self.held: dict[int, str] = {}
        # By sequence: when it was acknowledged.
        self.acknowledged: dict[int, float] = {}
        self.connected_at: float | None = None
        self.connected = asyncio.Event()
        answered = self.authority.contact.answered

        def noted(sequence: int) -> None:
            self.connected_at = self.connected_at or time.time()
            self.connected.set()
            answered(sequence)

        # A stream that begins anew at once is no outage to the contact, and what its `connected` says is no news then.
        self.authority.contact.answered = noted  # type: ignore[method-assign]
        self.served_at: float | None = None
        self.reissued_at: list[float] = []
        # Of renewals by the clock: when each was done and how late, when the next of each pod is due, sizes of calls.
        self.renewed: list[tuple[float, float]] = []
        self.due: dict[int, float] = {}
        self.batches: Counter[int] = Counter()
        self._life = self._ends = 0.0
        self.failures: Counter[str] = Counter()

    def tasks(self) -> list["asyncio.Task[None]"]:
        """Follow the signer, and say so."""
        found = (self.authority.run(), self._acknowledge())
        return [asyncio.get_running_loop().create_task(each, context=self._place) for each in found]

    async def _acknowledge(self) -> None:
        version = 0
        while True:
            version = await self.authority.trust.wait_beyond(version)
            self.report()
            trust = self.authority.trust.current
            assert trust is not None
            self.acknowledged.setdefault(trust.bundle.sequence or 0, time.time())

    def report(self) -> None:
        """Say what is held."""
        trust = self.authority.trust.current
        assert trust is not None
        self.authority.hold(trust, Counter(self.held.values()))

    async def reissue(self) -> None:
        """Renew early what the signer says, as the agent does: each at an instant drawn from the window, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report_reissued())
            group.create_task(self.scheduler.run())
            version = 0
            while True:
                version = await self.authority.early_renewals.wait_beyond(version)
                for early in self.authority.early_renewals.current or ():
                    if early.authority_id not in self._drawn:
                        self._drawn.add(early.authority_id)
                        self._draw(early)

    def _draw(self, early: EarlyRenewal) -> None:
        mine = [pod for pod, authority in self.held.items() if authority == early.authority_id]
        if mine:
            self.window = (early.window.end - early.window.start).total_seconds()
        for pod in mine:
            self.scheduler.schedule(str(pod), early.window.draw(self._rng))

    async def _renew(self, key: str) -> datetime:
        if not await self.mint(int(key)):
            raise AuthorityUnavailable("to be tried again")
        self.reissued_at.append(time.time())
        return datetime.now(UTC) + RENEWED

    async def _report_reissued(self) -> None:
        told = len(self.reissued_at)
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if len(self.reissued_at) != told:
                told = len(self.reissued_at)
                self.report()

    async def renew(self, life: float, ends: float) -> None:
        """Renew all SVIDs, which live for so many seconds, as the agent does; none that is due later than `ends`."""
        self._life, self._ends = life, ends
        batches: Any = self.authority._calls._batches
        take = batches._take

        def taken() -> Any:
            found = take()
            self.batches[len(found)] += 1
            return found

        batches._take = taken
        scheduler = RotationScheduler(self._renew_again, SystemClock(), self._rng)
        for pod in self.pods:
            # As of SVIDs that were made long before, at any time.
            due = time.time() + self._rng.uniform(0.0, (EARLIEST + LATEST) / 2 * life)
            if due <= ends:
                self.due[pod] = due
                scheduler.schedule(str(pod), datetime.fromtimestamp(due, UTC))
        await scheduler.run()

    async def _renew_again(self, key: str) -> datetime | None:
        pod = int(key)
        if not await self.mint(pod, renewal=True):
            raise AuthorityUnavailable("to be tried again")
        now = time.time()
        self.renewed.append((now, now - self.due.pop(pod)))
        due = now + self._life * self._rng.uniform(EARLIEST, LATEST)
        if due > self._ends:
            return None
        self.due[pod] = due
        return datetime.fromtimestamp(due, UTC)

    async def mint(self, pod: int, *, renewal: bool = False) -> bool:
        """A new SVID for a pod, by the agent's own way; what fails is counted."""
        shared = self._shared
        ends = datetime.fromtimestamp(time.time() + 3600, UTC).isoformat()
        found = {"token": shared.tokens.of(shared.cluster, pod), "expirationTimestamp": ends}
        token = PodToken(json.dumps({AUDIENCE: found}))
        try:
            request = MintRequest(shared.cluster.reference(pod), token, shared.key, renewal=renewal)
            minted = await self.authority.mint_x509(request)
        except (AuthorityUnavailable, AuthorityRefused) as error:
            self.failures[str(error)[:100]] += 1
            return False
        self.held[pod] = X509Svid(minted.spiffe_id, minted.chain, shared.key).authority_id
        return True

    def message(self, pod: int) -> signer_pb2.MintX509SVIDRequest:
        """The request for a mint, made before its time is taken."""
        shared, named = self._shared, self._shared.cluster.reference(pod)
        return signer_pb2.MintX509SVIDRequest(
            pod=signer_pb2.Pod(namespace=named.namespace, name=named.name, uid=named.uid),
            pod_token=shared.tokens.of(shared.cluster, pod),
            csr=shared.csr,
        )


class Fleet:
    """All of them. The methods without a dash in front are the commands; what they return is the answer."""

    def __init__(self, shared: Shared, folder: Path, address: str, nodes: Sequence[int]) -> None:
        self._shared = shared
        self._folder = folder
        self._address = address
        self._nodes = nodes
        self._agents: list[Agent] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._drawn = 0

    async def load(self, bundle: str) -> Mapping[str, Any]:
        """Make the agents; they trust what is in that file."""
        for node in self._nodes:
            token = self._folder / f"token-{node}"
            # An agent's pod is the node's first.
            token.write_text(self._shared.tokens.of(self._shared.cluster, node))
            domain, run_dir = TrustDomain(TRUST_DOMAIN), self._folder / f"run-{node}"
            settings = SignerSettings(self._address, Path(bundle), token, AUDIENCE, domain, run_dir=run_dir)
            agent = Agent(self._shared, node, settings)
            agent.authority.load()
            self._agents.append(agent)
            if node % 50 == 0:
                await asyncio.sleep(0)
        return {"pods": sum(len(each.pods) for each in self._agents)}

    async def connect(self, spread: float) -> Mapping[str, Any]:
        """Let them find the signer, one after the other within so many seconds."""
        for each in self._agents:
            self._tasks += each.tasks()
            await asyncio.sleep(spread / len(self._agents))
        return {}

    async def state(self) -> Mapping[str, Any]:
        """How many are connected, have been served again, and have re-issued what they hold."""
        return {
            "connected": sum(each.connected_at is not None for each in self._agents),
            "served": sum(each.served_at is not None for each in self._agents),
            "reissued": sum(len(each.reissued_at) for each in self._agents),
            "renewed": sum(len(each.renewed) for each in self._agents),
            "sequences": dict(Counter(max(each.acknowledged, default=0) for each in self._agents)),
        }

    async def hold(self, authority: str, most: int) -> Mapping[str, Any]:
        """Every pod, of each node so many at most, has an SVID of that authority, they say."""
        for each in self._agents:
            each.held = dict.fromkeys(each.pods[:most], authority)
            each.report()
            await asyncio.sleep(0)
        return {}

    async def acknowledged(self, sequence: int) -> Mapping[str, Any]:
        """When each acknowledged that or, for the first time, a newer one."""
        found = [min((at for number, at in each.acknowledged.items() if number >= sequence), default=None)
                 for each in self._agents]  # fmt: skip
        return {"times": _rounded(at for at in found if at is not None)}

    async def restart(self) -> Mapping[str, Any]:
        """The signer is gone: note when each agent has found it again, and when its next mint was answered."""
        for each in self._agents:
            each.connected_at = each.served_at = None
            each.connected.clear()
            self._tasks.append(asyncio.create_task(self._return(each)))
        return {}

    async def returned(self) -> Mapping[str, Any]:
        """When each was connected again, and when served."""
        return {
            "connected": _rounded(each.connected_at for each in self._agents if each.connected_at),
            "served": _rounded(each.served_at for each in self._agents if each.served_at),
        }

    async def reissue(self) -> Mapping[str, Any]:
        """Renew early from now on where the signer says so."""
        for each in self._agents:
            self._tasks.append(asyncio.create_task(each.reissue()))
        return {}

    async def reissued(self) -> Mapping[str, Any]:
        """When each SVID was re-issued."""
        return {"times": _rounded(at for each in self._agents for at in each.reissued_at)}

    async def service(self, ports: Sequence[int]) -> Mapping[str, Any]:
        """From now on connections go to one of these."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.ports = ports
        return {}

    async def renew(self, life: float, seconds: float) -> Mapping[str, Any]:
        """Renew all SVIDs by the clock for so long, each of which lives for `life` seconds."""
        ends = time.time() + seconds
        for each in self._agents:
            each.failures.clear()
            self._tasks.append(asyncio.create_task(each.renew(life, ends)))
        return {}

    async def renewed(self) -> Mapping[str, Any]:
        """Of each renewal when it was done and how late; how late the others are so far; failures; sizes of calls."""
        return {
            "times": _rounded(at for each in self._agents for at, _ in each.renewed),
            "late": _rounded(late for each in self._agents for _, late in each.renewed),
            "overdue": _rounded(time.time() - due for each in self._agents for due in each.due.values()),
            "failed": await self.failures(),
            "batches": dict(sum((each.batches for each in self._agents), Counter())),
        }

    async def window(self) -> Mapping[str, Any]:
        """Over how many seconds the signer had them re-issue, the longest of them."""
        return {"seconds": max((each.window for each in self._agents), default=0.0)}

    async def failures(self) -> Mapping[str, Any]:
        """Mints that failed so far, by how the text begins; each was tried again."""
        return dict(sum((each.failures for each in self._agents), Counter()))

    async def mint(self, count: int, at_once: int, rate: float) -> Mapping[str, Any]:
        """That many mints of different pods: so many at once, or where `rate` is given so many a second, each timed
        from when it was due."""
        work = []
        for _ in range(count):
            agent = self._agents[self._drawn % len(self._agents)]
            pod = agent.pods[self._drawn // len(self._agents) % len(agent.pods)]
            work.append((agent, agent.message(pod)))
            self._drawn += 1
        seconds: list[float] = []
        failed: Counter[str] = Counter()
        begun = time.perf_counter()
        if rate:
            due = [begun + number / rate for number in range(count)]
            await asyncio.gather(*(self._timed(*each, at, seconds, failed) for each, at in zip(work, due, strict=True)))
        else:
            left = iter(work)

            async def some() -> None:
                for each in left:
                    await self._timed(*each, time.perf_counter(), seconds, failed)

            await asyncio.gather(*(some() for _ in range(at_once)))
        return {"seconds": seconds, "failed": failed, "took": time.perf_counter() - begun}

    async def _timed(
        self,
        agent: Agent,
        message: signer_pb2.MintX509SVIDRequest,
        due: float,
        seconds: list[float],
        failed: Counter[str],
    ) -> None:
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        connection = agent.authority.connection
        call = connection.channel().unary_unary(
            SERVICE + "MintX509SVID", type(message).SerializeToString, signer_pb2.MintX509SVIDResponse.FromString
        )
        try:
            await call(message, metadata=connection.credentials(), timeout=MINT_SECONDS)
        except grpc.aio.AioRpcError as error:
            failed[explain(error)[0] or error.code().name] += 1
        else:
            seconds.append(time.perf_counter() - due)

    async def _return(self, agent: Agent) -> None:
        await agent.connected.wait()
        while not await agent.mint(agent.pods[0]):
            await asyncio.sleep(AGAIN_SECONDS * random.uniform(0.5, 1.0))
        agent.served_at = time.time()

    async def end(self) -> Mapping[str, Any]:
        """Let go of the signer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return {}


def _rounded(times: Any) -> list[float]:
    return [round(each, 3) for each in times]


async def main(folder: Path, address: str, nodes: Sequence[int], cluster: Cluster) -> None:
    key = KeyAlgorithm.EC_P256.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, signature_hash(key))
    shared = Shared(cluster, Tokens(folder / "cluster.key"), key, csr.public_bytes(Encoding.DER))
    fleet = Fleet(shared, folder, address, nodes)
    commands = {name: do for name, do in inspect.getmembers(fleet, inspect.ismethod) if not name.startswith("_")}
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        asked = json.loads(line)
        answer = await commands[asked.pop("do")](**asked)
        print(json.dumps(answer), flush=True)
    with suppress(asyncio.CancelledError):
        await fleet.end()


if __name__ == "__main__":
    # One agent looks four times a second whether its connection is back; thousands of them would do nothing else.
    agent.authority.connection.LOOK_SECONDS = 2.0
    # And asks once a second for one: a quarter of all time where thousands wait for theirs.
    agent.authority.connection.ASK_MILLISECONDS = 5_000
    # All of them trust the same: making what TLS needs of that for each attempt anew took an eighth of all time.
    agent.authority.proven._context = functools.lru_cache(maxsize=8)(agent.authority.proven._context)
    # Nor does one look for garbage among what thousands have.
    gc.set_threshold(*GARBAGE)
    # Each of them would say that it lost its signer.
    logging.getLogger("podsvid").setLevel(logging.ERROR)
    folder, address, first, end, *sizes = sys.argv[1:]
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main(Path(folder), address, range(int(first), int(end)), Cluster(*map(int, sizes))))
