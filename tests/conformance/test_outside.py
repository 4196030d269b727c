"""Those who belong to no trust domain here, as others wrote them: go-spiffe's federation client and handler, go-oidc 2
and 3, PyJWT and joserfc."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from joserfc import jwt as jose
from joserfc.jwk import KeySet

from runtime.clock import SystemClock
from signer.federation import polling
from signer.federation.relation import COLLECTION
from svid.certificates import to_pem
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fake_authority import root
from tests.fake_kube import FakeKube
from tests.interop.rig import cluster, podsvid, ran
from tests.ports import free_port
from tests.public_rig import fetch, trusting, web_pair, write_pair
from tests.signer_rig import Serving, Site, serving
from tests.support import DEADLINE, IS_ROOT
from tests.unit.signer.test_federation_endpoint import Web, svid

SIGNER, THEIRS = "spiffe://example.org/podsvid/signer", TrustDomain("partner.test")
THEIR_SERVER = SpiffeId(THEIRS, "/bundles")
AUDIENCE = "cloud"


class Peer:
    """The Go program, while it runs: lines go in, and JSON objects come out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            line = await self._process.stdout.readline()
            if not line:
                assert self._process.stderr is not None
                raise AssertionError((await self._process.stderr.read()).decode()[-4000:])
        found: dict[str, Any] = json.loads(line)
        return found

    async def asked(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()
        return await self.says()


@asynccontextmanager
async def outsider(go_tools: Mapping[str, Path], *arguments: object) -> AsyncIterator[Peer]:
    pipe = asyncio.subprocess.PIPE
    command = [str(go_tools["outsider"]), *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield Peer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(DEADLINE):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def once(go_tools: Mapping[str, Path], *arguments: object) -> dict[str, Any]:
    async with outsider(go_tools, *arguments) as peer:
        return await peer.says()


async def until(look: Callable[[], Any]) -> Any:
    """What is looked at, once it is anything."""
    async with asyncio.timeout(DEADLINE):
        while not (found := look()):
            await asyncio.sleep(0.05)
        return found


def web_files(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    return write_pair(web_pair(datetime.now(UTC), host="localhost"), folder)


@asynccontextmanager
async def replica(folder: Path, *flags: str) -> AsyncIterator[Serving]:
    """One that goes by the clock that its peers have, in this process."""
    async with serving(Site(datetime.now(UTC).replace(microsecond=0)), folder, SystemClock(), *flags) as found:
        yield found


def published(here: Serving) -> dict[str, Any]:
    """What go-spiffe has to make of the bundle."""
    state = here.replica._rotation.state
    assert state is not None
    return {
        "sequence": str(state.sequence),
        "hint": 120,
        "x509": len(state.bundle.x509_authorities),
        "jwt": sorted(each.key_id for each in state.bundle.jwt_authorities),
    }


async def served(here: Serving, port: int) -> None:
    """Wait until that listener shows what the replica has now."""
    state = here.replica._rotation.state
    assert state is not None
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                got = await asyncio.to_thread(fetch, ("127.0.0.1", port), context=trusting())
                if got.status == 200 and json.loads(got.body)["spiffe_sequence"] == state.sequence:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)


@pytest.mark.spec("FED-10", "FED-24", "FED-25", "FED-26", "FED-27", "C-115")
def test_go_spiffe_fetches_the_bundle_by_https_web(go_tools: Mapping[str, Path], tmp_path: Path) -> None:
    async def run() -> None:
        port = free_port()
        chain, key = web_files(tmp_path / "web")
        flags = ("--bundle-profile", "https_web", "--bundle-cert-file", str(chain), "--bundle-key-file", str(key))
        async with replica(tmp_path, "--bundle-listen", f"127.0.0.1:{port}", "--bundle-hint", "2m", *flags) as here:
            await served(here, port)
            asked = ("fetch-web", f"https://localhost:{port}/", chain, "example.org")
            first = await once(go_tools, *asked)
            assert first == published(here)
            await here.replica._rotation.step("prepare", "x509", "", forced=False)
            await served(here, port)
            second = await once(go_tools, *asked)
            assert second == published(here)
            assert (second["x509"], int(second["sequence"]) > int(first["sequence"])) == (2, True)
            stranger, _ = web_files(tmp_path / "stranger")
            assert "certificate" in (await once(go_tools, *asked[:2], stranger, asked[3]))["refused"]

    asyncio.run(run())


@pytest.mark.spec("FED-1", "FED-40", "FED-44", "FED-45", "FED-46", "C-115")
def test_go_spiffe_fetches_the_bundle_by_https_spiffe_and_goes_on_by_what_it_fetched(
    go_tools: Mapping[str, Path], tmp_path: Path
) -> None:
    async def run() -> None:
        port = free_port()
        async with replica(tmp_path, "--bundle-listen", f"127.0.0.1:{port}", "--bundle-hint", "2m") as here:
            await served(here, port)
            rotation, known = here.replica._rotation, here.bundle_file

            async def fetched(endpoint: str = SIGNER, by: Path = known) -> dict[str, Any]:
                return await once(go_tools, "fetch-spiffe", f"https://127.0.0.1:{port}/", endpoint, by, "example.org")

            assert await fetched() == published(here)
            assert "unexpected ID" in (await fetched("spiffe://example.org/podsvid/other"))["refused"]
            (tmp_path / "stranger.json").write_bytes(
                root(datetime.now(UTC), TrustDomain("example.org")).bundle.to_jwks()
            )
            assert "refused" in await fetched(by=tmp_path / "stranger.json")
            # The next one is in what is fetched before it signs, and then proves the endpoint.
            await rotation.step("prepare", "x509", "", forced=True)
            await served(here, port)
            latest = published(here)
            assert (await fetched(), latest["x509"]) == (latest, 2)
            assert rotation.state is not None
            known.write_bytes(rotation.state.bundle.to_jwks())
            before = rotation.state.active_x509_id
            await rotation.step("activate", "x509", "", forced=True)
            await rotation.step("revoke", "x509", before, forced=True)
            await served(here, port)

            async def alone() -> bool:
                return await fetched() == published(here)

            async with asyncio.timeout(DEADLINE):
                while not await alone():
                    await asyncio.sleep(0.1)
            assert published(here)["x509"] == 1

    asyncio.run(run())


class Handler:
    """What go-spiffe's handler publishes as `partner.test`, and the relation to it, by either profile."""

    def __init__(self, folder: Path) -> None:
        self._authority = root(datetime.now(UTC), THEIRS)
        self._key = JwtSigningKey.create(JwtAlgorithm.ES256).public
        self._web = Web()
        self._folder = folder
        self.file = folder / "theirs.json"

    def publish(self, sequence: int) -> None:
        bundle = replace(
            self._authority.bundle,
            jwt_authorities=(self._key,),
            sequence=sequence,
            refresh_hint=timedelta(minutes=1),
        )
        new = self.file.with_suffix(".new")
        new.write_bytes(bundle.to_jwks())
        new.rename(self.file)

    def command(self, profile: str) -> tuple[object, ...]:
        if profile == "https_web":
            key = KeyAlgorithm.EC_P256.generate()
            chain: tuple[x509.Certificate, ...] = (self._web.sign(x509.Name([]), key, x509.DNSName("localhost")),)
        else:
            chain, key = svid(self._authority, THEIR_SERVER)
        files = self._folder / "server.crt", self._folder / "server.key"
        files[0].write_bytes(to_pem(chain))
        files[1].write_bytes(key_to_pem(key))
        return ("serve-web" if profile == "https_web" else "serve-spiffe", *files, self.file, THEIRS.name)

    def spec(self, profile: str, port: int) -> dict[str, Any]:
        by: dict[str, Any] = {"type": profile}
        found = {"trustDomain": THEIRS.name, "bundleEndpointURL": f"https://localhost:{port}/"}
        if profile == "https_web":
            return {**found, "bundleEndpointProfile": by, "caBundle": to_pem([self._web.root]).decode()}
        by["endpointSPIFFEID"] = str(THEIR_SERVER)
        first = self._authority.bundle.to_jwks().decode()
        return {**found, "bundleEndpointProfile": by, "trustDomainBundle": first}


@dataclass
class Followed:
    """An object of a replica's API server, which is looked at anew with each generation of it."""

    kube: FakeKube
    spec: dict[str, Any]
    generation: int = 0
    path: str = f"{COLLECTION}/partner"

    def ask(self) -> None:
        self.generation += 1
        old = self.kube.objects.get(self.path, {})
        metadata = {**old.get("metadata", {}), "name": "partner", "generation": self.generation}
        metadata.pop("resourceVersion", None)
        self.kube.put(self.path, {**old, "metadata": metadata, "spec": self.spec})

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.objects[self.path].get("status", {})
        return found if found.get("observedGeneration") == self.generation else {}

    def condition(self, kind: str) -> tuple[str, str]:
        found = [each for each in self.status.get("conditions", []) if each["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")


@pytest.mark.spec("FED-6", "FED-9", "FED-17", "FED-29", "FED-41", "FED-42", "FED-48")
@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
def test_a_replica_follows_go_spiffes_handler(
    go_tools: Mapping[str, Path], tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A status is written as soon as there is one.
    monkeypatch.setattr(polling, "WAKE_SECONDS", 0.1)

    async def run() -> None:
        theirs = Handler(tmp_path)
        theirs.publish(5)
        async with outsider(go_tools, *theirs.command(profile)) as handler, replica(tmp_path) as here:
            found = Followed(here.site.kube, theirs.spec(profile, (await handler.says())["port"]))
            found.ask()
            await until(lambda: found.condition("Ready") == ("True", "InForce"))
            await until(lambda: found.status.get("sequence") == 5)
            theirs.publish(7)
            found.ask()
            await until(lambda: found.status.get("sequence") == 7)
            theirs.publish(6)
            found.ask()
            await until(lambda: found.condition("Fetched") == ("True", "Older"))
            assert found.status["sequence"] == 7
            # The handler answers 500.
            theirs.file.write_text("{")
            found.ask()
            await until(lambda: found.condition("Fetched") == ("False", "Failed"))
            assert found.condition("Ready") == ("True", "InForce")

    asyncio.run(run())


@pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
def test_libraries_of_openid_connect_verify_a_pods_token_by_the_signers_own_listener(
    go_tools: Mapping[str, Path], tmp_path: Path
) -> None:
    port = free_port()
    issuer = f"https://localhost:{port}"
    chain, key = web_files(tmp_path / "web")
    files = ("--oidc-cert-file", str(chain), "--oidc-key-file", str(key))
    flags = ("--oidc-listen", f"127.0.0.1:{port}", "--jwt-issuer", issuer, *files)

    def by_python(token: str, audience: str = AUDIENCE) -> None:
        """Raises where either library refuses."""
        context = ssl.create_default_context(cafile=chain)
        got = fetch(("127.0.0.1", port), "/.well-known/openid-configuration", context=trusting())
        document = json.loads(got.body)
        client = jwt.PyJWKClient(document["jwks_uri"], ssl_context=context)
        algorithms = document["id_token_signing_alg_values_supported"]
        found = jwt.decode(token, client.get_signing_key_from_jwt(token), algorithms, audience=audience, issuer=issuer)
        keys = KeySet.import_key_set(client.fetch_data())
        same = jose.decode(token, keys, algorithms=algorithms).claims
        jose.JWTClaimsRegistry(
            iss={"essential": True, "value": issuer}, aud={"essential": True, "value": audience}
        ).validate(same)
        assert found["sub"] == same["sub"]

    async def run() -> None:
        async with cluster(*flags, pods=1) as here:
            socket = here.host.short(await here.publish(0)) / "socket"
            subject = "spiffe://example.org/ns/default/sa/account-0"

            async def token(*audiences: str) -> str:
                named = [f"--audience={each}" for each in audiences]
                line = ("--socket", f"unix://{socket}", *named, "-o", "json")
                told = json.loads(await ran(*podsvid("api", "fetch", "jwt", *line)))
                return str(told["svids"][0]["token"])

            async def keys() -> list[dict[str, Any]]:
                told = json.loads(await here.authority("show", "--output", "json"))
                return [each for each in told["authorities"] if each["kind"] == "KIND_JWT"]

            verifier = ("oidc", issuer, chain, AUDIENCE)
            async with outsider(go_tools, *verifier) as old:
                assert (await old.says())["ready"]
                first = await token(AUDIENCE)
                assert await old.asked(first) == {"2": subject, "3": subject}
                await asyncio.to_thread(by_python, first)
                other = await token("other")
                assert {each[:7] for each in (await old.asked(other)).values()} == {"refused"}
                with pytest.raises(jwt.InvalidAudienceError):
                    await asyncio.to_thread(by_python, other)
                (before,) = await keys()
                foreign = JwtSigningKey.create(JwtAlgorithm.ES256)
                forged = foreign.issue(
                    SpiffeId.parse(subject), [AUDIENCE], ttl=timedelta(minutes=5), now=datetime.now(UTC), issuer=issuer
                ).token
                assert {each[:7] for each in (await old.asked(forged)).values()} == {"refused"}
                # The next key signs. One library looks again at once, the other when what it keeps is a minute old.
                await here.authority("prepare", "--kind", "jwt")
                await here.authority("activate", "--kind", "jwt", "--forced")
                # Of other audiences: the agent has no such token yet.
                second = await token(AUDIENCE, "other")
                assert jwt.get_unverified_header(second)["kid"] != jwt.get_unverified_header(first)["kid"]
                async with outsider(go_tools, *verifier) as new:
                    assert (await new.says())["ready"]
                    assert await new.asked(second) == {"2": subject, "3": subject}
                    assert await new.asked(first) == {"2": subject, "3": subject}
                await here.authority("revoke", "--kind", "jwt", before["id"], "--forced")
                async with outsider(go_tools, *verifier) as new:
                    assert (await new.says())["ready"]
                    assert await new.asked(second) == {"2": subject, "3": subject}
                    assert {each[:7] for each in (await new.asked(first)).values()} == {"refused"}
                await asyncio.to_thread(by_python, second)
                with pytest.raises(jwt.PyJWKClientError):
                    await asyncio.to_thread(by_python, first)
                # What it has kept it believes, until a key that it does not know has it look.
                assert (await old.asked(first))["3"] == subject
                assert (await old.asked(second))["3"] == subject
                assert (await old.asked(first))["3"].startswith("refused")

    asyncio.run(run())
