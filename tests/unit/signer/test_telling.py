"""What agents are told of trust: never less than before, because something was not read yet."""

import asyncio
from datetime import timedelta
from typing import Any, cast

from runtime.feed import Feed
from signer.authority.trust import Broadcast
from signer.federation.domains import PATIENCE, Domains
from signer.federation.relation import COLLECTION
from signer.telling import Telling
from svid.spiffeid import TrustDomain
from tests.fake_authority import root
from tests.signer_rig import START, Site

PARTNER = TrustDomain("partner.test")


class Rotation:
    """As much of it as is asked."""

    def __init__(self) -> None:
        self.states: Feed[None] = Feed()
        self.state: Any = State()


class State:
    sequence, directives, active_jwt, digest = 7, (), None, b"digest"
    bundle = root(START).bundle


def test_agents_do_not_lose_other_trust_domains_because_a_signer_starts() -> None:
    async def run() -> None:
        site = Site()
        partner = root(START, PARTNER).bundle
        site.kube.put(
            f"{COLLECTION}/partner",
            {
                "spec": {
                    "trustDomain": "partner.test",
                    "bundleEndpointURL": "https://partner.test",
                    "bundleEndpointProfile": {"type": "https_web"},
                    "trustDomainBundle": partner.to_jwks().decode(),
                }
            },
        )
        renewed: list[object] = []

        async def renew(state: object) -> None:
            renewed.append(state)

        trust: Feed[Broadcast] = Feed()
        domains = Domains(site.kube, "podsvid", TrustDomain("example.org"), {}, site.clock)
        telling = Telling(cast(Any, Rotation()), domains, cast(Any, None), trust, renew)
        await telling.refresh()
        # The own certificate waits for nobody.
        assert (trust.version, len(renewed)) == (0, 1)
        following = [asyncio.create_task(domains.run()), asyncio.create_task(telling.follow())]
        async with asyncio.timeout(30):
            await trust.wait_beyond(0)
        assert trust.current is not None
        assert [each.trust_domain for each in trust.current.bundles] == [State.bundle.trust_domain, PARTNER]
        site.kube.remove(f"{COLLECTION}/partner")
        async with asyncio.timeout(30):
            await trust.wait_beyond(trust.version)
        assert [each.trust_domain for each in trust.current.bundles] == [State.bundle.trust_domain]
        # With or without something new to tell.
        before = len(renewed)
        await telling.refresh()
        assert len(renewed) > before
        for each in following:
            each.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    asyncio.run(run())


def test_who_cannot_read_them_tells_what_it_has_after_a_while() -> None:
    async def run() -> None:
        site = Site()
        site.kube.denied.add(("list", COLLECTION))
        trust: Feed[Broadcast] = Feed()

        async def renew(state: object) -> None:
            return None

        domains = Domains(site.kube, "podsvid", TrustDomain("example.org"), {}, site.clock)
        telling = Telling(cast(Any, Rotation()), domains, cast(Any, None), trust, renew)
        # However long it took until they were asked for.
        site.clock.at += timedelta(seconds=PATIENCE + 1)
        await telling.refresh()
        assert trust.current is None
        following = asyncio.create_task(domains.run())
        await asyncio.sleep(0.05)
        await telling.refresh()
        assert trust.current is None
        site.clock.at += timedelta(seconds=PATIENCE + 1)
        await telling.refresh()
        assert trust.current is not None
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())
