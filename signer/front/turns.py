"""Whose turn it is: the oldest of each node, one node after another; what was put off comes again when it is due.

Who asks for very much waits for itself only. Nothing is done twice at a time.
"""

import heapq
from collections import Counter, OrderedDict
from dataclasses import dataclass

# Seconds after which what was put off is tried again: at first, and at most.
FIRST, MOST = 5.0, 60.0


@dataclass(slots=True)
class _Entry:
    node: str
    pod: str
    created: str
    # It waits in its node's line; else for its time, or somebody has it.
    ready: bool = True
    taken: bool = False
    due: float = 0.0
    tries: int = 0


class Turns:
    """So many at most, so many of one node and of one pod. Times are seconds of a clock that only grows."""

    def __init__(self, most: int, of_node: int, of_pod: int) -> None:
        self._most = most
        self._of_node = of_node
        self._of_pod = of_pod
        self._entries: dict[str, _Entry] = {}
        self._held: Counter[str] = Counter()
        self._of_pods: Counter[str] = Counter()
        # The ready ones of each node, the oldest first, those that were put off behind all others; the node whose turn
        # is next comes first. With some that are there no more: what is taken out is looked for in `_entries`.
        self._lines: OrderedDict[str, list[tuple[int, str, str]]] = OrderedDict()
        self._later: list[tuple[float, str]] = []
        # Those that were put off, who was so first in front, and how many of each node are.
        self._off: OrderedDict[str, None] = OrderedDict()
        self._off_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def room(self, node: str, pod: str) -> bool:
        """Whether one more of that node and pod has a place."""
        return (
            len(self._entries) < self._most and self._held[node] < self._of_node and self._of_pods[pod] < self._of_pod
        )

    def never_put_off(self) -> int:
        """How many have not had a turn in vain: the others give their places to whoever comes."""
        return len(self._entries) - len(self._off)

    def gives_way(self, node: str, pod: str) -> str | None:
        """Where there is no room for one of that node and pod: whose place it may have, which is theirs who were put
        off, the longest ago first; None: nobody's."""
        if self.room(node, pod) or self._of_pods[pod] >= self._of_pod:
            return None
        crowded = self._held[node] >= self._of_node
        if crowded and not self._off_of[node]:
            return None
        for key in self._off:
            entry = self._entries[key]
            if not entry.taken and (not crowded or entry.node == node):
                return key
        return None

    def tries(self, key: str) -> int:
        """How often it was put off."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.tries

    def add(self, key: str, node: str, pod: str, created: str) -> None:
        """It waits for its turn; one that is there stays where it is."""
        if key in self._entries:
            return
        self._entries[key] = _Entry(node, pod, created)
        self._held[node] += 1
        self._of_pods[pod] += 1
        self._line_up(key)

    def remove(self, key: str) -> None:
        """It is no more."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if key in self._off:
            del self._off[key]
            self._off_of[entry.node] -= 1
            if not self._off_of[entry.node]:
                del self._off_of[entry.node]
        self._held[entry.node] -= 1
        self._of_pods[entry.pod] -= 1
        if not self._of_pods[entry.pod]:
            del self._of_pods[entry.pod]
        if not self._held[entry.node]:
            del self._held[entry.node]
            self._lines.pop(entry.node, None)

    def take(self, now: float) -> str | None:
        """Whose turn it is, until it is put off or removed; None: nobody's yet."""
        self._come_due(now)
        while self._lines:
            node, line = next(iter(self._lines.items()))
            while line:
                *_, key = heapq.heappop(line)
                entry = self._entries.get(key)
                if entry is not None and entry.ready:
                    entry.ready, entry.taken = False, True
                    self._lines.move_to_end(node)
                    return key
            del self._lines[node]
        return None

    def put_off(self, key: str, now: float, draw: float) -> None:
        """Its next turn is later, each time more so. `draw`, from 0 to 1, spreads those that were put off together."""
        entry = self._entries.get(key)
        if entry is None or not entry.taken:
            return
        wait = min(MOST, FIRST * 2.0 ** min(entry.tries, 10)) * (0.75 + 0.25 * draw)
        if key not in self._off:
            self._off[key] = None
            self._off_of[entry.node] += 1
        entry.taken, entry.tries, entry.due = False, entry.tries + 1, now + wait
        heapq.heappush(self._later, (entry.due, key))

    def next_at(self) -> float | None:
        """When the first of those that were put off is due; None: there are none."""
        while self._later:
            due, key = self._later[0]
            entry = self._entries.get(key)
            if entry is not None and not entry.ready and not entry.taken and entry.due == due:
                return due
            heapq.heappop(self._later)
        return None

    def _come_due(self, now: float) -> None:
        while (due := self.next_at()) is not None and due <= now:
            _, key = heapq.heappop(self._later)
            self._entries[key].ready = True
            self._line_up(key)

    def _line_up(self, key: str) -> None:
        entry = self._entries[key]
        heapq.heappush(self._lines.setdefault(entry.node, []), (min(entry.tries, 1), entry.created, key))
