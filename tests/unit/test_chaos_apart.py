"""What chaos looks at while pods are apart: an SVID that is minted early is seen, one that is due is not."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import apart
from tests.early_quarantine import plant

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(("due", "wrong"), [(timedelta(seconds=20), 1), (timedelta(seconds=-1), 0)])
def test_what_is_minted_early_is_seen(tmp_path: Path, due: timedelta, wrong: int) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    streams = SimpleNamespace(wrong=[])
    world: Any = SimpleNamespace(run_dir=tmp_path, streams=streams, now=lambda: NOW)

    def write(serial: str, due: timedelta) -> None:
        (journal / "v.json").write_text(json.dumps({"serial": serial, "renew_at": (NOW + due).isoformat()}))

    async def run() -> None:
        write("01", due)
        async with apart._nothing_minted_early(world):
            await asyncio.sleep(0)
            write("02", timedelta(seconds=60))
            for _ in range(50):
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(streams.wrong) == wrong


def test_what_is_planted_is_what_the_product_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "planted", quiet=7.0)
    program = """
import inspect, sys
from agent.servers import load, served, warden
assert load.Watch(100)._share == 0.05
assert load.Watch(100)._kept_waiting == 0.05
assert warden.SHARE_IN_QUARANTINE == 0.02
assert served.Settings(None, None).times.quiet == 7.0
"""
    script = tmp_path / "podsvid"
    script.write_text(program)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'planted'}:{Path(__file__).parents[2]}")
    subprocess.run([sys.executable, "podsvid"], cwd=tmp_path, check=True)
