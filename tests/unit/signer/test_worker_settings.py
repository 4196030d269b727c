"""How many processes serve agents, by the setting and by the cgroup's limit; and how much each may have."""

from pathlib import Path

import pytest

from runtime import processors
from signer import worker_settings
from signer.front import budget
from signer.front.spread import Spread
from signer.metrics import Metrics
from signer.workers.chosen import BASE, memory
from signer.workers.crew import Crew


def cgroup(root: Path, *levels: str, path: str = "/a/b") -> float | None:
    """`levels`: cpu.max from the top on."""
    proc = root / "proc"
    proc.write_text(f"0::{path}\n")
    top = root / "fs"
    for folder, text in zip((top, top / "a", top / "a" / "b"), levels, strict=False):
        folder.mkdir(exist_ok=True)
        if text:
            (folder / "cpu.max").write_text(f"{text}\n")
    return processors.limit(proc, top)


@pytest.mark.parametrize(
    ("levels", "cores"),
    [
        (("", "max 100000", "max 100000"), None),
        (("", "", "250000 100000"), 2.5),
        (("", "200000 100000", "400000 100000"), 2.0),
        (("150000 100000",), 1.5),
        (("", "", "rubbish"), None),
        (("", "", "100 0"), None),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, levels: tuple[str, ...], cores: float | None) -> None:
    assert cgroup(tmp_path, *levels) == cores


def test_in_a_container_the_root_is_its_own(tmp_path: Path) -> None:
    """What /proc/self/cgroup says is then another one's view."""
    assert cgroup(tmp_path, "300000 100000", path="/../..") == 3.0


def test_of_version_1(tmp_path: Path) -> None:
    proc, folder = tmp_path / "proc", tmp_path / "fs" / "cpu" / "pod"
    proc.write_text("5:cpu,cpuacct:/pod\n3:memory:/pod\n")
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert processors.limit(proc, tmp_path / "fs") == 2.0
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert processors.limit(proc, tmp_path / "fs") is None


@pytest.mark.parametrize(
    ("said", "cores", "found"),
    [(None, None, 1), (None, 0.5, 1), (None, 1.9, 1), (None, 2.0, 2), (None, 64.0, 8), (3, 1.0, 3), (1, 8.0, 1)],
)
def test_what_nobody_says_is_by_the_limit(
    monkeypatch: pytest.MonkeyPatch, said: int | None, cores: float | None, found: int
) -> None:
    monkeypatch.setattr(worker_settings, "limit", lambda: cores)
    assert worker_settings.usual(said) == found


@pytest.mark.parametrize("count", range(2, worker_settings.MOST + 1))
def test_workers_together_have_what_one_process_may_hold_for_its_peers(count: int) -> None:
    held = sum(budget.held_at_most().values()) + budget.AGENT_CONNECTIONS * budget.OF_AGENT
    assert held / count + BASE / 2 <= memory(count)
    assert count * (memory(count) - BASE) <= budget.FOR_PEERS + budget.AGENT_CONNECTIONS * budget.OF_AGENT


def test_a_connection_goes_to_whoever_has_fewest() -> None:
    spread, one, other = Spread(), Path("/a"), Path("/b")
    spread.paths = lambda target: (one, other)
    for peer in "1234":
        spread.entered(peer, spread.choose(Path("/")))
    assert [spread.of(peer) for peer in "1234"] == [one, other, one, other]
    spread.left("1")
    spread.left("1")
    spread.left("3")
    assert spread.of("1") is None
    assert spread.choose(Path("/")) == one
    spread.paths = lambda target: ()
    with pytest.raises(OSError, match="no worker serves"):
        spread.choose(Path("/"))


def test_whose_connection_is_closed_is_told_once() -> None:
    gone: list[str] = []
    spread = Spread()
    spread.gone = gone.append
    spread.entered("1", Path("/a"))
    for peer in ("1", "1", "2"):
        spread.left(peer)
    assert gone == ["1"]


def test_a_worker_is_at_the_connections_that_went_to_its_sockets() -> None:
    spread = Spread()
    crew = Crew(2, {}, spread, memory(2), ("json", "info"), Metrics())
    spread.entered("one", Path("/run/door/a/1"))
    spread.entered("other", Path("/run/door/b/2"))
    assert [crew._is_at(letter, peer) for letter in "ab" for peer in ("one", "other", "none")] == [
        *(True, False, False),
        *(False, True, False),
    ]
