"""The signer asks a real cert-manager for its authorities: who approves, who dies meanwhile, and what comes back."""

import asyncio
import base64
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509

from podsvid.quickstart.pods import Pod, PodVolume
from signer.authority.state import AuthorityState
from signer.cluster.kube_client import KubeClient
from signer.upstream.certmanager import PREFIX
from svid.certificates import to_pem
from svid.keys import public_bytes
from tests import certmanager_contract as contract
from tests.cluster import kubeconfig, signing
from tests.cluster.api import ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.signing import AUDIENCE, TRUST_DOMAIN, SignerProcess, signer_process, stored_state
from tests.cluster.traffic import Traffic
from tests.cluster.waiting import say, wait_for
from tests.interop import certmanager
from tests.interop.certmanager import NAMESPACE, CertManager, cert_manager
from tests.interop.kubernetes import kubernetes
from tests.interop.rig import authorities, openssl, podsvid, ran, registered
from tests.support import IS_ROOT, host

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="mounts need root"),
    pytest.mark.timeout(900),
]
ISSUER, NODE = "podsvid-ca", "node-1"
FLAGS = (
    *("--upstream", "cert-manager", "--cert-manager-issuer-name", ISSUER, "--lease", "3s", "--reissue-over", "2s"),
    *("--x509-ttl", "1m", "--x509-max-ttl", "1m", "--retire-after", "1s", "--outage-limit", "15s"),
)
CLUSTER_ROLES = "rbac.authorization.k8s.io/v1"


