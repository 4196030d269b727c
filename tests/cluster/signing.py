"""A signer as a process beside the cluster, with the shipped permissions, and an agent's side of its API."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from signer.authority.state import AuthorityState
from signer.pb import signer_pb2
from svid.certificates import certificates_from_der
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm, PrivateKey, signature_hash
from svid.spiffeid import TrustDomain
from tests.go_tools import Progress
from tests.ports import free_port
from tests.processes import end

from . import chart, kubeconfig
from .api import ApiError, Object
from .cluster import Cluster
from .image import TEST_IMAGE
from .waiting import wait_for

ROOT = Path(__file__).parents[2]
TRUST_DOMAIN = "cluster.test"
NAMESPACE = "podsvid"
AUDIENCE = "signer.podsvid.io"
DRIVER = "csi.podsvid.io"
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/podsvid-authority"
_WITHOUT_WORKLOADS = (
    *("CustomResourceDefinition", "ServiceAccount", "CSIDriver"),
    *("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
)
BUNDLE = f"/api/v1/namespaces/{NAMESPACE}/configmaps/podsvid-bundle"


def install(cluster: Cluster, progress: Progress, *values: str) -> None:
    """Apply what the chart ships with these values but for the workloads: CRDs, permissions, the CSIDriver."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    shipped = chart.render(f"trustDomain={TRUST_DOMAIN}", *values, namespace=NAMESPACE)
    documents = [namespace, *(each for each in shipped if each["kind"] in _WITHOUT_WORKLOADS)]
    cluster.api.apply(documents)
    names = [each["metadata"]["name"] for each in documents if each["kind"] == "CustomResourceDefinition"]

    def served() -> bool:
        found = [cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}") for name in names]
        conditions = [{c["type"]: c["status"] for c in each.get("status", {}).get("conditions", [])} for each in found]
        return all(each.get("Established") == "True" for each in conditions)

    wait_for("the custom resources to be served", served, progress=progress)


def node(cluster: Cluster, name: str) -> Object:
    """A node without a kubelet: pods can be bound to it, nothing runs there."""
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    try:
        return cluster.api.create("/api/v1/nodes", body)
    except ApiError as error:
        if error.status != 409:
            raise
        return cluster.api.get(f"/api/v1/nodes/{name}")


def account(cluster: Cluster, name: str, namespace: str = "default") -> None:
    """A service account."""
    metadata = {"name": name, "namespace": namespace}
    cluster.api.apply([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}])


def pod(
    cluster: Cluster,
    name: str,
    node_name: str,
    account: str,
    *,
    namespace: str = "default",
    driver: str | None = DRIVER,
    labels: dict[str, str] | None = None,
) -> Object:
    """A pod that is bound to a node; it mounts the driver unless that is None."""
    volumes = [{"name": "identity", "csi": {"driver": driver, "readOnly": True}}] if driver else []
    return cluster.pods.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": False,
                "nodeName": node_name,
                "hostNetwork": True,
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": TEST_IMAGE, "imagePullPolicy": "Never"}],
                "volumes": volumes,
            },
        },
        namespace,
    )


@dataclass(frozen=True)
class Refusal(Exception):
    """What a refused call said."""

    code: grpc.StatusCode
    reason: str
    message: str
    retry_seconds: float | None


