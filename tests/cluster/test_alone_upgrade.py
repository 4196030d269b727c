"""Upgrades by Helm at a real API server that nothing else stands behind: what is taken, and what is refused whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.go_tools import Progress

from .alone import TRUST_DOMAIN, Alone, api_server
from .api import ApiError, Object
from .chart import CHART, helm
from .signing import NAMESPACE
from .test_chart import EARLIER
from .waiting import wait_for

pytestmark = pytest.mark.timeout(600)
CONFIG = f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-signer"
BUNDLES = f"/api/v1/namespaces/{NAMESPACE}/configmaps"


@pytest.fixture(scope="module")
def installed(built: None, tmp_path_factory: pytest.TempPathFactory, progress: Progress) -> Iterator[Alone]:
    """The chart with the values that the first one had."""
    folder = tmp_path_factory.mktemp("upgrade")
    shutil.copytree(CHART, folder / "first")
    shutil.copy(EARLIER[0], folder / "first" / "values.yaml")
    with api_server(folder, progress) as found:
        done = release(found, "install", str(folder / "first"), "--create-namespace", f"trustDomain={TRUST_DOMAIN}")
        assert done.returncode == 0, done.stderr
        yield found


def release(alone: Alone, verb: str, where: str, *more: str) -> subprocess.CompletedProcess[str]:
    values = [part for each in more if "=" in each for part in ("--set", each)]
    flags = [each for each in more if "=" not in each]
    line = [verb, "podsvid", where, "--namespace", NAMESPACE, "--no-hooks", "--timeout", "2m", *flags, *values]
    return helm(*line, kubeconfig=alone.layout.kubeconfig)


def revision(alone: Alone) -> int:
    done = helm("history", "podsvid", "--namespace", NAMESPACE, kubeconfig=alone.layout.kubeconfig)
    assert done.returncode == 0, done.stderr
    return len(done.stdout.splitlines())


@pytest.mark.parametrize("how", ["--reuse-values", "--reset-then-reuse-values"])
def test_an_upgrade_from_the_first_chart(installed: Alone, how: str) -> None:
    done = release(installed, "upgrade", str(CHART), how, "signer.replicas=3")
    assert done.returncode == 0, done.stderr
    deployment = installed.api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/podsvid-signer")
    assert deployment["spec"]["replicas"] == 3


@pytest.mark.parametrize("published", [False, True])
def test_another_trust_domain_is_refused_before_anything_changes(installed: Alone, published: bool) -> None:
    api, before = installed.api, installed.api.get(CONFIG)
    if published:
        # As the signers publish it: it says whose CA there is, whatever the configuration was set to since.
        labels = {"podsvid.io/trust-domain": TRUST_DOMAIN}
        bundle = {"metadata": {"name": "podsvid-bundle", "labels": labels}, "apiVersion": "v1", "kind": "ConfigMap"}
        moved = {"signer.yaml": before["data"]["signer.yaml"].replace(TRUST_DOMAIN, "other.org")}
        # An update is what the API server refuses, of somebody who renders manifests.
        api.delete(CONFIG)
        kept = {key: value for key, value in before["metadata"].items() if key in ("name", "labels", "annotations")}
        api.create(BUNDLES, {**before, "metadata": kept, "data": moved})
        api.create(BUNDLES, {**bundle, "data": {}})
        before = api.get(CONFIG)
    revisions = revision(installed)
    done = release(installed, "upgrade", str(CHART), "--reset-then-reuse-values", "trustDomain=other.org")
    assert done.returncode != 0
    assert f"has the CA of trust domain {TRUST_DOMAIN}, and these values say other.org" in done.stderr
    assert "Another trust domain" in done.stderr
    assert api.get(CONFIG) == before
    assert revision(installed) == revisions
    if published:
        api.delete(CONFIG)
    # What a test has changed in its name is no longer Helm's.
    back = ("--reset-then-reuse-values", "--force-conflicts", f"trustDomain={TRUST_DOMAIN}")
    done = release(installed, "upgrade", str(CHART), *back)
    assert done.returncode == 0, done.stderr
    assert f'trust_domain: "{TRUST_DOMAIN}"' in api.get(CONFIG)["data"]["signer.yaml"]


def test_another_secret_for_the_ca_is_refused_while_there_is_none_of_that_name(installed: Alone) -> None:
    secrets, api = CONFIG.replace("configmaps/podsvid-signer", "secrets"), installed.api
    moved = ("--reset-then-reuse-values", "signer.settings.state_secret=other")

    def secret(name: str) -> Object:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}

    api.create(secrets, secret("podsvid-authority"))
    before = api.get(CONFIG)
    done = release(installed, "upgrade", str(CHART), *moved)
    assert done.returncode != 0
    assert "signers would make a new CA that no running workload trusts" in done.stderr
    assert api.get(CONFIG) == before
    # Who has copied it may move.
    api.create(secrets, secret("other"))
    done = release(installed, "upgrade", str(CHART), *moved)
    assert done.returncode == 0, done.stderr
    api.delete(f"{secrets}/podsvid-authority")
    done = release(installed, "upgrade", str(CHART), "--reset-then-reuse-values", "signer.settings.state_secret=third")
    assert done.returncode != 0


@pytest.mark.parametrize("component", ["agent", "signer"])
def test_who_applies_manifests_is_refused_by_the_api_server(installed: Alone, component: str) -> None:
    api, path = installed.api, CONFIG.replace("signer", component)
    before = api.get(path)
    file = f"{component}.yaml"

    def changed(old: str, new: str) -> str | None:
        """What the API server says to that change."""
        assert old in before["data"][file]
        body = {**before, "data": {file: before["data"][file].replace(old, new)}}
        try:
            api.replace(f"{path}?dryRun=All", body)
        except ApiError as error:
            assert error.status == 403
            return str(error)
        return None

    # The API server hears of a new policy, and of what is published, within a second or two.
    wait_for("the policy", lambda: "Another trust domain" in (changed(TRUST_DOMAIN, "other.org") or ""),
             progress=installed.progress)  # fmt: skip
    assert changed(TRUST_DOMAIN, f"{TRUST_DOMAIN}.other.org") is not None
    assert changed(f'trust_domain: "{TRUST_DOMAIN}"', "") is not None
    assert changed('health_listen: "', 'health_listen: "127.0.0.1') is None


def test_a_new_installation_beside_the_ca_of_another_trust_domain_is_refused(installed: Alone) -> None:
    done = helm("uninstall", "podsvid", "--namespace", NAMESPACE, "--no-hooks", kubeconfig=installed.layout.kubeconfig)
    assert done.returncode == 0, done.stderr
    assert installed.api.find(CONFIG) is None
    assert installed.api.find(f"{BUNDLES}/podsvid-bundle") is not None
    done = release(installed, "install", str(CHART), "trustDomain=other.org")
    assert done.returncode != 0
    assert "set it back" in done.stderr
