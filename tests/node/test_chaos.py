"""Every kind of fault once, on a real agent with pods; `python -m tests.chaos` does the same for hours.

Mounts appear and vanish by the hundred: run as root.
"""

from collections.abc import Mapping

import pytest

from tests.chaos.plan import EMBEDDED_FAULTS, SIGNER_FAULTS, WORKERS_FAULTS, plan
from tests.chaos.run import play
from tests.faketime import LIBRARY
from tests.support import IS_ROOT

pytestmark = [
    pytest.mark.xdist_group(
        "chaos"
    ),  # one world at a time: what a fault may take is for a machine that has a core left
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not IS_ROOT, reason="mounts on this host's own mount table: run as root"),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the package libfaketime, which sets clocks of processes"),
]


@pytest.mark.parametrize(
    ("world", "weights"), [("embedded", EMBEDDED_FAULTS), ("signer", SIGNER_FAULTS), ("workers", WORKERS_FAULTS)]
)
def test_every_kind_of_fault_is_borne(world: str, weights: Mapping[str, int]) -> None:
    outcome = play(world, plan(7, len(weights), weights), 12, print)
    assert set(outcome.kinds) == set(weights)
    assert outcome.reads > 0
    assert outcome.messages > 0
