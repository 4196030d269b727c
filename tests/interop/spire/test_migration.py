"""What `podsvid migrate spire` makes of a real server's entries: who gets what here, and what SPIRE would give."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from signer.errors import Refused
from signer.model import Entitlement, LivePod
from signer.policy.policies import Policies
from signer.policy.policy import PolicySettings
from svid.spiffeid import TrustDomain
from tests.interop.rig import ended, podsvid
from tests.interop.spire.spire import IN_MEMORY, OURS, Spire, configured, serving
from tests.ports import free_port
from tests.signer_rig import Site
from tests.spire_objects import CLUSTER, ids_of, kubernetes, selectors_of

PARTNER = "spiffe://partner.example"
NAMESPACES: Mapping[str, Mapping[str, str]] = {
    name: {"kubernetes.io/metadata.name": name, **more}
    for name, more in (("shop", {"team": "a"}), ("bank", {}), ("tools", {"team": "b"}), ("kube-system", {"team": "a"}))
}
AGENT_A, AGENT_B = (f"spiffe://{OURS}/spire/agent/k8s_psat/{CLUSTER}/{each}" for each in "ab")
# By the name of the pod's node: its agent, and what SPIRE's server knows of that.
AGENTS = {"node-a": (AGENT_A, "x"), "node-b": (AGENT_B, "y")}


@dataclass(frozen=True)
class Registered:
    """An entry, as `entry create -data` takes it; `told`: what the report says of it, empty where it is carried over as
    it is."""

    path: str
    selectors: tuple[str, ...]
    told: str = ""
    parent: str = f"spiffe://{OURS}/nodes"
    more: tuple[tuple[str, Any], ...] = ()
    expires: int = 0

    @property
    def body(self) -> dict[str, Any]:
        pairs = [each.split(":", 1) for each in self.selectors]
        return {
            "spiffe_id": f"spiffe://{OURS}{self.path}",
            "parent_id": self.parent,
            "selectors": [{"type": kind, "value": value} for kind, value in pairs],
            **dict(self.more),
        }


SERVER = f"spiffe://{OURS}/spire/server"
IN_SHOP = ("k8s:ns:shop",)
SHORTER = "its SVIDs live 1d, not 2d"
ENTRIES = (
    Registered("/nodes", (f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_ns:spire"), "it is a set of nodes", SERVER),
    Registered(
        "/pool", (f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_node_label:pool:x"), "it is a set of nodes", SERVER
    ),
    Registered("/ns/shop/sa/billing", ("k8s:ns:shop", "k8s:sa:billing")),
    Registered(
        "/ns/shop/app/web",
        ("k8s:ns:shop", "k8s:pod-label:app:web"),
        more=(("dns_names", ["web.shop.example"]), ("x509_svid_ttl", 1800), ("hint", "main")),
    ),
    Registered("/ns/bank/sa/ledger", ("k8s:ns:bank", "k8s:sa:ledger"), more=(("jwt_svid_ttl", 240),)),
    Registered("/abroad", ("k8s:ns:bank", "k8s:pod-label:app:abroad"), more=(("federates_with", [PARTNER]),)),
    Registered("/worker", ("k8s:sa:worker",)),
    Registered("/team-b", ("k8s:ns-label:team:b", "k8s:pod-label:app:tool")),
    Registered("/two-labels", ("k8s:pod-label:app:two", "k8s:pod-label:example.org/tier:back")),
    Registered(
        "/named", ("k8s:ns:bank", "k8s:sa:named"), "is left out", more=(("dns_names", ["*.bank.example", "a.example"]),)
    ),
    Registered("/long-lived", ("k8s:ns:bank", "k8s:sa:long"), SHORTER, more=(("x509_svid_ttl", 172800),)),
    Registered("/contrary", ("k8s:ns:shop", "k8s:ns:bank"), "it is for no pod"),
    Registered("/container", (*IN_SHOP, "k8s:container-name:app"), "container-name"),
    Registered("/image", (*IN_SHOP, "k8s:container-image:registry.example/app:1"), "container-image"),
    Registered("/pod", (*IN_SHOP, "k8s:pod-name:web-0"), "pod-name"),
    Registered("/uid", ("k8s:pod-uid:uid-web",), "pod-uid"),
    Registered("/on-a", (*IN_SHOP, "k8s:node-name:node-a"), "node-name"),
    Registered("/owned", (*IN_SHOP, "k8s:pod-owner:ReplicaSet:web"), "pod-owner"),
    Registered("/administers", (*IN_SHOP, "k8s:sa:admin"), "administers SPIRE's server", more=(("admin", True),)),
    Registered("/below", (*IN_SHOP, "k8s:sa:below"), "is a SPIRE server's below it", more=(("downstream", True),)),
    Registered(
        "/stored", ("aws_secretsmanager:secretname:a",), "its SVID is for a store", more=(("store_svid", True),)
    ),
    Registered("/ends", (*IN_SHOP, "k8s:sa:ends"), "it ends at a time of its own", expires=4_000_000_000),
    Registered("/by-user", ("unix:uid:1000",), "unix:uid"),
    Registered("/by-docker", ("docker:label:app:web",), "docker:label"),
    Registered("/by-node", (*IN_SHOP, "k8s:sa:one"), "is the agent of one node", AGENT_A),
    Registered("/by-pool", (*IN_SHOP, "k8s:sa:pool"), "is some of the nodes", f"spiffe://{OURS}/pool"),
    Registered("/lost", (*IN_SHOP, "k8s:sa:lost"), "of which nodes it is, is not known", f"spiffe://{OURS}/elsewhere"),
)
CARRIED = [each for each in ENTRIES if each.told in ("", "is left out", SHORTER)]
# What the policies of ENTRIES say beside whom they are for.
SAYS: Mapping[str, Mapping[str, Any]] = {
    "/ns/shop/app/web": {"x509_ttl": timedelta(minutes=30), "hint": "main", "dns_names": ("web.shop.example",)},
    "/ns/bank/sa/ledger": {"jwt_ttl": timedelta(minutes=4)},
    "/abroad": {"federates_with": (TrustDomain("partner.example"),)},
    "/named": {"dns_names": ("a.example",)},
    "/long-lived": {"x509_ttl": timedelta(days=2)},
}


def pod(namespace: str, name: str, account: str, node: str = "node-a", **labels: str) -> LivePod:
    found = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    return LivePod(namespace, name, f"uid-{name}", node, account, found)


PODS = (
    pod("shop", "web", "default", app="web"),
    pod("shop", "web-0", "default", app="web"),
    pod("shop", "both", "billing", app="web"),
    pod("shop", "billing", "billing"),
    pod("bank", "billing", "billing"),
    pod("bank", "ledger", "ledger", node="node-b"),
    pod("bank", "abroad", "default", app="abroad"),
    pod("bank", "web", "default", app="web"),
    pod("tools", "worker", "worker", node="node-b"),
    pod("shop", "worker", "worker", app="web"),
    pod("tools", "tool", "default", app="tool"),
    pod("shop", "tool", "default", app="tool"),
    pod("bank", "two", "default", app="two", example_org__tier="back"),
    pod("bank", "one-of-two", "default", app="two"),
    pod("bank", "named", "named"),
    pod("bank", "long", "long"),
    *(pod("shop", each, each, node) for each in ("admin", "below", "ends", "one", "pool", "lost") for node in AGENTS),
    pod("bank", "nobody", "default"),
    pod("kube-system", "system", "worker"),
)


@asynccontextmanager
async def server(programs: Mapping[str, Path]) -> AsyncIterator[Spire]:
    """SPIRE's server, which has ENTRIES."""
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as name:
        folder = Path(name)
        here = configured(programs, folder, {**IN_MEMORY, "port": free_port(), "folder": folder, "trust_domain": OURS})
        async with serving(here):
            (folder / "empty.json").write_text('{"keys": []}')
            await here.server("bundle", "set", format="spiffe", id=PARTNER, path=folder / "empty.json")
            by_file = [each for each in ENTRIES if not each.expires]
            (folder / "entries.json").write_text(json.dumps({"entries": [each.body for each in by_file]}))
            said = await here.server("entry", "create", data=folder / "entries.json", output="json")
            assert [each["status"]["code"] for each in json.loads(said)["results"]] == [0] * len(by_file), said
            # A file cannot say it.
            for each in (each for each in ENTRIES if each.expires):
                flags = [word for selector in each.selectors for word in ("-selector", selector)]
                await here.server(
                    *("entry", "create", *flags),
                    spiffeID=f"spiffe://{OURS}{each.path}",
                    parentID=each.parent,
                    entryExpiry=str(each.expires),
                )
            yield here


