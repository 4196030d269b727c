"""A real cert-manager at a real API server: its resources, controllers and webhook, and what its administrators do."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from svid.certificates import to_pem
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem
from tests import go_tools
from tests.cluster.api import ApiError, KubeApi, Object
from tests.cluster.pki import ClusterAuthority
from tests.cluster.processes import Processes
from tests.cluster.waiting import say, wait_for
from tests.interop.suites import HERE
from tests.ports import free_port

MODULE = "github.com/cert-manager/cert-manager"
API = "/apis/cert-manager.io/v1"
NAMESPACE = "podsvid"
_KINDS = ("certificaterequests", "certificates", "issuers", "clusterissuers")
_HOOKS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
_DAY = timedelta(days=1)
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Ca:
    """A CA of the organisation."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    def below(self, name: str, path_length: int | None = None) -> "Ca":
        """One that it certifies."""
        return _made(name, self, path_length)


def root(name: str, path_length: int | None = None) -> Ca:
    return _made(name, None, path_length)


def _made(name: str, above: Ca | None, path_length: int | None) -> Ca:
    key = KeyAlgorithm.EC_P256.generate()
    own = x509.Name.from_rfc4514_string(f"CN={name}")
    issuer, by = (own, key) if above is None else (above.certificate.subject, above.key)
    now = datetime.now(UTC)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = (
        x509.CertificateBuilder(
            issuer, own, key.public_key(), x509.random_serial_number(), now - _DAY, now + 900 * _DAY
        )
        .add_extension(x509.BasicConstraints(True, path_length), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
        .sign(by, hashes.SHA256())
    )
    return Ca(made, key)


class Kubernetes(Protocol):
    """Where it runs: an API server that reaches the loopback, and a CA for its webhook."""

    @property
    def api(self) -> KubeApi:
        """An administrator's."""

    @property
    def kubeconfig(self) -> Path:
        """The same, as a file."""

    @property
    def processes(self) -> Processes:
        """Starts it."""

    @property
    def authority(self) -> ClusterAuthority:
        """Whom the webhook's certificate is of."""


@dataclass
class CertManager:
    """One that runs at `kubernetes`; it approves nothing by itself unless it was started so."""

    kubernetes: Kubernetes
    program: Path
    cas: dict[str, Ca] = field(default_factory=dict)

    @property
    def api(self) -> KubeApi:
        """An administrator's."""
        return self.kubernetes.api

    def issuer(self, name: str, ca: Ca, chain: tuple[Ca, ...] = ()) -> None:
        """An Issuer of that CA, or of another one from now on; its Secret has the CA, and what else is in `chain`."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": f"{name}-key", "namespace": NAMESPACE},
            "data": {
                "tls.crt": _b64(to_pem([each.certificate for each in (ca, *chain)])),
                "tls.key": _b64(key_to_pem(ca.key)),
            },
        }
        body = {
            "apiVersion": "cert-manager.io/v1",
            "kind": "Issuer",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"ca": {"secretName": f"{name}-key"}},
        }
        self.cas[name] = ca
        self.api.apply([secret])
        path = f"{API}/namespaces/{NAMESPACE}/issuers/{name}"
        if self.api.find(path) is None:
            self.api.create(path.rpartition("/")[0], body)
        wait_for(f"issuer {name}", lambda: _condition(self.api.get(path), "Ready") == "True", progress=say)

    def requests(self) -> list[Object]:
        """All CertificateRequests, the oldest first."""
        found = self.api.get(f"{API}/namespaces/{NAMESPACE}/certificaterequests")["items"]
        return sorted(found, key=lambda each: str(each["metadata"]["creationTimestamp"]))

    def decide(self, request: str, kind: str, why: str, api: KubeApi | None = None) -> None:
        """Approve or deny it, as `cmctl` does. Raises ApiError."""
        by, path = api or self.api, f"{API}/namespaces/{NAMESPACE}/certificaterequests/{request}"
        condition = {"type": kind, "status": "True", "reason": "cmctl", "message": why}
        condition["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        while True:
            found = by.get(path)
            found.setdefault("status", {}).setdefault("conditions", []).append(condition)
            try:
                by.replace(f"{path}/status", found)
            except ApiError as error:
                # A controller was first.
                if error.status == 409:
                    continue
                raise
            return

    def run(self, *, approve: bool) -> None:
        """Start it, or start it anew."""
        processes = self.kubernetes.processes
        processes.end(["certmanager"])
        port = free_port()
        pair = self.kubernetes.authority.issue("cert-manager-webhook", "cert-manager-webhook")
        command = [
            str(self.program),
            "--kubeconfig",
            str(self.kubernetes.kubeconfig),
            f"--approve={str(approve).lower()}",
        ]
        command += ["--listen", f"127.0.0.1:{port}", "--certificate", str(pair.cert), "--key", str(pair.key)]
        processes.start("certmanager", command)
        self.api.apply(self._webhooks(port))
        wait_for("cert-manager's webhook", self._admits, progress=say, alive=processes.check)

    def _admits(self) -> bool | str:
        """Whether who asks is written down in what was asked for: it is its webhook that does."""
        path = f"{API}/namespaces/{NAMESPACE}/certificaterequests"
        csr = x509.CertificateSigningRequestBuilder(x509.Name.from_rfc4514_string("CN=probe"))
        pem = csr.sign(KeyAlgorithm.EC_P256.generate(), hashes.SHA256()).public_bytes(_PEM)
        body = {
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {"name": "probe", "namespace": NAMESPACE},
            "spec": {"request": _b64(pem), "issuerRef": {"name": "nobody"}},
        }
        try:
            made = self.api.create(path, body)
        except ApiError as error:
            return str(error)
        self.api.delete(f"{path}/probe")
        return "username" in made["spec"]

    def served(self, kind: str) -> bool:
        """Whether the API server knows that kind of object by now."""
        try:
            return "items" in self.api.get(f"{API}/{kind}")
        except ApiError as error:
            if error.status in (404, 429):  # not there, or being made
                return False
            raise

    def _webhooks(self, port: int) -> list[Object]:
        bundle = _b64(self.kubernetes.authority.ca_cert.read_bytes())

        def configuration(kind: str, path: str, operations: list[str], resources: list[str]) -> Object:
            return {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": kind,
                "metadata": {"name": "cert-manager-webhook"},
                "webhooks": [
                    {
                        "name": "webhook.cert-manager.io",
                        "admissionReviewVersions": ["v1"],
                        "sideEffects": "None",
                        "failurePolicy": "Fail",
                        "clientConfig": {"url": f"https://127.0.0.1:{port}/{path}", "caBundle": bundle},
                        "rules": [
                            {
                                "apiGroups": ["cert-manager.io"],
                                "apiVersions": ["v1"],
                                "operations": operations,
                                "resources": resources,
                            }
                        ],
                    }
                ],
            }

        return [
            configuration("MutatingWebhookConfiguration", "mutate", ["CREATE"], ["certificaterequests"]),
            configuration("ValidatingWebhookConfiguration", "validate", ["CREATE", "UPDATE"], ["*/*"]),
        ]


@contextmanager
def cert_manager(kubernetes: Kubernetes, programs: Mapping[str, Path], *, approve: bool) -> Iterator[CertManager]:
    """One in namespaces `cert-manager` and `podsvid`; what there is of it goes with it, but for those."""
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("cert-manager", NAMESPACE)
    ]
    kubernetes.api.apply([*namespaces, *_resources()])
    found = CertManager(kubernetes, programs["certmanager"])
    wait_for("cert-manager's resources", lambda: all(map(found.served, _KINDS)), progress=say)
    try:
        found.run(approve=approve)
        yield found
    finally:
        kubernetes.processes.end(["certmanager"])
        for hook in _HOOKS:
            kubernetes.api.remove(f"/apis/admissionregistration.k8s.io/v1/{hook}/cert-manager-webhook")
        for kind in _KINDS:
            kubernetes.api.remove(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}.cert-manager.io")


def _resources() -> list[Object]:
    """Its CustomResourceDefinitions, of the module that the program was built of."""
    go = shutil.which("go", path=go_tools.SEARCH_PATH)
    assert go is not None, "the program was built by it"
    command = [go, "mod", "download", "-json", MODULE]
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    folder = HERE / "cert-manager" / "tools" / "certmanager"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    crds = Path(json.loads(done.stdout)["Dir"]) / "deploy" / "crds"
    return [yaml.safe_load((crds / f"cert-manager.io_{kind}.yaml").read_text()) for kind in _KINDS]


def _condition(found: Object, kind: str) -> str:
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
