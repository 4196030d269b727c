"""What tests of commands share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short() -> Iterator[Path]:
    """A short directory: a socket's path has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as found:
        yield Path(found)
