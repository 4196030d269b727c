"""Where agents come from: as the API server says, and as was seen."""

from collections import OrderedDict, deque
from collections.abc import Container

# Addresses that are remembered, of all nodes and of one: who stole one node's token makes few of them known.
MAX_ORIGINS = 20_000
KNOWN_OF_NODE = 2


class Origins:
    """The addresses in `expected`, and those from which agents came."""

    def __init__(self, expected: Container[object]) -> None:
        self._expected = expected
        # Each with its node; and the other way round, the newest last.
        self._known: OrderedDict[str, str] = OrderedDict()
        self._homes: dict[str, deque[str]] = {}

    def __contains__(self, address: object) -> bool:
        return address in self._known or address in self._expected

    def remember(self, address: str, node: str) -> None:
        """That node's agent came from there."""
        if self._known.get(address) is None:
            homes = self._homes.setdefault(node, deque())
            homes.append(address)
            if len(homes) > KNOWN_OF_NODE:
                del self._known[homes.popleft()]
        else:
            node = self._known[address]
        self._known[address] = node
        self._known.move_to_end(address)
        if len(self._known) > MAX_ORIGINS:
            gone, its = self._known.popitem(last=False)
            self._homes[its].remove(gone)
            if not self._homes[its]:
                del self._homes[its]
