"""Who may hold a connection: strangers are few and go soon, one address cannot take the places of others."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from signer.attestation.pods import AgentAddresses
from signer.front import admission as module
from signer.front import budget, origins
from signer.front.admission import (
    CROWD_TIMES,
    CROWD_TURNS,
    FLOOD_SECONDS,
    FLOOD_TIMES,
    HOLD_SECONDS,
    KNOWN_HOLD_SECONDS,
    KNOWN_VAIN,
    KNOWN_VAIN_AT_ONCE,
    MAX_STRIKES,
    VAIN,
    VAIN_AT_ONCE,
    WAIT_SECONDS,
    Admission,
    Entry,
)
from signer.front.answering import ANSWER_SECONDS, LEAST_AT_ONCE
from signer.front.origins import KNOWN_OF_NODE
from signer.model import MAX_DNS_NAMES, LivePod
from signer.pb import signer_pb2
from svid.jwtsvid import MAX_AUDIENCE_BYTES, MAX_AUDIENCES


class Guest:
    """A connection."""

    def __init__(self) -> None:
        self.begun = self.closed = self.left = False

    def is_there(self) -> bool:
        return not self.left

    def begin(self) -> None:
        self.begun = True

    def close(self) -> None:
        self.closed = True


def running(*addresses: str) -> AgentAddresses:
    """Where agents run."""
    found = AgentAddresses()
    for number, each in enumerate(addresses):
        pod = LivePod("podsvid", f"agent-{number}", str(number), "node", "podsvid-agent", addresses=frozenset({each}))
        found.pod_changed(None, pod)
    return found


class Rig:
    """Admission with few places and a clock that only tests move."""

    def __init__(
        self,
        rate: int = 100,
        strangers: int = 8,
        agents: int = 4,
        of_node: int = 2,
        waiting: int = 100,
        expected: Sequence[str] = (),
        lenient: bool = True,
    ) -> None:
        self.at = 100.0
        self.refused: list[str] = []
        self.admission = Admission(
            rate,
            self.refused.append,
            lambda: self.at,
            expected=running(*expected),
            strangers=strangers,
            waiting=waiting,
            agents=agents,
            of_node=of_node,
            lenient=lenient,
        )

    def silent(self, host: str) -> tuple[Guest, Entry | None]:
        guest = Guest()
        return guest, self.admission.enter(guest, host)

    def enter(self, host: str) -> tuple[Guest, Entry | None]:
        """One that speaks at once."""
        guest, entry = self.silent(host)
        if entry is not None:
            self.admission.spoke(entry)
        return guest, entry

    def agent(self, node: str, host: str = "") -> tuple[Guest, Entry]:
        guest, entry = self.enter(host or f"host of {node}")
        assert entry is not None
        assert self.admission.proven(entry, node)
        return guest, entry


def test_what_peers_can_make_a_replica_hold_is_less_than_half_of_the_charts_limit() -> None:
    assert sum(budget.held_at_most().values()) < budget.FOR_PEERS
    assert budget.FOR_PEERS * 2 == budget.REPLICA_MEMORY == 1024 * 1024 * 1024
    # An agent's first call fits into what it may send before it is known.
    assert budget.MAX_TOKEN + 3 * budget.KIB < budget.GREETING


def test_the_page_shows_the_sum() -> None:
    page = (Path(__file__).parents[3] / "docs/signer.md").read_text()
    parts = budget.held_at_most()
    for what, size in parts.items():
        assert f"| {what} | {size / budget.MIB:.0f} |" in page
    assert f"| **in all** | **{sum(parts.values()) / budget.MIB:.0f}** of {budget.FOR_PEERS // budget.MIB} |" in page


def test_the_page_shows_what_proxies_add() -> None:
    page = (Path(__file__).parents[3] / "docs/signer.md").read_text()
    parts = budget.held_for_proxies()
    for what, size in parts.items():
        assert f"| {what} | {size / budget.MIB:.0f} |" in page
    assert f"| **in all** | **{sum(parts.values()) / budget.MIB:.0f}** of {budget.FOR_PROXIES // budget.MIB} |" in page


def test_the_chart_gives_what_the_budget_counts_with() -> None:
    values = (Path(__file__).parents[3] / "deploy/chart/podsvid/values.yaml").read_text()
    assert f"limits: {{memory: {budget.REPLICA_MEMORY // budget.MIB // 1024}Gi}}" in values


def test_one_address_gets_its_rate() -> None:
    rig = Rig(rate=3, strangers=100)
    taken = [rig.enter("10.0.0.1")[1] for _ in range(7)]
    assert [each is not None for each in taken] == [True] * 6 + [False]
    assert rig.enter("10.0.0.2")[1] is not None
    rig.at += 1.0
    assert [rig.enter("10.0.0.1")[1] is not None for _ in range(4)] == [True] * 3 + [False]
    assert rig.refused.count("address") >= 2


def test_who_is_turned_away_again_and_again_floods() -> None:
    rig = Rig(rate=2, strangers=100)

    def comes(host: str, turned: int) -> None:
        for _ in range(4 + turned):
            rig.enter(host)

    comes("10.0.0.1", 2 * FLOOD_TIMES)
    comes("10.0.0.2", 2 * FLOOD_TIMES - 1)
    assert list(rig.admission.floods()) == ["10.0.0.1"]
    assert not rig.admission.floods()
    rig.at += FLOOD_SECONDS
    # Of an earlier second nothing is counted.
    assert not rig.admission.floods()
    comes("10.0.0.2", 1)
    assert not rig.admission.floods()


def test_an_agents_ipv6_address_is_not_its_nodes_pods() -> None:
    """They are in its network of 64 bits, mostly: nobody of them goes before others, or takes what is the agent's."""
    rig = Rig(rate=2, strangers=2, expected=["fd00:0:0:1::a", "10.0.9.1"])
    pods = [rig.enter(f"fd00:0:0:1::{number:x}")[0] for number in (1, 2, 3, 4)]
    assert [each.begun for each in pods] == [True, True, False, False]
    for number in range(100):
        rig.enter(f"fd00:0:0:1::{number:x}")
    # It is told with their flood, of which it is no part.
    assert {each: list(agents) for each, agents in rig.admission.floods().items()} == {
        "fd00:0:0:1::/64": ["fd00:0:0:1::a"]
    }
    agent, entry = rig.enter("fd00:0:0:1::a")
    assert agent.begun
    assert entry is not None
    assert rig.admission.proven(entry, "node")
    for number in range(100):
        rig.enter(f"fd00:0:0:2::{number:x}")
    assert rig.admission.floods() == {"fd00:0:0:2::/64": ()}


