"""The signer's client on a stage: a fake signer over real TLS, a clock that only tests move."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from agent.authority.connection import SignerSettings
from agent.authority.protocol import MintRequest
from agent.authority.signer import SignerAuthority
from csi.model import PodRef, PodToken
from svid.dnsnames import SIGNER_NAME, signer_id
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId
from tests.fake_signer import TRUST_DOMAIN, FakeSigner, Refusal

AUDIENCE = "signer.podsvid.io"
UID = "0b6a9a4e-6a8e-4c1c-9f3c-222222222222"
POD = PodRef("default", "web-1", UID, "web")
SPIFFE_ID = SpiffeId.from_segments(TRUST_DOMAIN, "ns", "default", "sa", "web")
AGENT_TOKEN, POD_TOKEN = "the-agents-token", "the-pods-token"
GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "RECONNECT", "the stream's time is over; open it again")


class StepClock:
    """Real time, as TLS needs it, and steps on top."""

    def __init__(self) -> None:
        self.step = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.step

    def monotonic(self) -> float:
        return time.monotonic() + self.step.total_seconds()


class Least(random.Random):
    """The least of each range, so that nothing waits; remembers the ranges."""

    def __init__(self) -> None:
        super().__init__(1)
        self.ranges: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.ranges.append((a, b))
        return a


class Scene:
    """A signer, and an authority that is connected to it."""

    def __init__(self, base: Path, signer: FakeSigner, clock: StepClock) -> None:
        self.base = base
        self.signer = signer
        self.clock = clock
        self.rng = Least()
        self.bundle_file = base / "bundle.json"
        self.token_file = base / "token"
        self.run_dir = base / "run"
        settings = SignerSettings(
            signer.address, self.bundle_file, self.token_file, AUDIENCE, TRUST_DOMAIN, "1.2.3", run_dir=self.run_dir
        )
        self.authority = SignerAuthority(settings, clock, self.rng)

    def request(self, token: PodToken | None = None, **fields: object) -> MintRequest:
        return MintRequest(POD, token or self.token(), KeyAlgorithm.EC_P256.generate(), **fields)  # type: ignore[arg-type]

    def token(self, life: timedelta = timedelta(minutes=10)) -> PodToken:
        expiry = f"{self.clock.now() + life:%Y-%m-%dT%H:%M:%SZ}"
        return PodToken(json.dumps({AUDIENCE: {"token": POD_TOKEN, "expirationTimestamp": expiry}}))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def scene(
    base: Path,
    *,
    server_name: str = SIGNER_NAME,
    uris: Sequence[str] = (str(signer_id(TRUST_DOMAIN)),),
    connect: bool = True,
    pem: bool = False,
) -> AsyncIterator[Scene]:
    clock = StepClock()
    signer = FakeSigner(clock, server_name, uris)
    signer.publish(signer.bundle(100))
    await signer.start()
    found = Scene(base, signer, clock)
    bundle = signer.bundle(100)
    found.bundle_file.write_bytes(bundle.to_pem() if pem else bundle.to_jwks())
    found.token_file.write_text(AGENT_TOKEN + "\n", encoding="ascii")
    found.authority.load()
    running = asyncio.create_task(found.authority.run())
    try:
        if connect:
            await found.until(lambda: found.authority.contact.connected)
        yield found
        assert not running.done(), "the loop ended by itself"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await signer.stop()


Play = Callable[[Scene], Awaitable[None]]


def on_stage(base: Path, play: Play, **differing: Any) -> None:
    """`differing`: see `scene`."""

    async def main() -> None:
        async with scene(base, **differing) as found:
            await play(found)

    asyncio.run(main())
