"""What a pod's sockets may have together, and what each has cost: no server, no clock but the test's."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.socket import accounts as accounts_module
from agent.socket.accounts import Account, Accounts, Limits, Weight


class Books:
    def __init__(self, limits: Limits) -> None:
        self.now = 100.0
        self.shut: list[str] = []
        self.accounts = Accounts(limits, self.shut.append, lambda: self.now)

    def held(self) -> list[tuple[int, int, int]]:
        return [(each.calls, each.refused, each.open_calls) for each in self.accounts.weights().values()]


def test_calls_of_all_sockets_of_a_pod_are_one_number() -> None:
    books = Books(Limits(calls=3))
    one, two, other = (books.accounts.begin(n, pod) for n, pod in enumerate(("a", "a", "b")))
    for account in (one, two, two):
        assert account.pod.excess() == ""
        account.take()
    assert one.pod.excess() == two.pod.excess() == "open calls"
    assert other.pod.excess() == ""
    two.ended()
    assert one.pod.excess() == ""
    assert books.held() == [(1, 0, 1), (2, 0, 1), (0, 0, 0)]


def test_the_rate_of_all_sockets_of_a_pod_is_one() -> None:
    books = Books(Limits(rate=2.0, burst=3))
    one, two, other = (books.accounts.begin(n, pod) for n, pod in enumerate(("a", "a", "b")))
    assert [each.pod.excess() for each in (one, two, one, two)] == ["", "", "", "calls a second"]
    assert other.pod.excess() == ""
    books.now += 1.0
    assert [each.pod.excess() for each in (two, one, two)] == ["", "", "calls a second"]


def test_a_request_on_a_stream_waits_for_its_turn_and_takes_from_the_same() -> None:
    books = Books(Limits(rate=1000.0, burst=2))

    async def run() -> None:
        account = books.accounts.begin(1, "a")
        await account.pod.turn()
        await account.pod.turn()
        assert account.pod.excess() == "calls a second"
        waiting = asyncio.ensure_future(account.pod.turn())
        done, _ = await asyncio.wait([waiting], timeout=0.02)
        assert not done
        books.now += 1.0
        await asyncio.wait_for(waiting, 20)
        assert [account.pod.excess() for _ in range(2)] == ["", "calls a second"]

    asyncio.run(run())


def test_refusals_that_nobody_takes_close_the_pods_connections_and_only_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "UNTAKEN", 1)
    books = Books(Limits(calls=2))
    one, two, other = (books.accounts.begin(n, pod) for n, pod in enumerate(("a", "a", "b")))
    assert [each.refuse() for each in (one, two, other, other)] == [True] * 4
    assert books.shut == []
    assert two.refuse() is False
    assert books.shut == ["a"]
    one.answered()
    one.pod.excess()
    two.answered()
    assert one.refuse() is True
    assert books.held() == [(2, 2, 1), (2, 2, 1), (2, 2, 2)]


def test_a_low_limit_of_calls_leaves_some_refusals_time() -> None:
    books = Books(Limits(calls=1))
    account = books.accounts.begin(1, "a")
    assert all(account.refuse() for _ in range(256))
    assert not account.refuse()


def test_a_pod_without_sockets_is_forgotten_and_one_that_comes_back_begins_anew() -> None:
    books = Books(Limits(rate=0.001, burst=1))
    first, second = books.accounts.begin(1, "a"), books.accounts.begin(2, "a")
    assert first.pod.excess() == ""
    first.take()
    books.accounts.end(1)
    assert list(books.accounts.weights()) == [2]
    # While another of its sockets is open, what it has had counts.
    third = books.accounts.begin(3, "a")
    assert third.pod is second.pod
    assert third.pod.excess() == "calls a second"
    for volume in (2, 3, 3, 99):
        books.accounts.end(volume)
    assert books.accounts.weights() == {}
    anew = books.accounts.begin(4, "a")
    assert anew.pod is not first.pod
    first.ended()
    assert (anew.pod.open, first.pod.open) == (0, 0)
    books.accounts.end(4)


def test_a_weight_says_whose_it_is_and_what_it_costs() -> None:
    books = Books(Limits())
    account = books.accounts.begin(7, "a-uid")
    account.take()
    account.take()
    account.ended()
    account.refuse()
    account.connections.taken = 5
    account.connections.open = 3
    account.connections.busy = 4
    assert books.accounts.weights() == {7: Weight("a-uid", 5, 3, 1, 4, 3, 2)}


STEPS: dict[str, tuple[Callable[[Account], object], Callable[[Account], object]]] = {
    "take": (Account.take, Account.ended),
    "refuse": (Account.refuse, Account.answered),
}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(STEPS)), st.booleans()), max_size=40))
def test_whatever_comes_in_whatever_order_all_is_zero_when_all_has_ended(steps: list[tuple[int, str, bool]]) -> None:
    books = Books(Limits(calls=4))
    accounts = [books.accounts.begin(n, "ab"[n % 2]) for n in range(4)]
    open_now: list[tuple[Account, Callable[[Account], object]]] = []
    for number, step, end_first in steps:
        begin, end = STEPS[step]
        begin(accounts[number])
        open_now.insert(0 if end_first else len(open_now), (accounts[number], end))
        if len(open_now) > 3:
            account, ending = open_now.pop()
            ending(account)
        assert sum(each.open_calls for each in books.accounts.weights().values()) == len(open_now)
    for account, ending in open_now:
        ending(account)
    assert all(each.open_calls == 0 for each in books.accounts.weights().values())
    assert all(account.pod.open == account.pod.refusing == 0 for account in accounts)
    assert sum(each.calls for each in books.accounts.weights().values()) == len(steps)
