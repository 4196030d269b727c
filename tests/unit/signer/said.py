"""What agents are waited for, and say, where it does not matter which authorities a state really has."""

from collections.abc import Callable, Mapping

from runtime.clock import Clock
from signer.authority.abandonments import Abandonments
from signer.authority.acknowledgements import Agents
from signer.authority.knowledge import Sources
from signer.authority.passed_on import Wanted
from svid.spiffeid import TrustDomain
from tests.fake_kube import FakeKube

DIGEST = bytes(range(32))
AUTHORITIES = frozenset({"x", "y", "a1", "compromised", "fresh", "ab" * 20})


def wanted(sequence: int, digest: bytes = DIGEST) -> Wanted:
    return Wanted(sequence, digest.hex(), AUTHORITIES)


def says(agents: Agents, node: str, sequence: int, in_use: Mapping[str, int], digest: bytes = DIGEST) -> None:
    agents.acknowledged(node, sequence, in_use, digest)


async def nothing_published() -> int:
    return 0


def sources(nodes: Callable[[], frozenset[str]] = frozenset, untimely: Callable[[], str] = lambda: "") -> Sources:
    """All pods are read, and these nodes have agents."""
    return Sources(nodes, lambda: "", nothing_published, untimely)


def abandonments(kube: FakeKube, clock: Clock) -> Abandonments:
    """Beside the Secret `authority`."""
    return Abandonments(kube, "podsvid", "authority", TrustDomain("example.org"), clock)


async def all_read(agents: Agents) -> None:
    """It has read what the other replicas' agents said, and follows it, however long nothing comes."""
    await agents._others._list()
    agents._others.heard_at = float("inf")
