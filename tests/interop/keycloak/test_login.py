"""A pod logs in to Keycloak by its JWT-SVID alone: Keycloak reads the bundle endpoint, as docs/login.md has it."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.spiffeid import SpiffeId
from tests.interop.keycloak.keycloak import Keycloak, KeycloakError, server
from tests.interop.rig import Cluster, cluster, podsvid, ran
from tests.ports import free_port
from tests.public_rig import web_pair, write_pair

# Beyond what it waits between two looks at a bundle.
PATIENCE = 120.0
pytestmark = pytest.mark.timeout(1200)


def account(number: int) -> SpiffeId:
    return SpiffeId.parse(f"spiffe://example.org/ns/default/sa/account-{number}")


async def token(here: Cluster, volume: Path, *audiences: str) -> str:
    named = [f"--audience={each}" for each in audiences]
    line = ("--socket", f"unix://{here.host.short(volume) / 'socket'}", *named, "-o", "json")
    told = json.loads(await ran(*podsvid("api", "fetch", "jwt", *line)))
    return str(told["svids"][0]["token"])


def refused(there: Keycloak, assertion: str) -> str:
    with pytest.raises(KeycloakError) as caught:
        there.entered(assertion)
    return str(caught.value)


def test_a_pod_logs_in_by_the_bundle_endpoint_through_a_rotation(programs: Mapping[str, Path], tmp_path: Path) -> None:
    port = free_port()
    chain, key = write_pair(web_pair(datetime.now(UTC), host="localhost"), tmp_path)
    flags = (
        *("--bundle-listen", f"127.0.0.1:{port}", "--bundle-profile", "https_web"),
        *("--bundle-cert-file", str(chain), "--bundle-key-file", str(key)),
    )

    async def run() -> None:
        async with cluster(*flags, pods=3) as here:
            with server(programs["kc"], tmp_path, chain) as there:
                there.realm_of("example.org", f"https://localhost:{port}/")
                for number in (0, 1):
                    there.client(f"pod-{number}", str(account(number)))
                volumes = [await here.publish(number) for number in range(3)]
                first = await token(here, volumes[0], there.realm)
                access = jwt.decode(there.entered(first), options={"verify_signature": False})
                assert access["azp"] == "pod-0"
                # Nobody's client, another audience, more than one, and a stranger's signature.
                assert "invalid_client" in refused(there, await token(here, volumes[2], there.realm))
                assert "Invalid token audience" in refused(there, await token(here, volumes[0], "other"))
                both = await token(here, volumes[0], there.realm, "other")
                assert "Multiple audiences not allowed" in refused(there, both)
                stranger = JwtSigningKey.create(JwtAlgorithm.RS256).issue(
                    account(0), [there.realm], ttl=timedelta(minutes=5), now=datetime.now(UTC)
                )
                assert "invalid_client" in refused(there, stranger.token)
                shown = json.loads(await here.authority("show", "--output", "json"))
                (before,) = [each["id"] for each in shown["authorities"] if each["kind"] == "KIND_JWT"]
                await here.authority("prepare", "--kind", "jwt")
                await here.authority("activate", "--kind", "jwt", "--forced")
                second = await token(here, volumes[1], there.realm)
                assert jwt.get_unverified_header(second)["kid"] != before
                # It has looked a moment ago, for the stranger's key, and does not look again at once.
                async with asyncio.timeout(PATIENCE):
                    while not await asyncio.to_thread(taken, there, second):
                        await asyncio.sleep(0.5)
                await here.authority("revoke", "--kind", "jwt", before, "--forced")
                assert there.entered(second)
                # As docs/login.md says: what it has kept it believes.
                assert there.entered(first)

    asyncio.run(run())


def taken(there: Keycloak, assertion: str) -> bool:
    try:
        return bool(there.entered(assertion))
    except KeycloakError:
        return False
