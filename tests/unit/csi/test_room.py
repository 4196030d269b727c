"""Who gets room on a node, and what it is refused for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from csi.attributes import parse_attributes
from csi.errors import CsiError, NodeFull, PodFull
from csi.model import Volume, Weight
from csi.room import KIB, LOOK_SECONDS, MARGIN, MIB, NOTED_SECONDS, OWN, Bounds, Room, expected
from csi.volume import GENERATIONS_KEPT
from runtime.memory import MemoryUse
from tests.csi_rig import OTHER_UID, UID, volume

PLAIN = expected(volume().options).grown


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def a_volume(number: int, of: str = UID) -> Volume:
    return volume(uid=of, volume_id=f"csi-{number}")


def room(bounds: Bounds, memory: Callable[[], MemoryUse | None] = lambda: None) -> Room:
    return Room(bounds, memory)


def refused(here: Room, wanted: Volume, error: type[CsiError], text: str) -> None:
    before = here.weight
    with pytest.raises(CsiError, match=text) as caught:
        here.admit(wanted)
    assert type(caught.value) is error
    assert here.weight == before


def test_a_pod_has_so_many_and_other_pods_have_theirs() -> None:
    here = room(Bounds(pod_volumes=2))
    here.admit(a_volume(1))
    here.admit(a_volume(2))
    refused(here, a_volume(3), PodFull, r"pod default/web-0 has 2 volumes .*\(pod_volumes\)")
    here.admit(a_volume(4, OTHER_UID))
    here.release("csi-1")
    here.admit(a_volume(3))
    refused(here, a_volume(5), PodFull, "has 2 volumes")


def test_a_volume_that_has_room_keeps_it_and_counts_once() -> None:
    here = room(Bounds(volumes=1, pod_volumes=1))
    here.hold(a_volume(1), Weight(1, 2))
    here.admit(a_volume(1))
    assert here.weight == Weight(1, 2)
    here.hold(a_volume(1), Weight(3, 4))
    assert here.weight == Weight(3, 4)
    here.release("csi-1")
    here.release("csi-1")
    assert here.weight == Weight(0, 0)
    here.admit(a_volume(2))


def test_the_last_quarter_of_the_nodes_volumes_is_for_pods_without_any() -> None:
    here = room(Bounds(volumes=8))
    for number in range(6):
        here.admit(a_volume(number))
    refused(here, a_volume(6), NodeFull, r"6 of 8 volumes \(volumes\); the rest is kept for pods without a volume")
    for number in (7, 8):
        here.admit(a_volume(number, uid(number)))
    refused(here, a_volume(9, uid(9)), NodeFull, r"8 of 8 volumes \(volumes\); nothing was mounted")


def test_so_is_the_last_quarter_of_their_memory() -> None:
    here = room(Bounds(memory=8 * PLAIN))
    for number in range(6):
        here.admit(a_volume(number))
    refused(here, a_volume(6), NodeFull, r"\(volumes_memory\); the rest is kept")
    for number in (7, 8):
        here.admit(a_volume(number, uid(number)))
    refused(here, a_volume(9, uid(9)), NodeFull, "volumes_memory")
    # What it turned out to weigh counts.
    here.hold(a_volume(7, uid(7)), Weight(0, 0))
    here.admit(a_volume(9, uid(9)))


def using(limit: int, used: int, anonymous: int = 0) -> Callable[[], MemoryUse]:
    return lambda: MemoryUse(limit, used, anonymous)


def test_what_would_not_fit_below_the_limit_is_refused() -> None:
    needed = PLAIN + OWN
    bounds = Bounds(headroom=10 * MIB)
    room(bounds, using(100 * MIB, 90 * MIB - needed)).admit(a_volume(1))
    refused(room(bounds, using(100 * MIB, 90 * MIB - needed + 1)), a_volume(1), NodeFull, "memory_headroom")
    # Twice as much stays free of pods that have a volume.
    here = room(bounds, using(100 * MIB, 80 * MIB - needed))
    here.hold(a_volume(1), Weight(0, 0))
    here.admit(a_volume(2))
    here = room(bounds, using(100 * MIB, 80 * MIB - needed + 1))
    here.hold(a_volume(1), Weight(0, 0))
    refused(here, a_volume(2), NodeFull, "memory_headroom.*kept for pods without")
    here.admit(a_volume(3, OTHER_UID))


def test_generations_that_are_to_come_count() -> None:
    limit, used = 100 * MIB, 50 * MIB
    here = room(Bounds(headroom=0), using(limit, used))
    here.hold(a_volume(1), Weight(10 * MIB, 60 * MIB - PLAIN - OWN))
    here.admit(a_volume(2, OTHER_UID))
    here = room(Bounds(headroom=0), using(limit, used))
    here.hold(a_volume(1), Weight(10 * MIB, 60 * MIB - PLAIN - OWN + 1))
    refused(here, a_volume(2, OTHER_UID), NodeFull, "memory")


def test_volumes_whose_pages_count_elsewhere_count_all_the_same() -> None:
    here = room(Bounds(headroom=0), using(100 * MIB, 40 * MIB, anonymous=40 * MIB))
    here.hold(a_volume(1), Weight(60 * MIB, 60 * MIB))
    refused(here, a_volume(2, OTHER_UID), NodeFull, "memory")
    assert not here.can_adopt()
    assert here.figures() == {
        "limit": 100 * MIB,
        "used": 100 * MIB,
        "volumes": 60 * MIB,
        "volumes_grown": 60 * MIB,
    }


def test_before_a_refusal_for_memory_it_is_tried_to_make_some() -> None:
    uses = [MemoryUse(100 * MIB, 100 * MIB, 0), MemoryUse(100 * MIB, 10 * MIB, 0)]
    relieved: list[int] = []
    here = Room(Bounds(), lambda: uses[len(relieved)], lambda: relieved.append(1))
    here.admit(a_volume(1))
    here.admit(a_volume(2))
    assert relieved == [1]


class Node:
    """One whose memory is what its volumes take, and `other`; counts looks at it. Its time stands still."""

    def __init__(self, limit: int, other: int) -> None:
        self.limit, self.other = limit, other
        self.taken = self.looks = 0
        self.at = 0.0

    def memory(self) -> MemoryUse:
        self.looks += 1
        return MemoryUse(self.limit, self.other + self.taken, 0)

    def left(self) -> int:
        return self.limit - self.other - self.taken

    def room(self, bounds: Bounds) -> Room:
        return Room(bounds, self.memory, clock=lambda: self.at)


def test_many_publishes_at_once_are_answered_by_few_looks_at_the_memory() -> None:
    node = Node(800 * MIB, 100 * MIB)
    here = node.room(Bounds())
    for number in range(200):
        here.admit(a_volume(number, uid(number)))
    assert node.looks == 1
    node.at += LOOK_SECONDS
    here.admit(a_volume(200, uid(200)))
    assert node.looks == 2


@pytest.mark.parametrize("weight", [0, PLAIN, 3 * PLAIN], ids=["not written yet", "as expected", "heavier"])
def test_what_was_admitted_since_the_last_look_counts_on_top_of_it(weight: int) -> None:
    # What is not written yet is still to come, too.
    each, more = PLAIN + OWN + (weight or PLAIN), PLAIN + OWN
    node = Node(800 * MIB, 800 * MIB - 32 * MIB - MARGIN - 10 * each - more)
    here = node.room(Bounds(headroom=32 * MIB))
    looks = []
    for number in range(12):
        here.admit(a_volume(number, uid(number)))
        looks.append(node.looks)
        if weight:
            here.hold(a_volume(number, uid(number)), Weight(weight, weight))
    assert looks == [1] * 11 + [2]


@pytest.mark.parametrize("weight", [0, PLAIN, 3 * PLAIN], ids=["not written yet", "as expected", "heavier"])
def test_no_volume_is_admitted_that_is_not_by_looking_each_time(weight: int) -> None:
    def admitted(seconds: float) -> tuple[int, int]:
        """By one for whom so much time passes between two publishes; and its looks."""
        node = Node(200 * MIB, 90 * MIB)
        here = node.room(Bounds(memory=1000 * MIB))
        for number in range(1000):
            node.at += seconds
            try:
                here.admit(a_volume(number, uid(number)))
            except NodeFull:
                return number, node.looks
            node.taken += weight + OWN
            here.hold(a_volume(number, uid(number)), Weight(weight, max(weight, PLAIN)))
        raise AssertionError("more than fits")

    here, looks = admitted(0.0)
    each_time, looks_each_time = admitted(LOOK_SECONDS)
    assert here == each_time
    assert looks < looks_each_time


def test_what_grows_beside_the_volumes_after_a_look_has_a_margin() -> None:
    node = Node(800 * MIB, 800 * MIB - 32 * MIB - MARGIN - 4 * (PLAIN + OWN))
    here = node.room(Bounds(headroom=32 * MIB))
    here.admit(a_volume(0, uid(0)))
    node.other += MARGIN
    # It is not looked at again while the last look leaves more than the margin, which is what has grown.
    here.admit(a_volume(1, uid(1)))
    assert node.looks == 1
    node.taken += 2 * (PLAIN + OWN)
    assert node.left() >= 32 * MIB
    node.other += 2 * (PLAIN + OWN)
    refused(here, a_volume(2, uid(2)), NodeFull, "memory_headroom")


def test_half_of_the_headroom_is_for_what_is_there_already() -> None:
    bounds = Bounds(headroom=10 * MIB)
    assert room(bounds, using(100 * MIB, 95 * MIB - OWN)).can_adopt()
    assert not room(bounds, using(100 * MIB, 95 * MIB - OWN + 1)).can_adopt()
    assert room(bounds).can_adopt()


ATTRIBUTES = {
    "keyAlgorithm": "rsa-4096",
    "keystores": "pkcs12",
    "jwt-audiences": ",".join(f"f{number}=audience-{number}" for number in range(8)),
}


def test_what_is_expected_grows_with_what_is_asked_for() -> None:
    weights = [expected(parse_attributes(dict(list(ATTRIBUTES.items())[:number]))).grown for number in range(4)]
    assert weights == sorted(set(weights))
    assert weights[0] == PLAIN
    assert 100 * KIB < PLAIN < weights[-1] < 400 * KIB


def test_what_a_token_says_more_is_expected_too() -> None:
    one, two = (expected(parse_attributes({"jwt-audiences": given})).grown for given in ("a=b", "a=b,a=c"))
    assert one < two < expected(parse_attributes({"jwt-audiences": "a=b,c=c"})).grown


def test_the_defaults_leave_room_for_a_thousand_plain_volumes(tmp_path: Path) -> None:
    bounds = Bounds()
    assert bounds.volumes * PLAIN < bounds.memory
    here = room(bounds)
    for number in range(bounds.volumes):
        here.admit(replace(a_volume(number), pod=replace(a_volume(number).pod, uid=uid(number))))


def test_how_many_generations_are_kept_follows_the_memory_by_a_look_now_and_then() -> None:
    node = Node(100 * MIB, 0)
    here = node.room(Bounds(headroom=32 * MIB))
    found = []
    for node.at, node.taken in ((0.0, 0), (NOTED_SECONDS - 0.01, 90 * MIB), (NOTED_SECONDS, 90 * MIB), (9.0, 0)):
        found.append(here.generations())
    assert found == [GENERATIONS_KEPT, GENERATIONS_KEPT, 1, GENERATIONS_KEPT]
    assert node.looks == 3
