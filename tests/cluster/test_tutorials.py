"""Pages of docs/tutorials, each typed from its first command to its last on an installation of the chart."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.go_tools import Progress

from . import product_image
from .above import openbao
from .chart import CHART, ROOT
from .cluster import Cluster
from .installation import empty, release, settings
from .kubectl import Shell
from .tutorial import TUTORIALS, Step, assigned, example, steps
from .waiting import wait_for

pytestmark = pytest.mark.timeout(1500)
TRUST_DOMAIN = "example.org"
OF_OPENBAO = "openbao.md"
# The page, and the examples that it applies.
PAGES = {
    "nginx.md": ("nginx-two-services",),
    "compromised.md": ("nginx-two-services",),
    "envoy.md": ("envoy-sds",),
    "pki.md": ("envoy-sds",),
    "kubectl.md": ("jwt-files",),
    OF_OPENBAO: ("jwt-files",),
}
# Of the default, ten minutes, nobody waits for here.
REISSUE_OVER = "20s"
# Stands between what a command printed and the value of the variable that it set.
VALUE = "the value: "


@pytest.fixture(scope="module", autouse=True)
def installed(cluster: Cluster, images: dict[str, str], progress: Progress) -> Iterator[None]:
    empty(cluster)
    product_image.load(cluster, [images["now"], images["examples"]])
    release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
            *settings(cluster, images["now"], TRUST_DOMAIN),
            "--set", f"signer.settings.reissue_over={REISSUE_OVER}")  # fmt: skip
    yield
    release(cluster, "uninstall", "podsvid", "--wait", "--timeout", "5m", "--no-hooks")
    empty(cluster)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_typed(page: str, cluster: Cluster, tmp_path: Path, progress: Progress) -> None:
    for name in PAGES[page]:
        example(name, tmp_path, product_image.EXAMPLES)
    (tmp_path / "deploy" / "chart").symlink_to(ROOT / "deploy" / "chart")
    typed = [there(cluster, each) for each in steps(TUTORIALS / page)]
    before = pods(cluster)
    with typing(page, cluster, tmp_path, progress) as shell:
        began, remembered = time.monotonic(), ""
        who_logs_in = cluster.layout.authentication.read_bytes()
        try:
            for step in typed:
                name = assigned(step.typed)
                told = f'\nprintf "%s%s" "{VALUE}" "${name}"' if name else ""
                done = shell.typed(f"{remembered}{step.typed}{told}", seconds=600)
                printed, _, value = done.stdout.partition(VALUE)
                assert done.returncode == 0, f"{step.typed}\n{done.stdout}{done.stderr}{state(shell)}"
                assert not step.printed or printed == step.printed, (
                    f"{step.typed}\n{done.stdout}{done.stderr}{state(shell)}"
                )
                if name:
                    # The value: what it was asked of may be gone when the next lines are typed.
                    assert value, f"{step.typed}\n{done.stdout}{done.stderr}{state(shell)}"
                    remembered += f"{name}={shlex.quote(value)}\n"
        finally:
            cluster.layout.authentication.write_bytes(who_logs_in)
            progress(f"{page}: {len(typed)} commands in {time.monotonic() - began:.0f} s")
            for name in PAGES[page]:
                shell.typed(f"kubectl delete --ignore-not-found --wait=false -f deploy/examples/{name}")

    wait_for("the page's pods to be gone", lambda: pods(cluster) <= before, progress=progress)


def pods(cluster: Cluster) -> set[str]:
    """Of those there may be some of other tests, for good: on nodes that are stand-ins nothing ends."""
    return {each["metadata"]["uid"] for each in cluster.api.get("/api/v1/namespaces/default/pods")["items"]}


@contextmanager
def typing(page: str, cluster: Cluster, folder: Path, progress: Progress) -> Iterator[Shell]:
    """Who types the page, with what it says there has to be."""
    if page != OF_OPENBAO:
        yield Shell(folder, cluster.kubeconfig)
        return
    with openbao(cluster, progress) as bao:
        yield Shell(folder, cluster.kubeconfig, (bao.programs,), bao.environment)


def there(cluster: Cluster, step: Step) -> Step:
    """With the path that a file has which the page has people put on a control plane's host."""
    authentication = str(cluster.layout.authentication)
    return replace(step, typed=step.typed.replace("/etc/kubernetes/podsvid/authentication.yaml", authentication))


def state(shell: Shell) -> str:
    """For a failed test."""
    looks = (
        "kubectl get pods,wid -o wide",
        "kubectl get events",
        "kubectl logs -l app --tail 20 --prefix",
        "cat said",
        # Whether a call failed for its time or for who was met.
        "kubectl exec deployment/envoy-client -c app -- curl -s http://127.0.0.1:9901/stats | grep cluster.server",
    )
    return "".join(shell.typed(line).stdout for line in looks)
