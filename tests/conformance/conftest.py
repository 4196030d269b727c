"""Builds the pinned Go tools once into a cache outside the checkout."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

GO = Path(__file__).parent / "go"
# The first run downloads and builds, which counts against the test that asked for it.
BUILD_TIMEOUT = 1800
PACKAGES = {"csi-sanity": "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity", "go-client": "./client"}


def _cache() -> Path:
    base = os.environ.get("PODSVID_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")) + "/podsvid"
    digest = hashlib.sha256()
    for path in sorted(GO.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return Path(base) / f"conformance-{digest.hexdigest()[:16]}"


@pytest.fixture(scope="session")
def go_tools() -> Path:
    """The folder with csi-sanity and go-client."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        if (cache / name).exists():
            continue
        # The second place is where Go's own archives install it; a root shell often lacks it in PATH.
        go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
        if go is None:
            pytest.fail(
                "the conformance suite needs Go 1.25 or newer in PATH or /usr/local/go/bin: unpack an archive from "
                "go.dev/dl, or install a package `golang` of 1.21 or newer, which fetches the right one by itself",
                pytrace=False,
            )
        print(f"building {name} (once)", flush=True)
        building = cache / f".{name}.{os.getpid()}"
        subprocess.run([go, "build", "-trimpath", "-o", str(building), package], cwd=GO, check=True)
        building.rename(cache / name)
    return cache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "go_tools" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT))
