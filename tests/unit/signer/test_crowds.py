"""Of whom there are most, and fewest."""

from hypothesis import given
from hypothesis import strategies as st

from signer.front.crowds import Crowds, Numbers

CHANGES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4)), max_size=60)


@given(CHANGES)
def test_most_and_fewest_are_those_that_a_look_at_all_finds(changes: list[tuple[str, int]]) -> None:
    found: Numbers[str] = Numbers()
    # The oldest with its number first.
    wanted: dict[str, int] = {}
    for one, number in changes:
        found.put(one, number)
        if wanted.get(one, 0) != number:
            wanted.pop(one, None)
            if number:
                wanted[one] = number
        assert found.number(one) == number
        assert found.most() == max(wanted, key=lambda each: wanted[each], default=None)
        assert found.fewest() == min(wanted, key=lambda each: wanted[each], default=None)
        assert len(found._with) == len(set(wanted.values()))


@given(CHANGES, st.lists(st.sampled_from("abcdef"), max_size=6))
def test_those_that_become_known_are_welcome_at_once(changes: list[tuple[str, int]], become: list[str]) -> None:
    known = {"a"}
    found: Crowds[str] = Crowds(known.__contains__)
    numbers: dict[str, int] = {}
    for step, (one, number) in enumerate(changes):
        found.put(one, number)
        numbers[one] = number
        if step < len(become):
            known.add(become[step])
        there = {each: count for each, count in numbers.items() if count}
        got = found.least_welcome()
        assert (got is None) == (not there)
        if got is not None:
            assert (got not in known, there[got]) == max((each not in known, count) for each, count in there.items())


def test_those_that_are_known_no_more_are_strangers_from_the_next_change_on() -> None:
    known = {"a", "b"}
    found: Crowds[str] = Crowds(known.__contains__)
    found.put("a", 1)
    found.put("b", 5)
    known.clear()
    found.put("a", 2)
    assert found.least_welcome() == "a"
