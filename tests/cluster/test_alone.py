"""What the signer's account may write, at a real API server: nothing that decides how the signer itself works."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from runtime import durations
from tests.go_tools import Progress
from tests.unit.runtime.test_durations import NONE

from .alone import POLICIES, Alone, api_server
from .api import ApiError, KubeApi, Object
from .signing import NAMESPACE
from .waiting import wait_for

pytestmark = pytest.mark.timeout(600)
HOME = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
ELSEWHERE = "/api/v1/namespaces/default/configmaps"
CTB = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles"
TAINT = {"key": "podsvid.io/agent-not-ready", "effect": "NoSchedule"}
OTHER_TAINT = {"key": "somebody.else", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def alone(built: None, tmp_path_factory: pytest.TempPathFactory, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path_factory.mktemp("alone"), progress) as found:
        found.api.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
        found.install("startupTaint.enabled=true")
        yield found


@pytest.fixture(scope="module")
def signer(alone: Alone) -> KubeApi:
    """The API server as the signer sees it, once the policy is in force."""
    found = alone.api.as_token(alone.api.token("podsvid-signer", NAMESPACE))

    def in_force() -> bool:
        try:
            found.create(f"{HOME}?dryRun=All", config_map("not-the-signers"))
        except ApiError as error:
            return "the signer writes no other ConfigMaps" in str(error)
        return False

    wait_for("the admission policy", in_force, progress=alone.progress)
    return found


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def refused(*call: object) -> None:
    """The call must be refused, by RBAC or by the policy."""
    method, *rest = call
    assert callable(method)
    with pytest.raises(ApiError) as raised:
        method(*rest)
    assert raised.value.status == 403, str(raised.value)


@pytest.mark.parametrize("name", ["podsvid-signer", "podsvid-agent"])
def test_the_configuration_is_not_the_signers_to_change(alone: Alone, signer: KubeApi, name: str) -> None:
    path = f"{HOME}/{name}"
    before = alone.api.get(path)
    refused(signer.replace, path, {**before, "data": {f"{name.partition('-')[2]}.yaml": "require_policy: 'false'"}})
    refused(signer.delete, path)
    assert alone.api.get(path) == before
    alone.api.delete(path)
    try:
        refused(signer.create, HOME, config_map(name))
    finally:
        alone.api.create(
            HOME, {key: before[key] for key in ("apiVersion", "kind", "data")} | {"metadata": {"name": name}}
        )


def test_config_maps_that_are_the_signers(signer: KubeApi) -> None:
    for collection, name in (
        (HOME, "podsvid-bundle"),
        (ELSEWHERE, "podsvid-bundle"),
        (HOME, "podsvid-agents-a"),
        (HOME, "podsvid-federated-a"),
    ):
        made = signer.create(collection, config_map(name))
        signer.replace(f"{collection}/{name}", {**made, "data": {"a": "b"}})
        signer.delete(f"{collection}/{name}")
    # What was abandoned is not to be forgotten, by nobody who has the signer's account.
    record = f"{HOME}/podsvid-authority-abandoned"
    made = signer.create(HOME, config_map("podsvid-authority-abandoned"))
    signer.replace(record, {**made, "data": {"a": "b"}})
    assert signer.get(record)["data"] == {"a": "b"}
    refused(signer.delete, record)
    refused(signer.create, ELSEWHERE, config_map("podsvid-authority-abandoned"))
    for collection, name in (
        (HOME, "other"),
        (ELSEWHERE, "other"),
        (ELSEWHERE, "podsvid-agents-a"),
        (ELSEWHERE, "podsvid-federated-a"),
    ):
        refused(signer.create, collection, config_map(name))
    generated = config_map("x")
    generated["metadata"] = {"generateName": "kube-"}
    refused(signer.create, HOME, generated)


def test_secrets_leases_and_bundles_of_others(alone: Alone, signer: KubeApi) -> None:
    secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    secret: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "podsvid-authority"}}
    signer.create(secrets, secret)
    refused(signer.create, secrets, {**secret, "metadata": {"name": "other"}})
    refused(signer.get, f"{secrets}/other")
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    lease: Object = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "podsvid-signer"}}
    signer.create(leases, lease)
    refused(signer.create, leases, {**lease, "metadata": {"name": "other"}})
    root = (alone.layout.pki / "ca.crt").read_text()
    bundle = {"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle", "spec": {"trustBundle": root}}
    alone.api.create(CTB, {**bundle, "metadata": {"name": "others"}})
    refused(signer.delete, f"{CTB}/others")
    refused(signer.create, CTB, {**bundle, "metadata": {"name": "more"}})
    own = {"trustBundle": root, "signerName": "podsvid.io/spiffe"}
    signer.create(CTB, {**bundle, "metadata": {"name": "podsvid.io:spiffe:alone.test"}, "spec": own})


def without_ours(taints: list[Object]) -> Object:
    return {"spec": {"taints": [each for each in taints if each["key"] != TAINT["key"]]}}


NODE_CHANGES: dict[str, tuple[Callable[[list[Object]], Object], bool]] = {
    "its taint is gone": (without_ours, True),
    "nothing": (lambda taints: {"spec": {"taints": taints}}, True),
    "another taint is gone": (lambda taints: {"spec": {"taints": taints[1:]}}, False),
    "all are gone": (lambda taints: {"spec": {"taints": None}}, False),
    "one more": (lambda taints: {"spec": {"taints": [*taints, {"key": "evict", "effect": "NoExecute"}]}}, False),
    "unschedulable": (lambda taints: {"spec": {"unschedulable": True}}, False),
    "a label": (lambda taints: {"metadata": {"labels": {"pool": "secret"}}}, False),
    "an annotation": (lambda taints: {"metadata": {"annotations": {"a": "b"}}}, False),
}


@pytest.mark.parametrize(("change", "allowed"), NODE_CHANGES.values(), ids=NODE_CHANGES)
def test_of_nodes_it_takes_its_taint(
    alone: Alone, signer: KubeApi, change: Callable[[list[Object]], Object], allowed: bool
) -> None:
    path, taints = "/api/v1/nodes/node-a", {"taints": [OTHER_TAINT, TAINT]}
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "spec": taints}
    # The API server adds one of its own.
    found = alone.api.create("/api/v1/nodes", body)["spec"]["taints"]
    assert found[0] == OTHER_TAINT
    try:
        if allowed:
            signer.patch(path, change(found))
        else:
            refused(signer.patch, path, change(found))
    finally:
        alone.api.delete(path)


def test_the_guard_lists_and_cannot_read_the_authority(alone: Alone, signer: KubeApi) -> None:
    guard = alone.api.as_token(alone.api.token("podsvid-uninstall-guard", NAMESPACE))
    guard.get("/api/v1/pods")
    for kind in ("workloadidentities", "clusterworkloadidentities"):
        guard.get(f"{POLICIES}/{kind}")
    for path in (f"/api/v1/namespaces/{NAMESPACE}/secrets/podsvid-authority", HOME, "/api/v1/secrets"):
        refused(guard.get, path)


LIFETIMES = ("2s", "90s", "90m", "1h30m", "1d", "1d12h", "90d", "2160h", "007s", "89d23h59m60s", "7776000s")
OUT_OF_BOUNDS = ("1s", "0s", "0d0h", "91d", "90d1s", "2161h", "999999999d", "999999999d999999999h9999s")


@pytest.mark.parametrize("field", ["x509TTL", "jwtTTL"])
@pytest.mark.parametrize("kind", ["WorkloadIdentity", "ClusterWorkloadIdentity"])
def test_the_schema_takes_the_durations_that_everything_takes(alone: Alone, kind: str, field: str) -> None:
    folder = "namespaces/default/workloadidentities" if kind == "WorkloadIdentity" else "clusterworkloadidentities"

    def create(text: str) -> None:
        body = {"apiVersion": "podsvid.io/v1alpha1", "kind": kind, "metadata": {"name": "p"}, "spec": {field: text}}
        alone.api.create(f"{POLICIES}/{folder}?dryRun=All", body)

    for text in LIFETIMES:
        durations.parse(text, durations.MIN_TTL, durations.MAX_TTL)
        create(text)
    for text in (*NONE, *OUT_OF_BOUNDS):
        with pytest.raises(ApiError) as raised:
            create(text)
        assert raised.value.status in (400, 422), f"{text!r}: {raised.value}"
