"""What a real API server takes as a policy's subject, by the rules of the custom resource definitions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.go_tools import Progress

from . import chart
from .alone import Alone, api_server
from .api import ApiError
from .waiting import wait_for

pytestmark = pytest.mark.timeout(600)
GROUP = "/apis/podsvid.io/v1alpha1"
OWN = ("WorkloadIdentity", f"{GROUP}/namespaces/default/workloadidentities")
WIDE = ("ClusterWorkloadIdentity", f"{GROUP}/clusterworkloadidentities")
BOTH = ("CN={service_account}@{namespace}", "CN=db-1.{labels['example.org/db']}_{pod}@{namespace}", "CN=db@{namespace}")
ONLY_WIDE = ("CN=billing",)
NEITHER = (
    *("", "billing", "CN=", "CN=@{namespace}", "CN={service_account}", "CN={labels['a@b']}", "CN=a@b@{namespace}"),
    *("CN=db@{labels['team']}", "CN={pod}@db", "CN=db@s{namespace}", "CN={pod}.{namespace}@corp", "CN=db@shop"),
    *("CN={nothing}@{namespace}", "CN=a,O=b@{namespace}", "CN=a b@{namespace}", f"CN={'a' * 1024}@{{namespace}}"),
)


@pytest.fixture
def alone(built: None, tmp_path: Path, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path, progress) as found:
        yield found


def taken(alone: Alone, kind: str, path: str, template: str) -> bool:
    body = {"apiVersion": "podsvid.io/v1alpha1", "kind": kind, "metadata": {"generateName": "p-"}}
    try:
        alone.api.create(path, {**body, "spec": {"subjectTemplate": template}})
    except ApiError as error:
        assert error.status == 422, error
        return False
    return True


def served(alone: Alone) -> bool | str:
    """An API server that has just been told of a kind of object says 404, then 429."""
    try:
        return all(alone.api.get(path)["items"] == [] for _, path in (OWN, WIDE))
    except ApiError as error:
        if error.status in (404, 429):
            return str(error)
        raise


def test_a_subject_is_judged_where_a_policy_is_applied(alone: Alone, progress: Progress) -> None:
    files = sorted((chart.CHART / "files" / "crds").glob("*workloadidentities.yaml"))
    alone.api.apply([yaml.safe_load(file.read_text()) for file in files])
    wait_for("the policies to be served", lambda: served(alone), progress=progress)
    for template in (*BOTH, *ONLY_WIDE, *NEITHER):
        found = [taken(alone, *of, template) for of in (OWN, WIDE)]
        assert found == [template in BOTH, template not in NEITHER], template
