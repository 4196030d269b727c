"""What pods have open on their sockets and have cost so far: a pod's limits hold for all of its volumes together."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.socket.connections import Holder
from runtime.bucket import Bucket

# Refusals of one pod that may be on their way where its limit of calls is lower.
UNTAKEN = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pod may take, so that one that runs wild hurts itself only.

    `calls` are open at once on all of its sockets; `rate` new ones a second go on for ever there, `burst` of them at
    once, and what is asked on open streams counts as calls do. `connections` are open at once on each of its sockets.
    A call above the limits is answered UNAVAILABLE, a connection is closed: clients try again later. A request on an
    open stream waits.
    """

    connections: int = 64
    calls: int = 1024
    # Programs that do not keep JWT-SVIDs ask for one with each request that they send.
    rate: float = 500.0
    burst: int = 2000


@dataclass(frozen=True, slots=True)
class Weight:
    """What one socket has cost since it was opened: connections, calls, those of them that were refused, connections
    that were seen busy; and what is open now, a refused call until its answer is taken. `pod`: whose it is."""

    pod: str
    connections: int
    calls: int
    refused: int
    busy: int
    open_connections: int
    open_calls: int


class Pod:
    """What the sockets of one pod have together. `shut` closes its connections. Belongs to one event loop."""

    def __init__(self, key: str, limits: Limits, now: Callable[[], float], shut: Callable[[], None]) -> None:
        self.key = key
        self.limits = limits
        self.sockets = self.open = self.refusing = 0
        self._now = now
        self._shut = shut
        self._allowance = Bucket(limits.rate, limits.burst, now())
        # Of all streams whose next request has to wait, one looks whether it may.
        self._turn = asyncio.Lock()

    def excess(self) -> str:
        """What there is too much of for one more call; empty: it may be taken, and counts in the rate."""
        if self.open >= self.limits.calls:
            return "open calls"
        return "" if self._allowance.take(self._now()) else "calls a second"

    async def turn(self) -> None:
        """Wait until one more request may be taken."""
        async with self._turn:
            wait = self._allowance.wait(self._now())
            while wait:
                await asyncio.sleep(wait)
                wait = self._allowance.wait(self._now())
            self._allowance.spend()

    def refuse(self) -> bool:
        """One more refusal is on its way. False: so many are not taken that the pod's connections were closed."""
        self.refusing += 1
        if self.refusing <= max(self.limits.calls, UNTAKEN):
            return True
        self._shut()
        return False


class Account:
    """One socket's, in its pod's name; `changed` is called when it costs more."""

    def __init__(self, pod: Pod, changed: Callable[[], None]) -> None:
        self.pod = pod
        self._changed = changed
        self.connections = Holder(pod.key)
        self._calls = self._refused = self._open = 0

    def take(self) -> None:
        """A call is open, until it has `ended`."""
        self._changed()
        self._calls += 1
        self._open += 1
        self.pod.open += 1

    def ended(self) -> None:
        """One that was taken."""
        self._open -= 1
        self.pod.open -= 1

    def refuse(self) -> bool:
        """A call is refused, and counts until its answer is `answered`. False: see Pod.refuse."""
        self._changed()
        self._calls += 1
        self._refused += 1
        self._open += 1
        return self.pod.refuse()

    def answered(self) -> None:
        """One that was refused."""
        self._open -= 1
        self.pod.refusing -= 1

    def weight(self) -> Weight:
        """What it costs."""
        held = self.connections
        return Weight(self.pod.key, held.taken, self._calls, self._refused, held.busy, held.open, self._open)


class Accounts:
    """Those of all sockets that are open, by the volume's number. Belongs to one event loop.

    `shut` closes the connections of one pod; `now`: seconds of a clock that only grows; `changed` is called with the
    volume of one that costs more.
    """

    def __init__(
        self,
        limits: Limits,
        shut: Callable[[str], None],
        now: Callable[[], float],
        changed: Callable[[int], None] = lambda volume: None,
    ) -> None:
        self._limits = limits
        self._changed = changed
        self._shut = shut
        self._now = now
        self._pods: dict[str, Pod] = {}
        self._accounts: dict[int, Account] = {}

    def begin(self, volume: int, pod: str) -> Account:
        """The volume's socket is being opened. `pod`: what no other pod is called, now or later."""
        found = self._pods.get(pod)
        if found is None:
            found = self._pods[pod] = Pod(pod, self._limits, self._now, lambda: self._shut(pod))
        found.sockets += 1
        self._accounts[volume] = account = Account(found, lambda: self._changed(volume))
        return account

    def end(self, volume: int) -> None:
        """It is closed."""
        account = self._accounts.pop(volume, None)
        if account is not None:
            account.pod.sockets -= 1
            if not account.pod.sockets:
                del self._pods[account.pod.key]

    def weight(self, volume: int) -> Weight | None:
        """What the volume's socket costs, where it is open."""
        account = self._accounts.get(volume)
        return account.weight() if account else None

    def weights(self) -> Mapping[int, Weight]:
        """What each socket costs."""
        return {volume: account.weight() for volume, account in self._accounts.items()}
