"""The API server's key of tokens is rotated: the signer follows it, with the rights that the chart gives it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import jwt
import pytest

from runtime.clock import SystemClock
from signer.attestation.tokens import REFRESH_PAUSE, OfflineTokens, TokenReviews
from signer.cluster.kube_client import KubeClient
from tests.go_tools import Progress

from .alone import Alone, api_server
from .signing import AUDIENCE, NAMESPACE

pytestmark = pytest.mark.timeout(600)
# Seconds until a busy machine has done it too.
PATIENCE_SECONDS = 60.0


def key_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def followed(alone: Alone) -> Counter[tuple[str, bool]]:
    """What became of tokens before and after the rotation; why keys were read, and whether they were."""
    read: Counter[tuple[str, bool]] = Counter()

    def told(why: str, done: bool) -> None:
        read[why, done] += 1

    def token() -> str:
        return alone.api.token("podsvid-agent", NAMESPACE, AUDIENCE)

    client = await KubeClient.connect(alone.kubeconfig("podsvid-signer"))
    clock = SystemClock()
    offline = OfflineTokens(client, AUDIENCE, clock, told)
    reviews = TokenReviews(client, AUDIENCE, offline, clock, seconds=0.0)
    reading = asyncio.create_task(offline.run())
    try:
        old = await asyncio.to_thread(token)
        assert (await reviews.verify(old)).service_account == "podsvid-agent"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not offline.knows_key_of(old):
                await asyncio.sleep(0.1)
        await asyncio.to_thread(alone.rotate_tokens_key)
        new = await asyncio.to_thread(token)
        assert key_of(new) != key_of(old)
        assert not offline.knows_key_of(new)
        # The first is reviewed; soon the key is known, and the old one still.
        assert (await reviews.verify(new)).service_account == "podsvid-agent"
        async with asyncio.timeout(PATIENCE_SECONDS + REFRESH_PAUSE):
            while not offline.knows_key_of(new):
                await asyncio.sleep(0.1)
        for each in (old, new):
            assert offline.verify(each) == await reviews.verify(each)
    finally:
        reading.cancel()
        await client.close()
    return read


def test_a_new_key_of_the_api_server_is_followed(built: None, tmp_path: Path, progress: Progress) -> None:
    with api_server(tmp_path, progress) as alone:
        alone.api.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
        alone.install()
        read = asyncio.run(followed(alone))
    # Not by the time that it takes anyway, and never refused.
    assert read["unknown_key", True]
    assert {why for why, _ in read} <= {"start", "unknown_key"}
