"""The signer's Istio CA at a real API server, the pods that may ask it, and Istio's own client that does."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cryptography import x509

from svid.certificates import certificates_from_pem
from tests.cluster import signing
from tests.cluster.api import Object
from tests.cluster.cluster import Cluster
from tests.cluster.fleet import forget
from tests.cluster.signing import TRUST_DOMAIN, SignerProcess, signer_process
from tests.cluster.waiting import say, wait_for
from tests.interop.kubernetes import Kubernetes
from tests.interop.rig import podsvid
from tests.ports import free_port
from tests.processes import end

NODES = ("node-1", "node-2")
AUDIENCE = "istio-ca"
# What proxies are told to call, and the certificate must be for.
NAME = "podsvid-istio.podsvid.svc"
ISTIO = "istio-system"
ZTUNNEL = "ztunnel"
CLUSTER = "Kubernetes"
# The last flag's value is the address. All callers have one address here, as no two nodes have.
DOOR = (
    *("--address-rate", "1000", "--lease", "3s", "--istio-clusters", CLUSTER),
    *("--istio-ztunnels", "istio-system/ztunnel", "--istio-listen"),
)
# What every sidecar asks for.
DAY = 86_400


def until_asked(client: "Client", wanted: Callable[["Answer"], bool], uri: str = "", **more: Any) -> "Answer":
    """Ask again until the signer has heard of what was changed."""
    found: list[Answer] = []

    def so() -> bool | str:
        found[:] = [client.asks(uri, **more)]
        return wanted(found[0]) or found[0].error or "still what it was"

    wait_for("another answer", so, progress=say)
    return found[0]


def spiffe_id(account: str, namespace: str = "default", domain: str = TRUST_DOMAIN) -> str:
    return f"spiffe://{domain}/ns/{namespace}/sa/{account}"


@dataclass(frozen=True)
class Answer:
    """What the client made of the CA's answer: `error` is empty where everything about it holds."""

    error: str
    chain: tuple[str, ...]
    key: str
    uris: tuple[str, ...]
    seconds: float
    took: float

    @property
    def code(self) -> str:
        """gRPC's, of a refusal."""
        found = re.search(r"code = (\w+)", self.error)
        return found.group(1) if found else self.error

    @property
    def serial(self) -> int:
        return certificates_from_pem(self.chain[0].encode())[0].serial_number

    @property
    def issuer(self) -> bytes:
        """The key of the authority that signed it."""
        return issuer(self.chain[0].encode())

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The last element."""
        return certificates_from_pem(self.chain[-1].encode())


def issuer(chain: bytes) -> bytes:
    """Which authority signed the leaf of that PEM, by its key."""
    leaf = certificates_from_pem(chain)[0]
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert found is not None
    return found


class Client:
    """Istio's client with one pod's token, for as long as its proxy would run."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    def asks(self, uri: str = "", *, seconds: int = DAY, token: str = "", **more: Any) -> Answer:
        """One question, with another token where that is given."""
        question = {"uri": uri, "seconds": seconds, **more}
        if token:
            file = self._folder / "other-token"
            file.write_text(token)
            question["token"] = str(file)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self._folder / "client.log").read_text()[-2000:]
        found = json.loads(line)
        return Answer(
            found["error"],
            tuple(found["chain"] or ()),
            found["key"],
            tuple(found["uris"] or ()),
            found["seconds"],
            found["took"],
        )


