"""A ztunnel, which asks for the identities of its node's pods, by real tokens of two nodes.

ztunnel is in Rust and not built here: what asks is Istio's messages over Istio's connection, and it refuses what
ztunnel refuses (tools/istio/client): all roots in the last element, and the name that was asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cluster.api import Object
from tests.cluster.waiting import say, wait_for
from tests.interop.istio.mesh import ISTIO, NODES, ZTUNNEL, Client, Door, Mesh, spiffe_id, until_asked

REFUSED = "Unauthenticated"
API = spiffe_id("api")


@dataclass
class Site:
    """A ztunnel on each node; `web` has a pod on both, `api` on the second only."""

    mesh: Mesh
    door: Door
    client: Client
    ztunnels: dict[str, Object]
    tokens: dict[str, str]
    made: list[Object] = field(default_factory=list)

    def asks(self, node: str, identity: str, **more: Any) -> str:
        """gRPC's code, or the client's own complaint; empty where it got what it asked for."""
        return self.client.asks(impersonate=identity, **{"token": self.tokens[node], **more}).code

    def pod(self, name: str, account: str, node: str = NODES[0], **more: Any) -> Object:
        """One that goes when the test ends."""
        found = self.mesh.pod(name, account, node, **more)
        self.made.append(found)
        return found

    def until(self, code: str, node: str, identity: str, **more: Any) -> None:
        """Until the signer has heard of the pods and policies of this moment, and answers so."""
        asked = {"token": self.tokens[node], **more}
        until_asked(self.client, lambda answer: answer.code == code, impersonate=identity, **asked)


@pytest.fixture(scope="module")
def shared(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as ending:
        door = ending.enter_context(mesh.serving("signer-ztunnel"))
        ztunnels = {node: mesh.pod(f"ztunnel-{node}", ZTUNNEL, node, ISTIO) for node in NODES}
        pods = [mesh.pod("web-1", "web", NODES[0]), mesh.pod("web-2", "web", NODES[1])]
        pods += [mesh.pod("api-2", "api", NODES[1])]
        for each in (*ztunnels.values(), *pods):
            ending.callback(mesh.forget, each)
        tokens = {node: mesh.token(pod) for node, pod in ztunnels.items()}
        folder = tmp_path_factory.mktemp("ztunnel")
        client = ending.enter_context(mesh.client(door, tokens[NODES[0]], folder))
        yield Site(mesh, door, client, ztunnels, tokens)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    shared.made.clear()
    try:
        yield shared
    finally:
        for each in shared.made:
            shared.mesh.forget(each)
        shared.mesh.no_policy("of-test")


def test_it_gets_the_identities_of_its_nodes_pods_and_no_others(site: Site) -> None:
    """The matrix of both nodes' ztunnels and both accounts."""
    found = {
        (node, account): site.asks(node, spiffe_id(account)) for node in NODES for account in ("web", "api", "nobody")
    }
    assert found == {
        (NODES[0], "web"): "",
        (NODES[0], "api"): REFUSED,
        (NODES[0], "nobody"): REFUSED,
        (NODES[1], "web"): "",
        (NODES[1], "api"): "",
        (NODES[1], "nobody"): REFUSED,
    }


def test_without_impersonation_it_gets_its_own(site: Site) -> None:
    own = spiffe_id(ZTUNNEL, ISTIO)
    found = site.client.asks(own, token=site.tokens[NODES[0]], ec=True)
    assert (found.error, found.uris) == ("", (own,))


def test_who_got_what_is_in_the_audit(site: Site) -> None:
    before = len(site.door.signer.audit())
    assert site.asks(NODES[1], API) == ""
    (line,) = [each for each in site.door.signer.audit()[before:] if each.get("spiffe_id") == API]
    said = str(line)
    for part in (f"{ISTIO}/ztunnel-{NODES[1]}", NODES[1]):
        assert part in said


def _gone(site: Site) -> str:
    pod = site.mesh.pod("ztunnel-gone", ZTUNNEL, NODES[0], ISTIO)
    token = site.mesh.token(pod)
    site.mesh.forget(pod)
    return token


def _made_anew(site: Site) -> str:
    """A pod of the same name, another one."""
    token = _gone(site)
    site.pod("ztunnel-gone", ZTUNNEL, NODES[0], namespace=ISTIO)
    return token


def _ended(site: Site) -> str:
    pod = site.pod("ztunnel-ended", ZTUNNEL, NODES[0], namespace=ISTIO)
    token = site.mesh.token(pod)
    site.mesh.ended(pod, "Failed")
    return token


def _of_another(account: str, namespace: str) -> Callable[[Site], str]:
    return lambda site: site.mesh.token(site.pod("caller", account, NODES[0], namespace=namespace))


