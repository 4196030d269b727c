"""What the tests of this suite share: its API server and its signer take longer to start than most of them last."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.istio.mesh import Mesh
from tests.interop.kubernetes import kubernetes
from tests.interop.suites import load
from tests.interop.tools import paths


@pytest.fixture(scope="package")
def mesh() -> Iterator[Mesh]:
    """An API server with podsvid's rights and two nodes."""
    with tempfile.TemporaryDirectory(prefix="is", dir="/tmp") as folder, kubernetes(Path(folder) / "k") as found:
        made = Mesh(found, paths(load("istio")))
        made.install()
        yield made