def test_where_agents_come_from_can_flood_as_any_address() -> None:
    """Who owns a node would take the replica's time else."""
    rig = Rig(rate=2, strangers=20, expected=["10.0.9.1"])
    _, seen = rig.agent("node", "10.0.9.2")
    rig.admission.left(seen)
    for _ in range(100):
        for host in ("10.0.9.1", "10.0.9.2", "10.0.9.3"):
            rig.enter(host)
    assert sorted(rig.admission.floods()) == ["10.0.9.1", "10.0.9.2", "10.0.9.3"]


def test_many_addresses_each_within_its_rate_are_a_crowd_and_agents_are_not_among_them() -> None:
    """To look for who gives way to each of them took the replica's time: no address of theirs floods by itself."""
    rig = Rig(rate=5, waiting=50, expected=["10.0.9.1"])
    _, seen = rig.agent("node", "10.0.9.2")
    rig.admission.left(seen)
    crowd = [rig.silent(f"10.1.{number // 250}.{number % 250}")[1] for number in range(2 * CROWD_TIMES * 5)]
    assert sum(each is not None for each in crowd) in (CROWD_TIMES * 5, CROWD_TIMES * 5 - 1)
    assert crowd[-1] is None
    assert all(rig.enter(host)[1] for host in ("10.0.9.1", "10.0.9.2"))
    rig.at += 1.0
    more = [rig.silent(f"10.2.{number // 250}.{number % 250}")[1] for number in range(2 * CROWD_TIMES * 5)]
    assert sum(each is not None for each in more) == CROWD_TIMES * 5


