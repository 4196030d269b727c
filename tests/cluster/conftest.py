"""One cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.go_tools import Progress, missing

from . import leftovers, product_image
from .cluster import Cluster
from .host import ClusterError, install_packages
from .programs import PROGRAMS
from .waiting import say

ROOT = Path(__file__).parents[2]


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
def built(progress: Progress) -> None:
    """All programs are there: their building, which takes many minutes, is no test's business."""
    lacking = missing(PROGRAMS)
    if lacking:
        names = ", ".join(program.name for program in lacking)
        raise ClusterError(f"not built yet: {names}; run python -m tests.cluster.harness build")
    install_packages(progress)


@pytest.fixture(scope="session")
def nothing_left(built: None, progress: Progress) -> Iterator[None]:
    """What the tests of this folder leave on the host is what was there before them."""
    cluster = Cluster(progress=progress)
    cluster.stop()  # what a killed run left is not this run's
    before = leftovers.traces(cluster.layout)
    yield
    left = leftovers.traces(cluster.layout) - before
    assert left - {str(cluster.logs)} == set()  # which are kept when a test has failed


@pytest.fixture(scope="session")
def images(nothing_left: None, progress: Progress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """podsvid's image of this checkout (`now`), of the commit before (`before`), if any, and what is made of it."""
    found = {"now": product_image.build(ROOT, "now", progress)}
    earlier = tmp_path_factory.mktemp("earlier")
    if product_image.checkout("HEAD~1", earlier):
        found["before"] = product_image.build(earlier, "before", progress)
    found["examples"] = product_image.build_examples(tmp_path_factory.mktemp("examples"), progress)
    found["more"] = product_image.build_more(found["now"], tmp_path_factory.mktemp("more"), progress)
    return found


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, progress: Progress, images: dict[str, str]) -> Iterator[Cluster]:
    """A running cluster whose node is ready, in a network of its own: images are built before."""
    with Cluster(progress=progress) as running:
        yield running
        running.stop(keep_logs=bool(request.session.testsfailed))
