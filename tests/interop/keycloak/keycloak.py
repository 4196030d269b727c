"""A real Keycloak on the loopback, with a realm for pods, and the calls that an operator and a pod make to it."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port

START_SECONDS = 900.0
STOP_SECONDS = 60.0
ADMIN, REALM = "admin", "apps"
JWT_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"


class KeycloakError(Exception):
    """Keycloak refused a call; the text is what it said."""


@dataclass(frozen=True)
class Keycloak:
    """A server that answers at `address`."""

    address: str

    @property
    def realm(self) -> str:
        """The URL of the realm, which is the audience that its clients' tokens have to have."""
        return f"{self.address}/realms/{REALM}"

    def realm_of(self, trust_domain: str, bundle_endpoint: str) -> None:
        """Make the realm, which takes pods of that trust domain. Raises KeycloakError."""
        self._admin("", {"realm": REALM, "enabled": True, "sslRequired": "NONE"})
        config = {"issuer": f"spiffe://{trust_domain}", "bundleEndpoint": bundle_endpoint}
        provider = {"alias": "podsvid", "providerId": "spiffe", "enabled": True, "config": config}
        self._admin(f"/{REALM}/identity-provider/instances", provider)

    def client(self, name: str, spiffe_id: str) -> None:
        """A client that is a pod. Raises KeycloakError."""
        body = {
            "clientId": name,
            "enabled": True,
            "serviceAccountsEnabled": True,
            "publicClient": False,
            "clientAuthenticatorType": "federated-jwt",
            "attributes": {"jwt.credential.issuer": "podsvid", "jwt.credential.sub": spiffe_id},
        }
        self._admin(f"/{REALM}/clients", body)

    def entered(self, token: str) -> str:
        """An access token for whoever bears that token. Raises KeycloakError."""
        form = {"grant_type": "client_credentials", "client_assertion_type": JWT_SPIFFE, "client_assertion": token}
        return str(
            self._call(f"{self.realm}/protocol/openid-connect/token", urllib.parse.urlencode(form).encode())[
                "access_token"
            ]
        )

    def _admin(self, path: str, body: Mapping[str, Any]) -> None:
        form = {"grant_type": "password", "client_id": "admin-cli", "username": ADMIN, "password": ADMIN}
        url = f"{self.address}/realms/master/protocol/openid-connect/token"
        token = self._call(url, urllib.parse.urlencode(form).encode())["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._call(f"{self.address}/admin/realms{path}", json.dumps(body).encode(), headers)

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            self._call(f"{self.address}/realms/master")
        except (OSError, KeycloakError):
            return False
        return True

    def _call(self, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(url, data, dict(headers or {}))
        try:
            # A proxy of the environment has no business with the loopback.
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            raise KeycloakError(f"{error.code}: {error.read().decode()}") from None


@contextmanager
def server(program: Path, folder: Path, trusted: Path) -> Iterator[Keycloak]:
    """One that trusts those CAs, until left. It writes where it is installed, so it is a copy."""
    home = folder / "keycloak"
    shutil.copytree(program.parents[1], home)
    found = Keycloak(f"http://127.0.0.1:{free_port()}")
    command = [
        str(home / "bin" / program.name),
        "start-dev",
        "--features=spiffe,client-auth-federated",
        "--cache=local",
    ]
    command += [
        f"--http-port={found.address.rpartition(':')[2]}",
        "--http-host=127.0.0.1",
        f"--truststore-paths={trusted}",
    ]
    log = folder / "keycloak.log"
    environment = {**os.environ, "KC_BOOTSTRAP_ADMIN_USERNAME": ADMIN, "KC_BOOTSTRAP_ADMIN_PASSWORD": ADMIN}
    with log.open("wb") as sink:
        # Its script starts others: they are ended together.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, start_new_session=True
        )
    try:
        until = time.monotonic() + START_SECONDS
        while not found.answers():
            if process.poll() is not None or time.monotonic() > until:
                raise KeycloakError(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield found
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
            return
