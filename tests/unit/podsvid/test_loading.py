"""What the commands load that a person waits for: three processes of them answer one `podsvid explain`."""

import subprocess
import sys

import pytest

# Neither daemon, of which there is one constant to know; rich only where there is a table to draw.
HEAVY = ("signer.front", "signer.policy", "signer.authority", "agent.admin", "agent.workload", "rich", "kubernetes")


@pytest.mark.parametrize("command", ["podsvid.explain", "podsvid.node", "podsvid.authority"])
def test_who_only_asks_loads_no_daemon(command: str) -> None:
    line = f"import sys, {command}; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert command in loaded
    assert [each for each in loaded if each in HEAVY] == []
