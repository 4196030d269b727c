"""The cgroup that this process is in, and those around it, of both versions: on trees of plain files."""

from pathlib import Path

import pytest

from runtime.memory import MemoryUse, own_memory, resident

MIB = 1024 * 1024
POD = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b6a9a4e_6a8e_4c1c_9f3c_111111111111.slice"
CONTAINER = f"{POD}/cri-containerd-1.scope"


def version_2(folder: Path, limit: str, current: int, **stat: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current * MIB}\n")
    (folder / "memory.stat").write_text("".join(f"{name} {value * MIB}\n" for name, value in stat.items()))


def version_1(folder: Path, limit: int, usage: int, **stat: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage * MIB}\n")
    (folder / "memory.stat").write_text("".join(f"{name} {value * MIB}\n" for name, value in stat.items()))


def read(base: Path, lines: str) -> MemoryUse | None:
    (base / "cgroup").write_text(lines)
    return own_memory(base / "cgroup", base / "fs")


def test_what_the_kernel_would_drop_by_itself_is_not_used(tmp_path: Path) -> None:
    parts = {"anon": 30, "inactive_file": 10, "active_file": 5, "slab_reclaimable": 2, "shmem": 40}
    version_2(tmp_path / "fs" / "system.slice" / "agent", str(512 * MIB), 100, **parts)
    found = read(tmp_path, "0::/system.slice/agent\n")
    assert found == MemoryUse(512 * MIB, 83 * MIB, 30 * MIB)
    assert found.left == 429 * MIB


def test_what_a_dead_container_left_counts_in_the_pods_group(tmp_path: Path) -> None:
    version_2(tmp_path / "fs" / CONTAINER, str(512 * MIB), 50, anon=40)
    version_2(tmp_path / "fs" / POD, str(512 * MIB), 400, anon=40)
    assert read(tmp_path, f"0::/{CONTAINER}\n") == MemoryUse(512 * MIB, 400 * MIB, 40 * MIB)


def test_what_is_around_the_pod_is_other_pods(tmp_path: Path) -> None:
    version_2(tmp_path / "fs" / CONTAINER, str(512 * MIB), 50, anon=40)
    version_2(tmp_path / "fs" / POD, "max", 50, anon=40)
    version_2(tmp_path / "fs" / "kubepods.slice", str(4096 * MIB), 4090, anon=4000)
    assert read(tmp_path, f"0::/{CONTAINER}\n") == MemoryUse(512 * MIB, 50 * MIB, 40 * MIB)


def test_in_a_namespace_of_its_own_the_top_is_its_own_group(tmp_path: Path) -> None:
    version_2(tmp_path / "fs", str(256 * MIB), 50, anon=40)
    assert read(tmp_path, "0::/\n") == MemoryUse(256 * MIB, 50 * MIB, 40 * MIB)
    # What is mounted is the container's group, what is told is the host's name for it.
    assert read(tmp_path, f"0::/{CONTAINER}\n") == MemoryUse(256 * MIB, 50 * MIB, 40 * MIB)
    assert read(tmp_path, "0::/../../elsewhere\n") == MemoryUse(256 * MIB, 50 * MIB, 40 * MIB)


def test_no_limit_is_none(tmp_path: Path) -> None:
    version_2(tmp_path / "fs" / "user.slice", "max", 50, anon=40)
    assert read(tmp_path, "0::/user.slice\n") is None
    assert read(tmp_path, "") is None
    assert own_memory(tmp_path / "none", tmp_path) is None


def test_version_1_beside_an_empty_version_2(tmp_path: Path) -> None:
    memory = tmp_path / "fs" / "memory"
    parts = {"total_rss": 30, "total_inactive_file": 10, "total_active_file": 5, "rss": 1}
    version_1(memory / "a" / "b", 512 * MIB, 100, **parts)
    version_1(memory / "a", 2**63 - 4096, 100, **parts)
    lines = "3:cpuset:/\n2:cpu,memory:/a/b\n0::/\n"
    assert read(tmp_path, lines) == MemoryUse(512 * MIB, 85 * MIB, 30 * MIB)
    version_1(memory / "a" / "b", 2**63 - 4096, 100, **parts)
    assert read(tmp_path, lines) is None


def test_what_is_resident_is_what_the_kernel_says() -> None:
    """Of the process that asks, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (shown,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    assert resident() == pytest.approx(shown, rel=0.1)
