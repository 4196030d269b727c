"""Workload API clients that others wrote, each in its own process, through three rotations."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import IS_ROOT, VOLUME, node, pod

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
WEB = "spiffe://example.org/ns/default/sa/web"


def _lines_of(command: list[str]) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        async with node(ttl="6s") as (here, kubelet):
            socket = here.short(await kubelet.publish(pod(), VOLUME)) / "socket"
            process = await asyncio.create_subprocess_exec(
                *(part.replace("SOCKET", f"unix://{socket}") for part in command),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            output, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()[-4000:]
            return [json.loads(line) for line in output.splitlines()]

    return asyncio.run(run())


def test_py_spiffe() -> None:
    client = str(Path(__file__).with_name("py_spiffe_client.py"))
    fetched, context, bundle, refused, watched = _lines_of([sys.executable, client, "SOCKET", "3"])
    assert fetched["id"] == context["id"] == WEB
    assert fetched["chain"] == 1
    assert bundle["authorities"] == 1
    assert len(refused) == 3
    assert all("StatusCode.UNIMPLEMENTED" in error for error in refused.values()), refused
    assert len(watched["serials"]) == len(set(watched["serials"])) == 4


def test_go_spiffe(go_tools: Path) -> None:
    fetched, bundles, refused, *updates = _lines_of([str(go_tools / "go-client"), "SOCKET", "4"])
    assert fetched["id"] == WEB
    assert bundles["domains"] == ["example.org"]
    assert len(refused) == 5
    assert set(refused.values()) == {"Unimplemented"}, refused
    assert [update["id"] for update in updates] == [WEB] * 4
    assert len({update["serial"] for update in updates}) == 4
