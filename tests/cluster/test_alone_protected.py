"""The plain manifests at a real API server: what `kubectl delete -f` of them can do, and to whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.go_tools import Progress

from .alone import POLICIES, Alone, api_server
from .api import ApiError, Object, collection
from .signing import NAMESPACE
from .test_chart import MANIFESTS
from .waiting import wait_for

pytestmark = pytest.mark.timeout(600)
PUBLIC = "public/podsvid.yaml"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
HOME = f"/api/v1/namespaces/{NAMESPACE}"
# As the signer makes it.
SECRET: Object = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "podsvid-authority", "labels": {"app.kubernetes.io/name": "podsvid"}},
}
POLICY: Object = {
    "apiVersion": "podsvid.io/v1alpha1",
    "kind": "ClusterWorkloadIdentity",
    "metadata": {"name": "kept"},
    "spec": {},
}


def manifest(name: str) -> list[Object]:
    return [each for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each]


def paths(name: str) -> list[str]:
    return [f"{collection(each)}/{each['metadata']['name']}" for each in manifest(name)]


def refused(alone: Alone, path: str) -> bool:
    """Whether the API server refuses to delete it, with a word on what to do."""
    try:
        alone.api.delete(f"{path}?dryRun=All")
    except ApiError as error:
        return error.status == 403 and "deploy/manifests/README.md" in str(error)
    return False


@pytest.fixture(scope="module")
def alone(built: None, tmp_path_factory: pytest.TempPathFactory, progress: Progress) -> Iterator[Alone]:
    """With everything applied, as README says, and protected."""
    with api_server(tmp_path_factory.mktemp("protected"), progress) as found:
        for name in ("namespace.yaml", "crds.yaml", "admission.yaml", "podsvid.yaml", "protect.yaml"):
            found.api.apply(manifest(name))
        # With the endpoints, after a time without.
        found.api.apply(manifest(PUBLIC))
        found.api.create(SECRETS, SECRET)
        wait_for("the custom resources", found.served, progress=progress)
        found.api.create(f"{POLICIES}/clusterworkloadidentities", POLICY)
        wait_for("the protection", lambda: refused(found, f"{SECRETS}/podsvid-authority"), progress=progress)
        yield found


def test_nothing_of_it_is_deleted_until_that_is_allowed(alone: Alone) -> None:
    protected = [f"{SECRETS}/podsvid-authority"]
    for name in ("namespace.yaml", "crds.yaml", PUBLIC):
        protected += paths(name)
    assert {*paths("podsvid.yaml")} < {*protected}
    assert [each for each in protected if not refused(alone, each)] == []
    # What is not podsvid's is nobody's business here.
    alone.api.create(SECRETS, {**SECRET, "metadata": {"name": "mine"}})
    alone.api.delete(f"{SECRETS}/mine")
    # The signer itself goes on removing what it made.
    signer = alone.api.as_token(alone.api.token("podsvid-signer", NAMESPACE))
    own: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "podsvid-agents-a"}, "data": {}}
    own["metadata"]["labels"] = {"app.kubernetes.io/name": "podsvid"}
    home = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    signer.create(home, own)
    signer.delete(f"{home}/podsvid-agents-a")

    alone.api.patch(HOME, {"metadata": {"annotations": {"podsvid.io/deletion": "allowed"}}})
    wait_for("deletion to be allowed", lambda: not refused(alone, f"{SECRETS}/podsvid-authority"),
             progress=alone.progress)  # fmt: skip
    for path in paths(PUBLIC):
        alone.api.delete(path)
    # Applied again, it finds its CA and its policies.
    assert alone.api.get(f"{SECRETS}/podsvid-authority")["metadata"]["name"] == "podsvid-authority"
    assert alone.api.get(f"{POLICIES}/clusterworkloadidentities/kept")["metadata"]["name"] == "kept"
    for name in ("podsvid.yaml", "protect.yaml"):
        alone.api.apply(manifest(name))
