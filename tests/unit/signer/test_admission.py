"""Who may hold a connection: strangers are few and go soon, one address cannot take the places of others."""

from pathlib import Path

import pytest

from signer.front import admission as module
from signer.front import budget
from signer.front.admission import HOLD_SECONDS, MAX_STRIKES, Admission, Entry, group


class Guest:
    """A connection."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Rig:
    """Admission with few places and a clock that only tests move."""

    def __init__(self, rate: int = 100, strangers: int = 8, agents: int = 4, of_node: int = 2) -> None:
        self.at = 100.0
        self.refused: list[str] = []
        self.admission = Admission(
            rate, self.refused.append, lambda: self.at, strangers=strangers, agents=agents, of_node=of_node
        )

    def enter(self, host: str) -> tuple[Guest, Entry | None]:
        guest = Guest()
        return guest, self.admission.enter(guest, host)

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


def test_one_address_has_half_of_the_places_and_its_oldest_goes() -> None:
    rig = Rig()
    guests = [rig.enter("10.0.0.1")[0] for _ in range(5)]
    assert [each.closed for each in guests] == [True, False, False, False, False]
    assert (rig.admission.strangers, rig.refused) == (4, ["address"])


def test_where_all_places_are_taken_who_has_most_gives_way() -> None:
    rig = Rig()
    alone = [rig.enter(f"10.0.1.{number}")[0] for number in range(5)]
    many = [rig.enter("10.0.0.1")[0] for _ in range(3)]
    assert not rig.admission.full
    newcomer, entry = rig.enter("10.0.2.1")
    assert entry is not None
    assert not newcomer.closed
    assert [each.closed for each in many] == [True, False, False]
    assert not any(each.closed for each in alone)
    assert (rig.admission.strangers, rig.refused) == (8, ["strangers"])


def test_where_each_has_one_place_the_next_waits_and_the_oldest_goes_after_a_while() -> None:
    rig = Rig()
    first, _ = rig.enter("10.0.1.0")
    for number in range(1, 8):
        rig.enter(f"10.0.1.{number}")
    assert rig.admission.full
    rig.at += HOLD_SECONDS
    assert not rig.admission.full
    rig.enter("10.0.2.1")
    assert first.closed


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


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_what_is_one_address(host: str, wanted: str) -> None:
    assert group(host) == wanted


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
