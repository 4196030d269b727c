"""From self-signed to cert-manager to OpenBao and back, as docs/migration.md says, under 30 pods that shake hands."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from svid.certificates import certificates_from_pem
from tests.go_tools import Progress

from . import product_image
from .above import beside, blocks, openbao, without_cert_manager
from .api import Object
from .chart import CHART, ROOT
from .cluster import Cluster
from .installation import NAMESPACE, component, empty, release, settings
from .kubectl import Shell
from .rounds import Rounds, following, issuers, trusted, undue
from .signing import TRUST_DOMAIN, stored_state
from .traffic import volume, workload
from .waiting import wait_for

pytestmark = pytest.mark.timeout(1500)
DOCS = ROOT / "docs"
PAGE = DOCS / "migration.md"
PODS, BY_WORKLOAD_API = 30, 6
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
# What was before is to leave while somebody looks: a minute, and no longer than the machine is busy after that.
LIFETIME = timedelta(seconds=60)
SHORT = {
    "ttl.x509": "60s",
    "signer.settings.x509_min_ttl": "10s",
    "signer.settings.x509_max_ttl": "60s",
    "signer.settings.outage_limit": "10s",
    "signer.settings.retire_after": "5s",
    "signer.settings.reissue_over": "10s",
    "signer.settings.upstream_root_interval": "3s",
}


def commands(block: str) -> list[str]:
    """One after another; one that goes on in the next line is one."""
    return re.sub(r"\\\n\s*", "", block).splitlines()


def pods(cluster: Cluster) -> list[Object]:
    found: list[Object] = cluster.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dtraffic")["items"]
    return found


def running(cluster: Cluster) -> bool | str:
    phases = [each["status"].get("phase") for each in pods(cluster)]
    return True if phases == ["Running"] * PODS else f"{phases.count('Running')} of {PODS} run"


def minted(cluster: Cluster) -> float:
    """How many X.509-SVIDs the agent has renewed."""
    (agent,) = component(cluster, "agent")
    page = cluster.api.text(f"/api/v1/namespaces/{NAMESPACE}/pods/{agent['metadata']['name']}:9099/proxy/metrics")
    found = re.search(r'^podsvid_rotations_total\{kind="x509",result="ok"\} (\S+)$', page, re.MULTILINE)
    return float(found[1]) if found else 0.0


@dataclass
class Site:
    """The installation, its pods by name with what each has, and who types."""

    cluster: Cluster
    shell: Shell
    progress: Progress
    folders: dict[str, Path]
    rounds: Rounds
    # What the agent had renewed when the rounds began.
    minted: float
    # Who signed, one after another, and the root that each led to.
    signed: list[tuple[str, x509.Certificate]] = field(default_factory=list)

    def trust(self) -> frozenset[x509.Certificate]:
        """What all pods trust, when that is the same."""
        found: list[frozenset[x509.Certificate]] = []

        def same() -> bool | str:
            found[:] = {trusted(each) for each in self.folders.values()}
            return len(found) == 1 or f"{len(found)} different bundles"

        wait_for("one trust bundle", same, progress=self.progress)
        return found[0]

    def issued(self) -> bool | str:
        """Whether what each pod holds is of the authority that signs."""
        others = [name for name, each in self.rounds.noted.items() if each[-1].authority != self.signed[-1][0]]
        return not others or f"{len(others)} pods hold another's"

    def signs(self, root: x509.Certificate | None = None) -> None:
        """That the active authority signs is noted: below that root, or by itself."""
        state = stored_state(self.cluster)
        self.signed.append((state.active_x509_id, root or state.active_x509.chain[0]))
        wait_for("SVIDs of the authority that signs", self.issued, progress=self.progress)
        assert self.signed[-1][1] in self.trust()
        assert self.trust() <= {each for _, each in self.signed}, "somebody else is trusted"

    def follow(self, lines: Sequence[str]) -> None:
        """Type these; what does not rotate gives no pod anything, and takes from none what is used."""
        for line in lines:
            before = self.trust()
            self.progress(line)
            said = self.shell.done(line, seconds=300)
            if "authority rotate" in line:
                self.progress(said)
                continue
            assert self.trust() <= before
            assert self.signed[-1][1] in self.trust()
            assert self.issued() is True


def typed(heading: str, page: Path = PAGE) -> list[str]:
    """The commands that the page has there."""
    return [line for block in blocks(page, heading) for line in commands(block)]


@contextmanager
def shaking(cluster: Cluster, folder: Path, progress: Progress) -> Iterator[tuple[dict[str, Path], Rounds]]:
    """The pods, and their handshakes while inside: none may fail, and nobody be cut off."""
    body = workload("traffic")
    template = {"metadata": {"labels": {"app": "traffic"}}, "spec": body["spec"]}
    spec = {"replicas": PODS, "selector": {"matchLabels": {"app": "traffic"}}, "template": template}
    cluster.api.create(DEPLOYMENTS, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "traffic"},
                                     "spec": spec})  # fmt: skip
    wait_for(f"{PODS} pods", lambda: running(cluster), progress=progress)
    named = {each["metadata"]["name"]: volume(cluster, each["metadata"]["uid"]) for each in pods(cluster)}
    by_api = sorted(named)[:BY_WORKLOAD_API]
    sockets = [f"/proc/{cluster.pods.process(name)}/root/identity/socket" for name in by_api]
    with following(sockets, folder) as followers:
        wait_for("the Workload API", lambda: all(each.answers for each in followers), progress=progress)
        folders = {**named, **{name: each.folder for name, each in zip(by_api, followers, strict=True)}}
        rounds = Rounds(folders)
        driving = threading.Thread(target=rounds.run, daemon=True)
        driving.start()
        try:
            yield folders, rounds
        finally:
            rounds.stop()
            driving.join()
            progress(
                f"{rounds.handshakes} handshakes of {PODS} pods, {len(rounds.failures)} failed; each pod in each of "
                f"{rounds.rounds} rounds, the longest {rounds.slowest:.1f} s"
            )
        assert [each.ended for each in followers] == [""] * BY_WORKLOAD_API
        assert set(named) == {each["metadata"]["name"] for each in pods(cluster)}


@pytest.fixture(scope="module")
def site(
    cluster: Cluster, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory, progress: Progress
) -> Iterator[Site]:
    """Self-signed, as the chart installs it; an OpenBao is there, and nothing is known of it."""
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    folder = tmp_path_factory.mktemp("typed")
    (folder / "deploy").symlink_to(ROOT / "deploy")
    try:
        flags = [flag for name, value in SHORT.items() for flag in ("--set", f"{name}={value}")]
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
                *settings(cluster, images["now"], TRUST_DOMAIN), *flags)  # fmt: skip
        with (
            openbao(cluster, progress) as bao,
            shaking(cluster, tmp_path_factory.mktemp("workload-api"), progress) as (folders, rounds),
        ):
            shutil.copy(bao.ca, folder / "ca.crt")
            shell = Shell(folder, cluster.kubeconfig, (bao.programs,), bao.environment)
            yield Site(cluster, shell, progress, folders, rounds, minted(cluster))
    finally:
        cluster.api.remove(f"{DEPLOYMENTS}/traffic?propagationPolicy=Background")
        wait_for("the pods to be gone", lambda: pods(cluster) == [], progress=progress)
        release(cluster, "uninstall", "podsvid", "--no-hooks", "--timeout", "5m")
        empty(cluster)


@pytest.fixture(scope="module")
def cert_manager(cluster: Cluster) -> Iterator[None]:
    why = without_cert_manager()
    if why:
        pytest.skip(why)
    with beside(cluster):
        yield


def test_from_self_signed_to_an_issuer_of_cert_manager(site: Site, cert_manager: None) -> None:
    site.signs()
    site.follow(typed("## To another CA")[:1])
    (site.shell.folder / "issuer.yaml").write_text(blocks(DOCS / "certmanager.md", "## There")[0])
    site.follow(typed("### To an issuer of cert-manager"))
    made = site.shell.done(r"kubectl -n podsvid get secret podsvid-root -o jsonpath='{.data.tls\.crt}' | base64 -d")
    site.signs(certificates_from_pem(made.encode())[0])


def test_from_there_to_openbao(site: Site) -> None:
    first = not site.signed
    if first:
        site.signs()
    for block in blocks(DOCS / "openbao.md", "## There")[:3]:
        site.shell.done(block)
    lines = typed("### From there to OpenBao")
    change, cleaning = lines[:3], lines[3:]
    site.follow(change)
    root = site.shell.done("bao read -field=certificate pki/cert/ca")
    site.signs(certificates_from_pem(root.encode())[0])
    assert all(" delete " in line for line in cleaning)
    site.follow(cleaning if not first else [])


def test_back_to_self_signed_until_nothing_of_before_is_trusted(site: Site) -> None:
    site.follow(typed("### Back to self-signed"))
    site.signs()
    last, (published,) = site.signed[-1][1], typed("### Is the CA of before gone?")

    def alone() -> bool | str:
        known = certificates_from_pem(site.shell.done(published).encode())
        return known == (last,) or f"{len(known)} are published"

    wait_for("the roots of before to leave", alone, progress=site.progress)
    assert site.trust() == {last}
    shown = site.shell.done(typed("## To another CA")[0])
    assert "root of the CA above" not in shown, shown


def test_no_handshake_failed_and_each_change_was_one_mint_for_each_pod(site: Site) -> None:
    if len(site.signed) < 2:
        pytest.skip("nothing was changed")
    renewed, seen = minted(site.cluster) - site.minted, site.rounds.rounds
    wait_for("another round", lambda: site.rounds.rounds > seen + 1, progress=site.progress)
    noted = {name: list(each) for name, each in site.rounds.noted.items()}
    assert site.rounds.failures == []
    assert site.rounds.handshakes > 100
    wanted = [authority for authority, _ in site.signed]
    assert {name: issuers(each) for name, each in noted.items()} == dict.fromkeys(site.folders, wanted)
    assert [each for svids in noted.values() for each in undue(svids, LIFETIME)] == []
    assert 0 < renewed <= sum(len(each) - 1 for each in noted.values()), "some were replaced before anybody saw them"
