"""Many streams at once while everything rotates: each sees every newest state, none goes back, none starves."""

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.pb import sds_pb2, workload_pb2
from agent.socket.sds import SERVICE as SDS
from tests.support import HEADER, IS_ROOT, VOLUME, node, pod

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root"),
    pytest.mark.alone,
]
# PODSVID_LONG=1 takes the figures of the issue: 500 sockets, a rotation every 10 s or so, six of them.
LONG = bool(os.environ.get("PODSVID_LONG"))
EACH_KIND, SOCKETS, TTL, ROTATIONS = (100, 500, "22s", 6) if LONG else (100, 40, "10s", 3)
SDS_SOTW = sds_pb2.DiscoveryRequest(resource_names=["default"])
SDS_DELTA = sds_pb2.DeltaDiscoveryRequest(resource_names_subscribe=["default"])


def svid_of(data: bytes) -> bytes:
    return workload_pb2.X509SVIDResponse.FromString(data).svids[0].x509_svid


def secret_of(data: bytes) -> bytes:
    (resource,) = sds_pb2.DiscoveryResponse.FromString(data).resources
    return sds_pb2.Secret.FromString(resource.value).tls_certificate.certificate_chain.inline_bytes


def delta_of(data: bytes) -> bytes:
    (resource,) = sds_pb2.DeltaDiscoveryResponse.FromString(data).resources
    return sds_pb2.Secret.FromString(resource.resource.value).tls_certificate.certificate_chain.inline_bytes


class Watch:
    """One open stream: the states it saw, in order."""

    def __init__(self, call: Any, state_of: Callable[[bytes], bytes]) -> None:
        self.call = call
        self.state_of = state_of
        self.seen: list[bytes] = []

    async def run(self) -> None:
        while len(self.seen) <= ROTATIONS:
            state = self.state_of(await self.call.read())
            assert state not in self.seen, "a state came twice"
            self.seen.append(state)
        self.call.cancel()


async def sending(channel: Any, method: str, request: Any) -> Any:
    call = channel.stream_stream(f"/{SDS}/{method}")()
    await call.write(request.SerializeToString())
    return call


def resident(process: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) // 1024


@pytest.mark.spec("C-24", "WL-8")
@pytest.mark.timeout(400)
def test_hundreds_of_streams_of_every_kind_over_rotations() -> None:
    async def run() -> None:
        async with node(ttl=TTL) as (here, kubelet), AsyncExitStack() as stack:
            targets = [await kubelet.publish(pod(f"p{n}", f"sa{n}"), VOLUME) for n in range(SOCKETS)]
            sockets = [here.short(target) / "socket" for target in targets]

            async def opened(socket: Path) -> Any:
                own = (("grpc.use_local_subchannel_pool", 1),)
                return await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{socket}", options=own))

            crowded: list[Watch] = []
            still: list[Any] = []
            for number in range(EACH_KIND):
                if number % 10 == 0:
                    channel = await opened(sockets[0])

                def fetch(method: str, channel: Any = channel) -> Any:
                    return channel.unary_stream(f"/SpiffeWorkloadAPI/{method}")(b"", metadata=HEADER)

                crowded.append(Watch(fetch("FetchX509SVID"), svid_of))
                crowded.append(Watch(await sending(channel, "StreamSecrets", SDS_SOTW), secret_of))
                crowded.append(Watch(await sending(channel, "DeltaSecrets", SDS_DELTA), delta_of))
                still += [fetch("FetchX509Bundles"), fetch("FetchJWTBundles")]
            alone = []
            for socket in sockets[1:]:
                call = (await opened(socket)).unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", metadata=HEADER)
                alone.append(Watch(call, svid_of))
            # Bundles do not change: these speak once and then bear the rotations in silence.
            for call in still:
                assert await call.read()
            quiet = [asyncio.ensure_future(call.read()) for call in still]
            await asyncio.gather(*(watch.run() for watch in (*crowded, *alone)))
            assert not any(each.done() for each in quiet)
            for each in quiet:
                each.cancel()
            assert here.process is not None
            print(f"{len(crowded) + len(still)} streams on one socket, {len(alone)} others: RSS", end=" ")
            print(f"{resident(here.process.pid)} MB after {ROTATIONS} rotations")
            # All of a kind on one socket saw the same states in the same order.
            for kind in range(3):
                orders = {tuple(watch.seen) for watch in crowded[kind::3]}
                longest = max(orders, key=len)
                assert all(is_subsequence(each, longest) for each in orders)

    asyncio.run(run())


def is_subsequence(part: tuple[bytes, ...], whole: tuple[bytes, ...]) -> bool:
    """A stream that opened later, or was slow, may lack states; it may not have them in another order."""
    at = [whole.index(each) for each in part if each in whole]
    return at == sorted(at)
