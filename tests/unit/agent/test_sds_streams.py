"""SDS streams without a socket: what a client may make the agent keep, and what one that wants everything is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.metrics import Metrics
from agent.pb import sds_pb2
from agent.socket.sds import SERVICE, SecretDiscovery
from agent.socket.sds_secrets import SdsNames
from runtime.feed import Feed
from svid.authority import X509Authority
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
WEB, API = (SpiffeId.from_segments(OWN, name) for name in ("web", "api"))


def authority(trust_domain: TrustDomain) -> X509Authority:
    return X509Authority.create(trust_domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)


ISSUER, OTHER = authority(OWN), authority(PARTNER)


def svid(spiffe_id: SpiffeId) -> X509Svid:
    key = KeyAlgorithm.EC_P256.generate()
    return X509Svid(spiffe_id, ISSUER.issue(key.public_key(), spiffe_id, ttl=timedelta(hours=1), now=NOW), key)


IDENTITY = WorkloadIdentity((svid(WEB), svid(API)), ISSUER.bundle, (OTHER.bundle,))


class FixedClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


class Details:
    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = f"/{SERVICE}/{method}"


class Client:
    """The other end of one stream: what it has sent, what of that was taken, and what it was sent."""

    def __init__(self, method: str) -> None:
        self.feed: Feed[WorkloadIdentity] = Feed()
        self.feed.publish(IDENTITY)
        sds = SecretDiscovery(self.feed, SdsNames(), FixedClock(), Metrics(), "default/web")
        handler: Any = sds.handlers().service(Details(method))  # type: ignore[arg-type]
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.taken = 0
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        # Answers leave only while this is set, as with a client that does not read.
        self.reads = asyncio.Event()
        self.reads.set()
        self.call = asyncio.ensure_future(handler.stream_stream(self._requests(), self))

    async def _requests(self) -> AsyncIterator[bytes]:
        while True:
            request = await self.requests.get()
            self.taken += 1
            yield request.SerializeToString()

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        self.answers.put_nowait(data)

    async def next(self, answer: Any) -> Any:
        async with asyncio.timeout(30):
            return answer.FromString(await self.answers.get())


def client(method: str, main: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        found = Client(method)
        try:
            await main(found)
            assert not found.call.done()
        finally:
            found.call.cancel()
            await asyncio.gather(found.call, return_exceptions=True)

    asyncio.run(run())


def test_a_client_that_floods_and_does_not_read_waits_and_nothing_is_queued_for_it() -> None:
    async def main(at: Client) -> None:
        at.reads.clear()
        for number in range(1000):
            at.requests.put_nowait(sds_pb2.DiscoveryRequest(resource_names=["ROOTCA", f"n{number}"]))
        for _ in range(5000):
            await asyncio.sleep(0)
        assert at.taken <= 4
        at.reads.set()
        async with asyncio.timeout(30):
            while at.taken < 1000:
                await asyncio.sleep(0)

    client("StreamSecrets", main)


def test_a_client_that_wants_everything_is_told_what_is_gone_though_it_never_named_it() -> None:
    async def main(at: Client) -> None:
        at.requests.put_nowait(sds_pb2.DeltaDiscoveryRequest())
        first = await at.next(sds_pb2.DeltaDiscoveryResponse)
        assert {each.name for each in first.resources} == {str(WEB), str(API), str(OWN.id), str(PARTNER.id)}
        at.feed.publish(replace(IDENTITY, svids=IDENTITY.svids[:1], federated=()))
        second = await at.next(sds_pb2.DeltaDiscoveryResponse)
        assert list(second.resources) == []
        assert sorted(second.removed_resources) == sorted([str(API), str(PARTNER.id)])
        # And once: it is not gone again with the next change.
        at.feed.publish(replace(IDENTITY, svids=(svid(WEB),), federated=()))
        third = await at.next(sds_pb2.DeltaDiscoveryResponse)
        assert [each.name for each in third.resources] == [str(WEB)]
        assert list(third.removed_resources) == []

    client("DeltaSecrets", main)


def test_what_is_no_longer_there_is_not_in_the_next_whole_answer() -> None:
    async def main(at: Client) -> None:
        at.requests.put_nowait(sds_pb2.DiscoveryRequest())
        assert len((await at.next(sds_pb2.DiscoveryResponse)).resources) == 4
        at.feed.publish(replace(IDENTITY, svids=IDENTITY.svids[:1], federated=()))
        names = [
            sds_pb2.Secret.FromString(each.value).name for each in (await at.next(sds_pb2.DiscoveryResponse)).resources
        ]
        assert names == [str(WEB), str(OWN.id)]

    client("StreamSecrets", main)


def test_a_change_that_is_none_to_this_client_is_not_sent() -> None:
    async def main(at: Client) -> None:
        at.requests.put_nowait(sds_pb2.DiscoveryRequest(resource_names=["ROOTCA"]))
        assert len((await at.next(sds_pb2.DiscoveryResponse)).resources) == 1
        at.feed.publish(replace(IDENTITY, svids=(svid(WEB),)))
        for _ in range(50):
            await asyncio.sleep(0)
        assert at.answers.empty()

    client("StreamSecrets", main)
