"""A real OpenBao on the loopback, in memory, and the few calls that an operator of a PKI makes to it."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem
from tests.ports import free_port
from tests.processes import end

_TOKEN = "root"
START_SECONDS = 60.0


class BaoError(Exception):
    """OpenBao refused a call; the text is what it said."""


@dataclass(frozen=True)
class Bao:
    """A server that answers at `address`."""

    address: str
    # Says the key that a sealed one is opened with again.
    log: Path

    def unseal(self) -> None:
        """Open a sealed one again. Raises BaoError."""
        found = re.search(r"Unseal Key: (\S+)", self.log.read_text())
        if found is None:
            raise BaoError("the server did not say its unseal key")
        self.call("sys/unseal", {"key": found.group(1)})

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST of `body`; the answer's `data`. Raises BaoError."""
        found: dict[str, Any] = json.loads(self.raw(path, body) or b"{}").get("data") or {}
        return found

    def delete(self, path: str) -> None:
        """DELETE it. Raises BaoError."""
        self.raw(path, method="DELETE")

    def raw(self, path: str, body: Mapping[str, Any] | None = None, method: str | None = None) -> bytes:
        """As `call`, the answer as it came. Raises BaoError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/v1/{path}", data, {"X-Vault-Token": _TOKEN}, method=method)
        try:
            # A proxy of the environment has no business with the loopback.
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise BaoError(f"{error.code}: {error.read().decode()}") from None

    def pki(self, mount: str, **root: Any) -> str:
        """A PKI engine with a root of its own; the root in PEM. Raises BaoError."""
        self.call(f"sys/mounts/{mount}", {"type": "pki", "config": {"max_lease_ttl": "87600h"}})
        body = {"common_name": f"{mount} root", "key_type": "ec", "key_bits": 256, "ttl": "8760h", **root}
        return str(self.call(f"{mount}/root/generate/internal", body)["certificate"])


@dataclass(frozen=True)
class Files:
    """What `--authority file` and the signer's `--upstream` are given."""

    certificate: Path
    key: Path
    bundle: Path

    @property
    def agent(self) -> tuple[str, ...]:
        """The agent's flags."""
        files = ("--ca-cert-file", str(self.certificate), "--ca-key-file", str(self.key))
        return ("--authority", "file", *files, "--ca-bundle-file", str(self.bundle))

    @property
    def signer(self) -> tuple[str, ...]:
        """The signer's flags."""
        files = ("--upstream-cert-file", str(self.certificate), "--upstream-key-file", str(self.key))
        return (*files, "--upstream-bundle-file", str(self.bundle))


def written(folder: Path, chain: str, key: str, roots: str) -> Files:
    """These, in files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder / "ca.crt", folder / "ca.key", folder / "roots.crt")
    for path, content in ((files.certificate, chain), (files.key, key), (files.bundle, roots)):
        path.write_text(content if content.endswith("\n") else content + "\n")
    return files


def request(key: PrivateKey, *uris: str) -> str:
    """A certificate request in PEM, as a person makes it for a CA: a name, and a URI for the trust domain."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podsvid")])
    builder = x509.CertificateSigningRequestBuilder(name)
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    found = builder.sign(key, hashes.SHA256())
    return found.public_bytes(serialization.Encoding.PEM).decode()


def intermediate(bao: Bao, mount: str, *uris: str, **wishes: Any) -> tuple[str, str]:
    """A CA of podsvid that the engine signed, and its key; PEM. Raises BaoError."""
    key = KeyAlgorithm.EC_P256.generate()
    body = {"csr": request(key, *uris), "use_csr_values": True, "ttl": "720h", **wishes}
    found = bao.call(f"{mount}/root/sign-intermediate", body)
    return str(found["certificate"]), key_to_pem(key).decode()


@contextmanager
def server(program: Path, folder: Path) -> Iterator[Bao]:
    """An OpenBao in dev mode, until left."""
    port = free_port()
    command = [str(program), "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={_TOKEN}"]
    command.append(f"-dev-listen-address=127.0.0.1:{port}")
    log = folder / "bao.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={**os.environ, "HOME": str(folder)}
        )
    try:
        bao = Bao(f"http://127.0.0.1:{port}", log)
        until = time.monotonic() + START_SECONDS
        # It says its unseal key once its log has rested for half a second, which it does not while tests go on.
        while not (_answers(bao) and "Unseal Key: " in log.read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise BaoError(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield bao
    finally:
        end(process)


def _answers(bao: Bao) -> bool:
    try:
        bao.raw("sys/health")
    except (OSError, BaoError):
        return False
    return True
