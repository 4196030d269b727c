"""Who keeps podsvid from being uninstalled."""

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from podsvid.uninstall_check import (
    Place,
    add_arguments,
    customary,
    in_lines,
    in_use,
    policies_left,
    report,
    run,
)
from runtime.settings import InvalidSetting
from signer.cluster.decoding import Kept, Page
from signer.errors import Forbidden
from tests.fake_kube import FakeKube
from tests.shapes import described
from tests.signer_rig import DRIVER, Site

DRIVERS = frozenset({DRIVER})
HERE = Place("here")
DEFINITIONS = "workloadidentities.podsvid.io clusterworkloadidentities.podsvid.io federatedtrustdomains.podsvid.io"


def test_pods_that_mount_the_driver_and_policies_are_named() -> None:
    site = Site()
    site.pod("web")
    site.pod("plain", driver=None)
    site.kube.put("/apis/podsvid.io/v1alpha1/namespaces/shop/workloadidentities/web", {"spec": {}})
    site.kube.put("/apis/podsvid.io/v1alpha1/clusterworkloadidentities/all", {"spec": {}})
    pods = asyncio.run(in_use(site.kube, DRIVERS))
    policies = asyncio.run(policies_left(site.kube))
    assert pods == ["default/web"]
    assert policies == ["clusterworkloadidentities all", "workloadidentities shop/web"]
    text = "\n".join(in_lines(report(pods, policies, DRIVERS, HERE)))
    assert text.startswith(f"REFUSED: 1 pods mount {DRIVER}")
    assert "default/web" in text
    assert f"kubectl delete crd {DEFINITIONS}" in text


def test_nothing_in_the_way() -> None:
    site = Site()
    site.pod("plain", driver=None)
    said = in_lines(report(asyncio.run(in_use(site.kube, DRIVERS)), [], DRIVERS, HERE))
    assert said[0] == f"no pod mounts {DRIVER}"


def test_a_cluster_without_the_custom_resources() -> None:
    kube = FakeKube(Site().clock)
    kube.missing |= {
        f"/apis/podsvid.io/v1alpha1/{each}" for each in ("workloadidentities", "clusterworkloadidentities")
    }
    assert asyncio.run(policies_left(kube)) == []


def test_a_long_list_is_cut() -> None:
    lines = in_lines(report([f"a/{n}" for n in range(60)], [], DRIVERS, HERE))
    assert lines[51] == "  and 10 more"
    assert "  kubectl -n here delete secret podsvid-authority" in lines


class Paged:
    """A cluster whose pods come in parts, as a real one's do."""

    def __init__(self, site: Site) -> None:
        self._kube = site.kube
        self.closed = False

    async def list(self, path: str, kind: type[Kept], query: Mapping[str, str] | None = None) -> Page[Kept]:
        assert query is not None
        assert query["limit"] == "500"
        return await self._kube.list(path, kind, {**query, "limit": "1"})

    async def close(self) -> None:
        self.closed = True


def checked(site: Site, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, Paged]:
    """The command's exit code, and the connection that it used."""
    paged = Paged(site)

    class Connecting:
        @staticmethod
        async def connect(kubeconfig: Path | None, context: str | None) -> Paged:
            return paged

    monkeypatch.setattr("podsvid.uninstall_check.KubeClient", Connecting)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments)), paged


def test_pods_keep_it_and_policies_do_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site()
    site.pod("plain", driver=None)
    site.pod("other", driver="other.csi")
    site.pod("over", phase="Succeeded")
    site.kube.put("/apis/podsvid.io/v1alpha1/clusterworkloadidentities/all", {"spec": {}})
    code, paged = checked(site, monkeypatch)
    assert (code, paged.closed) == (0, True)
    assert "1 policies stay in the cluster" in capsys.readouterr().out
    # The last of all parts.
    site.pod("zebra")
    code, paged = checked(site, monkeypatch)
    assert (code, paged.closed) == (1, True)
    assert "  default/zebra\n" in capsys.readouterr().out
    assert checked(site, monkeypatch, "--driver-names", "a.csi,other.csi")[0] == 1
    assert "REFUSED: 1 pods mount a.csi, other.csi" in capsys.readouterr().out


def test_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site()
    site.pod("web")
    assert checked(site, monkeypatch, "-o", "json")[0] == 1
    found = described("uninstall-check", capsys.readouterr().out)
    assert (found["pods"], found["policies"]) == (["default/web"], [])
    assert "REFUSED" in found["said"][0]["text"]
    assert checked(site, monkeypatch, "-o", "yaml")[0] == 1
    assert yaml.safe_load(capsys.readouterr().out) == found


def test_who_cannot_look_does_not_say_that_nothing_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.pod("web")
    for refusal in ("/api/v1/pods", "/apis/podsvid.io"):
        site.kube.denied = {("list", refusal)}
        with pytest.raises(Forbidden):
            checked(site, monkeypatch)


