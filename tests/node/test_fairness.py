"""What one pod or namespace has much of keeps no other pod from starting: real mounts, real keys, one agent.

Nothing here is a duration: what is counted is how many of the offender's were done before another's one was.
"""

import asyncio
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest

from agent.pb import workload_pb2
from podsvid.quickstart.errors import PublishFailed
from podsvid.quickstart.kubelet import StandInKubelet
from podsvid.quickstart.pods import Pod, PodVolume
from runtime.clock import SystemClock
from tests.fake_signer import FakeSigner
from tests.ports import free_port
from tests.support import HEADER, IS_ROOT, VOLUME, Host, node, pod, serial

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounts need root")


class Offender:
    """Publishes that go on while others start: how many are done, and what the others were told."""

    def __init__(self, kubelet: StandInKubelet, wanted: Sequence[tuple[Pod, PodVolume]]) -> None:
        self.done = 0
        self.told: list[str] = []
        self._kubelet = kubelet
        self._tasks = [asyncio.create_task(self._publish(*each)) for each in wanted]

    @property
    def waiting(self) -> int:
        return sum(not each.done() for each in self._tasks)

    async def end(self) -> None:
        """Go away, as kubelet does at its deadline."""
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def all(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _publish(self, of: Pod, volume: PodVolume) -> None:
        try:
            await self._kubelet.publish(of, volume)
            self.done += 1
        except PublishFailed as error:
            self.told.append(str(error))


async def counted(address: str) -> dict[str, float]:
    """The agent's metrics."""

    def page() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(page)).splitlines()
    return {
        name: float(value) for name, _, value in (each.rpartition(" ") for each in lines) if not name.startswith("#")
    }


def test_a_pod_with_a_hundred_rsa_4096_volumes_keeps_nobody_from_starting() -> None:
    async def main() -> None:
        metrics = f"127.0.0.1:{free_port()}"
        async with node("--metrics-listen", metrics, "--pod-volumes", "200") as (_, kubelet):
            evil = pod("evil", "evil", "evil")
            volumes = [PodVolume(name=f"v{n}", attributes={"keyAlgorithm": "rsa-4096"}) for n in range(100)]
            offender = Offender(kubelet, [(evil, volume) for volume in volumes])
            # As many as may wait do, and the others have their reason in the pod's event.
            while offender.waiting > 17:
                await asyncio.sleep(0.01)
            before = offender.done
            for number in range(5):
                target = await kubelet.publish(pod(f"other-{number}", "other"), VOLUME)
                assert serial(target)
            # Keys of the offender's that were made meanwhile: not all that it asked for.
            assert offender.done - before < 10
            assert offender.waiting
            assert len(offender.told) > 50
            assert all(
                "RESOURCE_EXHAUSTED" in each and "KEYS_BUSY: pod evil/evil has as many" in each
                for each in offender.told
            )
            # And whoever runs the node sees it.
            numbers = await counted(metrics)
            assert numbers['podsvid_queue_refusals_total{queue="key",why="full"}'] == len(offender.told)
            assert numbers['podsvid_queue_wait_seconds_count{queue="publish"}'] >= 5
            await offender.end()
            # Whoever went away waits no more. The page is not given to one address as often as it likes.
            while (await counted(metrics))['podsvid_queue_length{queue="key"}']:
                await asyncio.sleep(1.0)

    asyncio.run(main())


def test_another_pods_rsa_key_is_made_between_two_of_the_offenders() -> None:
    async def main() -> None:
        async with node("--pod-volumes", "200") as (_, kubelet):
            evil = pod("evil", "evil", "evil")
            volumes = [PodVolume(name=f"v{n}", attributes={"keyAlgorithm": "rsa-4096"}) for n in range(40)]
            offender = Offender(kubelet, [(evil, volume) for volume in volumes])
            while offender.waiting > 17:
                await asyncio.sleep(0.01)
            before = offender.done
            await kubelet.publish(pod("other", "other"), PodVolume(attributes={"keyAlgorithm": "rsa-2048"}))
            assert offender.done - before <= 3
            await offender.end()
            # Whoever went away has left the line: its next is made at once.
            with suppress(PublishFailed):
                await kubelet.publish(evil, PodVolume(name="again", attributes={"keyAlgorithm": "rsa-2048"}))

    asyncio.run(main())


def test_a_namespace_that_starts_two_hundred_pods_keeps_no_other_from_starting_one() -> None:
    async def main() -> None:
        async with node() as (_, kubelet):
            offender = Offender(kubelet, [(pod(f"evil-{n}", "evil", "evil"), VOLUME) for n in range(200)])
            while not offender.done:
                await asyncio.sleep(0.001)
            for number in range(3):
                await kubelet.publish(pod(f"other-{number}", "other"), VOLUME)
            assert offender.done < 150
            await offender.all()
            assert offender.told == []

    asyncio.run(main())


