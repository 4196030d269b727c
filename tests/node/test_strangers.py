"""Attacks on the signer's port, short: it lives, within its memory, and others are served. Figures are in bench/."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import mix, strangers
from signer.front import budget
from tests.node.test_door import asked
from tests.signer_rig import Serving, Site


@pytest.mark.timeout(300)
@pytest.mark.alone
def test_all_attacks_at_once_leave_the_signer_alive_and_agents_served() -> None:
    options = ["--minutes", "0.2", "--quiet", "2", "--addresses", "60", "--anywhere", "--json"]
    command = [sys.executable, "-m", "bench.strangers", "--mix", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["alive"]
    for way in mix.WAYS:
        assert found["mix"][way]["served"] > 0
    quiet, most = (found["memory"][when]["anonymous"] for when in ("quiet", "mix"))
    assert most - quiet < budget.FOR_PEERS
    assert set(found["attacks"]) == set(strangers.KINDS)
    # Bad tokens, what has no place or comes too often, and mints without a message.
    assert found["refused"]["unauthenticated"] > 0
    assert found["refused"].get("strangers", 0) + found["refused"].get("address", 0) > 0
    assert found["refused"]["message"] > 0


def test_one_agents_trust_streams_of_a_megabyte_leave_another_nodes_mints_alone() -> None:
    """Eight of them, again and again; what is compared is how many mints are served in the same time."""
    seconds = 3.0

    async def test(signer: Serving, site: Site, folder: Path) -> None:
        claim = site.pod("web-1")
        pod = [claim.namespace, claim.name, claim.uid, site.token(claim), 0, "web"]
        known: dict[str, Any] = {
            "address": signer.address,
            "bundle": str(signer.bundle_file),
            "agents": [site.agent("node-a"), site.agent("node-b", life=7200.0)],
        }
        agent = mix.Agent(known, folder, "127.0.0.2", pod, mix.signing_request())
        await agent.begin()
        try:
            quiet, attacked = mix.Served(), mix.Served()
            clock = asyncio.get_running_loop().time
            await agent.stay(quiet, clock() + seconds)
            target = strangers.target(known, "127.0.0.3", seconds)
            attack = asyncio.create_task(asyncio.to_thread(strangers.reports, target))
            await agent.stay(attacked, clock() + seconds)
            assert await attack > 0
        finally:
            await agent.close()
        assert (quiet.failures, attacked.failures) == ({}, {})
        served, before = (len(each.times[mix.WAYS[0]]) for each in (attacked, quiet))
        assert served > before / 5

    asked(test)
