"""Which pod is served where: who is to blame is, nobody else; everybody comes back."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.servers.quarantine import HEAVY, LIGHT, Move, Place, Quarantine, Times, Why, suspects

TIMES = Times(quiet=600.0, closed=30.0, most_closed=100.0)
START = Quarantine(TIMES)
MUCH = HEAVY * 5


def moved(moves: tuple[Move, ...]) -> set[tuple[str, str, str]]:
    return {(each.pod, str(each.to), str(each.why)) for each in moves}


def quarantined(*pods: str, now: float = 0.0) -> Quarantine:
    state, moves = START.trouble(Place.SHARED, Why.CPU, dict.fromkeys(pods, MUCH), now)
    while len(state.held) < len(pods):
        left = [pod for pod in pods if pod not in state.held]
        state, more = state.trouble(Place.SHARED, Why.CPU, dict.fromkeys(left, MUCH), now)
        moves += more
    assert {each.pod for each in moves} == set(pods)
    return state


@pytest.mark.parametrize("why", [Why.MEMORY, Why.CPU, Why.ENDED])
def test_who_stands_out_is_moved_and_all_others_stay(why: Why) -> None:
    state, moves = START.trouble(Place.SHARED, why, {"bad": MUCH, "busy": HEAVY, "calm": 3.0}, 1.0)
    assert moved(moves) == {("bad", "quarantine", why)}
    assert [state.place(pod) for pod in ("bad", "busy", "calm", "other")] == [
        "quarantine",
        "shared",
        "shared",
        "shared",
    ]


def test_the_fewest_that_have_half_are_suspects() -> None:
    assert suspects({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0}, 5.0) == ["a", "b", "c"]
    assert suspects({"a": 1.0, "b": 1.0}, 2.0) == ["a"]
    assert suspects({"a": 1.0, "b": 5.0}, 6.0) == ["b"]
    assert suspects({"a": 1.0, "b": 2.0}, 50.0) == ["b", "a"]
    assert suspects({}, 0.0) == []


def test_while_nobody_stands_out_nobody_is_moved() -> None:
    crowd = {f"p{number}": HEAVY - 1 for number in range(500)}
    assert START.trouble(Place.SHARED, Why.ENDED, crowd, 1.0) == (START, ())
    assert START.trouble(Place.SHARED, Why.MEMORY, {}, 1.0) == (START, ())


def test_few_calls_that_fill_the_memory_are_to_blame_for_it() -> None:
    weights = {"a": 68.0, "b": 67.0, "c": 67.0, "g": 5.0, "h": 5.0}
    assert START.trouble(Place.SHARED, Why.ENDED, weights, 1.0) == (START, ())
    assert START.trouble(Place.SHARED, Why.CPU, weights, 1.0) == (START, ())
    _, moves = START.trouble(Place.SHARED, Why.MEMORY, weights, 1.0)
    assert moved(moves) == {("a", "quarantine", "memory"), ("b", "quarantine", "memory")}
    crowd = {f"p{number}": HEAVY - 1 for number in range(500)}
    assert START.trouble(Place.SHARED, Why.MEMORY, crowd, 1.0) == (START, ())
    assert START.trouble(Place.SHARED, Why.MEMORY, {"a": LIGHT}, 1.0) == (START, ())


def test_what_is_felt_of_one_that_was_moved_is_nobody_elses() -> None:
    weights = {"bad": 60.0, "good": LIGHT + 2, "calm": 3.0}
    state, moves = START.trouble(Place.SHARED, Why.MEMORY, weights, 1.0)
    assert moved(moves) == {("bad", "quarantine", "memory")}
    assert state.trouble(Place.SHARED, Why.MEMORY, {**weights, "bad": 400.0}, 1.5) == (state, ())
    # A second one is.
    _, moves = state.trouble(Place.SHARED, Why.MEMORY, {**weights, "bad": 400.0, "worse": 90.0}, 1.5)
    assert moved(moves) == {("worse", "quarantine", "memory")}


def test_who_is_alone_and_again_too_expensive_is_closed_ever_longer_and_comes_back() -> None:
    state, now = quarantined("bad"), 0.0
    for seconds in (30.0, 60.0, 100.0, 100.0):
        state, moves = state.trouble(Place.QUARANTINE, Why.MEMORY, {"bad": MUCH}, now)
        assert moved(moves) == {("bad", "closed", "memory")}
        assert state.next_due() == now + seconds
        assert state.due(now + seconds - 0.1) == (state, ())
        now += seconds
        state, moves = state.due(now)
        assert moved(moves) == {("bad", "quarantine", "over")}
        assert state.held["bad"].why is Why.MEMORY, "why it is there is forgotten"
    state, moves = state.due(now + TIMES.quiet)
    assert moved(moves) == {("bad", "shared", "quiet")}
    assert state.held == {}
    assert state.next_due() is None


def test_who_costs_nothing_goes_back_when_it_is_not_alone_in_quarantine() -> None:
    state = quarantined("bad", "other")
    assert state.trouble(Place.QUARANTINE, Why.CPU, {"bad": HEAVY - 1, "other": LIGHT}, 9.0) == (state, ())
    state, moves = state.trouble(Place.QUARANTINE, Why.CPU, {"bad": HEAVY - 1, "other": LIGHT}, 15.0)
    assert moved(moves) == {("other", "shared", "innocent")}
    state, moves = state.trouble(Place.QUARANTINE, Why.CPU, {"bad": HEAVY - 1}, 16.0)
    assert moved(moves) == {("bad", "closed", "cpu")}


def test_several_that_stand_out_in_quarantine_are_closed_and_of_others_half_goes_back() -> None:
    state = quarantined("a", "b", "c", "d")
    _, moves = state.trouble(Place.QUARANTINE, Why.ENDED, {"a": MUCH, "b": MUCH, "c": MUCH, "d": 1.0}, 15.0)
    assert moved(moves) == {("a", "closed", "ended"), ("b", "closed", "ended"), ("d", "shared", "innocent")}
    _, moves = state.trouble(Place.QUARANTINE, Why.ENDED, dict.fromkeys("abcd", HEAVY - 1), 5.0)
    assert moved(moves) == {("c", "shared", "innocent"), ("d", "shared", "innocent")}
    _, moves = state.trouble(Place.QUARANTINE, Why.MEMORY, dict.fromkeys("abcd", LIGHT + 9), 5.0)
    assert moved(moves) == {("a", "closed", "memory"), ("b", "closed", "memory")}


def test_an_end_of_the_process_that_nobody_is_to_blame_for_changes_nothing() -> None:
    state = quarantined("bad", "other")
    assert state.trouble(Place.QUARANTINE, Why.ENDED, {"bad": LIGHT, "other": 1.0}, 5.0) == (state, ())


def test_who_is_heavy_though_nothing_is_wrong_stays_in_quarantine() -> None:
    state = quarantined("bad").looked({"bad": HEAVY}, 500.0)
    assert state.due(600.0)[1] == ()
    assert state.next_due() == 500.0 + TIMES.quiet
    assert state.looked({"bad": HEAVY - 1}, 900.0) == state


def test_weights_of_pods_that_are_elsewhere_are_no_reason() -> None:
    state = quarantined("bad")
    assert state.trouble(Place.SHARED, Why.CPU, {"bad": MUCH, "calm": 1.0}, 5.0) == (state, ())
    assert state.trouble(Place.QUARANTINE, Why.CPU, {"calm": MUCH}, 5.0) == (state, ())


PODS = st.sampled_from("abcde")
WEIGHTS = st.dictionaries(PODS, st.sampled_from([0.0, 1.0, LIGHT, LIGHT + 1, HEAVY - 1, HEAVY, MUCH, 1e9]))
STEPS = st.tuples(
    st.sampled_from(["shared", "quarantine", "looked", "time"]),
    st.sampled_from([Why.MEMORY, Why.CPU, Why.ENDED]),
    WEIGHTS,
    st.floats(0.0, 700.0),
)


def follow(places: dict[str, Place], moves: tuple[Move, ...]) -> None:
    """As sockets are moved: each is where the last move brought it."""
    assert len({each.pod for each in moves}) == len(moves), "a pod is moved to two places"
    for move in moves:
        assert places.get(move.pod, Place.SHARED) is not move.to, "it is there already"
        places[move.pod] = move.to


def check_blame(place: Place, why: Why, weights: Mapping[str, float], moves: tuple[Move, ...]) -> None:
    for move in moves:
        if move.to is Place.CLOSED:
            assert place is Place.QUARANTINE
            assert weights.get(move.pod, 0.0) > LIGHT, "a pod without weight is closed"
        elif move.to is Place.QUARANTINE:
            floor = LIGHT + 1 if why is Why.MEMORY else HEAVY
            assert weights.get(move.pod, 0.0) >= floor, "a pod that does not stand out is moved"


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_each_pod_is_in_one_place_and_always_comes_back(steps: list[tuple[str, Why, dict[str, float], float]]) -> None:
    state, places, now = START, dict[str, Place](), 0.0
    for kind, why, weights, later in steps:
        now += later
        moves: tuple[Move, ...] = ()
        if kind == "time":
            state, moves = state.due(now)
            assert all(each.why in (Why.OVER, Why.QUIET) for each in moves)
        elif kind == "looked":
            state = state.looked(weights, now)
        else:
            place = Place(kind)
            state, moves = state.trouble(place, why, weights, now)
            check_blame(place, why, weights, moves)
        follow(places, moves)
        assert all(state.place(pod) is places.get(pod, Place.SHARED) for pod in "abcde")
        due = state.next_due()
        assert due is None or due <= now + max(TIMES.quiet, TIMES.most_closed)
    # Nobody does anything any more: closed for what is left, quiet for its time, and back.
    for _ in range(2):
        now += max(TIMES.quiet, TIMES.most_closed)
        state, moves = state.due(now)
        follow(places, moves)
    assert set(places.values()) <= {Place.SHARED}
    assert state.held == {}