def test_who_comes_again_and_again_in_a_crowd_floods_though_it_keeps_to_its_rate() -> None:
    rig = Rig(rate=5, waiting=50, expected=["10.0.9.1"])
    for number in range(CROWD_TIMES * 5):
        rig.silent(f"10.1.{number // 250}.{number % 250}")
    for host, times in (("10.0.0.1", CROWD_TURNS), ("10.0.0.2", CROWD_TURNS - 1), ("10.0.9.1", 10)):
        for _ in range(times):
            rig.silent(host)
    assert set(rig.admission.floods()) == {"10.0.0.1"}
    # Where many share an address, and somebody said so, it comes more often by itself.
    rig = Rig(rate=100, waiting=50)
    for number in range(CROWD_TIMES * 100):
        rig.silent(f"10.{number // 62500}.{number // 250 % 250}.{number % 250}")
    for host, times in (("11.0.0.1", 50), ("11.0.0.2", 49)):
        for _ in range(times):
            rig.silent(host)
    assert set(rig.admission.floods()) == {"11.0.0.1"}


def test_a_stranger_that_comes_alone_goes_before_those_of_whose_address_there_are_many() -> None:
    rig = Rig(strangers=1)
    _, first = rig.enter("10.0.0.1")
    many = [rig.enter("10.0.0.2")[0] for _ in range(5)]
    alone, _ = rig.enter("10.0.0.3")
    assert first is not None
    rig.admission.left(first)
    rig.admission.go_on()
    assert (alone.begun, [each.begun for each in many]) == (True, [False] * 5)


def test_one_address_has_what_its_rate_gives_and_its_oldest_goes() -> None:
    rig = Rig(rate=2)
    guests = [rig.silent("10.0.0.1")[0] for _ in range(4)]
    rig.at += 1.0
    guests.append(rig.silent("10.0.0.1")[0])
    assert [each.closed for each in guests] == [True, False, False, False, False]
    assert (rig.admission.strangers, rig.refused) == (4, ["address"])


def test_where_many_share_an_address_it_has_more_than_there_are_places() -> None:
    """As its rate says: they wait for each other."""
    rig = Rig(rate=1000)
    guests = [rig.enter("10.0.0.1")[0] for _ in range(50)]
    assert [each.begun for each in guests] == [True] * 8 + [False] * 42
    assert not any(each.closed for each in guests)
    assert rig.admission.ready
    rig.at += HOLD_SECONDS / 2
    rig.admission.go_on()
    assert sum(each.begun for each in guests) == 8
    rig.at += HOLD_SECONDS / 2
    rig.admission.go_on()
    assert [each.closed for each in guests] == [True] * 8 + [False] * 42
    assert sum(each.begun for each in guests) == 16


def test_who_says_nothing_has_no_place() -> None:
    rig = Rig(strangers=1)
    silent, waits = rig.silent("10.0.0.1")
    speaks, entry = rig.enter("10.0.0.2")
    assert entry is not None
    assert waits is not None
    assert (silent.begun, speaks.begun, rig.admission.strangers) == (False, True, 2)
    rig.admission.spoke(waits)
    assert not silent.begun
    rig.admission.left(entry)
    rig.admission.go_on()
    assert silent.begun
    assert not rig.admission.ready


def test_where_too_many_wait_who_has_most_gives_way() -> None:
    rig = Rig(waiting=8)
    alone = [rig.silent(f"10.0.1.{number}")[0] for number in range(5)]
    many = [rig.silent("10.0.0.1")[0] for _ in range(3)]
    newcomer, entry = rig.silent("10.0.2.1")
    assert entry is not None
    assert [each.closed for each in many] == [True, False, False]
    assert not any(each.closed for each in (*alone, newcomer))
    assert (rig.admission.strangers, rig.refused) == (8, ["strangers"])


def test_no_more_wait_than_may_though_an_address_has_all_that_it_may() -> None:
    rig = Rig(rate=1, strangers=2, waiting=3)
    placed, _ = rig.enter("a")
    rig.silent("a")
    for each in ("b", "c"):
        rig.silent(each)
    rig.at += 2.0
    guest, _ = rig.silent("a")
    assert placed.closed
    assert not guest.closed
    assert len(rig.admission._waiting) == 3
    assert rig.refused == ["address", "strangers"]


def test_where_many_share_an_address_who_has_a_place_keeps_it() -> None:
    rig = Rig(rate=3, strangers=2)
    placed = [rig.enter("a")[0] for _ in range(2)]
    waiting = [rig.enter("a")[0] for _ in range(4)]
    rig.at += 0.34
    rig.enter("a")
    assert [each.closed for each in placed] == [False, False]
    assert [each.closed for each in waiting] == [True, False, False, False]


