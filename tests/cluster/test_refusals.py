"""Each refusal of docs/signer.md on a real cluster: what is told of it in every place, and that no two contradict."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from signer.errors import Reason
from tests.go_tools import Progress

from . import product_image
from .agreement import ABSENT, contradictions, document
from .chart import CHART, ROOT
from .cluster import Cluster
from .installation import empty, release, settings
from .programs import program
from .refusals import SETTINGS, SHOP, Refusals, Shown
from .signing import TRUST_DOMAIN

pytestmark = pytest.mark.timeout(5400)
DOCUMENT = ROOT / "docs" / "refusals.md"


@pytest.fixture(scope="module")
def shown(cluster: Cluster, images: dict[str, str], progress: Progress) -> Iterator[list[Shown]]:
    """All of them, one after another, on a chart of its own."""
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    more = [flag for name, value in SETTINGS.items() for flag in ("--set", f"{name}={value}")]
    site = Refusals(cluster, progress)
    try:
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
                *settings(cluster, images["now"], TRUST_DOMAIN), *more)  # fmt: skip
        began = time.monotonic()
        found = list(site.all_of())
        progress(f"{len(found)} refusals in {time.monotonic() - began:.0f} s")
        yield found
    finally:
        site.end()
        empty(cluster)


def test_no_two_places_contradict_each_other(shown: list[Shown]) -> None:
    found = {f"{each.reason}, {each.how}": contradictions(each) for each in shown}
    assert {what: said for what, said in found.items() if said} == {}


def test_every_reason_is_shown_or_it_is_said_why_not(shown: list[Shown]) -> None:
    assert {each.reason for each in shown} | set(ABSENT) == {*Reason}
    assert {each.reason for each in shown} & set(ABSENT) == set()


def test_the_document_says_what_is_said(shown: list[Shown]) -> None:
    made = document(shown)
    if os.environ.get("PODSVID_UPDATE_GOLDEN"):
        DOCUMENT.write_text(made)
    said = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    difference = "\n".join(difflib.unified_diff(said.splitlines(), made.splitlines(), "docs", "now", lineterm="", n=1))
    assert said == made, f"look at the difference; PODSVID_UPDATE_GOLDEN=1 records it\n{difference}"


def test_explain_is_timed(cluster: Cluster, shown: list[Shown], progress: Progress, tmp_path: Path) -> None:
    """Beside its floor: a Python that starts, and one call of kubectl. For bench/results; nothing is asserted of it."""
    flag = f"--kubeconfig={cluster.kubeconfig}"
    lines = {
        "podsvid explain": [sys.executable, "-m", "podsvid", "explain", f"{SHOP}/served", flag],
        "python": [sys.executable, "-c", "pass"],
        "kubectl get pod": [str(program("kubectl")), "get", "pod", "-n", SHOP, "served", flag],
    }
    for name, line in lines.items():
        took = []
        for _ in range(5):
            began = time.monotonic()
            done = subprocess.run(line, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True,
                                  text=True, check=False)  # fmt: skip
            took.append(time.monotonic() - began)
            assert done.returncode == 0, done.stdout + done.stderr
        progress(f"{name}: {min(took):.2f} to {max(took):.2f} s, p50 {sorted(took)[2]:.2f} s")
