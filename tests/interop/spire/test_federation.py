"""A SPIRE server's trust domain and podsvid's, which know each other's bundles: mTLS and JWT across, and rotations."""

import asyncio
import json
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.interop.rig import LOOK_SECONDS, authorities, cluster, podsvid, ran, until
from tests.interop.spire.spire import OURS, PARTNER, STRANGER, STRANGER_GROUP, THEIRS, Spire, started
from tests.interop.spire.talk import REFUSED, Files, Peer, meet, talk
from tests.support import DEADLINE, VOLUME, Host, node, pod, serial

WEB = f"spiffe://{OURS}/ns/default/sa/web"


@asynccontextmanager
async def spire(programs: Mapping[str, Path]) -> AsyncIterator[Spire]:
    """Until left. Each test has its own: a bundle that one test sets must not help another."""
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as folder:
        async with started(programs, Path(folder)) as found:
            yield found


@asynccontextmanager
async def federated(theirs: Spire, ttl: str = "1h") -> AsyncIterator[tuple[Host, Path]]:
    """A pod's volume on a node that has SPIRE's bundle; SPIRE has podsvid's."""
    async with node("--federated-bundles", await taken(theirs), ttl=ttl) as (here, kubelet):
        target = await kubelet.publish(pod(), VOLUME)
        await theirs.trust(target / "bundle.json")
        yield here, target


async def taken(theirs: Spire) -> str:
    """The agent's setting for SPIRE's bundle, now in a file as SPIRE printed it."""
    file = theirs.folder / "theirs.json"
    new = theirs.folder / "theirs.new"
    new.write_bytes(await theirs.bundle())
    new.rename(file)
    return f"{THEIRS}={file}"


async def fetched(socket: Path | str, folder: Path) -> dict[str, Path]:
    """What `podsvid api fetch x509 --write` writes, by name."""
    folder.mkdir(exist_ok=True)
    await ran(*podsvid("api", "fetch", "x509", "--socket", f"unix://{socket}", "--write", str(folder)))
    return {path.name: path for path in folder.iterdir()}


async def minted(theirs: Spire, folder: Path) -> dict[str, Path]:
    """What `spire-server x509 mint -write` writes, and podsvid's bundle as that server has it, by name."""
    folder.mkdir(exist_ok=True)
    await theirs.server("x509", "mint", spiffeID=PARTNER, write=folder)
    (folder / "ours.pem").write_text(await theirs.server("bundle", "list", id=str(OURS.id), format="pem"))
    return {path.name: path for path in folder.iterdir()}