def test_where_all_places_are_taken_who_has_most_gives_way() -> None:
    rig = Rig()
    alone = [rig.enter(f"10.0.1.{number}")[0] for number in range(5)]
    many = [rig.enter("10.0.0.1")[0] for _ in range(3)]
    newcomer, _ = rig.enter("10.0.2.1")
    assert newcomer.begun
    assert [each.closed for each in many] == [True, False, False]
    assert not any(each.closed for each in alone)
    assert rig.refused == ["strangers"]
    # It would have as many as that other then.
    second, _ = rig.enter("10.0.2.1")
    assert not second.begun


def test_where_each_has_one_place_the_next_waits_and_the_oldest_goes_after_a_while() -> None:
    rig = Rig()
    first, _ = rig.enter("10.0.1.0")
    for number in range(1, 8):
        rig.enter(f"10.0.1.{number}")
    next_one, _ = rig.enter("10.0.2.1")
    rig.at += HOLD_SECONDS * 0.9
    rig.admission.go_on()
    assert (next_one.begun, first.closed) == (False, False)
    rig.at += HOLD_SECONDS * 0.2
    rig.admission.go_on()
    assert (next_one.begun, first.closed) == (True, True)


def test_an_address_that_an_agent_came_from_goes_first() -> None:
    rig = Rig()
    _, agent = rig.agent("a", "10.0.9.1")
    rig.admission.left(agent)
    strangers = [rig.enter(f"10.0.1.{number}")[0] for number in range(8)]
    waits, _ = rig.enter("10.0.2.1")
    again, entry = rig.enter("10.0.9.1")
    assert (waits.begun, again.begun) == (False, True)
    assert [each.closed for each in strangers] == [True] + [False] * 7
    # Nor does it give way to the next strangers at once.
    for number in range(8):
        rig.enter(f"10.0.3.{number}")
    assert not again.closed
    assert entry is not None
    assert rig.admission.proven(entry, "a")


def test_where_agents_run_is_known_before_any_came_from_there() -> None:
    """After a restart: all come at once, and from everywhere at once comes somebody else as well."""
    places = [f"10.0.9.{number}" for number in range(20)]
    rig = Rig(agents=100, expected=places)
    strangers = [rig.enter(f"10.0.1.{number}")[0] for number in range(20)]
    agents = [rig.enter(place) for place in places]
    assert [each.begun for each, _ in agents] == [True] * 8 + [False] * 12
    assert [each.closed for each in strangers[:8]] == [True] * 8
    for number, (guest, entry) in enumerate(agents):
        assert entry is not None
        assert guest.begun
        assert rig.admission.proven(entry, f"node-{number}")
        rig.admission.go_on()
    assert not any(each.closed for each, _ in agents)
    # Nor was one of them counted among those that came in vain.
    rig = Rig(rate=1000, strangers=1000, waiting=1000, expected=places)
    assert all(rig.enter(places[number % 20])[0].begun for number in range(3 * int(VAIN_AT_ONCE)))


def test_who_comes_from_where_agents_run_has_longer_than_others() -> None:
    rig = Rig(strangers=2, expected=("10.0.9.1", "10.0.9.2", "10.0.9.3"))
    first, second, third = (rig.enter(f"10.0.9.{number}")[0] for number in (1, 2, 3))
    rig.at += KNOWN_HOLD_SECONDS * 0.9
    rig.admission.go_on()
    assert (first.closed, second.closed, third.begun) == (False, False, False)
    rig.at += KNOWN_HOLD_SECONDS * 0.2
    rig.admission.go_on()
    assert (first.closed, second.closed, third.begun) == (True, False, True)


def test_who_is_answered_has_its_time_anew_where_agents_run_and_nowhere_else() -> None:
    """It did its part, and TLS takes three: who is sent away in the middle of it comes again."""
    rig = Rig(strangers=3, expected=[f"10.0.9.{number}" for number in range(9)])
    goes_on, halts = rig.enter("10.0.9.1"), rig.enter("10.0.9.2")
    rig.at += KNOWN_HOLD_SECONDS - HOLD_SECONDS
    stranger = rig.enter("10.0.1.1")
    rig.enter("10.0.9.3")
    assert stranger[0].closed
    waits, _ = rig.enter("10.0.9.4")
    for _, entry in (goes_on, stranger):
        assert entry is not None
        rig.admission.answered(entry)
    rig.at += HOLD_SECONDS
    rig.admission.go_on()
    assert (goes_on[0].closed, halts[0].closed, waits.begun) == (False, True, True)
    rig = Rig(strangers=1)
    guest, entry = rig.enter("10.0.1.1")
    waits, _ = rig.enter("10.0.1.2")
    rig.at += HOLD_SECONDS
    assert entry is not None
    rig.admission.answered(entry)
    rig.admission.go_on()
    assert (guest.closed, waits.begun) == (True, True)


