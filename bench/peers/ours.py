"""podsvid's side: an agent with its own authority or one behind a signer, started without a cluster, limits off."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.peers.asking import Lane
from bench.peers.machine import SERVERS, family, on
from bench.peers.side import EMBEDDED, SIGNER, Side
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.ports import free_port
from tests.signer_process import LEVEL, process
from tests.signer_rig import AUDIENCE
from tests.support import DEADLINE, DRIVER, Host, host, pod

# What a socket may ask for would be what is measured.
UNBOUND = ("--socket-rate", "100000", "--socket-burst", "100000", "--socket-quarantine", "false")
# The node of tests.signer_process.
NODE = "node-0"
PUBLISHED_AT_ONCE = 16


@dataclass
class Node:
    """A node whose agent has a volume for each pod."""

    name: str
    here: Host
    kubelet: StandInKubelet
    flags: Sequence[str]
    pods: Sequence[tuple[Pod, PodVolume]]
    targets: Sequence[Path]
    sockets: Sequence[Path]
    behind: Callable[[], list[int]]

    @property
    def side(self) -> Side:
        lanes = [Lane(f"unix:{each}") for each in self.sockets]
        agent = self.here.processes
        return Side(self.name, lanes, agent, lambda: [*agent(), *self.behind()])

    async def due(self, at: datetime) -> None:
        """Start the agent anew with all SVIDs due then: nothing but the journal decides when one is that it picks up.

        Returns when it serves them all, and has their pods' tokens where it needs these.
        """
        self.here.kill()
        for path in (self.here.base / "r" / "journal").iterdir():
            entry = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**entry, "renew_at": at.isoformat()}), encoding="utf-8")
        logged = self.here.log.stat().st_size
        await self.kubelet.stop()
        self.here.start(*self.flags, within=on(SERVERS))
        await self.kubelet.start()
        await self.kubelet.wait_registered(DRIVER)
        async with asyncio.timeout(DEADLINE):
            while self.here.log.read_bytes()[logged:].count(b'"event": "volume picked up"') < len(self.targets):
                await asyncio.sleep(0.05)
        if self.name == SIGNER:
            await _at_once(self.kubelet.republish, self.pods)

    def links(self) -> list[str]:
        """What each volume's files are just now."""
        return [(each / "..data").readlink().name for each in self.targets]

    def written(self) -> float:
        """When the last of the files was written: seconds since 1970, as coarse as the file system's clock."""
        return max((each / "..data").lstat().st_mtime for each in self.targets)


@asynccontextmanager
async def embedded(identities: int, *flags: str) -> AsyncIterator[Node]:
    """An agent that is its own authority, with so many pods' volumes, until left; `flags` beside its own."""
    pods = [(pod(f"p{number}", f"web-{number}"), PodVolume(name="spiffe")) for number in range(identities)]
    with host() as here:
        async with _node(EMBEDDED, here, (*UNBOUND, *flags), pods, list) as found:
            yield found


@asynccontextmanager
async def by_signer(identities: int, *of_signer: str) -> AsyncIterator[Node]:
    """An agent that mints through a signer, which has those flags, with so many pods' volumes, until left."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name, host() as here:
        folder = Path(name)
        with signer(folder, identities, 1, *of_signer) as (running, site):
            (folder / "token").write_text(site["agents"][0])
            flags = ["--authority", "signer", "--signer-address", site["address"], "--signer-bundle", site["bundle"]]
            flags += ["--agent-token-file", str(folder / "token"), "--node-name", NODE, *UNBOUND]
            async with _node(SIGNER, here, flags, list(map(_known, site["pods"])), lambda: family(running)) as found:
                yield found


@contextmanager
def signer(folder: Path, pods: int, nodes: int, *flags: str) -> Any:
    """A signer at an API server in its own memory: its process, and what it wrote of itself."""

    def quiet(*command: str) -> list[str]:
        # As installed: grpc has a line for each call in a log that is for looking for faults.
        return on(SERVERS)("env", f"{LEVEL}=info", *command)

    with process(folder, pods, nodes, free_port(), *flags, within=quiet) as (running, site):
        yield running.pid, site


def _known(each: Sequence[Any]) -> tuple[Pod, PodVolume]:
    namespace, name, uid, token, _, account = each
    tokens: Mapping[str, Any] = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
    return Pod(namespace, name, uid, account), PodVolume(name="spiffe", tokens=tokens)


@asynccontextmanager
async def _node(
    name: str,
    here: Host,
    flags: Sequence[str],
    pods: Sequence[tuple[Pod, PodVolume]],
    behind: Callable[[], list[int]],
) -> AsyncIterator[Node]:
    kubelet = StandInKubelet(here.kubelet_root, registry_interval=0.01)
    here.start(*flags, within=on(SERVERS))
    await kubelet.start()
    try:
        await kubelet.wait_registered(DRIVER)
        targets = await _at_once(kubelet.publish, pods)
        sockets = [here.short(each) / "socket" for each in targets]
        yield Node(name, here, kubelet, flags, pods, targets, sockets, behind)
    finally:
        await kubelet.stop()


async def _at_once(do: Callable[[Pod, PodVolume], Any], pods: Sequence[tuple[Pod, PodVolume]]) -> list[Path]:
    gate = asyncio.Semaphore(PUBLISHED_AT_ONCE)

    async def one(each: tuple[Pod, PodVolume]) -> Path:
        async with gate:
            found: Path = await do(*each)
            return found

    return list(await asyncio.gather(*map(one, pods)))


def now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)