def test_one_missing_definition_hides_nothing_of_the_other() -> None:
    site = Site()
    site.kube.missing.add("/apis/podsvid.io/v1alpha1/workloadidentities")
    site.kube.put("/apis/podsvid.io/v1alpha1/clusterworkloadidentities/all", {"spec": {}})
    assert asyncio.run(policies_left(site.kube)) == ["clusterworkloadidentities all"]


def test_all_that_signers_leave_is_said_with_a_command_for_each() -> None:
    text = "\n".join(in_lines(report([], [], DRIVERS, Place("here", "ca", "roots"))))
    for command in (
        "kubectl -n here delete secret ca",
        "kubectl -n here delete configmap ca-abandoned --ignore-not-found",
        "kubectl delete configmap --all-namespaces --field-selector metadata.name=roots",
        "kubectl delete clustertrustbundle -l app.kubernetes.io/managed-by=podsvid",
        "kubectl -n here delete lease podsvid-signer",
        "kubectl -n here delete configmap -l podsvid.io/agents-of",
        f"kubectl delete crd {DEFINITIONS}",
        "kubectl -n here get secrets",
        "kubectl delete namespace here",
    ):
        assert f"  {command}\n" in text + "\n"


def test_helm_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site()
    for name in ("web", "api"):
        site.pod(name)
    site.kube.put("/apis/podsvid.io/v1alpha1/clusterworkloadidentities/all", {"spec": {}})
    line = ("--one-line", "--namespace=there", "--state-secret=ca", "--bundle-config-map=roots")
    monkeypatch.delenv("PODSVID_DOCS_URL", raising=False)
    checked(site, monkeypatch, *line)
    refused = capsys.readouterr().out
    assert refused.startswith(f"REFUSED: 2 pods mount {DRIVER}; delete or change them first: default/api, default/web.")
    assert "helm rollback to a revision" in refused
    checked(site, monkeypatch, "--driver-names=other.csi", *line)
    taken = capsys.readouterr().out
    assert taken.startswith("No pod mounts other.csi. What stays: 1 policies, their definitions, the CA (Secret ca), ")
    assert "Secrets that you made" in taken
    # Of its log Helm shows one line, however long.
    assert len(taken) < 450
    for out in (refused, taken):
        assert out.count("\n") == 1
        # Helm would put a backslash before each.
        assert '"' not in out
        assert out.endswith("see docs/operations.md#uninstall\n")
    monkeypatch.setenv("PODSVID_DOCS_URL", "https://docs.example.org/podsvid/")
    for drivers in (DRIVER, "other.csi"):
        checked(site, monkeypatch, f"--driver-names={drivers}", *line)
        assert capsys.readouterr().out.endswith("see https://docs.example.org/podsvid/operations.html#uninstall\n")


def test_where_podsvid_is_has_the_name_of_other_commands_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--namespace", "--podsvid-namespace"):
        checked(Site(), monkeypatch, flag, "there")
        assert "kubectl -n there delete lease" in capsys.readouterr().out


def test_without_a_kubeconfig_it_looks_where_other_commands_do(tmp_path: Path) -> None:
    """A laptop's, which the other commands take, and in a pod the cluster that it is in."""
    (tmp_path / ".kube").mkdir()
    home = {"HOME": str(tmp_path)}
    assert customary(home) is None
    at_home, other = tmp_path / ".kube" / "config", tmp_path / "other"
    for each in (at_home, other):
        each.touch()
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert customary(home) == at_home
    assert customary({**home, **pod}) is None
    for environment in ({}, pod):
        assert customary({**home, **environment, "KUBECONFIG": str(other)}) == other
    assert customary({**home, "KUBECONFIG": f"{other}:/absent::{at_home}"}) == Path(f"{other}:{at_home}")
    assert customary({**home, "KUBECONFIG": "/absent:/nor/this"}) == Path("/absent")
    assert customary({**home, "KUBECONFIG": ""}) == at_home
    assert customary({**home, "KUBECONFIG": "~/other"}) == other


def test_no_kubeconfig_beside_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Path | None, str | None]] = []

    class Connecting:
        @staticmethod
        async def connect(kubeconfig: Path | None, context: str | None) -> Paged:
            asked.append((kubeconfig, context))
            return Paged(Site())

    monkeypatch.setattr("podsvid.uninstall_check.KubeClient", Connecting)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "of-the-environment"))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([]))
    run(parser.parse_args(["--kubeconfig", "/named"]))
    run(parser.parse_args(["--context", "other"]))
    assert asked == [
        (tmp_path / "of-the-environment", None),
        (Path("/named"), None),
        (tmp_path / "of-the-environment", "other"),
    ]


def test_a_context_is_none_of_the_cluster_that_the_pod_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names one, and has no kubeconfig, is not told of another cluster."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(InvalidSetting, match="--context names one of a kubeconfig's"):
        checked(Site(), monkeypatch, "--context", "other")