CALLERS: dict[str, Callable[[Site], str]] = {
    "a workload": _of_another("web", "default"),
    "another account of its namespace": _of_another("other", ISTIO),
    "of that name in another namespace": _of_another(ZTUNNEL, "default"),
    "a token that is bound to no pod": lambda site: str(site.mesh.api.token(ZTUNNEL, ISTIO, "istio-ca")),
    "a token of another audience": lambda site: site.mesh.token(site.ztunnels[NODES[0]], "signer.podsvid.io"),
    "a ztunnel that is gone": _gone,
    "a ztunnel that was made anew": _made_anew,
    "a ztunnel that has ended": _ended,
}


@pytest.mark.parametrize("caller", CALLERS)
def test_nobody_else_gets_another_pods_identity(site: Site, caller: str) -> None:
    """The account `web` has a pod on that node: the node's ztunnel gets it."""
    assert site.asks(NODES[0], spiffe_id("web")) == ""
    site.until(REFUSED, NODES[0], spiffe_id("web"), token=CALLERS[caller](site))


@pytest.mark.parametrize(
    "identity",
    [
        spiffe_id("web", domain="other.test"),
        "spiffe://cluster.test/ns/default/sa/web/more",
        "spiffe://cluster.test/ns/default/web",
        "spiffe://cluster.test/sa/web/ns/default",
        "spiffe://cluster.test/ns//sa/web",
        "spiffe://cluster.test/ns/default/sa/",
        "spiffe://cluster.test/ns/Default/sa/web",
        "spiffe://cluster.test/ns/default/sa/web?x",
        "spiffe://cluster.test/ns/default/sa/../sa/web",
        "http://cluster.test/ns/default/sa/web",
        "web",
    ],
)
def test_what_is_no_identity_of_this_mesh_is_refused(site: Site, identity: str) -> None:
    assert site.asks(NODES[0], identity, uri=spiffe_id("web")) == REFUSED


def test_a_request_for_another_name_is_refused(site: Site) -> None:
    assert site.asks(NODES[1], spiffe_id("web"), uri=API) == REFUSED


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_gives_its_node_nothing(site: Site, phase: str) -> None:
    """istiod counts those that succeeded."""
    pod = site.pod("api-1", "api")
    site.until("", NODES[0], API)
    site.mesh.ended(pod, phase)
    site.until(REFUSED, NODES[0], API)


def test_a_static_pod_gives_its_node_nothing(site: Site) -> None:
    """Whoever is root on the node makes such pods; the API server lets them name no account, which is none."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mirror", "annotations": {"kubernetes.io/config.mirror": "x"}},
        "spec": {
            "nodeName": NODES[0],
            "hostNetwork": True,
            "containers": [{"name": "main", "image": "none"}],
        },
    }
    site.made.append(site.mesh.cluster.pods.create(body, "default"))
    marker = site.pod("api-1", "api")
    # The signer has heard of the later one, and so of the earlier one.
    site.until("", NODES[0], API)
    assert site.asks(NODES[0], spiffe_id("default")) == REFUSED
    site.mesh.forget(marker)
    site.made.remove(marker)


@pytest.mark.parametrize("what", ["deny", "path"])
def test_a_policy_for_one_of_the_accounts_pods_is_one_for_the_account(site: Site, what: str) -> None:
    """ztunnel has one certificate for all of them: what one of them may not have, none gets by it."""
    # The pod without the label would get it.
    site.pod("api-1", "api")
    site.until("", NODES[0], API)
    site.pod("api-3", "api", labels={"of": "test"})
    chosen: Object = {"podSelector": {"matchLabels": {"of": "test"}}}
    site.mesh.policy("of-test", {**chosen, **({"deny": True} if what == "deny" else {"spiffeIDTemplate": "/else"})})
    before = len(site.door.signer.audit())
    site.until(REFUSED, NODES[0], API)
    assert site.door.refused(before)[-1] == ("POLICY_DENIED" if what == "deny" else "POLICY_UNUSABLE")
    # On the other node there is none of those pods.
    assert site.asks(NODES[1], API) == ""


def test_an_identity_of_another_form_is_nothing_that_istio_has(site: Site) -> None:
    """All pods agree, and still there is no such certificate for ztunnel to show."""
    site.pod("api-1", "api", labels={"of": "test"})
    site.until("", NODES[0], API)
    form = "/ns/{namespace}/app/api"
    chosen: Object = {"podSelector": {"matchLabels": {"of": "test"}}}
    site.mesh.policy("of-test", {**chosen, "spiffeIDTemplate": form})
    before = len(site.door.signer.audit())
    site.until(REFUSED, NODES[0], API)
    assert site.door.refused(before)[-1] == "POLICY_UNUSABLE"
    assert site.asks(NODES[0], "spiffe://cluster.test/ns/default/app/api") == REFUSED


def test_a_refusal_is_told_to_the_ztunnels_pod(site: Site) -> None:
    pod = site.pod("ztunnel-told", ZTUNNEL, NODES[0], namespace=ISTIO)
    site.until(REFUSED, NODES[0], spiffe_id("nobody"), token=site.mesh.token(pod))

    def told() -> bool | str:
        found = site.mesh.events(pod)
        return any("nobody" in each for each in found) or "; ".join(found)

    wait_for("the event", told, progress=say, alive=site.door.signer.check)