def test_mtls_in_both_directions_over_renewals(programs: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with spire(programs) as theirs, federated(theirs, ttl="6s") as (here, target):
            ours, partner = Peer(WEB, here.short(target) / "socket"), Peer(PARTNER, theirs.socket)
            found = await talk(programs["go-client"], server=partner, client=ours, renewals=2)
            assert isinstance(found, dict), found
            assert found["serials"] == 3
            assert found["sent"] > 20
            found = await talk(programs["go-client"], server=ours, client=partner)
            assert isinstance(found, dict), found

    asyncio.run(run())


def test_a_workload_that_expects_another_of_that_trust_domain_is_not_content(programs: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with spire(programs) as theirs, federated(theirs) as (here, target):
            socket = here.short(target) / "socket"
            wrong = Peer(f"spiffe://{OURS}/ns/default/sa/other", socket)
            said = await talk(programs["go-client"], server=wrong, client=Peer(PARTNER, theirs.socket))
            assert "unexpected ID" in str(said), said

    asyncio.run(run())


def test_without_the_federation_neither_takes_the_other(programs: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with spire(programs) as theirs, federated(theirs) as (here, target):
            ours, stranger = Peer(WEB, here.short(target) / "socket"), Peer(STRANGER, theirs.socket, STRANGER_GROUP)
            # SPIRE's server has podsvid's bundle, the workload's entry does not federate.
            said = await talk(programs["go-client"], server=ours, client=stranger)
            assert f'no X.509 bundle for trust domain "{OURS}"' in str(said), said
            said = await talk(programs["go-client"], server=stranger, client=ours)
            assert re.search(REFUSED, str(said)), said
            async with node() as (alone, kubelet):
                volume = await kubelet.publish(pod(), VOLUME)
                pods, partner = Peer(WEB, alone.short(volume) / "socket"), Peer(PARTNER, theirs.socket)
                await theirs.trust(volume / "bundle.json")
                said = await talk(programs["go-client"], server=partner, client=pods)
                assert f'no X.509 bundle for trust domain "{THEIRS}"' in str(said), said
                said = await talk(programs["go-client"], server=pods, client=partner)
                assert re.search(REFUSED, str(said)), said

    asyncio.run(run())


def test_a_minted_svid_in_files_and_a_pod_through_openssl(programs: Mapping[str, Path], tmp_path: Path) -> None:
    async def run() -> None:
        async with spire(programs) as theirs, federated(theirs) as (here, target):
            of_pod = await fetched(here.short(target) / "socket", tmp_path / "pod")
            of_partner = await minted(theirs, tmp_path / "partner")
            ours = Files(WEB, of_pod["svid.0.pem"], of_pod["svid.0.key"], of_pod[f"federated_bundle.{THEIRS}.pem"])
            partner = Files(PARTNER, of_partner["svid.pem"], of_partner["key.pem"], of_partner["ours.pem"])
            assert await meet(server=ours, client=partner) == (PARTNER, WEB)
            assert await meet(server=partner, client=ours) == (WEB, PARTNER)
            # With the bundle of the own trust domain in place of the other's.
            narrow = Files(WEB, ours.chain, ours.key, of_pod["bundle.0.pem"])
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await meet(server=narrow, client=partner)
            with pytest.raises(ssl.SSLCertVerificationError):
                await meet(server=partner, client=narrow)

    asyncio.run(run())


def test_jwt_svids_across(programs: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with spire(programs) as theirs, federated(theirs) as (here, target):
            socket = str(here.short(target) / "socket")
            fetch = podsvid("api", "fetch", "jwt", "--socket", f"unix://{socket}", "--audience", "db")
            said = await ran(*fetch, "--output", "json")
            token = json.loads(said)["svids"][0]["token"]
            status, said = await theirs.api("validate", "jwt", "-audience", "db", "-svid", token, socket=theirs.socket)
            assert (status, WEB in said) == (0, True), said
            token = (await theirs.server("jwt", "mint", spiffeID=PARTNER, audience="db")).strip()
            status, said = await theirs.api("validate", "jwt", "-audience", "db", "-svid", token, socket=socket)
            assert (status, PARTNER in said) == (0, True), said
            command = podsvid("api", "validate", "jwt", "--audience", "db", "--svid-file", str(theirs.folder / "token"))
            (theirs.folder / "token").write_text(token)
            assert PARTNER in await ran(*command, "--socket", f"unix://{socket}")
            async with node() as (alone, kubelet):
                elsewhere = str(alone.short(await kubelet.publish(pod(), VOLUME)) / "socket")
                status, said = await theirs.api("validate", "jwt", "-audience", "db", "-svid", token, socket=elsewhere)
                assert status != 0, said
                assert f"SVID is not valid: JWT-SVID is invalid: no trust bundle for trust domain {THEIRS}" in said

    asyncio.run(run())


def test_a_rotation_of_podsvids_authority_reaches_spire_with_the_new_bundle(programs: Mapping[str, Path]) -> None:
    async def run() -> None:
        async with spire(programs) as theirs:
            flags = ("--federated-bundles", await taken(theirs), "--reissue-over", "1s")
            async with cluster(*flags) as here:
                target = await here.publish(0)
                ours = Peer(f"spiffe://{OURS}/ns/default/sa/account-0", here.host.short(target) / "socket")
                partner = Peer(PARTNER, theirs.socket)
                await theirs.trust(target / "bundle.json")
                assert isinstance(await talk(programs["go-client"], server=partner, client=ours), dict)
                before = serial(target)
                await here.authority("rotate", "--no-wait")
                await until(lambda: authorities(target) == 2 and serial(target) != before)
                # The pod has an SVID of the new authority, which SPIRE does not know yet.
                said = await talk(programs["go-client"], server=ours, client=partner)
                assert "certificate signed by unknown authority" in str(said), said
                await theirs.trust(target / "bundle.json")
                for server, client in ((ours, partner), (partner, ours)):
                    found = await talk(programs["go-client"], server=server, client=client)
                    assert isinstance(found, dict), found

    asyncio.run(run())


def test_a_rotation_of_spires_authority_reaches_pods_with_the_new_bundle(
    programs: Mapping[str, Path], tmp_path: Path
) -> None:
    async def run() -> None:
        async with spire(programs) as theirs, federated(theirs) as (here, target):
            socket = here.short(target) / "socket"
            old = await theirs.bundle()
            prepared = json.loads(await theirs.server("localauthority", "x509", "prepare", output="json"))
            async with asyncio.timeout(DEADLINE):
                # The server keeps a bundle for a second.
                while await theirs.bundle() == old:
                    await asyncio.sleep(LOOK_SECONDS)
            name = prepared["prepared_authority"]["authority_id"]
            await theirs.server("localauthority", "x509", "activate", authorityID=name)
            of_partner = await minted(theirs, tmp_path / "partner")
            partner = Files(PARTNER, of_partner["svid.pem"], of_partner["key.pem"], of_partner["ours.pem"])
            kept = await fetched(socket, tmp_path / "before")
            trusted = f"federated_bundle.{THEIRS}.pem"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await meet(Files(WEB, kept["svid.0.pem"], kept["svid.0.key"], kept[trusted]), partner)
            before = serial(target)
            await taken(theirs)

            async with asyncio.timeout(DEADLINE):
                while (now := await fetched(socket, tmp_path / "after"))[trusted].read_text().count("BEGIN") != 2:
                    await asyncio.sleep(LOOK_SECONDS)
            ours = Files(WEB, now["svid.0.pem"], now["svid.0.key"], now[trusted])
            assert await meet(server=ours, client=partner) == (PARTNER, WEB)
            assert serial(target) == before, "another trust domain's rotation renews nothing here"

    asyncio.run(run())
