"""A pod's JWT-SVID logs in to a real API server, by its structured authentication, and RBAC holds it to its rights."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from svid import oidc
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, key_to_pem
from svid.oidc import Issuer
from svid.spiffeid import SpiffeId, TrustDomain
from tests.go_tools import Progress
from tests.unit.signer.test_federation_endpoint import Web

from .alone import Alone, api_server
from .api import ApiError, KubeApi, Object
from .waiting import wait_for

pytestmark = pytest.mark.timeout(600)
OWN = TrustDomain("example.org")
WEB, STRANGER = (SpiffeId(OWN, f"/ns/default/sa/{name}") for name in ("web", "stranger"))
AUDIENCE = "kubernetes"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PODS = "/api/v1/namespaces/default/pods"


class Published:
    """The documents of an issuer, over HTTPS on the loopback, as verifiers read them."""

    def __init__(self, *keys: JwtSigningKey) -> None:
        self.keys = keys
        self.port = 0
        self.web = Web()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split(b" ")[1].decode()
        bundle = TrustBundle(OWN, (), tuple(each.public for each in self.keys))
        issuer = Issuer.of(self.url, None)
        body = oidc.keys(bundle) if path == issuer.keys_path else oidc.configuration(bundle, issuer)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Cache-Control: max-age=0\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    @contextmanager
    def served(self, folder: Path) -> Iterator[None]:
        """While this is entered, by a thread of its own: what asks is another process, and waits."""
        ready, ended = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()
        key = KeyAlgorithm.EC_P256.generate()
        file = folder / "published.pem"
        file.write_bytes(key_to_pem(key) + to_pem([self.web.sign(x509.Name([]), key, x509.DNSName("localhost"))]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)

        async def serve() -> None:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=context)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await ended.wait()
            server.close()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        assert ready.wait(30)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join()
            loop.close()

    def token(
        self, key: JwtSigningKey, of: SpiffeId = WEB, audience: str = AUDIENCE, life: float = 300, issuer: str = ""
    ) -> str:
        now = datetime.now(UTC) - timedelta(seconds=max(0.0, 60 - life))
        ttl = timedelta(seconds=max(life, 10))
        return key.issue(of, [audience], ttl=ttl, now=now, issuer=issuer or self.url).token


@pytest.fixture
def alone(built: None, tmp_path: Path, progress: Progress) -> Iterator[Alone]:
    with api_server(tmp_path, progress) as found:
        yield found


def configuration(published: Published) -> Object:
    """As docs/login.md has it."""
    return {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [
            {
                "issuer": {
                    "url": published.url,
                    "certificateAuthority": to_pem([published.web.root]).decode(),
                    "audiences": [AUDIENCE],
                },
                "claimValidationRules": [
                    {
                        "expression": f"claims.sub.startsWith('spiffe://{OWN}/')",
                        "message": "not of this trust domain",
                    }
                ],
                "claimMappings": {"username": {"claim": "sub", "prefix": ""}},
                "userValidationRules": [
                    {"expression": "!user.username.startsWith('system:')", "message": "reserved"},
                ],
            }
        ],
    }


def status(api: KubeApi, path: str = PODS) -> int:
    """With which the API server answers to a list."""
    try:
        api.get(path)
    except ApiError as error:
        return error.status
    return 200


def test_a_jwt_svid_logs_in_and_a_withdrawn_key_goes_with_the_first_token_of_another(
    alone: Alone, tmp_path: Path
) -> None:
    first, second, third, foreign = (JwtSigningKey.create(JwtAlgorithm.ES256) for _ in range(4))
    published = Published(first)
    with published.served(tmp_path):
        file = tmp_path / "authentication.yaml"
        file.write_text(yaml.safe_dump(configuration(published)))
        alone.restart(f"--authentication-config={file}")
        alone.api.create(
            f"{RBAC}/clusterroles",
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "reads-pods"},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
            },
        )
        alone.api.create(
            f"{RBAC}/clusterrolebindings",
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "reads-pods"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads-pods"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": str(WEB)}],
            },
        )

        def by(token: str) -> KubeApi:
            return alone.api.as_token(token)

        wait_for("the login", lambda: status(by(published.token(first))) == 200, progress=alone.progress)
        # RBAC holds: another identity, and another right of this one.
        assert status(by(published.token(first, STRANGER))) == 403
        assert status(by(published.token(first)), "/api/v1/namespaces/default/secrets") == 403
        for refused in (
            published.token(first, audience="other"),
            published.token(first, life=-30),
            published.token(foreign),
            published.token(first, issuer="https://localhost:1"),
            published.token(first, SpiffeId(TrustDomain("other.test"), "/system")),
        ):
            assert status(by(refused)) == 401
        # An ordinary rotation: the next key is published, signs, and the one before goes when its tokens have ended.
        for keys, signs in (((first, second), first), ((first, second), second), ((second,), second)):
            published.keys = keys
            for _ in range(5):
                assert status(by(published.token(signs))) == 200
        # A theft: what was withdrawn is accepted until a token names a key that is not known yet.
        old = published.token(second)
        published.keys = (third,)
        assert status(by(old)) == 200
        assert status(by(published.token(third))) == 200
        # A token that it has just accepted it accepts for ten seconds without looking.
        wait_for("the refusal of what was withdrawn", lambda: status(by(old)) == 401, progress=alone.progress)
