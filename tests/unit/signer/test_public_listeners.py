"""What is shown while the state is known and when it no longer is; and who looks into the processes with keys."""

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from runtime.feed import Feed
from signer.authority.state import AuthorityState
from signer.keystore.keys import Keys
from signer.metrics import Metrics
from signer.public.listeners import BUNDLE, LOOK_SECONDS, Listening, PublicListeners, PublicSettings
from signer.public.process import PublicProcess
from signer.public.shown import Pair
from signer.publishing.documents import Publication
from tests.signer_rig import StepClock
from tests.unit.runtime.test_stopping import on_fake_time
from tests.unit.signer.test_lifecycle import first

STATE = first()


@dataclass
class Same:
    """A certificate that is always there."""

    pair: Pair | None = None
    trouble: str = ""
    ends: datetime | None = None

    async def look(self, state: AuthorityState | None) -> None:
        self.pair = Pair(b"chain", b"key")


def test_a_replica_that_is_cut_off_for_too_long_shows_no_document_and_its_certificate() -> None:
    settings = PublicSettings((Listening(BUNDLE, ("127.0.0.1", 0), None),), Publication(timedelta(minutes=5)), 60)

    async def main() -> None:
        here = PublicListeners(settings, Keys(), StepClock(), Metrics())
        here._sources[BUNDLE] = Same()
        process = PublicProcess({}, lambda *count: None)
        states: Feed[AuthorityState] = Feed()
        states.publish(STATE)
        known: list[AuthorityState | None] = [STATE]
        following = asyncio.create_task(here._follow(states, lambda: known[0], process))
        for state in (STATE, None, STATE):
            known[0] = state
            # Nothing is published then: the state is the one before.
            await asyncio.sleep(LOOK_SECONDS + 1)
            assert process._shown is not None
            shown = process._shown[BUNDLE]
            assert shown.pair is not None
            assert [page is None for page in shown.pages.values()] == [state is None]
        following.cancel()

    on_fake_time(main)


SIGNER = "from signer import process; process.prepare()"
SERVING = """
import socket
from signer.public import child
one, other = socket.socketpair()
sys.argv = ["", str(one.detach())]
child.asyncio.run = lambda serving: serving.close()
child.main()
"""


@pytest.mark.parametrize("starts", [SIGNER, SERVING], ids=["the signer", "what serves strangers"])
def test_nobody_of_the_same_user_looks_into(starts: str) -> None:
    code = f"import ctypes, sys\n{starts}\nprint(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
