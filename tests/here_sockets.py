"""Pods' sockets served in this process, for tests of workloads: what the exposed process does, without one."""

import asyncio
import time
from collections.abc import Callable

from agent.metrics import Metrics
from agent.servers.protocol import JwtSource, Kept, Use
from agent.socket.accounts import Account, Accounts, Limits
from agent.socket.endpoint import Endpoint
from agent.socket.serving import Serving
from csi.layout import SOCKET
from csi.model import PodRef
from csi.volume import VolumeDirectory
from runtime.clock import Clock
from runtime.feed import Feed
from svid.identity import WorkloadIdentity

USUAL_LIMITS = Limits()


def alone(limits: Limits = USUAL_LIMITS) -> Account:
    """The account of a pod with one socket."""
    return Accounts(limits, lambda pod: None, time.monotonic).begin(1, "pod")


def socket_path(directory: VolumeDirectory) -> str:
    """Short enough for sun_path whatever kubelet's directories are called; good while the volume is open."""
    return f"/proc/self/fd/{directory.descriptor}/{SOCKET}"


class HereSocket:
    """A volume's socket, bound in its place."""

    def __init__(self, endpoint: Endpoint, directory: VolumeDirectory) -> None:
        self._endpoint = endpoint
        self._directory = directory
        # How often tokens that were given were to be forgotten; it keeps none.
        self.forgot = 0
        # What a test says of it.
        self.kept: Kept | None = None

    async def open(self) -> None:
        self._directory.prepare_socket()
        await self._endpoint.open(socket_path(self._directory))
        self._directory.open_socket()

    async def reopen(self) -> None:
        await self.open()

    async def close(self) -> None:
        await self._endpoint.close()
        # grpc takes the socket away from a thread of its own, some time later: the next one must not be that one.
        async with asyncio.timeout(10):
            while self._directory.has_socket():
                await asyncio.sleep(0.001)

    def forget_tokens(self) -> None:
        self.forgot += 1

    def kept_apart(self) -> Kept | None:
        return self.kept

    async def use(self, *, peers: bool) -> Use:
        return Use(tuple(self._endpoint.open_calls))


class HereSockets:
    """Keeps what it made: a socket that was forgotten is closed all the same."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._accounts = Accounts(Limits(), lambda pod: None, time.monotonic)
        self.made: list[HereSocket] = []

    def socket(
        self,
        feed: Feed[WorkloadIdentity],
        jwt_svids: JwtSource | None,
        pod: PodRef,
        directory: VolumeDirectory,
        trouble: Callable[[str, str], None],
    ) -> HereSocket:
        account = self._accounts.begin(len(self.made), pod.uid)
        endpoint = Serving().endpoint(feed, jwt_svids, self._clock, self._metrics, str(pod), account)
        self.made.append(HereSocket(endpoint, directory))
        return self.made[-1]
