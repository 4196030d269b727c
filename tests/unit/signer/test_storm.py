"""All agents at a replica at once, in virtual time: its admission and the agents' pacing are the real ones.

What is between them is a model: a processor that all who have a place share, agents that give up, and others that do
what they can against them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from agent.authority.connection import ASK_MILLISECONDS
from agent.authority.pacing import Pacing
from agent.authority.proven import CONNECT_SECONDS
from signer.front.admission import Admission, Entry
from signer.front.answering import ANSWER_SECONDS
from signer.front.budget import GREETING_SECONDS, STRANGERS

# Seconds: of a step of virtual time; of the sweep that the door makes.
STEP, SWEEP = 0.02, 0.1
# A connection takes processor time in so many parts, and between two of them its agent is waited for.
PARTS = 3
# What one who wants a replica to look slow does: one byte, and the rest of its first words so much later.
HALTS = ANSWER_SECONDS + 0.01


class Tens:
    """Agents run at each address that begins so."""

    def __contains__(self, address: object) -> bool:
        return str(address).startswith("10.")

    def within(self, network: str) -> tuple[str, ...]:
        return ()


@dataclass(eq=False)
class Caller:
    """One agent."""

    node: str
    address: str
    pacing: Pacing
    asks_at: float
    begun_at: float = 0.0
    served_at: float | None = None
    connection: "Connection | None" = None


@dataclass(eq=False)
class Other:
    """One that never proves to be an agent. It comes `every` so many seconds, and leaves after `stays`."""

    address: str
    comes_at: float
    every: float
    halts: float = 0.0
    stays: float = 60.0
    begun_at: float = 0.0
    connection: "Connection | None" = None


@dataclass(eq=False)
class Connection:
    """As admission knows it (`Guest`). Who gave up is still there until it has a place."""

    whose: Caller | Other
    storm: "Storm"
    entry: Entry | None = None
    placed: bool = False
    gone: bool = False
    whole_at: float | None = None
    parts: int = PARTS
    work: float = 0.0
    ready_at: float = 0.0

    def is_there(self) -> bool:
        return not self.gone

    def begin(self) -> None:
        self.placed = True
        halts = self.whose.halts if isinstance(self.whose, Other) else 0.0
        if halts:
            assert self.entry is not None
            self.storm.admission.passed(self.entry, whole=False)
            self.whole_at = self.storm.now + halts
        else:
            self.asks()

    def is_proven(self, now: float) -> bool:
        """Whether TLS is done on its agent's side, which waits for no longer than it does for that."""
        return self.parts < PARTS - 1 or (self.parts == PARTS - 1 and now >= self.ready_at)

    def asks(self) -> None:
        """Its first words are whole."""
        assert self.entry is not None
        self.whole_at = None
        self.work, self.ready_at = self.storm.part, self.storm.now
        self.storm.working[self] = None
        self.storm.admission.passed(self.entry, whole=True)

    def close(self) -> None:
        self.storm.working.pop(self, None)
        if isinstance(self.whose, Caller) and self.whose.served_at is not None:
            self.storm.ended.append(self)
        elif not self.gone:
            self.storm.failed(self)


@dataclass
class Storm:
    """`agents` come within so many seconds to a replica that serves `rate` a second; each answers after `think`.

    All are from one `address` if it is given, which gets so many connections a second.
    """

    agents: int
    rate: float
    think: float = 0.05
    within: float = 1.0
    address: str = ""
    address_rate: int = 5
    others: list[Other] = field(default_factory=list)
    now: float = 0.0
    working: dict[Connection, None] = field(default_factory=dict)
    ended: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(1)
        self.part = 1.0 / self.rate / PARTS
        self.admission = Admission(
            self.address_rate, lambda _: None, lambda: self.now, expected=Tens(), agents=self.agents
        )
        self.callers = [
            Caller(
                f"node-{number}",
                self.address or f"10.{number // 62500}.{number // 250 % 250}.{number % 250}",
                Pacing(random.Random(number), lambda: True, lambda: self.now),
                rng.uniform(0.0, self.within),
            )
            for number in range(self.agents)
        ]
        self.came = {each: each.asks_at for each in self.callers}

    @property
    def served(self) -> int:
        return sum(each.served_at is not None for each in self.callers)

    @property
    def delays(self) -> list[float]:
        """Of each from its first attempt until it was served, the longest last."""
        return sorted((each.served_at or float("inf")) - self.came[each] for each in self.callers)

    def failed(self, connection: Connection) -> None:
        """It comes again."""
        connection.gone = True
        connection.whose.connection = None
        if isinstance(connection.whose, Caller):
            connection.whose.pacing.failed(nobody=False)

    def run(self, seconds: float) -> Iterator[int]:
        """How many are served, after each second."""
        steps = round(seconds / STEP)
        for step in range(1, steps + 1):
            self.now += STEP
            self._others()
            self._agents()
            self._server()
            if step % round(SWEEP / STEP) == 0:
                self.admission.overdue(GREETING_SECONDS)
            self.admission.go_on()
            if step % round(1 / STEP) == 0:
                yield self.served

    def _agents(self) -> None:
        for each in self.callers:
            if each.served_at is not None:
                continue
            if each.connection is not None:
                if self.now - each.begun_at > CONNECT_SECONDS and not each.connection.is_proven(self.now):
                    self._gives_up(each.connection)
            elif self.now >= each.asks_at:
                each.asks_at = self.now + ASK_MILLISECONDS / 1000
                if each.pacing.may_try():
                    self._connect(each)

    def _others(self) -> None:
        for each in self.others:
            connection = each.connection
            if connection is None:
                if self.now >= each.comes_at:
                    each.comes_at = self.now + each.every
                    self._connect(each)
            elif connection.whole_at is not None and self.now >= connection.whole_at:
                connection.asks()
            elif self.now - each.begun_at > each.stays:
                self._gives_up(connection)

    def _gives_up(self, connection: Connection) -> None:
        self.failed(connection)
        if connection.placed and connection.entry is not None:
            self.working.pop(connection, None)
            self.admission.left(connection.entry)

    def _connect(self, whose: Caller | Other) -> None:
        connection = Connection(whose, self)
        whose.connection, whose.begun_at = connection, self.now
        connection.entry = self.admission.enter(connection, whose.address)
        if connection.entry is None:
            self.failed(connection)
        else:
            self.admission.spoke(connection.entry)

    def _server(self) -> None:
        left = STEP
        while left > 1e-9:
            ready = [each for each in self.working if each.ready_at <= self.now]
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
        self.admission.answered(connection.entry)
        connection.parts -= 1
        connection.work, connection.ready_at = self.part, self.now + self.think
        if isinstance(connection.whose, Other):
            del self.working[connection]
        elif connection.parts == 0:
            del self.working[connection]
            assert self.admission.proven(connection.entry, connection.whose.node)
            connection.whose.served_at = self.now


