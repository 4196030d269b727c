"""The Go programs of this folder's tests."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.programs import PROGRAMS
from tests.go_tools import missing, path_of


@pytest.fixture(scope="session")
def go_tools() -> Mapping[str, Path]:
    """Where each program is, by its name. Building them, which takes minutes, is no test's business."""
    lacking = ", ".join(program.name for program in missing(PROGRAMS))
    if lacking:
        pytest.fail(f"not built yet: {lacking}; run python -m tests.go_tools build conformance", pytrace=False)
    return {program.name: path_of(program) for program in PROGRAMS}
