"""Each example of deploy/examples, applied as it is on an installation of the chart; only images are exchanged."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from svid.certificates import certificates_from_der, certificates_from_pem
from svid.x509svid import spiffe_id_of
from tests.go_tools import Progress

from . import product_image
from .api import Object, collection
from .chart import CHART, ROOT
from .cluster import Cluster
from .fleet import tls_context
from .image import TEST_IMAGE
from .installation import empty, release, settings
from .test_tutorials import PAGES
from .waiting import wait_for

pytestmark = pytest.mark.timeout(5400)
EXAMPLES = ROOT / "deploy" / "examples"
# What stands in for the images that the examples name, which nothing here pulls.
STAND_INS = {"alpine/openssl": TEST_IMAGE}
TRUST_DOMAIN = "example.org"


@pytest.fixture(scope="module", autouse=True)
def installed(cluster: Cluster, images: dict[str, str], progress: Progress) -> Iterator[None]:
    empty(cluster)
    product_image.load(cluster, [images["now"], images["examples"]])
    release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
            *settings(cluster, images["now"], TRUST_DOMAIN), "--set", "ttl.x509=30s",
            "--set", "signer.settings.x509_min_ttl=10s")  # fmt: skip
    yield
    # A pod that a failed test left must not keep the next installation away.
    release(cluster, "uninstall", "podsvid", "--wait", "--timeout", "5m", "--no-hooks")
    empty(cluster)


@pytest.fixture
def apply(cluster: Cluster, progress: Progress) -> Iterator[Callable[[str], list[Object]]]:
    applied: list[Object] = []

    def run(name: str) -> list[Object]:
        documents = [
            each for file in sorted((EXAMPLES / name).glob("*.yaml")) for each in yaml.safe_load_all(file.read_text())
        ]
        for each in documents:
            each["metadata"].setdefault("namespace", "default")
            for container in containers(each):
                image = container["image"].partition(":")[0]
                container["image"] = STAND_INS.get(image, product_image.EXAMPLES)
                container["imagePullPolicy"] = "Never"
        # The token controller makes an account's default token and the like only after the account.
        applied.extend(documents)
        cluster.api.apply(documents)
        return documents

    yield run
    for each in reversed(applied):
        cluster.api.remove(f"{collection(each)}/{each['metadata']['name']}?propagationPolicy=Background")
    wait_for("the example's pods to be gone", lambda: pods(cluster) == [], progress=progress)


def containers(document: Object) -> list[Object]:
    spec = document.get("spec", {})
    spec = spec.get("template", {}).get("spec", spec)
    found: list[Object] = spec.get("containers", [])
    return found


def pods(cluster: Cluster, selector: str = "") -> list[Object]:
    query = f"?labelSelector={selector}" if selector else ""
    items: list[Object] = cluster.api.get(f"/api/v1/namespaces/default/pods{query}")["items"]
    return items


def ready(cluster: Cluster, selector: str, progress: Progress, count: int = 1) -> list[Object]:
    """The pods of an example, once that many are ready."""

    def look() -> bool | str:
        states = {each["metadata"]["name"]: conditions(each).get("Ready", "") for each in pods(cluster, selector)}
        return True if list(states.values()) == ["True"] * count else str(states)

    try:
        wait_for(selector, look, progress=progress)
    except Exception as error:
        pytest.fail("\n".join([str(error), *(cluster.pods.describe(p["metadata"]["name"]) for p in pods(cluster))]))
    return pods(cluster, selector)


def conditions(pod: Object) -> dict[str, str]:
    return {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", [])}


def eventually(cluster: Cluster, what: str, found: Callable[[], bool | str], progress: Progress) -> None:
    try:
        wait_for(what, found, progress=progress)
    except Exception as error:
        pytest.fail("\n".join([str(error), *(cluster.pods.describe(p["metadata"]["name"]) for p in pods(cluster))]))


def files(cluster: Cluster, pod: Object) -> Path:
    volumes = cluster.kubelet_root / "pods" / str(pod["metadata"]["uid"]) / "volumes/kubernetes.io~csi"
    return volumes / "identity/mount"


def served(address: str, port: int, folder: Path) -> int:
    """The serial of the certificate that a server shows to a client with these files."""
    with (
        socket.create_connection((address, port), 10) as raw,
        tls_context(folder, server_side=False).wrap_socket(raw) as tls,
    ):
        data = tls.getpeercert(binary_form=True)
        tls.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"hello" in b"".join(iter(lambda: tls.recv(4096), b""))
    assert data is not None
    return certificates_from_der(data)[0].serial_number


def test_files_nginx(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    apply("files-nginx")
    (pod,) = ready(cluster, "app=nginx", progress)
    address, folder = pod["status"]["podIP"], files(cluster, pod)
    first = served(address, 8443, folder)

    def reloaded() -> bool | str:
        now = served(address, 8443, folder)
        return now != first and now == certificates_from_pem((folder / "tls.crt").read_bytes())[0].serial_number

    eventually(cluster, "nginx to serve the rotated certificate", reloaded, progress)
    with pytest.raises(urllib.error.URLError):
        # A client without an SVID gets nothing.
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.check_hostname = False
        stranger.load_verify_locations(folder / "ca.crt")
        with urllib.request.urlopen(f"https://{address}:8443/", context=stranger, timeout=10) as answer:
            answer.read()


def test_workload_api_python(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    apply("workload-api-python")
    ready(cluster, "app=workload-api-python", progress)
    expected = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/default serial "

    def printed() -> bool | str:
        lines = cluster.pods.log("workload-api-python").splitlines()
        assert all(line.startswith(expected) for line in lines), lines
        return len(lines) >= 2

    eventually(cluster, "two SVIDs in its log", printed, progress)


def test_workload_api_go(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    apply("workload-api-go")
    ready(cluster, "app=go-server", progress)
    eventually(cluster, "the client's Job", lambda: succeeded(cluster, "go-client"), progress)
    (client,) = pods(cluster, "job-name=go-client")
    assert f"hello spiffe://{TRUST_DOMAIN}/ns/default/sa/go-client" in cluster.pods.log(client["metadata"]["name"])


def succeeded(cluster: Cluster, job: str) -> bool:
    found = cluster.api.get(f"/apis/batch/v1/namespaces/default/jobs/{job}")
    return bool(found.get("status", {}).get("succeeded"))


def test_short_job(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    apply("short-job")
    started = time.monotonic()
    eventually(cluster, "the Job", lambda: succeeded(cluster, "short-job"), progress)
    progress(f"a Job that lives 5 s was done {time.monotonic() - started:.0f} s after it was applied")
    (pod,) = pods(cluster, "job-name=short-job")
    log = cluster.pods.log(pod["metadata"]["name"])
    assert "tls.crt: OK" in log
    assert f"URI:spiffe://{TRUST_DOMAIN}/ns/default/sa/default" in log
    volume = files(cluster, pod)
    wait_for("its volume to be taken down", lambda: not volume.exists(), progress=progress)


def test_statefulset(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    apply("statefulset")
    found = ready(cluster, "app=db", progress, count=2)
    for pod in found:
        name = pod["metadata"]["name"]
        leaf = certificates_from_pem((files(cluster, pod) / "tls.crt").read_bytes())[0]
        assert str(spiffe_id_of(leaf)) == f"spiffe://{TRUST_DOMAIN}/ns/default/sa/db/pod/{name}"


def test_non_root_fsgroup(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    apply("non-root-fsgroup")

    def checked() -> bool | str:
        log = cluster.pods.log("non-root-fsgroup")
        return True if "Key is valid" in log else log[-300:]

    eventually(cluster, "its checks", checked, progress)
    log = cluster.pods.log("non-root-fsgroup")
    assert "uid=10001" in log
    assert "tls.crt: OK" in log
    (key,) = [line for line in log.splitlines() if line.endswith(" tls.key")]
    assert key.startswith("-r--r-----")
    assert key.split()[3] == "20000"


def test_user_namespace(cluster: Cluster, apply: Callable[[str], list[Object]], progress: Progress) -> None:
    (node,) = cluster.api.get("/api/v1/nodes")["items"]
    handlers = node["status"].get("runtimeHandlers", [])
    if not any(each.get("features", {}).get("userNamespaces") for each in handlers):
        runtime = node["status"]["nodeInfo"]["containerRuntimeVersion"]
        pytest.skip(f"{runtime} says that this host has no user namespaces: Linux 6.3 or newer is needed to run this")
    apply("user-namespace")
    eventually(
        cluster, "its checks", lambda: "Key is valid" in cluster.pods.log("user-namespace") or "not yet", progress
    )
    # Root in the container, which owns nothing of the volume; on the node a user that is nobody.
    assert "uid=0" in cluster.pods.log("user-namespace")
    process = Path(f"/proc/{cluster.pods.process('user-namespace')}")
    assert process.stat().st_uid > 65535
    assert (process / "ns" / "user").readlink() != Path("/proc/self/ns/user").readlink()


def test_every_example_is_run_here() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    # The others are programs: the pages that have them say which test types them.
    applied = {name for name in names if any((EXAMPLES / name).glob("*.yaml"))}
    assert names - applied == {"java-keystores"}
    text = Path(__file__).read_text()
    typed = {name for each in PAGES.values() for name in each}
    assert {name for name in names if f'apply("{name}")' in text} | typed == applied
    listed = (EXAMPLES / "README.md").read_text()
    assert {name for name in names if f"| `{name}` |" in listed} == names
