"""All agents at a replica at once, in virtual time: its admission and the agents' pacing are the real ones.

What is between them is a model: a processor that all who have a place share, and agents that give up.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from agent.authority.connection import ASK_MILLISECONDS
from agent.authority.pacing import Pacing
from agent.authority.proven import CONNECT_SECONDS
from signer.front.admission import Admission, Entry
from signer.front.budget import GREETING_SECONDS

# Seconds: of a step of virtual time; of the sweep that the door makes.
STEP, SWEEP = 0.02, 0.1
# A connection takes processor time in so many parts, and between two of them its agent is waited for.
PARTS = 3


class Everywhere:
    """Agents run at each address."""

    def __contains__(self, address: object) -> bool:
        return True

    def within(self, network: str) -> tuple[str, ...]:
        return ()


@dataclass(eq=False)
class Caller:
    """One agent."""

    address: str
    pacing: Pacing
    asks_at: float
    begun_at: float = 0.0
    served_at: float | None = None
    connection: "Connection | None" = None


@dataclass(eq=False)
class Connection:
    """As admission knows it (`Guest`). Who gave up is still there until it has a place."""

    caller: Caller
    storm: "Storm"
    entry: Entry | None = None
    placed: bool = False
    gone: bool = False
    parts: int = PARTS
    work: float = 0.0
    ready_at: float = 0.0

    def is_there(self) -> bool:
        return not self.gone

    def begin(self) -> None:
        self.placed = True
        self.work, self.ready_at = self.storm.part, self.storm.now
        self.storm.placed[self] = None

    def close(self) -> None:
        self.storm.placed.pop(self, None)
        if self.caller.served_at is not None:
            self.storm.ended.append(self)
        elif not self.gone:
            self.storm.failed(self)


@dataclass
class Storm:
    """`agents` that all come within a second to a replica that serves `rate` a second; each answers after `think`."""

    agents: int
    rate: float
    think: float = 0.05
    now: float = 0.0
    placed: dict[Connection, None] = field(default_factory=dict)
    ended: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(1)
        self.part = 1.0 / self.rate / PARTS
        self.admission = Admission(5, lambda _: None, lambda: self.now, expected=Everywhere(), agents=self.agents)
        self.callers = [
            Caller(
                f"10.{number // 62500}.{number // 250 % 250}.{number % 250}",
                Pacing(random.Random(number), lambda: True, lambda: self.now),
                rng.uniform(0.0, 1.0),
            )
            for number in range(self.agents)
        ]

    @property
    def served(self) -> int:
        return sum(each.served_at is not None for each in self.callers)

    def failed(self, connection: Connection) -> None:
        """It comes again."""
        connection.gone = True
        connection.caller.connection = None
        connection.caller.pacing.failed(nobody=False)

    def run(self, seconds: float) -> Iterator[int]:
        """How many are served, after each second."""
        steps = round(seconds / STEP)
        for step in range(1, steps + 1):
            self.now += STEP
            self._agents()
            self._server()
            if step % round(SWEEP / STEP) == 0:
                self.admission.overdue(GREETING_SECONDS)
            self.admission.go_on()
            if step % round(1 / STEP) == 0:
                yield self.served

    def _agents(self) -> None:
        for each in self.callers:
            if each.connection is not None:
                if each.served_at is None and self.now - each.begun_at > CONNECT_SECONDS:
                    connection = each.connection
                    self.failed(connection)
                    if connection.placed and connection.entry is not None:
                        self.placed.pop(connection)
                        self.admission.left(connection.entry)
            elif each.served_at is None and self.now >= each.asks_at:
                each.asks_at = self.now + ASK_MILLISECONDS / 1000
                if each.pacing.may_try():
                    self._connect(each)

    def _connect(self, caller: Caller) -> None:
        connection = Connection(caller, self)
        caller.connection, caller.begun_at = connection, self.now
        connection.entry = self.admission.enter(connection, caller.address)
        if connection.entry is None:
            self.failed(connection)
        else:
            self.admission.spoke(connection.entry)

    def _server(self) -> None:
        left = STEP
        while left > 1e-9:
            ready = [each for each in self.placed if each.ready_at <= self.now]
            if not ready:
                return
            share = min(left / len(ready), min(each.work for each in ready))
            for each in ready:
                each.work -= share
                left -= share
                if each.work <= 1e-12:
                    self._did(each)

    def _did(self, connection: Connection) -> None:
        assert connection.entry is not None
        if connection.gone:
            del self.placed[connection]
            self.admission.left(connection.entry)
            return
        if connection.parts == PARTS:
            self.admission.answered(connection.entry)
        connection.parts -= 1
        connection.work, connection.ready_at = self.part, self.now + self.think
        if connection.parts == 0:
            del self.placed[connection]
            assert self.admission.proven(connection.entry, connection.caller.address)
            connection.caller.served_at = self.now


@pytest.mark.parametrize(("think", "part"), [(0.05, 0.85), (0.4, 0.55)])
@pytest.mark.parametrize("rate", [10, 20, 40, 100])
def test_who_is_offered_more_than_it_can_serve_serves_what_it_can(rate: int, think: float, part: float) -> None:
    """From first to last, until most are served; and who was served stays served."""
    # More than have places and wait, and than it can serve before they give up.
    storm = Storm(max(700, 20 * rate), rate, think)
    served = [0, *storm.run(28.0)]
    until = next((second for second, count in enumerate(served) if count > 0.8 * storm.agents), len(served))
    tens = [served[begin + 10] - served[begin] for begin in range(3, until - 10)]
    assert tens
    assert min(tens) >= part * 10 * rate, served
    assert not storm.ended


def test_a_replica_that_gets_faster_again_serves_all() -> None:
    """What it took for a slow one is not kept, and nobody waits for a minute because many came before."""
    storm = Storm(700, 10)
    served = list(storm.run(10.0))
    storm.part /= 10
    served += storm.run(90.0)
    assert served[9] < 150
    assert served[60] > 630
    assert served[-1] == 700
