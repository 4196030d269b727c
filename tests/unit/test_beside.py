"""bench.beside, bench.scale.still and bench.back without their processes: what a table says of what was found."""

import pytest

from bench.back import table as back_table
from bench.beside import THEIRS_CPU, Taken, described, difference, page
from bench.scale.still import GOAL, PODS, sized, table

ABOUT = {"date": "2026-11-29", "commit": "abc"}


def taken(name: str, *cpu: float, **asked: int) -> Taken:
    return Taken(name, 1.5, cpu, 70.0, 90.0, asked)


@pytest.mark.parametrize(("agent", "said"), [(THEIRS_CPU - 2.5, "met"), (THEIRS_CPU - 2.4, "missed")])
def test_agent_and_both_signers_count(agent: float, said: str) -> None:
    found = [taken("podsvid-agent-a", agent, 0.5), taken("podsvid-signer-b", 1.0), taken("podsvid-signer-c", 1.0)]
    text = described(found, ABOUT, 270.0, 10)
    assert f"**CPU of agent and signers in 270 s: {agent + 2.5:.2f} s; theirs {THEIRS_CPU} s: {said}.**" in text
    assert f"| agent | {agent + 0.5:.2f} | {agent:.2f}, 0.50 | 1.50 | 70 | 90 |" in text
    assert "| signer 2 | 1.00 |" in text


def test_what_an_account_asked_for_counts_once_though_two_replicas_have_it() -> None:
    found = [taken("podsvid-agent-a", 1.0), *(taken(f"podsvid-signer-{each}", 1.0, get=7) for each in "bc")]
    assert "by both signers: get 7; by the agent: nothing." in described(found, ABOUT, 270.0, 10)


def test_a_run_takes_the_place_of_one_with_the_same_kubelet_alone() -> None:
    first = described([taken("podsvid-agent-a", 1.0)], ABOUT, 270.0, 10)
    second = described([taken("podsvid-agent-a", 2.0)], ABOUT, 270.0, 60)
    third = described([taken("podsvid-agent-a", 3.0)], ABOUT, 270.0, 10)
    text = page(page(page("", first, 10), second, 60), third, 10)
    assert [line for line in text.splitlines() if line.startswith("| agent")] == [
        "| agent | 3.00 | 3.00 | 1.50 | 70 | 90 |",
        "| agent | 2.00 | 2.00 | 1.50 | 70 | 90 |",
    ]
    assert text.count("# Beside csi-driver-spiffe") == 1
    assert page(text, third, 10) == text


def test_a_process_that_began_meanwhile_counts_from_its_beginning() -> None:
    assert difference({1: 2.0, 2: 5.0}, {1: 2.5, 3: 0.25}) == [0.5, 0.25]


def test_still_pods_are_held_against_the_goal_with_all_that_a_signer_does() -> None:
    just, above = GOAL * 10 - 0.1, GOAL * 50 + 0.1
    lines = table({0: [0.5, 0.4, 0.6], 10_000: [just], 50_000: [above]}).splitlines()
    assert lines[2].startswith("| next to none | 0.50 (0.40 to 0.60) | - |")
    assert lines[3].endswith("| under 0.2 | met |")
    assert lines[4].endswith("| under 0.2 | missed |")
    assert f"| {(just - 0.5) / 10:.4f} | {just / 10:.4f} |" in lines[3]


def test_clusters_of_still_pods_have_as_many_as_they_say() -> None:
    assert [sized(each).pods for each in PODS] == list(PODS)
    assert all(len(list(cluster.mounted(0))) > 0 for cluster in map(sized, PODS))


def test_each_kind_of_kill_has_its_line() -> None:
    lines = back_table({"agent": [3.0, 1.0, 2.0], "process of all": [0.5]}).splitlines()
    assert lines[2:] == ["| agent | 3 | 2.00 s | 3.00 s |", "| process of all | 1 | 0.50 s | 0.50 s |"]
