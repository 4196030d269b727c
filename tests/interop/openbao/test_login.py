"""A pod's JWT-SVID logs in to OpenBao, which finds the keys by OpenID Connect's discovery or in the trust bundle."""

import asyncio
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import SpiffeId
from tests.interop.openbao.bao import Bao, BaoError, server
from tests.interop.rig import cluster, podsvid, ran
from tests.ports import free_port
from tests.public_rig import web_pair, write_pair

AUDIENCE = "openbao"
WEB = "spiffe://example.org/ns/default/sa/account-0"
# How it finds the keys, and its mount's name.
BY_DISCOVERY, BY_BUNDLE = "discovery", "bundle"


@pytest.fixture(scope="module")
def bao(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with server(programs["bao"], tmp_path_factory.mktemp("bao")) as found:
        yield found


@dataclass(frozen=True)
class Operator:
    """A person with OpenBao's own command."""

    program: Path
    bao: Bao
    home: Path

    def does(self, *line: str, body: Mapping[str, Any] | None = None) -> str:
        """What it printed."""
        # Root's token of the server in dev mode.
        environment = {"BAO_ADDR": self.bao.address, "BAO_TOKEN": "root", "HOME": str(self.home)}
        given = None if body is None else json.dumps(body).encode()
        done = subprocess.run(
            [str(self.program), *line], input=given, capture_output=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def mounts(self, name: str, *config: str) -> None:
        """As docs/login.md has it."""
        self.does("auth", "enable", f"-path={name}", "jwt")
        self.does("write", f"auth/{name}/config", *config)
        role = {
            "role_type": "jwt",
            "bound_audiences": [AUDIENCE],
            "user_claim": "sub",
            "bound_claims_type": "glob",
            "bound_claims": {"sub": "spiffe://example.org/ns/default/sa/*"},
            "claim_mappings": {"sub": "spiffe_id"},
            "token_policies": ["default"],
            "token_ttl": "15m",
        }
        self.does("write", f"auth/{name}/role/web", "-", body=role)


def entered(bao: Bao, name: str, token: str) -> str:
    """Whom OpenBao takes the bearer for. Raises BaoError where it refuses."""
    found = json.loads(bao.raw(f"auth/{name}/login", {"role": "web", "jwt": token}))
    assert found["auth"]["client_token"]
    return str(found["auth"]["metadata"]["spiffe_id"])


def refused(bao: Bao, name: str, token: str) -> str:
    with pytest.raises(BaoError) as caught:
        entered(bao, name, token)
    return str(caught.value)


def test_a_pod_logs_in_by_discovery_and_by_bundle_through_a_rotation_and_a_theft(
    bao: Bao, programs: Mapping[str, Path], tmp_path: Path
) -> None:
    oidc, bundle = free_port(), free_port()
    issuer = f"https://localhost:{oidc}"
    chain, key = write_pair(web_pair(datetime.now(UTC), host="localhost"), tmp_path)
    flags = (
        *("--jwt-issuer", issuer, "--jwt-algorithm", "ES256", "--oidc-listen", f"127.0.0.1:{oidc}"),
        *("--oidc-cert-file", str(chain), "--oidc-key-file", str(key)),
        *("--bundle-listen", f"127.0.0.1:{bundle}", "--bundle-profile", "https_web"),
        *("--bundle-cert-file", str(chain), "--bundle-key-file", str(key)),
    )

    async def run() -> None:
        async with cluster(*flags, pods=1) as here:
            socket = here.host.short(await here.publish(0)) / "socket"
            operator = Operator(programs["bao"], bao, tmp_path)
            operator.mounts(BY_DISCOVERY, f"oidc_discovery_url={issuer}", f"oidc_discovery_ca_pem=@{chain}")
            operator.mounts(BY_BUNDLE, f"jwks_url=https://localhost:{bundle}/", f"jwks_ca_pem=@{chain}")
            asked = 0

            async def token(audience: str = AUDIENCE) -> str:
                # Of another audience each time: the agent keeps what it has minted.
                nonlocal asked
                asked += 1
                line = ("--socket", f"unix://{socket}", "--audience", audience, "--audience", f"x{asked}", "-o", "json")
                told = json.loads(await ran(*podsvid("api", "fetch", "jwt", *line)))
                return str(told["svids"][0]["token"])

            async def step(*line: str) -> None:
                await here.authority(*line, "--kind", "jwt")

            async def keys() -> list[str]:
                told = json.loads(await here.authority("show", "--output", "json"))
                return [each["id"] for each in told["authorities"] if each["kind"] == "KIND_JWT"]

            first, (before,) = await token(), await keys()
            for name in (BY_DISCOVERY, BY_BUNDLE):
                assert entered(bao, name, first) == WEB
                assert "aud" in refused(bao, name, await token("other"))
            # As the agent keeps it in a volume: the token, and no line's end.
            (tmp_path / "openbao.jwt").write_text(first)
            line = ("-format=json", f"auth/{BY_DISCOVERY}/login", "role=web", f"jwt=@{tmp_path / 'openbao.jwt'}")
            by_command = json.loads(operator.does("write", *line))
            assert by_command["auth"]["metadata"]["spiffe_id"] == WEB
            failed: list[str] = []
            done = 0

            async def traffic() -> None:
                nonlocal done
                while True:
                    fresh = await token()
                    for name in (BY_DISCOVERY, BY_BUNDLE):
                        try:
                            await asyncio.to_thread(entered, bao, name, fresh)
                            done += 1
                        except BaoError as error:
                            failed.append(f"{name}: {error}")

            logging_in = asyncio.create_task(traffic())
            try:
                await step("prepare")
                await step("activate", "--forced")
                async with asyncio.timeout(60):
                    seen = done
                    while done < seen + 4 and not failed:
                        await asyncio.sleep(0.05)
                # What was minted before is good still, and is so until its key is withdrawn.
                for name in (BY_DISCOVERY, BY_BUNDLE):
                    assert entered(bao, name, first) == WEB
                await step("revoke", before, "--forced")
                async with asyncio.timeout(60):
                    seen = done
                    while done < seen + 4 and not failed:
                        await asyncio.sleep(0.05)
            finally:
                logging_in.cancel()
                with suppress(asyncio.CancelledError):
                    await logging_in
            assert failed == []
            # What it keeps of keys it believes, until a token names one that it does not know, whoever made that.
            stranger = JwtSigningKey.create(JwtAlgorithm.ES256).issue(
                SpiffeId.parse(WEB), [AUDIENCE], ttl=timedelta(minutes=5), now=datetime.now(UTC), issuer=issuer
            )
            for name in (BY_DISCOVERY, BY_BUNDLE):
                assert entered(bao, name, first) == WEB
                assert "signature" in refused(bao, name, stranger.token)
                assert "signature" in refused(bao, name, first)
                assert entered(bao, name, await token()) == WEB

    asyncio.run(run())