def test_a_stranger_waits_for_the_first_that_had_its_time() -> None:
    rig = Rig(strangers=2, expected=("10.0.9.1",))
    known, _ = rig.enter("10.0.9.1")
    stranger, _ = rig.enter("10.0.1.1")
    waits, _ = rig.enter("10.0.1.2")
    rig.at += HOLD_SECONDS
    rig.admission.go_on()
    assert (known.closed, stranger.closed, waits.begun) == (False, True, True)


def test_where_agents_wait_who_comes_later_comes_again() -> None:
    """Else those who have waited longest would go for them, all the while."""
    places = [f"10.0.9.{number}" for number in range(6)]
    rig = Rig(strangers=1, waiting=4, expected=places)
    guests = [rig.enter(place) for place in places]
    assert [entry is not None for _, entry in guests] == [True] * 5 + [False]
    assert not any(guest.closed for guest, _ in guests)
    assert rig.refused == ["strangers"]
    # Nor do they go for a stranger; but who has more than one there makes room for one that has none.
    assert rig.silent("10.0.1.1")[1] is None
    rig = Rig(strangers=1, waiting=4, expected=places)
    rig.enter(places[0])
    many = [rig.silent(places[1])[0] for _ in range(3)]
    rig.silent(places[2])
    assert rig.silent(places[3])[1] is not None
    assert [each.closed for each in many] == [True, False, False]


