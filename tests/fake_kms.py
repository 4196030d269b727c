"""Clouds' KMS on the loopback, with keys that are real: AWS' by JSON over HTTP, Google's by gRPC."""

import base64
import json
import re
import socket
import socketserver
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

from signer.clouds import google
from signer.clouds.child import LIBRARIES, Answers, Libraries
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem

ACCOUNT = "arn:aws:kms:eu-west-1:111122223333"
RING = "projects/org-pki/locations/europe-west1/keyRings/podsvid"
KEY_ID, SESSION = "AKIAEXAMPLE", "session-token-0123456789"
SPECS = {
    "ECC_NIST_P256": KeyAlgorithm.EC_P256,
    "ECC_NIST_P384": KeyAlgorithm.EC_P384,
    "RSA_2048": KeyAlgorithm.RSA_2048,
}
GOOGLE = {
    "EC_SIGN_P256_SHA256": KeyAlgorithm.EC_P256,
    "EC_SIGN_P384_SHA384": KeyAlgorithm.EC_P384,
    "RSA_SIGN_PKCS1_2048_SHA256": KeyAlgorithm.RSA_2048,
}


def signed(key: PrivateKey, digest: bytes) -> bytes:
    """As a KMS signs what is hashed: with PKCS #1 v1.5, or ECDSA in DER."""
    by = Prehashed({32: hashes.SHA256(), 48: hashes.SHA384()}[len(digest)])
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest, padding.PKCS1v15(), by)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(digest, ec.ECDSA(by))


class Wrong(Exception):
    """Raised where it answers with an error: the cloud's code."""

    def __init__(self, code: Any, words: str = "why\nnot", status: int = 400) -> None:
        super().__init__(words)
        self.code = code
        self.status = status


@dataclass
class Made:
    """A key. `state` is the cloud's word."""

    key: PrivateKey
    state: str
    about: dict[str, Any] = field(default_factory=dict)


