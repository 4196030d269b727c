"""A real agent process on a kubelet root of its own, and the stand-in kubelet beside it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.pb import workload_pb2
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from tests.mounted import mount_points

ROOT = Path(__file__).resolve().parents[1]
DRIVER = "csi.podsvid.io"
HEADER = (("workload.spiffe.io", "true"),)
DEADLINE = 60.0


def _has_ended(process: str) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


class Host:
    """A node's directories below one short path, and the agent on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.kubelet_root = base / "k"
        for name in ("pods", "plugins", "plugins_registry"):
            (self.kubelet_root / name).mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        # What the agent's environment has beside this one's.
        self.environment: Mapping[str, str] = {}
        self._links = 0

    def start(
        self, *flags: str, ttl: str = "1h", within: Callable[..., list[str]] = lambda *command: [*command]
    ) -> None:
        """Start the agent, where `within` says; registration says when it serves."""
        command = [sys.executable, "-m", "podsvid", "agent", "--trust-domain", "example.org", "--node-name", "node-1"]
        command += ["--kubelet-root", str(self.kubelet_root), "--state-dir", str(self.base / "s")]
        command += ["--run-dir", str(self.base / "r"), "--metrics-listen", "off", *flags]
        if "signer" not in flags:  # which says itself how long SVIDs live
            command += ["--x509-ttl", ttl]
        command = command if within is None else within(*command)
        with open(self.log, "ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, env=environment)

    def processes(self) -> list[int]:
        """The agent, the process that serves pods' sockets, and the one that waits, as far as there are these."""
        assert self.process is not None
        agent = self.process.pid
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text(encoding="ascii").split()
        return [agent, *(int(each) for each in children if not _has_ended(each))]

    @property
    def log(self) -> Path:
        return self.base / "agent.log"

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as a DaemonSet's update sends it; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def mounts(self) -> list[str]:
        """Mount points below this host's kubelet root, as the kernel lists them."""
        return [each for each in mount_points() if each.startswith(f"{self.kubelet_root}/")]

    def events(self) -> list[dict[str, Any]]:
        """The agent's log so far, its JSON lines."""
        # The last one may not be there whole: the agent goes on writing.
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def renewals(self) -> dict[str, str]:
        """The drawn renewal instants by volume id, as the journal holds them."""
        entries = [json.loads(path.read_text(encoding="utf-8")) for path in (self.base / "r" / "journal").iterdir()]
        return {entry["volume_id"]: entry["renew_at"] for entry in entries}

    def journal(self) -> list[str]:
        folder = self.base / "r" / "journal"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def short(self, target: Path) -> Path:
        """A name for `target` that leaves room for a socket's 107 bytes."""
        self._links += 1
        link = self.base / f"v{self._links}"
        link.symlink_to(target)
        return link

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for mount in reversed(self.mounts()):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.base)


@contextmanager
def host() -> Iterator[Host]:
    """A Host that is cleaned up; on the way out of a failure the agent's log is printed."""
    found = Host(Path(tempfile.mkdtemp(prefix="pv", dir="/tmp")))
    try:
        yield found
    except BaseException:
        if found.log.exists():
            print(found.log.read_text(encoding="utf-8")[-4000:], file=sys.stderr)
        raise
    finally:
        found.close()


@asynccontextmanager
async def node(*flags: str, ttl: str = "1h") -> AsyncIterator[tuple[Host, StandInKubelet]]:
    """A host with an agent that a stand-in kubelet has registered."""
    with host() as found:
        found.start(*flags, ttl=ttl)
        kubelet = StandInKubelet(found.kubelet_root)
        await kubelet.start()
        try:
            await kubelet.wait_registered(DRIVER)
            yield found, kubelet
        finally:
            await kubelet.stop()


def pod(name: str = "a", account: str = "web", namespace: str = "default") -> Pod:
    return Pod(namespace=namespace, name=name, uid=str(uuid.uuid4()), service_account=account)


def serial(target: Path) -> str:
    """The serial in a volume's tls.crt as openssl reads it."""
    found = subprocess.run(
        ["openssl", "x509", "-in", str(target / "tls.crt"), "-noout", "-serial"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip().removeprefix("serial=").lower()


@asynccontextmanager
async def svid_stream(
    socket: Path, metadata: tuple[tuple[str, str], ...] = HEADER
) -> AsyncIterator[AsyncIterable[workload_pb2.X509SVIDResponse]]:
    """An open FetchX509SVID call."""
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )(workload_pb2.X509SVIDRequest(), metadata=metadata)
        try:
            yield call
        finally:
            call.cancel()


async def first(socket: Path) -> workload_pb2.X509SVIDResponse:
    """The first message of a FetchX509SVID call."""
    async with asyncio.timeout(DEADLINE), svid_stream(socket) as call:
        return await anext(aiter(call))


VOLUME = PodVolume(name="spiffe")
IS_ROOT = os.geteuid() == 0