@dataclass(frozen=True)
class Door:
    """A signer whose Istio CA answers at `address`."""

    signer: SignerProcess
    address: str
    # Whom a caller trusts to be the CA.
    roots: Path

    def authority(self, *line: str) -> str:
        """`podsvid authority ...` at this signer; what it printed."""
        command = podsvid("authority", line[0], "--socket", str(self.signer.admin_socket), *line[1:])
        done = subprocess.run(command, cwd=signing.ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def authorities(self) -> list[str]:
        """Identifiers of the X.509 ones."""
        told = json.loads(self.authority("show", "--output", "json"))
        return [each["id"] for each in told["authorities"] if each["kind"] == "KIND_X509"]

    def refused(self, since: int) -> list[str]:
        """Why, as the audit says and the caller is not told; of what it wrote after so many lines."""
        return [str(each["reason"]) for each in self.signer.audit()[since:] if each.get("reason")]


class Mesh:
    """An API server with two nodes, and podsvid's rights there."""

    def __init__(self, kubernetes: Kubernetes, programs: Mapping[str, Path]) -> None:
        self.cluster = cast(Cluster, kubernetes)
        self.programs = programs
        self.folder = kubernetes.directory

    @property
    def api(self) -> Any:
        """An administrator's."""
        return self.cluster.api

    def install(self) -> None:
        """What the chart ships, nodes, and the accounts that the tests use."""
        signing.install(self.cluster, say, "istio.enabled=true")
        for each in NODES:
            signing.node(self.cluster, each)
        self.api.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ISTIO}}])
        for account in ("web", "api", ZTUNNEL):
            signing.account(self.cluster, account)
        for account in (ZTUNNEL, "other"):
            signing.account(self.cluster, account, ISTIO)

    def pod(
        self,
        name: str,
        account: str = "web",
        node: str = NODES[0],
        namespace: str = "default",
        labels: dict[str, str] | None = None,
    ) -> Object:
        """A pod without a csi volume, bound to that node."""
        return signing.pod(self.cluster, name, node, account, namespace=namespace, driver=None, labels=labels)

    def forget(self, pod: Object) -> None:
        """It is deleted."""
        forget(self.cluster, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def ended(self, pod: Object, phase: str) -> None:
        """As when all its containers have ended."""
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
        self.api.patch(path, {"status": {"phase": phase}})

    def token(self, pod: Object, audience: str = AUDIENCE) -> str:
        """As kubelet projects it."""
        account, namespace = pod["spec"]["serviceAccountName"], pod["metadata"]["namespace"]
        return str(self.api.token(account, namespace, audience, pod))

    def roots(self, namespace: str = "default") -> str:
        """What pods of that namespace mount as istio-ca-root-cert; empty while there is no such ConfigMap."""
        found = self.api.find(f"/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert")
        return "" if found is None else str(found["data"]["root-cert.pem"])

    def policy(self, name: str, spec: Object) -> None:
        """A ClusterWorkloadIdentity, which the signer hears of a moment later."""
        body = {"apiVersion": "podsvid.io/v1alpha1", "kind": "ClusterWorkloadIdentity", "metadata": {"name": name}}
        self.api.apply([{**body, "spec": spec}])

    def no_policy(self, name: str) -> None:
        """It goes."""
        self.api.remove(f"/apis/podsvid.io/v1alpha1/clusterworkloadidentities/{name}")

    def events(self, pod: Object) -> list[str]:
        """Of that pod: reason and text."""
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        found = self.api.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
        return [f"{each['reason']} {each['note']}" for each in found if each["regarding"].get("name") == name]

    def forget_authorities(self) -> None:
        """The next signer makes new ones, and waits for nobody's certificates of before."""
        for kind in ("secrets", "configmaps"):
            path = f"/api/v1/namespaces/{signing.NAMESPACE}/{kind}"
            for each in self.api.get(path)["items"]:
                if str(each["metadata"]["name"]).startswith("podsvid-"):
                    self.api.remove(f"{path}/{each['metadata']['name']}")

    @contextmanager
    def serving(self, name: str, *flags: str, port: int = 0) -> Iterator[Door]:
        """A signer with its Istio CA on the loopback."""
        port = port or free_port()
        with signer_process(self.cluster, say, name, *DOOR, f"127.0.0.1:{port}", *flags) as signer:
            roots = signer.admin_socket.parent / "roots.pem"
            roots.write_bytes(signing.published_roots(self.cluster, say))
            yield Door(signer, f"127.0.0.1:{port}", roots)

    @contextmanager
    def client(self, door: Door, token: str, folder: Path, cluster: str = CLUSTER) -> Iterator[Client]:
        """Istio's client with that token."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(token)
        command = [str(self.programs["istio-ca-client"]), "-ca", door.address, "-name", NAME]
        command += ["-roots", str(door.roots), "-token", str(folder / "token"), "-cluster", cluster]
        with (folder / "client.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
            )
        try:
            yield Client(process, folder)
        finally:
            end(cast("subprocess.Popen[bytes]", process))
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
