"""What the suites share: a node whose agent mints through a signer, and openssl's word on what a volume holds."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import AUDIENCE
from tests.support import DEADLINE, DRIVER, ROOT, Host, host

LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Cluster:
    """A signer in its process, an agent that mints through it, and the stand-in kubelet of that agent's node."""

    host: Host
    kubelet: StandInKubelet
    folder: Path
    site: dict[str, Any]

    def pod(self, number: int) -> tuple[Pod, PodVolume]:
        """A pod that the signer's API server knows, with its token."""
        namespace, name, uid, token, _, account = self.site["pods"][number]
        tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
        return Pod(namespace, name, uid, account), PodVolume(tokens=tokens)

    async def publish(self, number: int) -> Path:
        """The volume of that pod. Raises what the stand-in kubelet does."""
        return await self.kubelet.publish(*self.pod(number))

    async def authority(self, *arguments: str) -> str:
        """`podsvid authority ...` at this signer, to its end; what it printed."""
        socket = str(self.folder / "a.sock")
        return await ran(*podsvid("authority", arguments[0], "--socket", socket, *arguments[1:]))


@asynccontextmanager
async def cluster(*flags: str, agent: tuple[str, ...] = (), pods: int = 4) -> AsyncIterator[Cluster]:
    """A signer with these flags and an agent with those."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        folder = Path(name)
        with process(folder, pods, 1, free_port(), *flags) as (_, site), host() as here:
            (folder / "token").write_text(site["agents"][0])
            here.start(
                *("--authority", "signer", "--signer-address", site["address"], "--signer-bundle", site["bundle"]),
                *("--agent-token-file", str(folder / "token"), *agent),
            )
            async with registered(here) as kubelet:
                yield Cluster(here, kubelet, folder, site)


@asynccontextmanager
async def registered(here: Host) -> AsyncIterator[StandInKubelet]:
    """The stand-in kubelet of that host, when its agent has registered."""
    kubelet = StandInKubelet(here.kubelet_root)
    await kubelet.start()
    try:
        await kubelet.wait_registered(DRIVER)
        yield kubelet
    finally:
        await kubelet.stop()


async def until(condition: Callable[[], object]) -> None:
    """Look until it holds. Raises TimeoutError."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(LOOK_SECONDS)


def podsvid(*arguments: str) -> list[str]:
    """The command line of this tree's `podsvid`."""
    return [sys.executable, "-m", "podsvid", *arguments]


def as_group(group: int, *command: str) -> list[str]:
    """The command line that runs it as that group alone.

    Not by `group=` of subprocess: that forks in the midst of gRPC's threads, whose handlers then run in both processes,
    and children were seen to crash and to hang before they became the program. Without it a vfork runs no handlers.
    """
    if group == os.getgid():
        return list(command)
    return ["setpriv", "--regid", str(group), "--clear-groups", *command]


async def ended(*command: str) -> tuple[int, str, str]:
    """A program, run to its end: its exit status, what it printed, what it complained of."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE):
            out, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), complaints.decode()


async def ran(*command: str) -> str:
    """As `ended`, of one that must succeed; what it printed."""
    status, out, complaints = await ended(*command)
    assert status == 0, f"{' '.join(command)}: {status}: {out[-2000:]}{complaints[-2000:]}"
    return out


def openssl(volume: Path, roots: Path, *more: str) -> str:
    """What openssl says of the volume's chain under `roots` alone: `OK`, or why not."""
    chain = volume / "tls.crt"
    command = ["openssl", "verify", "-no-CApath", "-no-CAstore", "-x509_strict", "-purpose", "sslserver", *more]
    command += ["-CAfile", str(roots), "-untrusted", str(chain), str(chain)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "OK" if done.stdout == f"{chain}: OK\n" else done.stdout + done.stderr


def spiffe_ids(volume: Path) -> list[str]:
    """The URI names of the volume's leaf, as openssl prints them."""
    command = ["openssl", "x509", "-in", str(volume / "tls.crt"), "-noout", "-ext", "subjectAltName"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [name.strip().removeprefix("URI:") for name in done.stdout.split("\n", 1)[1].split(",") if "URI:" in name]


def authorities(volume: Path) -> int:
    """How many X.509 authorities the volume's bundle.json has."""
    keys = json.loads((volume / "bundle.json").read_bytes())["keys"]
    return sum(key["use"] == "x509-svid" for key in keys)