def request_for(
    key: PrivateKey, *, signed_by: PrivateKey | None = None, spiffe_id: str = "spiffe://other.test/x"
) -> bytes:
    """A DER certificate request; what it asks to be named is nothing to go by."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=False
    )
    signer = signed_by or key
    request = builder.sign(signer, signature_hash(signer))
    if signed_by is None:
        return request.public_bytes(Encoding.DER)
    # The other key's request with this key put in its place: the signature no longer fits.
    honest = builder.sign(key, signature_hash(key))
    # Of one length, or it would be no DER any more: that is another refusal.
    while len(request.signature) != len(honest.signature):
        request = builder.sign(signer, signature_hash(signer))
    return honest.public_bytes(Encoding.DER).replace(honest.signature, request.signature)


class SignerClient:
    """Calls the signer as an agent does; refusals raise Refusal."""

    def __init__(self, address: str, roots: bytes) -> None:
        options = [("grpc.ssl_target_name_override", SIGNER_NAME)]
        self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(roots), options)
        self._x509 = self._channel.unary_unary(
            "/podsvid.signer.v1.Signer/MintX509SVID",
            signer_pb2.MintX509SVIDRequest.SerializeToString,
            signer_pb2.MintX509SVIDResponse.FromString,
        )
        self._jwt = self._channel.unary_unary(
            "/podsvid.signer.v1.Signer/MintJWTSVID",
            signer_pb2.MintJWTSVIDRequest.SerializeToString,
            signer_pb2.MintJWTSVIDResponse.FromString,
        )

    def close(self) -> None:
        self._channel.close()

    def mint(
        self,
        agent_token: str,
        pod_token: str,
        pod: Object,
        *,
        csr: bytes | None = None,
        dns_names: Sequence[str] = (),
        ttl: int = 0,
    ) -> signer_pb2.MintX509SVIDResponse:
        """MintX509SVID for the pod; without `csr` for a new P-256 key."""
        request = signer_pb2.MintX509SVIDRequest(
            pod=_claim(pod),
            pod_token=pod_token,
            csr=request_for(KeyAlgorithm.EC_P256.generate()) if csr is None else csr,
            ttl_seconds=ttl,
            dns_names=dns_names,
        )
        try:
            answer: signer_pb2.MintX509SVIDResponse = self._x509(request, metadata=_bearer(agent_token), timeout=40)
        except grpc.RpcError as error:
            raise refusal(error) from None
        return answer

    def mint_jwt(
        self, agent_token: str, pod_token: str, pod: Object, spiffe_id: str, audience: str
    ) -> signer_pb2.MintJWTSVIDResponse:
        """MintJWTSVID."""
        request = signer_pb2.MintJWTSVIDRequest(
            pod=_claim(pod), pod_token=pod_token, spiffe_id=spiffe_id, audiences=[audience]
        )
        try:
            answer: signer_pb2.MintJWTSVIDResponse = self._jwt(request, metadata=_bearer(agent_token), timeout=40)
        except grpc.RpcError as error:
            raise refusal(error) from None
        return answer


def refusal(error: grpc.RpcError) -> Refusal:
    """The reason code and the rest of a failed call."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    reason, retry = "", None
    for detail in status.details if status else ():
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(delay):
            retry = delay.retry_delay.ToTimedelta().total_seconds()
    return Refusal(error.code(), reason, error.details() or "", retry)


def spiffe_id_in(answer: signer_pb2.MintX509SVIDResponse) -> str:
    """The URI SAN of the leaf, read from the certificate itself."""
    leaf = certificates_from_der(answer.chain)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (found,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return str(found)


@dataclass(frozen=True)
class SignerProcess:
    """A running signer replica."""

    process: subprocess.Popen[bytes]
    address: str
    url: str
    admin_socket: Path
    log: Path

    def check(self) -> None:
        """Fail the test if it has ended."""
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]

    def lines(self) -> list[Object]:
        """Its log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
        return found

    def audit(self) -> list[Object]:
        """Its audit lines."""
        return [line for line in self.lines() if line.get("logger") == "podsvid.audit"]

    def ready(self) -> bool | str:
        """Whether it can sign, or why not."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.read().decode().strip()
        except OSError:
            return "not listening"


