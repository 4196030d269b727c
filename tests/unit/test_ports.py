"""Ports of tests that run side by side."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ports import free_port


@pytest.mark.parametrize("before", [None, b"", b"29998", b"not a number"])
def test_nobody_is_given_the_port_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    free_port()
    (file,) = tmp_path.iterdir()
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    with ThreadPoolExecutor(8) as asking:
        found = list(asking.map(lambda _: free_port(), range(200)))
    assert len(set(found)) == len(found)
    assert all(20_000 <= each <= 29_999 for each in found)
    assert list(tmp_path.iterdir()) == [file]