def least_in_ten_seconds(served: list[int], agents: int) -> int:
    """From the third second on until most are served."""
    until = next((second for second, count in enumerate(served) if count > 0.8 * agents), len(served))
    return min(served[begin + 10] - served[begin] for begin in range(3, until - 10))


@pytest.mark.parametrize(
    ("rate", "think", "part"),
    [
        (12, 0.05, 0.85),
        (12, 0.4, 0.85),
        (24, 0.05, 0.85),
        (24, 0.4, 0.85),
        (50, 0.05, 0.85),
        (50, 0.4, 0.5),
        # By its places it serves no more.
        (200, 0.05, 0.8),
    ],
)
def test_who_is_offered_more_than_it_can_serve_serves_what_it_can(rate: int, think: float, part: float) -> None:
    """From first to last, until most are served; and who was served stays served."""
    # More than have places and wait, and than it can serve before they give up.
    storm = Storm(max(700, 20 * rate), rate, think)
    served = [0, *storm.run(28.0)]
    assert least_in_ten_seconds(served, storm.agents) >= part * 10 * rate, served
    assert not storm.ended


def test_a_replica_that_gave_out_all_places_and_is_far_too_slow_for_them_comes_back_by_itself() -> None:
    """Nobody of the first ones is ever answered in time: that they came to nothing says that there were too many."""
    storm = Storm(700, 5)
    served = [0, *storm.run(60.0)]
    assert storm.admission._answering.limit < STRANGERS / 10
    assert least_in_ten_seconds(served[12:], storm.agents) >= 0.85 * 10 * 5, served
    assert not storm.ended


@pytest.mark.parametrize(("rate", "think"), [(12, 1.0), (12, 2.0), (50, 2.0), (50, 3.0)])
def test_agents_that_take_long_for_each_of_their_steps_are_served_as_many_as_have_places(
    rate: int, think: float
) -> None:
    """Where their nodes lack processor time too. To give way to others that are as slow would be for ever."""
    storm = Storm(700, rate, think)
    served = [0, *storm.run(40.0)]
    # Each has its place for two of its steps, and as long again for the replica's.
    assert least_in_ten_seconds(served[5:], storm.agents) >= 10 * min(0.5 * rate, STRANGERS / (4 * think)), served
    assert not storm.ended


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1"])
@pytest.mark.parametrize("address_rate", [100, 5000])
def test_agents_behind_one_address_come_back(address: str, address_rate: int) -> None:
    """Where that address is let have so many. Nobody's place is taken by who comes behind it."""
    storm = Storm(1500, 50, address=address, address_rate=address_rate)
    served = [0, *storm.run(28.0)]
    assert least_in_ten_seconds(served, storm.agents) >= 0.7 * 10 * 50, served
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


def others(kind: str) -> list[Other]:
    """From 14 addresses of agents, and from 84 others: together as many as have places."""
    addresses = [f"10.200.0.{number}" for number in range(14)] + [f"172.16.0.{number}" for number in range(84)]
    every, halts, stays = {
        "halts": (11.0, HALTS, 60.0),
        "says nothing more": (11.0, 0.0, 60.0),
        "leaves": (11.0, 0.0, HALTS),
        "floods": (0.2, 0.0, HALTS),
        "floods and halts": (0.2, HALTS, 60.0),
    }[kind]
    return [Other(each, number / 10, every, halts, stays) for number, each in enumerate(addresses)]


KINDS = ["halts", "says nothing more", "leaves", "floods", "floods and halts"]


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_makes_a_replica_that_is_fast_look_slow(kind: str) -> None:
    alone, beside = Storm(100, 200, within=20.0), Storm(100, 200, within=20.0, others=others(kind))
    for storm in (alone, beside):
        assert [*storm.run(30.0)][-1] == 100
    assert beside.admission._answering.limit == STRANGERS
    assert beside.delays[-1] < alone.delays[-1] + 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_keeps_a_slow_replica_from_coming_back(kind: str) -> None:
    """Beside agents that all come at once."""
    alone, beside = Storm(300, 20), Storm(300, 20, others=others(kind))
    for storm in (alone, beside):
        assert [*storm.run(40.0)][-1] == 300
    assert beside.delays[-1] < alone.delays[-1] + 3.0