def test_who_waited_for_too_long_or_has_left_gets_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent gives up before it is done: all who wait would come to that, one after the other."""
    monkeypatch.setattr(module, "KNOWN_HOLD_SECONDS", 2 * WAIT_SECONDS)
    places = [f"10.0.9.{number}" for number in range(6)]
    rig = Rig(strangers=1, expected=places)
    _, first = rig.enter(places[0])
    late = [rig.enter(place)[0] for place in places[1:3]]
    rig.at += WAIT_SECONDS
    left, stays = (rig.enter(place)[0] for place in places[3:5])
    left.left = True
    rig.at += 0.1
    assert first is not None
    rig.admission.left(first)
    rig.admission.go_on()
    assert [(each.begun, each.closed) for each in (*late, left)] == [(False, True)] * 3
    assert (stays.begun, stays.closed) == (True, False)
    assert rig.refused == ["strangers"] * 3


def test_where_strangers_come_first_those_who_waited_for_too_long_get_no_place_either() -> None:
    rig = Rig(strangers=1)
    _, first = rig.enter("10.0.1.1")
    late, _ = rig.enter("10.0.1.2")
    rig.at += WAIT_SECONDS + 0.1
    soon, _ = rig.enter("10.0.1.3")
    assert first is not None
    rig.admission.left(first)
    rig.admission.go_on()
    assert (late.begun, late.closed, soon.begun) == (False, True, True)


def test_who_says_nothing_for_long_gets_a_place_that_is_free() -> None:
    """It waited for nobody."""
    rig = Rig(strangers=3, expected=["10.0.9.1"])
    rig.enter("10.0.1.1")
    guests = [rig.silent(host) for host in ("10.0.9.1", "10.0.1.2")]
    rig.at += WAIT_SECONDS + 0.1
    for guest, entry in guests:
        assert entry is not None
        rig.admission.spoke(entry)
        assert (guest.begun, guest.closed) == (True, False)


def test_who_waits_because_strangers_come_in_vain_waits_for_no_place() -> None:
    rig = Rig()
    rig.admission._vain.spend(VAIN_AT_ONCE + VAIN * WAIT_SECONDS)
    waits, _ = rig.enter("10.0.1.1")
    rig.at += WAIT_SECONDS + 0.2
    rig.admission.go_on()
    assert waits.begun


def slow(rig: Rig, number: int, net: str = "10.0.9") -> list[tuple[Guest, Entry]]:
    """So many have places and are not answered in time."""
    found = []
    for each in range(number):
        guest, entry = rig.enter(f"{net}.{each}")
        assert entry is not None
        rig.admission.passed(entry, whole=True)
        found.append((guest, entry))
    rig.at += ANSWER_SECONDS + 0.01
    return found


def test_while_answers_are_late_fewer_have_places_and_nobody_gives_way_for_it() -> None:
    """The work for those who are there would be for nothing, and they be as many as before."""
    rig = Rig(strangers=20, expected=[f"10.0.9.{number}" for number in range(40)])
    there = slow(rig, 20)
    waits, _ = rig.enter("10.0.9.30")
    rig.at += KNOWN_HOLD_SECONDS
    rig.admission.go_on()
    assert (waits.begun, any(guest.closed for guest, _ in there)) == (False, False)
    for _, entry in there[: 20 - LEAST_AT_ONCE]:
        rig.admission.left(entry)
    rig.admission.go_on()
    assert not waits.begun
    # Who is answered is waited for, and no more work.
    rig.admission.answered(there[-1][1])
    rig.admission.go_on()
    assert waits.begun
    assert not any(guest.closed for guest, _ in there)


def test_where_answers_are_late_a_stranger_that_is_not_answered_yet_gives_way_to_an_agent() -> None:
    rig = Rig(strangers=20, expected=["10.0.8.1"])
    there = slow(rig, 20, net="10.0.1")
    rig.admission.answered(there[0][1])
    stranger, _ = rig.enter("10.0.2.1")
    assert not stranger.begun
    agent, _ = rig.enter("10.0.8.1")
    assert agent.begun
    assert [guest.closed for guest, _ in there] == [False, True] + [False] * 18


def test_only_agents_raise_the_number_again() -> None:
    """Whoever sends what is answered soon, and comes to nothing, says nothing of how many agents can be served."""
    rig = Rig(strangers=20, agents=100, expected=[f"10.0.9.{number}" for number in range(40)])
    for _, late in slow(rig, 20):
        rig.admission.left(late)
    answering = rig.admission._answering
    assert answering.limit == LEAST_AT_ONCE
    for proves in (False, True):
        _, entry = rig.enter("10.0.9.30")
        assert entry is not None
        rig.admission.passed(entry, whole=True)
        rig.admission.answered(entry)
        if proves:
            assert rig.admission.proven(entry, "node")
        rig.admission.left(entry)
        assert answering.limit == LEAST_AT_ONCE + proves


def test_who_is_known_meanwhile_has_as_long_as_others_that_are() -> None:
    """An agent came from its address."""
    rig = Rig(strangers=2, agents=10)
    first, stays = rig.enter("10.0.9.1"), rig.enter("10.0.9.1")
    assert first[1] is not None
    assert rig.admission.proven(first[1], "node")
    rig.enter("10.0.1.1")
    waits, _ = rig.enter("10.0.1.2")
    rig.at += HOLD_SECONDS
    rig.admission.go_on()
    assert (stays[0].closed, waits.begun) == (False, True)
    late, _ = rig.enter("10.0.1.3")
    rig.at += KNOWN_HOLD_SECONDS - 2 * HOLD_SECONDS
    rig.admission.go_on()
    assert (stays[0].closed, late.begun) == (False, True)


def test_who_becomes_known_keeps_its_turn_among_those_that_were_known_before() -> None:
    rig = Rig(strangers=3, expected=["n"])
    shared, _ = rig.enter("a")
    rig.agent("node-a", "a")
    rig.at += KNOWN_HOLD_SECONDS - 0.1
    later, _ = rig.enter("n")
    stranger, _ = rig.enter("f")
    rig.at += 0.2
    waits, _ = rig.enter("g")
    assert waits.begun
    assert (shared.closed, later.closed, stranger.closed) == (True, False, False)


def test_a_stolen_token_makes_few_addresses_known() -> None:
    rig = Rig(strangers=1, agents=100, of_node=100)
    for number in range(10):
        rig.agent("thief", f"10.0.9.{number}")
    rig.enter("10.0.1.1")
    begun = [rig.enter(f"10.0.9.{number}")[0].begun for number in range(10)]
    assert begun.count(True) == 1
    assert begun.index(True) == 10 - KNOWN_OF_NODE


def test_who_comes_to_nothing_again_and_again_from_where_an_agent_runs_waits_with_the_others() -> None:
    """Pods that leave their node by its address, or have it: they would have TLS's time of every node without end."""
    rig = Rig(rate=5, strangers=1000, waiting=1000, agents=1000, expected=["10.0.9.1", "10.0.9.2"])
    for number in range(int(VAIN_AT_ONCE)):
        assert rig.enter(f"10.1.0.{number}")[0].begun

    def comes(host: str) -> bool:
        rig.at += 0.2
        guest, entry = rig.enter(host)
        assert entry is not None
        begun = guest.begun
        rig.admission.left(entry)
        return begun

    # Meanwhile nobody unknown gets a place.
    rig.admission._vain.spend(1e6)
    begun = [comes("10.0.9.1") for _ in range(2 * KNOWN_VAIN_AT_ONCE)]
    assert begun == [True] * KNOWN_VAIN_AT_ONCE + [False] * KNOWN_VAIN_AT_ONCE
    # The other one's agent is none of it; nor does one pay that proves itself.
    for _ in range(3 * KNOWN_VAIN_AT_ONCE):
        rig.at += 0.2
        guest, entry = rig.enter("10.0.9.2")
        assert entry is not None
        assert guest.begun
        assert rig.admission.proven(entry, "node-2")
        rig.admission.left(entry)
    # It may again as time passes, up to as often as at first.
    rig.at += 2 * KNOWN_VAIN_AT_ONCE / KNOWN_VAIN
    assert [comes("10.0.9.1") for _ in range(KNOWN_VAIN_AT_ONCE + 1)] == [True] * KNOWN_VAIN_AT_ONCE + [False]


