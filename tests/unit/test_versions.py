"""The page of versions says what the manifests pin, and leaves no manifest out."""

from pathlib import Path

import pytest

from docs import versions
from docs.versions import NoVersion, Peer
from tests.cluster.programs import KUBERNETES_VERSION

ROOT = Path(__file__).parents[2]


def test_versions_are_read_from_manifests() -> None:
    text = "require a.b/c v1.2.3\n\td.e/f v0.0.0 // indirect\n\treplace (\n\td.e/f => d.e/f v0.35.4\n)\n"
    found = [versions._go(each)(text) for each in ("a.b/c", "d.e/f", "a.b/c/v2")]
    assert found == ["1.2.3", "0.35.4", ""]
    assert versions._pinned("spiffe")('"py-spiffe==1.0", "spiffe==0.3.2", # x') == "0.3.2"
    maven = "<artifactId>a</artifactId>\n<version>1</version><artifactId>b</artifactId><version>2</version>"
    assert versions._maven("b")(maven) == "2"


def test_a_manifest_that_pins_it_no_more_is_an_error() -> None:
    peer = Peer("etcd", "go.mod", versions._go("go.etcd.io/etcd"), "", "")
    with pytest.raises(NoVersion, match="does not pin etcd any more"):
        versions.version_of(peer, "require a.b/c v1.2.3\n")


def test_it_is_the_kubernetes_that_the_cluster_runs() -> None:
    assert {row[0]: row[1] for row in versions.peers()}["Kubernetes"] == KUBERNETES_VERSION.removeprefix("v")


def test_no_manifest_is_left_out() -> None:
    listed = {peer.file for peer in versions.PEERS}
    found = {
        str(each.relative_to(ROOT))
        for place in ("tests/cluster/tools/*/go.mod", "tests/interop/*/suite.toml", "tests/conformance/clients/*/*")
        for each in ROOT.glob(place)
        if each.name in ("go.mod", "suite.toml", "package.json", "pom.xml", "Cargo.toml", "requirements.txt")
    }
    assert found
    assert not found - listed
