"""Brings about the refusals of docs/signer.md: by pods at the real kubelet, and at the signer's front door."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from signer.cluster.objects import MAX_LABELS
from tests.go_tools import Progress

from . import signing
from .api import Object
from .cluster import Cluster
from .door import OTHER, door
from .fleet import forget
from .host import run, which
from .installation import NAMESPACE, component
from .layout import NODE
from .signing import AUDIENCE, TRUST_DOMAIN
from .told import POLICIES, Told, explained, told
from .traffic import workload
from .waiting import wait_for

SHOP, FULL = "shop", "full"
PODS_PER_NAMESPACE = 40
# Settings of the signer under which all of it is seen in little time.
SETTINGS = {
    "signer.replicas": "1",
    "signer.settings.pods_per_namespace": str(PODS_PER_NAMESPACE),
    "signer.settings.node_burst": "200",
    "signer.settings.node_rate": "20",
}
IDENTITY = f"spiffe://{TRUST_DOMAIN}/ns/{SHOP}/sa/default"


class Kind(Enum):
    """Whose refusal it is; the chapter of the document where it stands."""

    POD = "The pod is refused, by its policy or by what it is"
    NODE = "The pod's node lacks something, or refuses by itself"
    UNFIT = "No pod to have an identity, and an agent asks for one"
    CALLER = "Who asks in a pod's name is refused, and the pod is well"


@dataclass(frozen=True)
class Shown:
    """A refusal, how it was brought about, and what is told of it.

    `by_signer`: the signer has refused, not the agent by itself. `answer`: what was told a test that asked as an agent.
    """

    reason: str
    how: str
    kind: Kind
    told: Told
    by_signer: bool = True
    answer: str = ""


@dataclass(frozen=True)
class _Case:
    """A pod at the kubelet that is refused."""

    reason: str
    how: str
    name: str
    namespace: str = SHOP
    labels: tuple[tuple[str, str], ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    policy: str = ""
    by_signer: bool = True

    @property
    def pod(self) -> str:
        return f"{self.namespace}/{self.name}"


_MINE = f"namespaces/{SHOP}/workloadidentities"
BY_POLICY = (
    _Case(
        "POLICY_DENIED",
        "a ClusterWorkloadIdentity with `deny` is for the pod",
        "denied",
        labels=(("may", "not"),),
        policy="clusterworkloadidentities/not-here",
    ),
    _Case(
        "POLICY_UNUSABLE",
        "the policy's template names a label that the pod does not have",
        "unlabelled",
        labels=(("tier", "web"),),
        policy=f"{_MINE}/by-team",
    ),
    _Case(
        "KEY_ALGORITHM_DENIED",
        "the policy has `keyAlgorithms`, and the pod asks for none of them",
        "wrong-key",
        labels=(("keys", "rsa"),),
        policy=f"{_MINE}/rsa-only",
    ),
    _Case(
        "DNS_NAME_DENIED",
        "the pod asks for a DNS name that nobody gives it",
        "wrong-name",
        labels=(("names", "own"),),
        attributes=(("dnsNames", "payments.svc"),),
        policy=f"{_MINE}/own-names",
    ),
    _Case(
        "POD_OVERSIZED",
        "the pod has more labels than are looked at",
        "oversized",
        labels=tuple((f"label-{number}", "x") for number in range(MAX_LABELS + 1)),
    ),
    _Case(
        "NAMESPACE_FULL",
        f"the namespace has `pods_per_namespace` older pods ({PODS_PER_NAMESPACE} here)",
        "youngest",
        FULL,
    ),
    _Case(
        "INVALID_REQUEST",
        "a volume attribute has a value that there is not: the agent refuses it, and asks nobody",
        "misspelt",
        attributes=(("keyAlgorithm", "rsa"),),
        by_signer=False,
    ),
)
POLICY_SPECS: dict[str, Object] = {
    "clusterworkloadidentities/not-here": {"podSelector": {"matchLabels": {"may": "not"}}, "deny": True},
    f"{_MINE}/by-team": {
        "podSelector": {"matchLabels": {"tier": "web"}},
        "spiffeIDTemplate": "/ns/{namespace}/team/{labels['team']}",
    },
    f"{_MINE}/rsa-only": {"podSelector": {"matchLabels": {"keys": "rsa"}}, "keyAlgorithms": ["rsa-2048"]},
    f"{_MINE}/own-names": {
        "podSelector": {"matchLabels": {"names": "own"}},
        "dnsNameTemplates": ["cart.{namespace}.svc"],
    },
}

# As people see them.
NAMES = tuple(
    f"{path.split('/')[1]}/{path.split('/')[-1]}" if path.startswith("namespaces/") else path.split("/")[-1]
    for path in POLICY_SPECS
)


class Refusals:
    """On a cluster where the chart is installed with SETTINGS."""

    def __init__(self, cluster: Cluster, progress: Progress) -> None:
        self._cluster = cluster
        self._api = cluster.api
        self._progress = progress

    def all_of(self) -> Iterator[Shown]:
        """Every one that can be had here, in the order in which it is brought about."""
        self._begin()
        yield from self._by_policy()
        yield from self._by_agent_token()
        yield from self._by_settings()
        yield from self._at_the_door()

    def end(self) -> None:
        """Take away what is not podsvid's own."""
        for path in POLICY_SPECS:
            self._api.remove(f"{POLICIES}/{path}")
        # Nothing runs them, so nothing says that they have ended.
        for pod in self._api.get(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{OTHER}")["items"]:
            forget(self._cluster, pod["metadata"]["namespace"], pod["metadata"]["name"])
        for namespace in (SHOP, FULL):
            self._api.remove(f"/api/v1/namespaces/{namespace}")
        self._api.remove(f"/api/v1/nodes/{OTHER}")

    def _begin(self) -> None:
        for name in (SHOP, FULL):
            self._api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        for path, spec in POLICY_SPECS.items():
            kind, name = path.rsplit("/", 1)
            kinds = {"workloadidentities": "WorkloadIdentity", "clusterworkloadidentities": "ClusterWorkloadIdentity"}
            body = {
                "apiVersion": "podsvid.io/v1alpha1",
                "kind": kinds[kind.rpartition("/")[2]],
                "metadata": {"name": name},
            }
            self._api.create(f"{POLICIES}/{kind}", {**body, "spec": spec})
        for name in (SHOP, FULL):
            path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            wait_for(path, lambda path=path: self._api.find(path) is not None, progress=self._progress)  # type: ignore[misc]
        for number in range(PODS_PER_NAMESPACE):
            # They count, and run nowhere. Of those of one second names decide: "youngest" comes after "older".
            older: Object = workload(f"older-{number}")
            older["spec"]["schedulingGates"] = [{"name": "podsvid.io/never"}]
            self._cluster.pods.create(older, FULL)

    def _start(self, case: _Case) -> Object:
        body = workload(case.name)
        body["metadata"]["labels"] |= dict(case.labels)
        if case.attributes:
            body["spec"]["volumes"][0]["csi"]["volumeAttributes"] = dict(case.attributes)
        return self._cluster.pods.create(body, case.namespace)

    def _refused(self, pod: str, reason: str, events: set[str]) -> None:
        """Wait until events of these kinds say so of the pod."""
        namespace, _, name = pod.partition("/")
        path = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}"

        def said() -> bool | str:
            found = {each["reason"] for each in self._api.get(path)["items"] if reason in each.get("message", "")}
            return events <= found or f"{sorted(found)}"

        wait_for(f"{reason} in the events of {pod}", said, progress=self._progress)

    def _by_policy(self) -> Iterator[Shown]:
        for case in BY_POLICY:
            self._start(case)
        for case in BY_POLICY:
            self._refused(case.pod, case.reason, {"FailedMount", *(["IdentityRefused"] if case.by_signer else [])})
        for path in POLICY_SPECS:
            wait_for(f"the status of {path}", lambda path=path: self._counted(path), progress=self._progress)  # type: ignore[misc]
        for case in BY_POLICY:
            kind = Kind.POD if case.by_signer else Kind.NODE
            found = told(self._cluster, case.pod, case.reason, filter(None, [case.policy]))
            yield Shown(case.reason, case.how, kind, found, case.by_signer)
            self._cluster.pods.delete(case.name, case.namespace)

    def _counted(self, path: str) -> bool | str:
        status = self._api.get(f"{POLICIES}/{path}").get("status", {})
        return status.get("podsMatched") == 1 or str(status)

    def _by_agent_token(self) -> Iterator[Shown]:
        """Another token in the place of the agent's."""
        (agent,) = (each for each in component(self._cluster, "agent") if each["spec"].get("nodeName") == NODE)
        volumes = self._cluster.kubelet_root / "pods" / agent["metadata"]["uid"] / "volumes/kubernetes.io~projected"
        (written,) = volumes.glob("*/..data/token")
        other = self._cluster.pods.create(workload("served"), SHOP)
        wait_for("a pod that is served", lambda: self._running("served"), progress=self._progress)
        cases = (
            ("AGENT_TOKEN_MISSING", "the agent's token file is empty", ""),
            ("AGENT_TOKEN_INVALID", "the agent's token is none", "not.a.token"),
            ("AGENT_TOKEN_EXPIRED", "the agent's token is two hours old",
             signing.expired_token(self._cluster, "podsvid-agent", NAMESPACE, AUDIENCE, agent)),
            ("AGENT_TOKEN_AUDIENCE", "the agent's token is for another audience",
             self._api.token("podsvid-agent", NAMESPACE, "elsewhere", agent)),
            ("AGENT_TOKEN_UNBOUND", "the agent's token is bound to no pod",
             self._api.token("podsvid-agent", NAMESPACE, AUDIENCE)),
            ("AGENT_DENIED", "the agent's token is of another service account",
             self._api.token("default", SHOP, AUDIENCE, other)),
        )  # fmt: skip
        with _away_from_kubelet(written.parents[1]) as volume:
            file = volume / "..data/token"
            right = file.read_text()
            try:
                for number, (reason, how, token) in enumerate(cases):
                    case = _Case(reason, how, f"starts-{number}")
                    file.write_text(token)
                    self._start(case)
                    self._refused(case.pod, case.reason, {"FailedMount"})
                    found = told(self._cluster, case.pod, reason)
                    yield Shown(reason, how, Kind.NODE, found, by_signer=reason != "AGENT_TOKEN_MISSING")
                    self._cluster.pods.delete(case.name, SHOP)
            finally:
                file.write_text(right)

    def _by_settings(self) -> Iterator[Shown]:
        """What the CSIDriver object and the signer's role lack."""
        driver = f"/apis/storage.k8s.io/v1/csidrivers/{signing.DRIVER}"
        asked = self._api.get(driver)["spec"]["tokenRequests"]
        case = _Case("POD_TOKEN_MISSING", "the CSIDriver object asks for no token of that audience", "no-token")
        self._api.patch(driver, {"spec": {"tokenRequests": [{"audience": "elsewhere"}]}})
        try:
            self._start(case)
            self._refused(case.pod, case.reason, {"FailedMount"})
            yield Shown(case.reason, case.how, Kind.NODE, told(self._cluster, case.pod, case.reason), by_signer=False)
        finally:
            self._api.patch(driver, {"spec": {"tokenRequests": asked}})
        self._cluster.pods.delete(case.name, SHOP)
        role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/podsvid-signer"
        rules = self._api.get(role)["rules"]
        case = _Case("API_SERVER_UNAVAILABLE", "the signer's role lacks `create` on `tokenreviews`", "unreviewed")
        self._api.patch(role, {"rules": [each for each in rules if "tokenreviews" not in each.get("resources", ())]})
        try:
            self._start(case)
            self._refused(case.pod, case.reason, {"FailedMount"})
            yield Shown(case.reason, case.how, Kind.NODE, told(self._cluster, case.pod, case.reason))
        finally:
            self._api.patch(role, {"rules": rules})
        self._cluster.pods.delete(case.name, SHOP)

    def _running(self, name: str) -> bool | str:
        phase = str((self._cluster.pods.find(name, SHOP) or {}).get("status", {}).get("phase", "not there"))
        return phase == "Running" or phase

    def _at_the_door(self) -> Iterator[Shown]:
        with door(self._cluster, self._progress, SHOP) as opened:
            knocks = list(opened.knocks())
        for each in knocks:
            if each.is_event:
                self._refused(each.pod, each.reason, {"IdentityRefused"})
        unfit = ("POD_WITHOUT_DRIVER", "POD_FINISHED", "POD_NOT_FOUND")
        said = {pod: explained(self._cluster, pod) for pod in {each.pod for each in knocks}}
        for each in knocks:
            kind = Kind.UNFIT if each.reason in unfit else Kind.CALLER
            found = told(self._cluster, each.pod, each.reason, said=said[each.pod])
            yield Shown(each.reason, each.how, kind, found, answer=each.answer)


@contextmanager
def _away_from_kubelet(volume: Path) -> Iterator[Path]:
    """The volume as its container has it, which kubelet does not write to meanwhile.

    It puts the right token back whenever it looks, and a pod that starts in just that moment is served. What lies over
    the folder on the host is seen by it, and not by the container, whose mount is its own.
    """
    folder = os.open(volume, os.O_PATH | os.O_DIRECTORY)
    try:
        run([which("mount"), "--types", "tmpfs", "podsvid-test", str(volume)])
        try:
            yield Path(f"/proc/{os.getpid()}/fd/{folder}")
        finally:
            run([which("umount"), "--lazy", str(volume)])
    finally:
        os.close(folder)