@dataclass(frozen=True)
class Made:
    """What the command has printed."""

    objects: Sequence[Mapping[str, Any]]
    findings: Sequence[Mapping[str, str]]

    def of(self, source: str) -> list[Mapping[str, str]]:
        """What is said of that one."""
        return [each for each in self.findings if source in each["source"].split(" and ")]


async def migrated(*line: str, given: str) -> Made:
    """By its standard input."""
    with tempfile.TemporaryDirectory(prefix="mi", dir="/tmp") as name:
        (Path(name) / "given").write_text(given)
        command = f'exec "$@" < {name}/given'
        status, out, complaints = await ended(
            "sh", "-c", command, "sh", *podsvid("migrate", "spire", "-", "-o", "json", *line)
        )
    assert status == 3, complaints
    found = json.loads(out)
    return Made(found["objects"], found["findings"])


@asynccontextmanager
async def applied(objects: Sequence[Mapping[str, Any]]) -> AsyncIterator[Policies]:
    """The signer's policies, at an API server in memory that has these objects."""
    site = Site()
    for name, labels in NAMESPACES.items():
        site.kube.put(f"/api/v1/namespaces/{name}", {"metadata": {"name": name, "labels": dict(labels)}})
    for each in objects:
        plural = {"ClusterWorkloadIdentity": "clusterworkloadidentities", "WorkloadIdentity": "workloadidentities"}
        namespace = each["metadata"].get("namespace")
        within = f"namespaces/{namespace}/" if namespace else ""
        path = f"/apis/podsvid.io/v1alpha1/{within}{plural[each['kind']]}/{each['metadata']['name']}"
        assert path not in site.kube.objects
        site.kube.put(path, dict(each))
    settings = PolicySettings(OURS, require_policy=True)
    policies = Policies(site.kube, settings, timedelta(minutes=10), site.clock)
    running = asyncio.create_task(policies.run())
    try:
        await policies.wait_synced()
        yield policies
    finally:
        running.cancel()


