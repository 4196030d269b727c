"""A node whose clock differs from the signer's and the API server's: a whole replica, TLS, the agent's own checks."""

import asyncio
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.authority.signer import SignerAuthority
from agent.metrics import Metrics
from agent.workload.issuer import Issuer
from csi.model import JwtFile, PodRef, Volume, VolumeOptions
from runtime.blocking import Blocking
from runtime.clock import SystemClock
from tests.node.test_signer_authority import passed_on
from tests.signer_rig import Site, serving
from tests.workload_rig import slow_work


class Ahead:
    """The host's clock for everybody but the node."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now(self) -> datetime:
        return SystemClock().now() + self._ahead

    def monotonic(self) -> float:
        return SystemClock().monotonic()


@pytest.mark.parametrize("ahead", [-120, -60, -15, 15, 60, 120])
def test_new_svids_and_renewals_are_taken_at_once(ahead: float) -> None:
    async def run(folder: Path, executor: ThreadPoolExecutor) -> None:
        elsewhere = Ahead(timedelta(seconds=ahead))
        site = Site(elsewhere.now().replace(microsecond=0))
        async with serving(site, folder, elsewhere) as signer:
            claim = site.pod("web")
            authority = SignerAuthority(signer.settings(site.agent(), folder), SystemClock(), random.Random(3))
            authority.load()
            following = asyncio.create_task(authority.run())
            try:
                await authority.wait_answered()
                assert authority.contact.connected, authority.contact.last_error
                issuer = Issuer(authority, slow_work(Blocking(executor)), SystemClock(), random.Random(1), Metrics())
                options = VolumeOptions(jwt_files=(JwtFile("a.jwt", ("api",)),))
                pod = PodRef(claim.namespace, claim.name, claim.uid, "web")
                volume, token = Volume("csi-1", "/t", ("t",), pod, None, options), passed_on(site.token(claim))
                serials = set()
                for renewal in (False, True):
                    issued = await issuer.mint_all(volume, token, await issuer.key(volume, renewal=renewal))
                    issued.identity.check(datetime.now(UTC))
                    assert issued.renew_at > datetime.now(UTC), "it is due as soon as it is there"
                    assert issued.renew_at < issued.identity.expires_at
                    serials.add(issued.identity.default.serial)
                assert len(serials) == 2
                assert abs(authority.clock_behind.total_seconds() - ahead) < 10
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder, ThreadPoolExecutor(1) as executor:
        asyncio.run(run(Path(folder), executor))
