"""One cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .binaries import Progress
from .harness import Cluster, say


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    """Tells a waiting person what is going on, past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def report(message: str) -> None:
        if capture is None:
            say(message)
            return
        with capture.global_and_fixture_disabled():
            say(message)

    return report


@pytest.fixture(scope="session")
def cluster(progress: Progress) -> Iterator[Cluster]:
    """A running cluster whose node is ready."""
    with Cluster(progress=progress) as running:
        yield running