def given_here(policies: Policies, one: LivePod) -> Entitlement | None:
    try:
        return policies.entitlement(one)
    except Refused as refused:
        assert "and this cluster wants one" in str(refused), refused
        return None


async def given_there(spire: Spire, one: LivePod) -> set[str]:
    """Paths of the entries that the server has for a pod's selectors and its node's agent."""
    agent, pool = AGENTS[one.node_name]
    attested = {f"k8s_psat:cluster:{CLUSTER}", "k8s_psat:agent_ns:spire", f"k8s_psat:agent_node_label:pool:{pool}"}
    parents = {agent} | {each for each, _ in await _matching(spire, attested, {SERVER})}
    return {each for each, _ in await _matching(spire, selectors_of(one, NAMESPACES[one.namespace]), parents)}


async def _matching(spire: Spire, selectors: set[str], parents: set[str]) -> list[tuple[str, str]]:
    flags = [word for each in sorted(selectors) for word in ("-selector", each)]
    said = await spire.server("entry", "show", *flags, matchSelectorsOn="subset", output="json")
    found = [
        tuple(f"spiffe://{each[key]['trust_domain']}{each[key]['path']}" for key in ("spiffe_id", "parent_id"))
        for each in json.loads(said)["entries"]
    ]
    return [(each, parent) for each, parent in found if parent in parents]


def test_each_entry_of_a_real_server_is_for_the_same_pods_or_the_report_says_why(
    programs: Mapping[str, Path],
) -> None:
    async def run() -> None:
        async with server(programs) as spire:
            printed = await spire.server("entry", "show", output="json")
            assert len(json.loads(printed)["entries"]) == len(ENTRIES)
            made = await migrated(given=printed)
            paths = [each["spec"]["spiffeIDTemplate"] for each in made.objects]
            assert len(made.objects) == len(CARRIED), paths
            for each in ENTRIES:
                whys = [found["why"] for found in made.findings if found["source"].endswith(f"({each.path})")]
                assert [each.told in why for why in whys] == [True] * bool(each.told), (each.path, whys)
            async with applied(made.objects) as policies:
                met = set[str]()
                for one in PODS:
                    there = await given_there(spire, one)
                    found = given_here(policies, one)
                    # Not for SPIRE's sake: podsvid has no policy where the report says so.
                    expected = {f"spiffe://{OURS}{each.path}" for each in CARRIED} & there
                    assert (found is not None) == bool(expected), (one, there)
                    if found is None:
                        continue
                    path = found.spiffe_id.path
                    assert str(found.spiffe_id) in expected, (one, there)
                    met.add(path)
                    for name, value in {"federates_with": (), **SAYS.get(path, {})}.items():
                        assert getattr(found, name) == value, (path, name)
                    # Of several the report says which two, and which one wins.
                    if len(expected) > 1:
                        assert any(
                            each["verdict"] == "overlaps" and str(found.policy) in each["source"].split()
                            for each in made.findings
                        ), one
                # Each of them has been tried by a pod.
                assert met == {each.path for each in CARRIED}

    asyncio.run(run())


