"""A sidecar's client, which is Istio's own code, at the signer's Istio CA: what it gets, and what it is refused."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from svid.certificates import certificates_from_pem
from tests.cluster.api import Object
from tests.interop.istio.mesh import Client, Door, Mesh, spiffe_id, until_asked
from tests.ports import free_port

WEB = spiffe_id("web")
REFUSED = "Unauthenticated"


@dataclass(frozen=True)
class Site:
    """A pod's client, which lives as long as the tests of this file."""

    mesh: Mesh
    door: Door
    pod: Object
    client: Client


@pytest.fixture(scope="module")
def site(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with mesh.serving("signer-client", "--x509-ttl", "3h", "--x509-max-ttl", "3h") as door:
        pod = mesh.pod("client")
        with mesh.client(door, mesh.token(pod), tmp_path_factory.mktemp("client")) as client:
            yield Site(mesh, door, pod, client)
        mesh.forget(pod)


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_it_gets_the_identity_of_its_pod_and_another_certificate_each_time(site: Site, kind: str) -> None:
    """The client itself refuses a chain that does not hold: it is built as Go's crypto/x509 wants it."""
    first, second = (site.client.asks(WEB, ec=kind == "ec") for _ in range(2))
    for each in (first, second):
        assert (each.error, each.uris) == ("", (WEB,))
        assert each.roots == certificates_from_pem(site.door.roots.read_bytes())
    assert first.serial != second.serial
    assert first.key != second.key


def test_it_lives_as_long_as_is_asked_within_what_the_signer_allows(site: Site) -> None:
    """A sidecar asks for a day; three hours is what the signer gives here."""
    hour, day = (site.client.asks(WEB, ec=True, seconds=seconds) for seconds in (3600, 86_400))
    assert hour.error == day.error == ""
    # Both begin a little before they were asked for, as clocks differ.
    begins = hour.seconds - 3600
    assert 0 <= begins < 600
    assert day.seconds - begins == 3 * 3600


def test_a_proxy_that_names_no_cluster_is_of_this_one(site: Site) -> None:
    assert site.client.asks(WEB, ec=True, cluster="").error == ""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("another audience", "POD_TOKEN_AUDIENCE"),
        ("no token", "POD_TOKEN_MISSING"),
        ("no token of the API server's", "POD_TOKEN_INVALID"),
        ("a token of no pod", "POD_TOKEN_UNBOUND"),
        ("a pod that is gone", ""),
        ("a pod that has ended", "POD_FINISHED"),
        ("another identity", "NOT_ENTITLED"),
        ("two identities", "NOT_ENTITLED"),
        ("another cluster", "CLUSTER_UNKNOWN"),
        ("a policy that denies", "POLICY_DENIED"),
    ],
)
def test_a_refusal_tells_the_caller_nothing_and_the_audit_why(site: Site, what: str, reason: str) -> None:
    mesh, client = site.mesh, site.client
    before, labels = len(site.door.signer.audit()), {"may": "not"} if what.startswith("a policy") else {}
    pod = mesh.pod("refused", labels=labels)
    token, uri, more = mesh.token(pod), WEB, {}
    match what:
        case "another audience":
            token = mesh.token(pod, "signer.podsvid.io")
        case "no token":
            token = " "
        case "no token of the API server's":
            token = f"{token[:-8]}AAAAAAAA"
        case "a token of no pod":
            token = str(mesh.api.token("web", "default", "istio-ca"))
        case "a pod that has ended":
            mesh.ended(pod, "Succeeded")
        case "another identity":
            uri = spiffe_id("api")
        case "two identities":
            uri = f"{WEB},{spiffe_id('api')}"
        case "another cluster":
            more = {"cluster": "elsewhere"}
        case "a policy that denies":
            mesh.policy("may-not", {"podSelector": {"matchLabels": {"may": "not"}}, "deny": True})
    if what == "a pod that is gone":
        mesh.forget(pod)
    try:
        found = until_asked(client, lambda answer: bool(answer.error), uri, token=token, ec=True, **more)
        assert found.code == REFUSED
        for told in (reason, "web", "refused", "POD"):
            assert not told or told not in found.error
        if reason:
            assert site.door.refused(before)[-1] == reason
    finally:
        mesh.no_policy("may-not")
        if what != "a pod that is gone":
            mesh.forget(pod)
    # Whoever is allowed still is, by the same connection.
    assert client.asks(WEB, ec=True).error == ""


def test_it_survives_an_outage_of_the_signer(mesh: Mesh, tmp_path: Path) -> None:
    """Unavailable, which the client tries again by itself; then by the same client, as its agent's is."""
    pod, port = mesh.pod("outage"), free_port()
    with (
        mesh.serving("signer-outage", port=port) as door,
        mesh.client(door, mesh.token(pod), tmp_path) as client,
    ):
        assert client.asks(WEB, ec=True).error == ""
        door.signer.process.kill()
        door.signer.process.wait()
        assert client.asks(WEB, ec=True).code == "Unavailable"
        with mesh.serving("signer-outage", port=port):
            assert until_asked(client, lambda answer: not answer.error, WEB, ec=True).uris == (WEB,)
    mesh.forget(pod)
    tries = (tmp_path / "client.log").read_text().count("ca request failed, starting attempt")
    assert tries >= 4


def test_who_asks_without_tls_or_for_another_name_gets_nothing(site: Site, tmp_path: Path) -> None:
    """openssl's word on what proxies verify the CA by."""
    command = ["openssl", "s_client", "-connect", site.door.address, "-CAfile", str(site.door.roots), "-alpn", "h2"]
    command += ["-verify_return_error", "-verify_hostname"]
    for name, works in (("podsvid-istio.podsvid.svc", True), ("istiod.istio-system.svc", False)):
        done = subprocess.run([*command, name], input=b"", capture_output=True, check=False)
        assert (done.returncode == 0) is works, done.stderr.decode()[-1000:]
