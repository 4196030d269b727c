"""Builds the pinned Go tools once into a cache outside the checkout."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

GO = Path(__file__).parent / "go"
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
        go = shutil.which("go") or "/usr/local/go/bin/go"
        assert Path(go).exists(), "the conformance suite needs Go 1.25 or newer: apt-get install golang, or from go.dev"
        print(f"building {name} (once)", flush=True)
        building = cache / f".{name}.{os.getpid()}"
        subprocess.run([go, "build", "-trimpath", "-o", str(building), package], cwd=GO, check=True)
        building.rename(cache / name)
    return cache