SPIFFEIDS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "plain",
        {"podSelector": {"matchLabels": {"app": "web"}}},
        {"id": ["spiffe://", "{{ .TrustDomain }}", "/ns/", "{{ .PodMeta.Namespace }}", "/app/web"]},
    ),
    (
        "labelled",
        {
            "namespaceSelector": {"matchLabels": {"team": "b"}},
            "ttl": "30m0s",
            "federatesWith": ["partner.example"],
            "hint": "main",
        },
        {"id": ["spiffe://", "{{ .TrustDomain }}", "/tools/", '{{ index .PodMeta.Labels "app" }}']},
    ),
    (
        "accounts",
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}},
        {
            "id": ["spiffe://", "{{ .TrustDomain }}", "/bank/", "{{- .PodSpec.ServiceAccountName -}}"],
            "selectors": [["k8s:sa:ledger"]],
        },
    ),
    (
        "rest",
        {"fallback": True, "podSelector": {"matchLabels": {"app": "abroad"}}},
        {"id": ["spiffe://", "{{ .TrustDomain }}", "/rest"]},
    ),
    (
        "sidecars",
        {"podSelector": {"matchLabels": {"app": "two"}}},
        {"id": ["spiffe://", "{{ .TrustDomain }}", "/sidecar"], "selectors": [["k8s:container-name:sidecar"]]},
    ),
)
CONFIG = {
    "apiVersion": "spire.spiffe.io/v1alpha1",
    "kind": "ControllerManagerConfig",
    "clusterName": CLUSTER,
    "trustDomain": str(OURS),
    "ignoreNamespaces": ["kube-system", "kube-public", "spire-system"],
}


def test_the_controllers_objects_beside_a_real_servers_entries(programs: Mapping[str, Path]) -> None:
    """Of both together: as much as each alone, and a federation that the signer takes.

    No controller runs: which pods an object is for is by the model that unit tests hold against chance.
    """
    whole: list[dict[str, Any]] = [CONFIG]
    parted: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for name, spec, parts in SPIFFEIDS:
        more = {"workloadSelectorTemplates": ["".join(each) for each in parts.get("selectors", ())]}
        more = {key: value for key, value in more.items() if value}
        whole.append(kubernetes("ClusterSPIFFEID", name, spiffeIDTemplate="".join(parts["id"]), **spec, **more))
        parted.append((spec, {"selectors": [], "dns": [], **parts}))
    whole.append(
        kubernetes(
            "ClusterFederatedTrustDomain",
            "partner",
            trustDomain="partner.example",
            bundleEndpointURL="https://partner.example:8443/",
            bundleEndpointProfile={"type": "https_spiffe", "endpointSPIFFEID": f"{PARTNER}/spire/server"},
            trustDomainBundle='{"keys": []}',
        )
    )

    async def run() -> None:
        async with server(programs) as spire:
            printed = await spire.server("entry", "show", output="json")
            given = "---\n".join([*(yaml.safe_dump(each) for each in whole), printed])
            made = await migrated(given=given)
            (federation,) = [each for each in made.objects if each["kind"] == "FederatedTrustDomain"]
            assert federation["spec"]["trustDomain"] == "partner.example"
            assert [each["why"] for each in made.of("ClusterSPIFFEID sidecars")] != []
            async with applied([each for each in made.objects if each is not federation]) as policies:
                for one in PODS:
                    labels = NAMESPACES[one.namespace]
                    there = ids_of(parted, [], one, labels)
                    theirs = there | (
                        {f"spiffe://{OURS}{each.path}" for each in CARRIED} & await given_there(spire, one)
                    )
                    found = given_here(policies, one)
                    assert (found is not None) == bool(theirs), (one, theirs)
                    assert found is None or str(found.spiffe_id) in theirs, (one, theirs)

    asyncio.run(run())
