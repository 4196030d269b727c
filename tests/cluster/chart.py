"""The Helm chart: rendered, installed, and taken away again, by the pinned Helm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from .api import Object
from .host import SEARCH_PATH, ClusterError
from .programs import program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart" / "podsvid"


def helm(*arguments: str, kubeconfig: Path | None = None, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run Helm; what it printed. The caller looks at the return code."""
    environment = {**os.environ, "PATH": SEARCH_PATH}
    if kubeconfig is not None:
        environment["KUBECONFIG"] = str(kubeconfig)
    command = [str(program("helm")), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def template(*values: str, namespace: str = "podsvid", flags: tuple[str, ...] = (), where: Path = CHART) -> str:
    """What `helm template` makes of the chart with `NAME=VALUE`s. Raises ClusterError with Helm's words."""
    settings = [flag for value in values for flag in ("--set", value)]
    done = helm("template", "podsvid", str(where), "--namespace", namespace, *settings, *flags)
    if done.returncode != 0:
        raise ClusterError(done.stderr.strip())
    return done.stdout


def render(*values: str, namespace: str = "podsvid", flags: tuple[str, ...] = (), where: Path = CHART) -> list[Object]:
    """The same, as documents."""
    text = template(*values, namespace=namespace, flags=flags, where=where)
    return [each for each in yaml.safe_load_all(text) if each]