class Site:
    """An API server with podsvid's permissions, and a cert-manager."""

    def __init__(self, at: CertManager) -> None:
        self.at = at
        self.cluster = cast(Cluster, at.kubernetes)

    @property
    def state(self) -> AuthorityState:
        return stored_state(self.cluster)

    @contextmanager
    def signer(self, name: str, *, wait: bool = True) -> Iterator[SignerProcess]:
        with signer_process(self.cluster, say, name, *FLAGS, wait=wait) as found:
            yield found

    @contextmanager
    def first(self, name: str) -> Iterator[SignerProcess]:
        """One that has its first authority."""
        with self.signer(name, wait=False) as found:
            self.approve(self.waiting())
            wait_for("the first authority", found.ready, progress=say, alive=found.check)
            yield found

    def waiting(self, but: Sequence[str] = ()) -> str:
        """The one request that is there beside those, once it is."""
        found: list[str] = []

        def made() -> bool:
            found[:] = [name for name in self.requests() if name not in but]
            return bool(found)

        wait_for("a CertificateRequest", made, progress=say)
        (name,) = found
        return name

    def requests(self) -> list[str]:
        return [str(each["metadata"]["name"]) for each in self.at.requests()]

    def approve(self, request: str) -> None:
        self.at.decide(request, "Approved", "somebody said so")

    def authority(self, signer: SignerProcess, name: str, *more: str) -> str:
        """`podsvid authority ...` at that replica."""
        return asyncio.run(ran(*podsvid("authority", name, "--socket", str(signer.admin_socket), *more)))

    def says(self, signer: SignerProcess, text: str) -> None:
        """Wait until `podsvid authority show` has that text."""

        def said() -> bool | str:
            found = self.authority(signer, "show")
            return text in found or found

        wait_for(f"`{text}`", said, progress=say, alive=signer.check)

    def clear(self) -> None:
        """As before the first signer."""
        for kind in ("secrets", "configmaps"):
            path = f"/api/v1/namespaces/{NAMESPACE}/{kind}"
            for each in self.at.api.get(path)["items"]:
                if str(each["metadata"]["name"]).startswith("podsvid-") and "-key" not in each["metadata"]["name"]:
                    self.at.api.remove(f"{path}/{each['metadata']['name']}")
        for path in (f"/api/v1/namespaces/{namespace}/pods" for namespace in (NAMESPACE, "default")):
            for each in self.at.api.get(path)["items"]:
                self.at.api.delete(f"{path}/{each['metadata']['name']}", grace_seconds=0)
        self.at.api.remove(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/podsvid-signer")
        for name in self.requests():
            self.at.api.remove(f"{certmanager.API}/namespaces/{NAMESPACE}/certificaterequests/{name}")


@pytest.fixture(scope="module")
def shared(programs: Mapping[str, Path]) -> Iterator[Site]:
    with (
        tempfile.TemporaryDirectory(prefix="cm", dir="/tmp") as folder,
        kubernetes(Path(folder) / "k") as found,
        cert_manager(found, programs, approve=False) as at,
    ):
        made = Site(at)
        signing.install(made.cluster, say, f"signer.certManager.issuerName={ISSUER}")
        yield made


@pytest.fixture
def site(shared: Site) -> Site:
    """Nobody approves anything, and the issuer has a root of its own."""
    shared.clear()
    shared.at.issuer(ISSUER, certmanager.root("the organisation's root"))
    return shared


class Real:
    """Implements contract.Installation, as an account that may do what the signer may."""

    namespace = NAMESPACE

    def __init__(self, at: CertManager, api: KubeClient) -> None:
        self.at, self.api = at, api
        self.roots: dict[str, x509.Certificate] = {}

    async def issuer(self, name: str, *, without_root: bool = False) -> x509.Certificate:
        if name not in self.roots:
            root = certmanager.root(f"{name} root")
            self.roots[name] = root.certificate
            await asyncio.to_thread(self.at.issuer, name, root.below(name) if without_root else root)
        return self.roots[name]

    async def approve(self, request: str) -> None:
        await asyncio.to_thread(self.at.decide, request, "Approved", "somebody")

    async def deny(self, request: str, why: str) -> None:
        await asyncio.to_thread(self.at.decide, request, "Denied", why)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_it_is_what_the_stand_in_of_the_unit_tests_is(site: Site, tmp_path: Path, check: Any) -> None:
    api, account, shipped = site.at.api, "requester", "podsvid-signer-certificates"
    signing.account(site.cluster, account, NAMESPACE)
    binding = {
        "apiVersion": CLUSTER_ROLES,
        "kind": "RoleBinding",
        "metadata": {"name": account, "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": shipped},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    }
    api.apply([binding])
    access = tmp_path / "kubeconfig"
    kubeconfig.with_token(access, site.cluster.kubeconfig, api.token(account, NAMESPACE))

    async def run() -> None:
        connection = await KubeClient.connect(access)
        try:
            await check(Real(site.at, connection), tmp_path)
        finally:
            await connection.close()

    asyncio.run(run())


def test_who_may_write_a_status_and_not_approve_is_refused_by_the_webhook(site: Site) -> None:
    api, account = site.at.api, "writer"
    signing.account(site.cluster, account, NAMESPACE)
    rules: list[dict[str, Any]] = [
        {"apiGroups": ["cert-manager.io"], "resources": ["certificaterequests"], "verbs": ["get"]},
        {"apiGroups": ["cert-manager.io"], "resources": ["certificaterequests/status"], "verbs": ["update"]},
    ]
    approve = {"apiGroups": ["cert-manager.io"], "resources": ["signers"], "verbs": ["approve"]}
    approve["resourceNames"] = [f"issuers.cert-manager.io/{NAMESPACE}.{ISSUER}"]
    meta, by_hand = {"name": account}, api.as_token(api.token(account, NAMESPACE))
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account}
    binding = {"apiVersion": CLUSTER_ROLES, "kind": "ClusterRoleBinding", "metadata": meta}
    api.apply([{**binding, "roleRef": role_ref, "subjects": [subject]}])
    with site.signer("signer-w", wait=False) as signer:
        request = site.waiting()
        api.apply([{"apiVersion": CLUSTER_ROLES, "kind": "ClusterRole", "metadata": meta, "rules": rules}])

        def told() -> bool:
            with pytest.raises(ApiError) as caught:
                site.at.decide(request, "Approved", "no", by_hand)
            # RBAC is known to the API server a moment later.
            return "does not have permissions to set approved/denied conditions" in str(caught.value)

        wait_for("the webhook's refusal", told, progress=say)
        api.apply([{"apiVersion": CLUSTER_ROLES, "kind": "ClusterRole", "metadata": meta, "rules": [*rules, approve]}])

        def approved() -> bool:
            try:
                site.at.decide(request, "Approved", "the documented rights are enough", by_hand)
            except ApiError as error:
                assert error.status == 403
                return False
            return True

        wait_for("the rights that docs/certmanager.md names", approved, progress=say)
        wait_for("the first authority", signer.ready, progress=say, alive=signer.check)