class AwsKms:
    """As much of AWS KMS as podsvid asks for, with the errors that its API names."""

    page = 2

    def __init__(self) -> None:
        self.keys: dict[str, Made] = {}
        self.aliases: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.instead: Callable[[str, dict[str, Any]], Mapping[str, Any] | None] = lambda operation, body: None
        # Set: what it answers comes a byte at a time, until it is unset again.
        self.drips = threading.Event()
        self.ended = threading.Event()

    def put(self, key: PrivateKey, description: str = "") -> str:
        """A key that somebody made; its ARN."""
        arn = f"{ACCOUNT}:key/{uuid.uuid4()}"
        self.keys[arn] = Made(key, "Enabled", {"Description": description})
        return arn

    def answer(self, operation: str, body: dict[str, Any]) -> Mapping[str, Any]:
        self.asked.append((operation, body))
        found = self.instead(operation, body)
        return getattr(self, operation)(body) if found is None else found

    def _key(self, name: str) -> tuple[str, Made]:
        arn = self.aliases.get(name.removeprefix(f"{ACCOUNT}:"), name)
        if arn not in self.keys:
            raise Wrong("NotFoundException", f"Alias {name} is not found.")
        return arn, self.keys[arn]

    def _usable(self, name: str) -> Made:
        _, made = self._key(name)
        if made.state != "Enabled":
            code = "DisabledException" if made.state == "Disabled" else "KMSInvalidStateException"
            raise Wrong(code, f"{name} is {made.state}")
        return made

    def Sign(self, body: dict[str, Any]) -> Mapping[str, Any]:
        made = self._usable(body["KeyId"])
        digest = base64.b64decode(body["Message"])
        assert body["MessageType"] == "DIGEST"
        kind = "RSASSA_PKCS1_V1_5" if isinstance(made.key, rsa.RSAPrivateKey) else "ECDSA"
        if body["SigningAlgorithm"] != f"{kind}_SHA_{8 * len(digest)}":
            raise Wrong("InvalidKeyUsageException")
        return {"Signature": base64.b64encode(signed(made.key, digest)).decode()}

    def CreateKey(self, body: dict[str, Any]) -> Mapping[str, Any]:
        assert body["KeyUsage"] == "SIGN_VERIFY"
        assert body["Tags"] == [{"TagKey": "podsvid", "TagValue": "podsvid"}]
        arn = self.put(SPECS[body["KeySpec"]].generate(), body["Description"])
        return {"KeyMetadata": {"Arn": arn, "KeyId": arn.rpartition("/")[2], "CreationDate": 1700000000.5}}

    def CreateAlias(self, body: dict[str, Any]) -> Mapping[str, Any]:
        assert re.fullmatch(r"alias/[a-zA-Z0-9/_-]{1,250}", body["AliasName"])
        if body["AliasName"] in self.aliases:
            raise Wrong("AlreadyExistsException")
        self.aliases[body["AliasName"]], _ = self._key(body["TargetKeyId"])
        return {}

    def GetPublicKey(self, body: dict[str, Any]) -> Mapping[str, Any]:
        public = self._usable(body["KeyId"]).key.public_key()
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"PublicKey": base64.b64encode(der).decode()}

    def DescribeKey(self, body: dict[str, Any]) -> Mapping[str, Any]:
        arn, made = self._key(body["KeyId"])
        return {"KeyMetadata": {"Arn": arn, "KeyId": arn, "KeyState": made.state, **made.about}}

    def ScheduleKeyDeletion(self, body: dict[str, Any]) -> Mapping[str, Any]:
        _, made = self._key(body["KeyId"])
        assert 7 <= body["PendingWindowInDays"] <= 30
        if made.state == "PendingDeletion":
            raise Wrong("KMSInvalidStateException")
        made.state = "PendingDeletion"
        return {}

    def DeleteAlias(self, body: dict[str, Any]) -> Mapping[str, Any]:
        if self.aliases.pop(body["AliasName"], None) is None:
            raise Wrong("NotFoundException")
        return {}

    def ListAliases(self, body: dict[str, Any]) -> Mapping[str, Any]:
        names = ["alias/aws/s3", *sorted(self.aliases)]
        begin, most = int(body.get("Marker", "0")), min(body["Limit"], self.page)
        found = [{"AliasName": each, "AliasArn": f"{ACCOUNT}:{each}"} for each in names[begin : begin + most]]
        if begin + most >= len(names):
            return {"Aliases": found, "Truncated": False}
        return {"Aliases": found, "Truncated": True, "NextMarker": str(begin + most)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kms: AwsKms

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service, _, operation = self.headers["X-Amz-Target"].partition(".")
        assert service == "TrentService"
        assert self.headers["Content-Type"] == "application/x-amz-json-1.1"
        assert f"Credential={KEY_ID}/" in self.headers["Authorization"]
        assert "/eu-west-1/kms/aws4_request" in self.headers["Authorization"]
        try:
            status, answer = 200, dict(self.kms.answer(operation, body))
        except Wrong as error:
            status, answer = error.status, {"__type": error.code, "message": str(error)}
        data = json.dumps(answer).encode()
        self.send_response(status)
        if self.kms.drips.is_set():
            self._drip()
            return
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _drip(self) -> None:
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while not self.kms.ended.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def aws_kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsKms]:
    """Where boto3 is sent by its own variable, with credentials of the environment."""
    kms = AwsKms()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"kms": kms}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    for name, value in (("ACCESS_KEY_ID", KEY_ID), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", SESSION)):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        yield kms
    finally:
        kms.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class GoogleKms:
    """As much of Google Cloud KMS as podsvid asks for."""

    page = 2

    def __init__(self) -> None:
        self.keys: dict[str, Made] = {}
        self.asked: list[tuple[str, Any]] = []
        self.instead: Callable[[str, Any], Any] = lambda method, request: None
        self.address = ""
        # How often a new key is not made yet when it is looked at.
        self.takes = 0
        self.channels: list[grpc.Channel] = []

    def put(self, key: PrivateKey, called: str = "ca") -> str:
        """A key that somebody made; its version's name."""
        version = f"{RING}/cryptoKeys/{called}/cryptoKeyVersions/1"
        self.keys[version] = Made(key, "ENABLED")
        return version

    def connect(self) -> Any:
        self.channels.append(grpc.insecure_channel(self.address))
        transport = KeyManagementServiceGrpcTransport(channel=self.channels[-1])
        return kms_v1.KeyManagementServiceClient(transport=transport)

    def answer(self, method: str, request: Any) -> Any:
        self.asked.append((method, request))
        found = self.instead(method, request)
        return getattr(self, method)(request) if found is None else found

    def _made(self, name: str) -> Made:
        if name not in self.keys:
            raise Wrong(grpc.StatusCode.NOT_FOUND, f"{name} not found.")
        return self.keys[name]

    def _usable(self, name: str) -> Made:
        made = self._made(name)
        if made.state != "ENABLED":
            raise Wrong(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is not enabled, current state is: {made.state}.")
        return made

    def AsymmetricSign(self, request: Any) -> Any:
        made, digest = self._usable(request.name), request.digest.sha256 or request.digest.sha384
        if isinstance(made.key, ec.EllipticCurvePrivateKey) and made.key.key_size != 8 * len(digest):
            raise Wrong(grpc.StatusCode.INVALID_ARGUMENT, "wrong digest")
        return kms_v1.AsymmetricSignResponse(name=request.name, signature=signed(made.key, digest))

    def CreateCryptoKey(self, request: Any) -> Any:
        assert request.parent == RING
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,63}", request.crypto_key_id)
        assert all(re.fullmatch(r"[a-z0-9_-]{0,63}", each) for each in request.crypto_key.labels.values())
        assert request.crypto_key.purpose == kms_v1.CryptoKey.CryptoKeyPurpose.ASYMMETRIC_SIGN
        template = request.crypto_key.version_template
        version = f"{RING}/cryptoKeys/{request.crypto_key_id}/cryptoKeyVersions/1"
        if version in self.keys:
            raise Wrong(grpc.StatusCode.ALREADY_EXISTS)
        about = {"level": template.protection_level.name, "takes": self.takes}
        self.keys[version] = Made(GOOGLE[template.algorithm.name].generate(), "PENDING_GENERATION", about)
        return kms_v1.CryptoKey(name=version.partition("/cryptoKeyVersions/")[0])

    def GetCryptoKeyVersion(self, request: Any) -> Any:
        made = self._made(request.name)
        if made.state == "PENDING_GENERATION":
            made.about["takes"] -= 1
            if made.about["takes"] < 0:
                made.state = "ENABLED"
        return kms_v1.CryptoKeyVersion(name=request.name, state=made.state)

    def GetPublicKey(self, request: Any) -> Any:
        public = self._usable(request.name).key.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return kms_v1.PublicKey(name=request.name, pem=pem.decode())

    def DestroyCryptoKeyVersion(self, request: Any) -> Any:
        made = self._made(request.name)
        if made.state not in ("ENABLED", "DISABLED"):
            raise Wrong(grpc.StatusCode.FAILED_PRECONDITION)
        made.state = "DESTROY_SCHEDULED"
        return kms_v1.CryptoKeyVersion(name=request.name, state=made.state)

    def ListCryptoKeys(self, request: Any) -> Any:
        assert request.parent == RING
        names = [each.partition("/cryptoKeyVersions/")[0] for each in sorted(self.keys)]
        begin, most = int(request.page_token or "0"), min(request.page_size, self.page)
        more = str(begin + most) if begin + most < len(names) else ""
        found = [kms_v1.CryptoKey(name=each) for each in names[begin : begin + most]]
        return kms_v1.ListCryptoKeysResponse(crypto_keys=found, next_page_token=more)


@contextmanager
def google_kms(certified: grpc.ServerCredentials | None = None) -> Iterator[GoogleKms]:
    """On the loopback; with threads of its own. `certified`: by TLS."""
    kms = GoogleKms()

    def method(name: str, request: Any, response: Any) -> Any:
        def answer(asked: Any, context: grpc.ServicerContext) -> Any:
            try:
                return kms.answer(name, asked)
            except Wrong as error:
                context.abort(error.code, str(error))

        return grpc.unary_unary_rpc_method_handler(answer, request.deserialize, response.serialize)

    of = kms_v1
    handlers = {
        name: method(name, request, response)
        for name, request, response in (
            ("AsymmetricSign", of.AsymmetricSignRequest, of.AsymmetricSignResponse),
            ("CreateCryptoKey", of.CreateCryptoKeyRequest, of.CryptoKey),
            ("GetCryptoKeyVersion", of.GetCryptoKeyVersionRequest, of.CryptoKeyVersion),
            ("GetPublicKey", of.GetPublicKeyRequest, of.PublicKey),
            ("DestroyCryptoKeyVersion", of.DestroyCryptoKeyVersionRequest, of.CryptoKeyVersion),
            ("ListCryptoKeys", of.ListCryptoKeysRequest, of.ListCryptoKeysResponse),
        )
    }
    server = grpc.server(ThreadPoolExecutor(2))
    service = "google.cloud.kms.v1.KeyManagementService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    add = server.add_insecure_port if certified is None else partial(_secure_port, server, certified)
    kms.address = f"127.0.0.1:{add('127.0.0.1:0')}"
    server.start()
    try:
        yield kms
    finally:
        for channel in kms.channels:
            channel.close()
        server.stop(None).wait()


def _secure_port(server: grpc.Server, certified: grpc.ServerCredentials, address: str) -> int:
    return server.add_secure_port(address, certified)


@contextmanager
def google_at_its_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[GoogleKms]:
    """Where Google's library comes by itself: behind a proxy, by a certificate for the service's own name."""
    name = "cloudkms.googleapis.com"
    key = KeyAlgorithm.EC_P256.generate()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject, now = x509.Name.from_rfc4514_string(f"CN={name}"), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            subject, subject, key.public_key(), 7, now - timedelta(hours=1), now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    (folder / "roots.pem").write_bytes(pem)
    account = {
        "type": "service_account",
        "project_id": "org-pki",
        "private_key_id": "1",
        "private_key": key_to_pem(KeyAlgorithm.RSA_2048.generate()).decode(),
        "client_email": "podsvid@org-pki.iam.gserviceaccount.com",
        "token_uri": "https://127.0.0.1:9/token",
    }
    (folder / "account.json").write_text(json.dumps(account))
    with google_kms(grpc.ssl_server_credentials([(key_to_pem(key), pem)])) as kms, proxy(kms.address) as address:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "account.json"))
        monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(folder / "roots.pem"))
        monkeypatch.setenv("https_proxy", f"http://{address}")
        yield kms


@contextmanager
def proxy(to: str) -> Iterator[str]:
    """One that connects everybody there, wherever they want to; its address."""
    host, _, port = to.rpartition(":")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            with socket.create_connection((host, int(port))) as there:
                self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_carry, args=(there, self.connection), daemon=True)
                back.start()
                _carry(self.connection, there)
                back.join(10)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Inside:
    """Implements Child: what a process of `signer.clouds.child` does, done here."""

    def __init__(self, libraries: Libraries = LIBRARIES) -> None:
        self._answers = Answers(libraries)
        self.ended = False

    def ask(self, message: bytes, seconds: float) -> bytes:
        return self._answers.of(message)

    def end(self) -> None:
        self.ended = True


def by_google(connect: Callable[[], Any]) -> Libraries:
    """Google's library, with a client that knows where the stand-in is."""
    return {"google": lambda service, region: google.Google(service, region, connect)}
