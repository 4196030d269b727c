"""What agents and the cluster are told of trust: put together from the authorities and the other trust domains."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from runtime.feed import Feed
from runtime.stopping import side_by_side
from signer.authority.rotation import Rotation
from signer.authority.state import AuthorityState
from signer.authority.trust import Broadcast
from signer.federation.domains import Domains
from signer.publishing.config_maps import Publisher

# Seconds between looks at the server's certificate, the federated bundles' files, and how old fetched ones are.
REFRESH_SECONDS = 5.0


class Telling:
    """Publishes into `trust` whatever changes. `renewals` each bring a certificate of the signer's own up to date."""

    def __init__(
        self,
        rotation: Rotation,
        domains: Domains,
        publisher: Publisher,
        trust: Feed[Broadcast],
        *renewals: Callable[[AuthorityState], Awaitable[object]],
    ) -> None:
        self._rotation = rotation
        self._domains = domains
        self._publisher = publisher
        self._trust = trust
        self._renewals = renewals
        self._turn = asyncio.Lock()

    async def follow(self) -> None:
        """Follow the authorities and the other trust domains, for ever."""
        await side_by_side(self._follow_state(), self._follow_domains())

    async def refresh(self) -> None:
        """Tell what is so now."""
        async with self._turn:
            await self._domains.look()
            state = self._rotation.state
            if state is None:
                return
            # Who was told of other trust domains before would lose them until they are read.
            if self._domains.known:
                found = Broadcast.of(state, self._domains.bundles)
                if found != self._trust.current:
                    self._trust.publish(found)
            for renew in self._renewals:
                await renew(state)

    async def publish(self) -> None:
        """Bundles out to the cluster, for ever; only while leading."""
        await self._trust.wait_beyond(0)
        await side_by_side(self._publisher.run(), self._publish_changes())

    async def _follow_state(self) -> None:
        version = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    version = await self._rotation.states.wait_beyond(version)
            await self.refresh()

    async def _follow_domains(self) -> None:
        version = 0
        while True:
            version = await self._domains.changed.wait_beyond(version)
            await self.refresh()

    async def _publish_changes(self) -> None:
        while True:
            version = self._trust.version
            assert self._trust.current is not None
            await self._publisher.publish(self._trust.current.bundles)
            await self._trust.wait_beyond(version)