def test_a_leader_that_dies_while_a_request_waits_is_followed_by_one_that_goes_on_with_it(site: Site) -> None:
    with site.signer("signer-a", wait=False) as one:
        request = site.waiting()
        asked = site.at.requests()[0]["spec"]["request"]
        wait_for("what it waits for", lambda: "is not approved yet" in str(one.ready()), progress=say)
        with site.signer("signer-b", wait=False) as other:
            wait_for("the other one", lambda: "waits for the first" in str(other.ready()), progress=say)
            one.process.kill()
            one.process.wait()
            site.approve(request)
            wait_for("the other one to sign", other.ready, progress=say, alive=other.check)
            key = x509.load_pem_x509_csr(base64.b64decode(asked)).public_key()
            state = site.state
            assert public_bytes(state.active_x509.chain[0].public_key()) == public_bytes(key)  # type: ignore[arg-type]
            assert state.request is None
            wait_for("nothing to be left", lambda: site.requests() == [], progress=say)
            issued = [each for each in other.lines() if each.get("event") == "the CA above certified an authority"]
            assert [f"{PREFIX}{each['request']}" for each in issued] == [request]


def test_a_leader_that_dies_in_a_rotation_while_the_request_waits(site: Site) -> None:
    with site.first("signer-c") as one, site.signer("signer-d") as other:
        before = site.state.active_x509_id
        site.authority(one, "rotate", "--no-wait")
        request = site.waiting()
        leading = next(each for each in (one, other) if "is not approved yet" in _shown(site, each, (one, other)))
        rest = other if leading is one else one
        leading.process.kill()
        leading.process.wait()
        assert site.requests() == [request]
        site.approve(request)
        wait_for("the next authority", lambda: site.state.active_x509_id != before, progress=say, alive=rest.check)
        wait_for("nothing to be left", lambda: site.requests() == [], progress=say)


def _shown(site: Site, one: SignerProcess, both: tuple[SignerProcess, SignerProcess]) -> str:
    """What `show` says of it, when the one of both that leads has looked."""
    wait_for(
        "the leader to look",
        lambda: any("is not approved yet" in site.authority(each, "show") for each in both),
        progress=say,
    )
    return site.authority(one, "show")


def test_a_denial_and_a_ca_that_nothing_may_be_below_are_said_and_change_nothing(site: Site) -> None:
    with site.first("signer-e") as signer:
        before = site.state
        site.authority(signer, "rotate", "--no-wait")
        denied = site.waiting()
        site.says(signer, f"CertificateRequest {NAMESPACE}/{denied} is not approved yet")
        told = json.loads(site.authority(signer, "show", "--output", "json"))["requested_x509"]
        assert told["at"] == f"cert-manager Issuer {ISSUER}, asked in namespace {NAMESPACE}"
        site.at.decide(denied, "Denied", "not this week")
        site.says(signer, "was denied: cmctl: not this week")
        assert site.requests() == [denied], "it stays for people to look at"
        events = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"

        def said() -> bool:
            found = [each for each in site.at.api.get(events)["items"] if each["reason"] == "UpstreamRefused"]
            return any("not this week" in each["note"] for each in found)

        wait_for("the event", said, progress=say)
        site.at.issuer(ISSUER, certmanager.root("no CA below", 0))
        site.authority(signer, "prepare")
        unfit = site.waiting(but=[denied])
        site.approve(unfit)
        site.says(signer, "UPSTREAM_CERTIFICATE_REFUSED")
        now = site.state
        assert now.bundle.x509_authorities == before.bundle.x509_authorities, "nothing was published"
        assert now.active_x509_id == before.active_x509_id
        assert len(site.requests()) <= 2


