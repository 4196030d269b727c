"""Programs that follow their certificate by watching its file, which others wrote: none serves one that has ended."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.test_clients import lines_of
from tests.support import IS_ROOT, VOLUME, node, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
# Certificates that are seen, the first one included; ten rotations take two minutes.
SEEN = int(os.environ.get("PODSVID_WATCHED_ROTATIONS", "3")) + 1


def test_each_rotation_is_seen_by_who_watches_the_file(go_tools: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with node(ttl="20s") as (_, kubelet):
            targets = [await kubelet.publish(pod(name, name), VOLUME) for name in ("certwatcher", "fsnotify")]
            seen = await asyncio.gather(
                *(
                    lines_of(str(go_tools["watchers"]), how, str(target), str(SEEN))
                    for how, target in zip(("certwatcher", "fsnotify"), targets, strict=True)
                )
            )
            print(seen)
            assert [line["serials"] for (line,) in seen] == [SEEN, SEEN]

    asyncio.run(run())