def test_strangers_come_in_vain_at_a_rate_and_agents_are_not_among_them() -> None:
    rig = Rig(rate=100_000, strangers=100_000, waiting=100_000, agents=100_000)
    for number in range(3 * int(VAIN_AT_ONCE)):
        rig.agent(f"node-{number}")
    guests = [rig.enter(f"10.1.{number}.1")[0] for number in range(250)]
    assert sum(each.begun for each in guests) == int(VAIN_AT_ONCE)
    assert rig.enter("host of node-1")[0].begun
    rig.at += 1.0
    rig.admission.go_on()
    assert sum(each.begun for each in guests) == int(VAIN_AT_ONCE + VAIN)


def test_addresses_of_agents_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "MAX_ORIGINS", 3)
    rig = Rig(strangers=1, agents=100)
    entries = [rig.agent(f"n{number}", f"10.0.0.{number}")[1] for number in range(5)]
    for each in entries:
        rig.admission.left(each)
    rig.enter("10.0.1.1")
    assert [rig.enter(f"10.0.0.{number}")[0].begun for number in (0, 1, 2)] == [False, False, True]


def test_who_proves_nothing_is_closed_and_agents_are_not() -> None:
    rig = Rig()
    agent, _ = rig.agent("a")
    silent, _ = rig.enter("10.0.0.1")
    rig.at += 5.0
    later, _ = rig.enter("10.0.0.1")
    rig.admission.overdue(5.1)
    assert not silent.closed
    rig.admission.overdue(5.0)
    assert (silent.closed, later.closed, agent.closed) == (True, False, False)
    assert rig.refused == ["silent"]
    assert (rig.admission.strangers, rig.admission.agents) == (1, 1)


def test_who_got_its_place_late_has_its_time_too() -> None:
    rig = Rig(strangers=1)
    _, first = rig.enter("10.0.0.1")
    waits, entry = rig.enter("10.0.0.2")
    rig.at += HOLD_SECONDS * 0.9
    assert first is not None
    rig.admission.left(first)
    rig.admission.go_on()
    assert waits.begun
    rig.at += 0.9
    rig.admission.overdue(1.0)
    assert not waits.closed
    rig.at += 0.1
    rig.admission.overdue(1.0)
    assert waits.closed
    assert entry is not None
    assert rig.refused == ["silent"]


def test_who_goes_on_with_bad_tokens_is_closed_and_a_proven_agent_is_not() -> None:
    rig = Rig()
    stranger, entry = rig.enter("10.0.0.1")
    agent, proven = rig.agent("a")
    assert entry is not None
    for _ in range(MAX_STRIKES - 1):
        rig.admission.strike(entry)
        rig.admission.strike(proven)
    assert not stranger.closed
    rig.admission.strike(entry)
    rig.admission.strike(proven)
    assert (stranger.closed, agent.closed, rig.refused) == (True, False, ["unauthenticated"])