def expired_token(
    cluster: Cluster, account: str, namespace: str, audience: str, pod: Object, ended_at: float | None = None
) -> str:
    """A token as the API server would have made it, with its key; it makes none that ends so soon.

    `ended_at` is Unix time; None: it was made two hours ago.
    """
    fresh = cluster.api.token(account, namespace, audience, pod)
    claims = jwt.decode(fresh, options={"verify_signature": False})
    earlier = 7200 if ended_at is None else claims["exp"] - int(ended_at)
    for name in ("iat", "nbf", "exp"):
        claims[name] -= earlier
    headers = {"kid": jwt.get_unverified_header(fresh)["kid"]}
    key = (cluster.layout.pki / "service-accounts.key").read_text()
    return jwt.encode(claims, key, algorithm="ES256", headers=headers)


@contextmanager
def signer_process(
    cluster: Cluster,
    progress: Progress,
    name: str = "signer-1",
    *flags: str,
    wait: bool = True,
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    program: str = "podsvid",
) -> Iterator[SignerProcess]:
    """A signer with the shipped service account's token. `environment`: beside that of the cluster's children.

    `program`: the module that is run.
    """
    port, http = port or free_port(), free_port()
    home = cluster.directory / name
    home.mkdir(exist_ok=True)
    log = cluster.logs / f"{name}.log"
    access = cluster.directory / "podsvid-signer.kubeconfig"
    kubeconfig.with_token(access, cluster.kubeconfig, cluster.api.token("podsvid-signer", NAMESPACE))
    command = [sys.executable, "-m", program, "signer", "--trust-domain", TRUST_DOMAIN, "--identity", name]
    command += ["--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{http}", "--namespace", NAMESPACE]
    command += ["--kubeconfig", str(access), "--admin-socket", str(home / "admin.sock"), *flags]
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**cluster.child_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = SignerProcess(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{http}", home / "admin.sock", log)
    try:
        if wait:
            wait_for(f"{name} to sign", running.ready, progress=progress, alive=running.check)
        yield running
    finally:
        end(process)


def agent_flags(
    cluster: Cluster, progress: Progress, signer: SignerProcess, pod: Object, home: Path | None = None
) -> list[str]:
    """What makes an agent use `signer`, with a token that is bound to `pod` and the published trust bundle."""
    home = home or signer.admin_socket.parent
    published_roots(cluster, progress)
    bundle, token = home / "bundle.json", home / "token"
    bundle.write_text(cluster.api.get(BUNDLE)["data"]["bundle.json"])
    token.touch(mode=0o600)
    token.write_text(cluster.api.token("podsvid-agent", NAMESPACE, AUDIENCE, pod))
    flags = ["--authority", "signer", "--signer-address", signer.address]
    return [*flags, "--signer-bundle", str(bundle), "--agent-token-file", str(token)]


def stored_state(cluster: Cluster) -> AuthorityState:
    """The authorities as the Secret has them now. Raises StateDamaged."""
    data = cluster.api.get(SECRET)["data"]["state.json"]
    return AuthorityState.from_json(base64.b64decode(data), TrustDomain(TRUST_DOMAIN))


def restore_secret(cluster: Cluster, data: dict[str, str]) -> None:
    """Have the authorities' Secret say this, whatever a signer writes there in the same moment."""
    found = cluster.api.get(SECRET)
    metadata = {name: value for name, value in found["metadata"].items() if name != "resourceVersion"}
    cluster.api.replace(SECRET, {**found, "metadata": metadata, "data": data})


def published_roots(cluster: Cluster, progress: Progress) -> bytes:
    """The PEM roots from the ConfigMap that agents mount, once it is there."""
    roots = stored_state(cluster).bundle.to_pem()

    def published() -> bool:
        # One of an earlier signer may be there still.
        found = cluster.api.find(BUNDLE)
        return found is not None and str(found["data"]["ca.crt"]).encode() == roots

    wait_for("the trust bundle", published, progress=progress)
    return roots


def _claim(pod: Object) -> signer_pb2.Pod:
    metadata = pod["metadata"]
    return signer_pb2.Pod(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def _bearer(token: str) -> tuple[tuple[str, str | bytes], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()