class SlowSigner:
    """A signer that answers as many calls as it is let, and an agent that asks it."""

    def __init__(self, signer: FakeSigner, here: Host, kubelet: StandInKubelet) -> None:
        self.signer = signer
        self.kubelet = kubelet
        self._here = here
        self.turnstile = asyncio.Semaphore(0)

    def asked_by(self, of: Pod) -> int:
        """How many JWT-SVIDs of the pod the signer was asked for."""
        return sum(each.pod.name == of.name for each in self.signer.jwts)

    async def start(self, of: Pod) -> Path:
        """A pod's volume."""
        token = {"token": "the-pods-token", "expirationTimestamp": "2099-01-01T00:00:00Z"}
        return await self.kubelet.publish(of, PodVolume(name="spiffe", tokens={"signer.podsvid.io": token}))

    @asynccontextmanager
    async def asking(self, target: Path, times: int = 1) -> AsyncIterator["list[asyncio.Task[str]]"]:
        """What its socket answers who asks for JWT-SVIDs for so many audiences: the status."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{self._here.short(target)}/socket", options=options) as channel:
            fetch = channel.unary_unary(
                "/SpiffeWorkloadAPI/FetchJWTSVID",
                request_serializer=workload_pb2.JWTSVIDRequest.SerializeToString,
                response_deserializer=workload_pb2.JWTSVIDResponse.FromString,
            )

            async def one(number: int) -> str:
                try:
                    await fetch(workload_pb2.JWTSVIDRequest(audience=[f"audience-{number}"]), metadata=HEADER)
                except grpc.aio.AioRpcError as error:
                    return f"{error.code().name}: {error.details()}"
                return ""

            tasks = [asyncio.create_task(one(number)) for number in range(times)]
            try:
                yield tasks
            finally:
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def files(signer: FakeSigner) -> Iterator[tuple[str, str]]:
    """The trust bundle and the token that an agent starts with."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as name:
        bundle, token = Path(name, "bundle.json"), Path(name, "token")
        bundle.write_bytes(signer.bundle(100).to_jwks())
        token.write_text("the-agents-token", encoding="ascii")
        yield str(bundle), str(token)


@asynccontextmanager
async def slow_signer(*flags: str) -> AsyncIterator[SlowSigner]:
    signer = FakeSigner(SystemClock())
    signer.publish(signer.bundle(100))
    await signer.start()
    try:
        with files(signer) as (bundle, token):
            origin = ("--authority", "signer", "--signer-address", signer.address)
            async with node(*origin, "--signer-bundle", bundle, "--agent-token-file", token, *flags) as (here, kubelet):
                yield SlowSigner(signer, here, kubelet)
    finally:
        await signer.stop()


def test_a_pod_that_asks_for_a_thousand_audiences_keeps_no_other_from_its_own() -> None:
    async def main() -> None:
        metrics = f"127.0.0.1:{free_port()}"
        async with slow_signer("--metrics-listen", metrics) as at:
            evil, other, new = pod("evil", namespace="evil"), pod("other", namespace="other"), pod("new", "new", "new")
            evil_target, other_target = await at.start(evil), await at.start(other)
            at.signer.mint.turnstile = at.turnstile
            async with at.asking(evil_target, 1000) as asked:
                # As many as may wait do.
                while sum(each.done() for each in asked) < 1000 - 128 - 4 or at.asked_by(evil) < 4:
                    await asyncio.sleep(0.01)
                before = at.asked_by(evil)
                async with at.asking(other_target) as fetching:
                    starting = asyncio.create_task(at.start(new))
                    # The signer hears of them before it has answered anything.
                    while not at.asked_by(other) or len(at.signer.mints) < 3:
                        await asyncio.sleep(0.01)
                    assert at.asked_by(evil) == before == 4
                    for _ in range(before + 2):
                        at.turnstile.release()
                    assert await fetching[0] == ""
                    assert serial(await starting)
                # Its next ones, which come by another way than what the pods were told.
                while at.asked_by(evil) < 2 * before:
                    await asyncio.sleep(0.01)
                assert at.asked_by(evil) == 2 * before
                told = [each.result() for each in asked if each.done() and each.result()]
                why = "UNAVAILABLE: no JWT-SVID now: JWT_BUSY: pod evil/evil has as many"
                busy = [each for each in told if why in each]
                # Where many calls wait to be looked at grpc drops some itself.
                assert {each for each in told if each not in busy} <= {"CANCELLED: CANCELLED"}
                numbers = await counted(metrics)
                assert numbers['podsvid_queue_refusals_total{queue="jwt",why="full"}'] == len(busy) > 100

    asyncio.run(main())
