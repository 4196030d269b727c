"""Which faults come in which order: decided by a seed alone, so that a run can be played again."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# How often each comes, as weights. The names are those of tests.chaos.faults.
AGENT_FAULTS: Mapping[str, int] = MappingProxyType(
    {
        "kill": 6,
        "kill_publishing": 8,
        "kill_unpublishing": 6,
        "kill_renewing": 8,
        "kill_server": 8,
        "pause_server": 3,
        "kill_apart": 4,
        "kill_agent_apart": 4,
        "kill_waiting": 4,
        "stop": 3,
        "pause": 4,
        "restart_kubelet": 3,
        "delete_while_publishing": 8,
        "publish_twice": 6,
        "fill_volume": 4,
        "fill_run_dir": 4,
        "exhaust_inodes": 3,
        "make_run_dir_read_only": 3,
        "exhaust_descriptors": 4,
        "damage_journal": 6,
        "damage_files": 6,
        "unmount": 4,
        "remove_socket": 4,
        "churn": 6,
    }
)
# The clock is the agent's alone, which a signer would not share.
EMBEDDED_FAULTS: Mapping[str, int] = MappingProxyType({**AGENT_FAULTS, "step_clock": 6})
SIGNER_FAULTS: Mapping[str, int] = MappingProxyType(
    {
        **AGENT_FAULTS,
        "kill_signer": 6,
        "pause_signer": 4,
        "cut_link": 6,
        "stall_link": 6,
        "slow_link": 6,
        "lose_connections": 6,
        "publish_without_signer": 4,
    }
)
# Of a signer with workers: what befalls it and them. The agent's own faults see nothing of either.
WORKERS_FAULTS: Mapping[str, int] = MappingProxyType(
    {
        "kill_worker": 8,
        "kill_workers": 4,
        "pause_worker": 4,
        "kill_signer": 4,
        "lose_connections": 3,
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `seed` decides what is random in it."""

    number: int
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.number} {self.kind}"


def plan(seed: int, count: int, weights: Mapping[str, int]) -> list[Fault]:
    """`count` faults: each kind once as far as that goes, in any order, then by weight."""
    rng = random.Random(seed)
    kinds = sorted(weights)
    rng.shuffle(kinds)
    more = max(count - len(kinds), 0)
    kinds = kinds[:count] + rng.choices(sorted(weights), [weights[kind] for kind in sorted(weights)], k=more)
    return [Fault(number, kind, rng.getrandbits(32)) for number, kind in enumerate(kinds)]
