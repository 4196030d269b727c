"""Handshakes between pods while something is done to the CA above."""

import asyncio
from itertools import permutations
from pathlib import Path

from tests.cluster.fleet import handshake


class Traffic:
    """Mutual TLS between two pods, each way, again and again: what failed, and how often it did not."""

    def __init__(self, *volumes: Path) -> None:
        self.volumes = volumes
        self.done = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        """For ever."""
        while True:
            for serving, calling in permutations(self.volumes, 2):
                try:
                    await asyncio.to_thread(handshake, serving, calling)
                    self.done += 1
                except (OSError, ValueError, AssertionError) as error:
                    self.failed.append(str(error))
            await asyncio.sleep(0.05)
