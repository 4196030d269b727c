"""One cluster for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import product_image
from .binaries import ClusterError, Progress, build, install_packages
from .harness import Cluster, say

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
def images(progress: Progress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """podsvid's image of this checkout (`now`) and of the commit before (`before`), if it has one; the examples'."""
    if os.geteuid() != 0:
        raise ClusterError("the cluster needs root: it mounts, and runs containers")
    install_packages(progress)
    build(progress)
    found = {"now": product_image.build(ROOT, "now", progress)}
    earlier = tmp_path_factory.mktemp("earlier")
    if product_image.checkout("HEAD~1", earlier):
        found["before"] = product_image.build(earlier, "before", progress)
    found["examples"] = product_image.build_examples(tmp_path_factory.mktemp("examples"), progress)
    return found


@pytest.fixture(scope="session")
def cluster(progress: Progress, images: dict[str, str]) -> Iterator[Cluster]:
    """A running cluster whose node is ready, in a network of its own: images are built before."""
    with Cluster(progress=progress) as running:
        yield running