def test_requests_do_not_pile_up_where_everything_is_approved(site: Site) -> None:
    site.at.run(approve=True)
    try:
        with site.signer("signer-f") as signer:
            seen, most = {site.state.active_x509_id}, 0
            for _ in range(20):
                site.authority(signer, "rotate", "--no-wait")

                def rotated() -> bool:
                    nonlocal most
                    most = max(most, len(site.requests()))
                    return site.state.active_x509_id not in seen

                wait_for("a rotation", rotated, progress=say, alive=signer.check)
                seen.add(site.state.active_x509_id)
            wait_for("nothing to be left", lambda: site.requests() == [], progress=say)
            assert most <= 2
    finally:
        site.at.run(approve=False)


def test_another_root_in_the_issuers_secret_costs_no_handshake(site: Site, tmp_path: Path) -> None:
    roots = [site.at.cas[ISSUER], certmanager.root("the organisation's next root")]
    for number, each in enumerate(roots):
        (tmp_path / f"{number}.pem").write_bytes(to_pem([each.certificate]))
    old, new = tmp_path / "0.pem", tmp_path / "1.pem"

    def replaced(targets: Sequence[Path], signer: SignerProcess) -> None:
        assert [openssl(each, old) for each in targets] == ["OK"] * len(targets)
        site.at.issuer(ISSUER, roots[1])
        site.authority(signer, "rotate", "--no-wait")
        request = site.waiting()
        assert [authorities(each) for each in targets] == [1] * len(targets), "nobody knows of the new root yet"
        site.approve(request)
        wait_for("SVIDs below the new root", lambda: all(openssl(each, new) == "OK" for each in targets), progress=say)
        wait_for("the old root to go", lambda: all(authorities(each) == 1 for each in targets), progress=say)

    with site.first("signer-g") as signer:
        done, failures = under_traffic(site, signer, tmp_path, replaced)
    assert failures == []
    assert done > 100


def under_traffic(
    site: Site, signer: SignerProcess, folder: Path, work: Callable[[Sequence[Path], SignerProcess], None]
) -> tuple[int, list[str]]:
    """How many handshakes there were between pods' volumes meanwhile, and which failed."""
    signing.node(site.cluster, NODE)
    signing.account(site.cluster, "web")
    agent = signing.pod(site.cluster, "agent", NODE, "podsvid-agent", namespace=NAMESPACE, driver=None)
    flags = signing.agent_flags(site.cluster, say, signer, agent, folder)
    pods = [signing.pod(site.cluster, f"web-{number}", NODE, "web") for number in range(3)]

    async def run() -> Traffic:
        with host() as here:
            here.start("--trust-domain", TRUST_DOMAIN, *flags)
            async with registered(here) as kubelet:
                targets = []
                for each in pods:
                    token = site.at.api.token("web", "default", AUDIENCE, each)
                    tokens = {AUDIENCE: {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}
                    pod = Pod("default", each["metadata"]["name"], each["metadata"]["uid"], "web")
                    targets.append(await kubelet.publish(pod, PodVolume(tokens=tokens)))
                traffic = Traffic(targets)
                thread = threading.Thread(target=traffic.run)
                thread.start()
                try:
                    await asyncio.to_thread(work, targets, signer)
                finally:
                    traffic.stop()
                    thread.join()
                return traffic

    found = asyncio.run(run())
    return found.done, found.failures
