"""Renewals by the dozen through a signer in a process of its own, which dies on the way."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.authority import batches, connection
from agent.authority.connection import SignerSettings
from agent.authority.protocol import Minted, MintRequest
from agent.authority.signer import SignerAuthority
from agent.errors import AuthorityUnavailable
from csi.model import PodRef, PodToken
from runtime.clock import SystemClock
from svid.keys import KeyAlgorithm
from svid.spiffeid import TrustDomain
from tests.ports import free_port
from tests.signer_process import process
from tests.signer_rig import AUDIENCE

PODS = 84


def renewals(site: dict[str, Any]) -> list[MintRequest]:
    found = []
    for namespace, name, uid, token, _, account in site["pods"]:
        text = json.dumps({AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}})
        pod = PodRef(namespace, name, uid, account)
        found.append(MintRequest(pod, PodToken(text), KeyAlgorithm.EC_P256.generate(), renewal=True))
    return found


@asynccontextmanager
async def agent(folder: Path, site: dict[str, Any]) -> AsyncIterator[SignerAuthority]:
    token = folder / "token"
    token.write_text(site["agents"][0])
    domain = TrustDomain("example.org")
    settings = SignerSettings(site["address"], Path(site["bundle"]), token, AUDIENCE, domain, run_dir=folder / "run")
    found = SignerAuthority(settings, SystemClock(), random.Random(1))
    found.load()
    following = asyncio.create_task(found.run())
    try:
        await connected(found)
        yield found
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def connected(authority: SignerAuthority) -> None:
    async with asyncio.timeout(60):
        while not (authority.contact.connected and authority.connection.takes_batches):
            await asyncio.sleep(0.01)


def audited(log: Path) -> list[dict[str, Any]]:
    """What the audit log says of each SVID that was signed."""
    found = []
    for line in log.read_text().splitlines():
        with suppress(ValueError):
            said = json.loads(line)
            if said.get("event") == "mint allowed" or said.get("message") == "mint allowed":
                found.append(said)
    return found


def allowed(log: Path) -> Counter[str]:
    """How often the audit log says of each pod that it got an SVID."""
    return Counter(each["pod_uid"] for each in audited(log))


def test_a_signer_that_is_killed_amid_batches_loses_nothing_and_what_was_answered_is_minted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "YOUNG_SECONDS", 0.0)
    port, log = free_port(), tmp_path / "signer.log"

    async def play() -> None:
        manager = process(tmp_path, PODS, 1, port)
        running, site = await asyncio.to_thread(manager.__enter__)
        try:
            async with agent(tmp_path, site) as authority:
                wanted = renewals(site)
                minting = [asyncio.ensure_future(authority.mint_x509(each)) for each in wanted]
                await asyncio.wait(minting, return_when=asyncio.FIRST_COMPLETED)
                running.kill()
                found = await asyncio.gather(*minting, return_exceptions=True)
                running.wait()
                minted = {each.pod.uid for each, how in zip(wanted, found, strict=True) if isinstance(how, Minted)}
                # It died on the way, and what has no SVID may be tried again.
                assert 0 < len(minted) < PODS
                assert all(isinstance(each, Minted | AuthorityUnavailable) for each in found)
                again = process(tmp_path, PODS, 1, port)
                await asyncio.to_thread(again.__enter__)
                try:
                    await connected(authority)
                    left = [each for each in wanted if each.pod.uid not in minted]
                    rest = await asyncio.gather(*map(authority.mint_x509, left))
                    assert all(isinstance(each, Minted) for each in rest)
                    assert max(authority.connection.number, 0) >= 2
                finally:
                    await asyncio.to_thread(again.__exit__, None, None, None)
                times = allowed(log)
                assert set(times) == {each.pod.uid for each in wanted}
                assert {times[uid] for uid in minted} == {1}
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    asyncio.run(play())


def test_whole_batches_come_through_the_port_with_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At their full size, on a connection that is as old as the agent wants it."""
    # However long a busy machine takes for one: who waits for the next one does not go by itself.
    monkeypatch.setattr(batches, "LONG", 60.0)

    async def play() -> None:
        with process(tmp_path, PODS, 1, free_port()) as (_, site):
            async with agent(tmp_path, site) as authority:
                sizes: list[int] = []
                take = authority._calls._batches._take

                def taken() -> Any:
                    found = take()
                    sizes.append(len(found))
                    return found

                authority._calls._batches._take = taken  # type: ignore[method-assign]
                for _ in range(3):
                    found = await asyncio.gather(*map(authority.mint_x509, renewals(site)))
                    assert all(each.chain for each in found)
                assert max(sizes) >= batches.MOST // 2
                assert sum(sizes) >= 2 * PODS

    asyncio.run(play())
