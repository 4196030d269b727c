"""What an exposed process takes, what each pod is said to cost it, and when that is too much."""

import os
import subprocess
import sys
import time

import pytest

from agent.channel.messages import Weighed, Weight
from agent.servers.load import MORE, PART, Effort, Usage, Watch, effort, usage
from agent.servers.quarantine import HEAVY, Why
from agent.servers.weights import BUSY, CALL, CONNECTION, HALF, MOST, OPEN_CALL, OPEN_CONNECTION, REFUSED, Weights

MEMORY = 1000.0
BESIDE = """
import threading, time
def run():
    while True: pass
threading.Thread(target=run, daemon=True).start()
time.sleep(600)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_kernel_is_asked_for_time_and_memory() -> None:
    before = usage(os.getpid())
    assert before.waited > 0
    kept = bytearray(os.urandom(32 * 1024 * 1024))
    for _ in range(200):
        sum(range(100_000))
    after = usage(os.getpid())
    assert after.cpu > before.cpu
    assert after.memory - before.memory > len(kept) / 2
    with pytest.raises(OSError, match="No such file"):
        usage(2**22 + 1)


def test_the_kernel_says_who_is_busy_and_who_sleeps() -> None:
    programs = {
        "sleeps": "import time; time.sleep(600)",
        "runs": "while True: pass",
        # Whichever of its threads it is.
        "runs beside": BESIDE,
    }
    processes = {how: subprocess.Popen([sys.executable, "-c", program]) for how, program in programs.items()}
    try:
        wanted = {"sleeps": False, "runs": True, "runs beside": True}
        found: dict[str, Effort | None] = {}
        ends = time.monotonic() + 60
        # Each is busy as long as it starts.
        while {how: each.awake for how, each in found.items() if each} != wanted and time.monotonic() < ends:
            found = {how: effort(each.pid) for how, each in processes.items()}
        assert {how: each.awake for how, each in found.items() if each} == wanted
        before = found["runs"]
        while (after := effort(processes["runs"].pid)) and before and after.cpu <= before.cpu:
            assert time.monotonic() < ends
    finally:
        for each in processes.values():
            each.kill()
            each.wait()
    assert effort(processes["runs"].pid) is None


def test_time_is_too_much_when_it_is_for_seconds() -> None:
    watch = Watch(int(MEMORY))
    cpu = 0.0
    assert watch.look(Usage(0.0, 1), 0.0) is None
    found = []
    for second in range(1, 5):
        cpu += 0.6
        found.append(watch.look(Usage(cpu, 1), second))
        assert watch.suspicious
    assert found == [None, None, Why.CPU, Why.CPU]
    watch.acted()
    assert watch.look(Usage(cpu + 0.6, 1), 5.0) is None
    assert watch.look(Usage(cpu + 0.7, 1), 6.0) is None
    assert not watch.suspicious
    for more in (1.0, 2.0):
        assert watch.look(Usage(cpu + 0.7 + 0.6 * more, 1), 6.0 + more) is None, "what was before counts"


def test_time_that_it_waits_for_is_too_much_where_it_works_too() -> None:
    """A flood that has the cores itself leaves little to the process that it is aimed at."""
    watch = Watch(int(MEMORY))
    assert watch.look(Usage(0.0, 1, 0.0), 0.0) is None
    found = [watch.look(Usage(0.2 * second, 1, 0.9 * second), float(second)) for second in range(1, 4)]
    assert found == [None, None, Why.CPU]
    for cpu, waited, why in ((0.1, 5.0, "who does next to nothing"), (0.2, 0.7, "who is kept waiting a little")):
        watch = Watch(int(MEMORY))
        for second in range(10):
            assert watch.look(Usage(cpu * second, 1, waited * second), float(second)) is None, why
    watch = Watch(int(MEMORY), 0.8, 0.8)
    for second in range(10):
        assert watch.look(Usage(0.7 * second, 1, 5.0 * second), float(second)) is None, "quarantine waits on purpose"


def test_looks_that_follow_each_other_are_one() -> None:
    watch = Watch(int(MEMORY))
    for step in range(10):
        assert watch.look(Usage(0.09 * step, 1), 0.1 * step) is None
    assert not watch.suspicious
    assert watch.look(Usage(5.0, 1), 5.5) is Why.CPU, "five seconds of work at one look are seconds"


def test_memory_is_too_much_at_once_and_again_when_there_is_more() -> None:
    watch = Watch(int(MEMORY))
    much = PART * MEMORY
    assert watch.look(Usage(0.0, much - 1), 0.0) is None
    assert not watch.suspicious
    assert watch.look(Usage(0.0, much), 0.1) is Why.MEMORY
    assert watch.look(Usage(0.0, much), 0.2) is Why.MEMORY, "nothing was done"
    watch.acted()
    assert watch.look(Usage(0.0, much), 0.3) is None
    assert not watch.suspicious
    assert watch.look(Usage(0.0, much * MORE + 1), 0.4) is Why.MEMORY
    watch.acted()
    assert watch.look(Usage(0.0, much / 2), 0.5) is None
    assert watch.look(Usage(0.0, much), 0.6) is Why.MEMORY, "it was down meanwhile"


def test_what_was_done_is_weighed_by_pod_and_ages() -> None:
    clock = Clock()
    pods = {1: "a", 2: "a", 3: "b"}
    weights = Weights(pods.get, clock)
    weights.take(Weighed({1: Weight(10, 100, 5, 2, 4, 50), 2: Weight(0, 10, 0, 0, 0, 0), 3: Weight(1, 1, 0, 0, 1, 1)}))
    did = 10 * CONNECTION + 110 * CALL + 5 * REFUSED + 2 * BUSY
    held = 4 * OPEN_CONNECTION + 50 * OPEN_CALL
    assert weights.by_pod()["a"] == pytest.approx(did + held)
    assert weights.by_pod()["b"] == pytest.approx(CONNECTION + CALL + OPEN_CONNECTION + OPEN_CALL)
    clock.now += HALF
    assert weights.by_pod()["a"] == pytest.approx(did / 2 + held)
    weights.take(Weighed({1: Weight(11, 100, 5, 2, 0, 0)}))
    assert weights.by_pod()["a"] == pytest.approx(did / 2 + CONNECTION)
    clock.now += 1000 * HALF
    assert weights.by_pod() == {"a": 0.0, "b": OPEN_CONNECTION + OPEN_CALL}


def test_what_a_process_says_is_believed_of_what_it_serves_and_within_bounds() -> None:
    clock = Clock()
    weights = Weights({1: "a", 2: "b"}.get, clock)
    weights.take(Weighed({7: Weight(9, 9, 9, 9, 9, 9), 1: Weight(2**52, 0, 0, 0, 2**52, 2**52)}))
    assert set(weights.by_pod()) == {"a"}
    assert weights.by_pod()["a"] <= MOST * (CONNECTION + OPEN_CONNECTION + OPEN_CALL)
    weights.left(1)
    clock.now += 100 * HALF
    assert weights.by_pod() == {}
    weights.take(Weighed({2: Weight(5, 5, 5, 5, 0, 0)}))
    before = weights.by_pod()["b"]
    weights.take(Weighed({2: Weight(0, 0, 0, 0, 0, 0)}))
    assert weights.by_pod()["b"] == before, "a count that falls takes weight away"


def test_a_flood_stands_out_and_what_programs_do_does_not() -> None:
    """In a second each, as it was seen of bench.attacks and of a pod that starts with ten streams."""
    clock = Clock()
    pods = {1: "calls", 2: "connections", 3: "one that is always busy", 4: "start", 5: "a call a tenth"}
    weights = Weights(pods.get, clock)
    for step in range(1, 11):
        clock.now += 1.0
        weights.take(
            Weighed(
                {
                    1: Weight(1, 2000 * step, 1500 * step, 0, 1, 100),
                    2: Weight(500 * step, 0, 0, 0, 64, 0),
                    3: Weight(1, 1, 0, step, 1, 1),
                    4: Weight(10, 10, 0, 0, 10, 10),
                    5: Weight(1, 10 * step, 0, 0, 1, 1),
                }
            )
        )
    heavy = {pods for pods, weight in weights.by_pod().items() if weight >= HEAVY}
    assert heavy == {"calls", "connections", "one that is always busy"}


def test_those_that_are_gone_are_forgotten() -> None:
    clock = Clock()
    weights = Weights(lambda number: f"p{number}", clock)
    for number in range(1000):
        weights.take(Weighed({number: Weight(1, 1, 0, 0, 0, 0)}))
        weights.left(number)
        clock.now += HALF
    assert len(weights.by_pod()) < 20