def test_where_many_can_prove_something_a_proven_one_has_no_more_bad_tokens_than_a_stranger() -> None:
    rig = Rig(lenient=False)
    guest, entry = rig.agent("a")
    for _ in range(MAX_STRIKES - 1):
        rig.admission.strike(entry)
    # Nor does a good one between them give it more.
    assert rig.admission.proven(entry, "a")
    assert not guest.closed
    rig.admission.strike(entry)
    assert (guest.closed, rig.refused, rig.admission.agents) == (True, ["unauthenticated"], 0)


def test_a_node_has_so_many_and_its_oldest_goes() -> None:
    rig = Rig()
    guests = [rig.agent("a")[0] for _ in range(3)]
    assert [each.closed for each in guests] == [True, False, False]
    assert (rig.admission.agents, rig.refused) == (2, ["node"])


def test_where_there_is_no_room_for_agents_a_second_connection_of_a_node_goes_first() -> None:
    rig = Rig()
    old, _ = rig.agent("a")
    new, _ = rig.agent("a")
    rig.agent("b")
    rig.agent("c")
    rig.agent("d")
    assert (old.closed, new.closed, rig.admission.agents) == (True, False, 4)
    _, entry = rig.enter("10.0.0.9")
    assert entry is not None
    assert not rig.admission.proven(entry, "e")
    assert rig.refused == ["agents", "agents"]
    assert rig.admission.strangers == 1


def test_at_a_new_root_all_agents_change_over_without_room_for_two_each_and_none_is_ever_without() -> None:
    rig = Rig(agents=7)
    nodes = [f"node-{number}" for number in range(6)]
    held = {node: [rig.agent(node)[0]] for node in nodes}
    for node in nodes:
        held[node].append(rig.agent(node)[0])
        assert rig.admission.agents <= 7
        for guests in held.values():
            assert not guests[-1].closed
    assert rig.refused == ["agents"] * 5


def test_a_second_connection_without_room_is_refused_tries_again_and_the_first_stays() -> None:
    rig = Rig()
    agents = {node: rig.agent(node) for node in "abcd"}
    guest, entry = rig.enter("host of a")
    assert entry is not None
    assert not rig.admission.proven(entry, "a")
    assert not any(each.closed for each, _ in agents.values())
    rig.admission.left(agents["d"][1])
    assert rig.admission.proven(entry, "a")
    assert not guest.closed
    assert not agents["a"][0].closed


def test_who_leaves_makes_room_and_may_be_told_of_twice() -> None:
    rig = Rig()
    entries = [rig.agent(name)[1] for name in "abcd"]
    rig.admission.left(entries[0])
    rig.admission.left(entries[0])
    assert rig.admission.agents == 3
    rig.agent("e")
    _, stranger = rig.enter("10.0.0.1")
    assert stranger is not None
    rig.admission.left(stranger)
    rig.admission.left(stranger)
    assert rig.admission.strangers == 0
    # What is told of one that is gone changes nothing.
    assert rig.admission.proven(stranger, "f")
    assert rig.admission.agents == 4


def test_an_agent_that_proves_itself_again_is_counted_once() -> None:
    rig = Rig()
    _, entry = rig.agent("a")
    assert rig.admission.proven(entry, "a")
    assert rig.admission.agents == 1


def test_addresses_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 3)
    rig = Rig(rate=1, strangers=100)
    entries = [rig.enter(f"10.0.0.{number}")[1] for number in range(3)]
    assert entries[0] is not None
    rig.admission.left(entries[0])
    for number in range(3, 6):
        rig.enter(f"10.0.0.{number}")
    # The first was forgotten: it has its whole rate again.
    assert [rig.enter("10.0.0.0")[1] is not None for _ in range(3)] == [True, True, False]


def test_the_largest_mints_that_the_protocol_allows_are_taken() -> None:
    pod = signer_pb2.Pod(namespace="n" * 63, name="p" * 253, uid="u" * 36)
    token, csr = "t" * 16 * budget.KIB, b"c" * 16 * budget.KIB
    names = ["d" * 253] * MAX_DNS_NAMES
    x509 = signer_pb2.MintX509SVIDRequest(pod=pod, pod_token=token, csr=csr, ttl_seconds=1, dns_names=names, ttl="9h")
    audiences = ["a" * MAX_AUDIENCE_BYTES] * MAX_AUDIENCES
    jwt = signer_pb2.MintJWTSVIDRequest(pod=pod, pod_token=token, spiffe_id="i" * 2048, audiences=audiences)
    assert max(x509.ByteSize(), jwt.ByteSize()) <= budget.MAX_MINT
