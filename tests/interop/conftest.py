"""What the tests of all suites get."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.interop.suites import HERE, SuiteError, load
from tests.interop.tools import paths


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest) -> Mapping[str, Path]:
    """Those of the suite that the test is in, by name."""
    try:
        return paths(load(request.path.relative_to(HERE).parts[0]))
    except SuiteError as error:
        pytest.fail(str(error), pytrace=False)
