"""podsvid and real SPIRE servers poll each other's bundle endpoints by both profiles, by docs/spire-federation.md."""

import asyncio
import json
import re
import ssl
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from svid.bundle import TrustBundle
from svid.certificates import certificates_from_der, certificates_from_pem
from tests.interop.rig import podsvid, ran
from tests.interop.spire.beside import OURS, PATIENCE, POD, Beside, Ours, eventually, podsvid_serves, spire_beside
from tests.interop.spire.talk import REFUSED, Heard, Peer, Traffic, talk, traffic
from tests.public_rig import write_pair
from tests.support import DEADLINE, IS_ROOT, svid_stream

pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="mounts need root"),
    # A rotation of podsvid's waits for five refresh hints, of a minute each.
    pytest.mark.timeout(1500),
]
SPIFFE, WEB = "https_spiffe", "https_web"
AUDIENCE = "db"


@pytest.fixture
def ours() -> Iterator[Ours]:
    with podsvid_serves() as found:
        yield found


@dataclass(frozen=True)
class Both:
    """A pod, and SPIRE's workloads of two trust domains, one of which is known by https_spiffe and one by https_web."""

    pod: Peer
    volume: Path
    sides: tuple[Beside, Beside]


@asynccontextmanager
async def federated(ours: Ours, programs: Mapping[str, Path], ca_ttl: str) -> AsyncIterator[Both]:
    """As the page says, and all have what they need to take each other."""
    async with AsyncExitStack() as stack:
        sides = []
        for name, profile in (("byspiffe.test", SPIFFE), ("byweb.test", WEB)):
            sides.append(await stack.enter_async_context(spire_beside(ours, programs, name, profile, ca_ttl)))
        pod, volume = await stack.enter_async_context(ours.pod())
        for each in sides:
            await asyncio.to_thread(each.federate)
        for each in sides:
            await eventually(partial(in_force, ours, each))
            await until(partial(knows, each))
            await until(partial(has, pod, each))
        yield Both(pod, volume, (sides[0], sides[1]))


def in_force(ours: Ours, side: Beside) -> bool:
    return ours.conditions(side.name) == {"Ready": "InForce", "Fetched": "Fetched"}


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = DEADLINE) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


async def knows(side: Beside) -> bool:
    """Whether SPIRE's agent gives its workload podsvid's bundle."""
    status, said = await side.spire.api("fetch", "x509", "-output", "json", socket=side.spire.socket)
    return status == 0 and bool((json.loads(said).get("federated_bundles") or {}).get(f"spiffe://{OURS}"))


async def has(pod: Peer, side: Beside) -> bool:
    """Whether the pod is given SPIRE's bundle."""
    async with asyncio.timeout(DEADLINE), svid_stream(Path(pod.socket)) as stream:
        return f"spiffe://{side.domain}" in (await anext(aiter(stream))).federated_bundles


def authority(volume: Path) -> str:
    """Who signed the pod's SVID."""
    return signer_of(certificates_from_pem((volume / "tls.crt").read_bytes())[0])


def signer_of(leaf: x509.Certificate) -> str:
    """The key id of the authority, as SPIRE names those."""
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert found is not None
    return found.hex()


async def take_each_other(program: Path, pod: Peer, side: Beside) -> None:
    for server, client in ((pod, side.workload), (side.workload, pod)):
        found = await talk(program, server=server, client=client)
        assert isinstance(found, dict), found


async def jwt_svids_go_across(pod: Peer, side: Beside) -> None:
    """Each side's token is valid to the other's workload."""
    socket = f"unix://{pod.socket}"
    said = await ran(*podsvid("api", "fetch", "jwt", "--socket", socket, "--audience", AUDIENCE, "--output", "json"))
    token = json.loads(said)["svids"][0]["token"]
    api = side.spire.api
    status, said = await api("validate", "jwt", "-audience", AUDIENCE, "-svid", token, socket=side.spire.socket)
    assert (status, POD in said) == (0, True), said
    theirs = side.workload.spiffe_id
    token = (await side.spire.server("jwt", "mint", spiffeID=theirs, audience=AUDIENCE)).strip()
    status, said = await api("validate", "jwt", "-audience", AUDIENCE, "-svid", token, socket=str(pod.socket))
    assert (status, theirs in said) == (0, True), said


@pytest.mark.spec("FED-1", "FED-9", "FED-10", "FED-13", "FED-26", "FED-46", "FED-49")
def test_nobody_notices_when_both_sides_rotate(
    ours: Ours, programs: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One new connection a second each way, with each of both SPIREs."""

    async def run() -> list[Heard]:
        program = programs["go-client"]
        async with federated(ours, programs, ca_ttl="3m") as both, AsyncExitStack() as stack:
            for side in both.sides:
                seen = side.type("To see that it works", "kubectl get")
                there = TrustBundle.from_jwks(OURS, seen[seen.index("{") :].encode())
                here = TrustBundle.from_jwks(OURS, (await shown(ours)).encode())
                assert (there.digest(), there.refresh_hint) == (here.digest(), here.refresh_hint)
                # SPIRE keeps no sequence of what it fetches.
                assert (there.sequence, here.sequence is None) == (None, False)
                await jwt_svids_go_across(both.pod, side)
            running: list[Traffic] = []
            for side in both.sides:
                for server, client in ((both.pod, side.workload), (side.workload, both.pod)):
                    running.append(await stack.enter_async_context(traffic(program, server, client)))
            first = authority(both.volume)
            await ran(*podsvid("authority", "rotate", "--no-wait", "--socket", ours.admin))
            await eventually(lambda: authority(both.volume) != first)
            # podsvid's new authority signs; the one before stays trusted for the hour that the signers' own SVIDs live.
            # SPIRE has rotated by itself meanwhile, and does so once more.
            before = [await jwt_key(side) for side in both.sides]
            for side, key in zip(both.sides, before, strict=True):
                await until(partial(another_jwt_key, side, key), PATIENCE)
                await jwt_svids_go_across(both.pod, side)
            return [await each.heard() for each in running]

    found = asyncio.run(run())
    with capsys.disabled():
        for name, each in zip(("to pod", "to workload") * 2, found, strict=True):
            print(f"\n{name}: {each.made} connections, {each.own} and {each.peers} authorities, {each.failed}")
    assert [each.failed for each in found] == [[], [], [], []]
    assert all(each.made > 100 for each in found), found
    # podsvid has rotated once, SPIRE twice at least.
    assert all(min(each.own, each.peers) == 2 and max(each.own, each.peers) >= 3 for each in found), found


async def shown(ours: Ours) -> str:
    return await ran(*podsvid("bundle", "show", "--socket", ours.admin))


async def jwt_key(side: Beside) -> str:
    """Which one SPIRE signs by."""
    said = await side.spire.server("localauthority", "jwt", "show", output="json")
    return str(json.loads(said)["active"]["authority_id"])


async def another_jwt_key(side: Beside, key: str) -> bool:
    return await jwt_key(side) != key


@pytest.mark.spec("FED-6", "FED-15")
def test_an_older_bundle_is_not_believed_and_a_relation_that_is_deleted_ends(
    ours: Ours, programs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = programs["go-client"]

    async def run() -> None:
        async with federated(ours, programs, ca_ttl="24h") as both:
            by_spiffe, by_web = both.sides
            for side in both.sides:
                await take_each_other(program, both.pod, side)
            await put_back(both, by_web)
            await ends_here(both, by_spiffe)
            await ends_there(both, by_web)

    async def put_back(both: Both, side: Beside) -> None:
        old = await side.spire.bundle()
        prepared = json.loads(await side.spire.server("localauthority", "x509", "prepare", output="json"))
        await until(partial(later, side, json.loads(old)["spiffe_sequence"]))
        name = prepared["prepared_authority"]["authority_id"]
        await side.spire.server("localauthority", "x509", "activate", authorityID=name)
        # So that the agent renews what the one before has signed: only the newer bundle verifies it then.
        before = json.loads(await side.spire.server("localauthority", "x509", "show", output="json"))["old"]
        await side.spire.server("localauthority", "x509", "taint", authorityID=before["authority_id"])
        await until(partial(renewed, side, name))
        newest = (await side.bundle())["spiffe_sequence"]
        await eventually(lambda: held(side) == newest)
        async with web_server(ours, tmp_path, old) as port:
            side.front.target, spires = port, side.front.target
            await eventually(lambda: looked(side) or held(side) != newest)
            assert held(side) == newest
            # By hand it is no other: what was given first counts no more.
            await asyncio.to_thread(give, side, old)
            await eventually(lambda: looked(side) or held(side) != newest)
            assert held(side) == newest
            await take_each_other(program, both.pod, side)
        side.front.target = spires
        await eventually(lambda: ours.conditions(side.name).get("Fetched") == "Fetched")

    def held(side: Beside) -> int | None:
        found: int | None = ours.relation(side.name)["status"].get("sequence")
        return found

    def give(side: Beside, document: bytes) -> None:
        body = ours.relation(side.name)
        body["spec"]["trustDomainBundle"] = document.decode()
        ours.cluster.api.replace(f"/apis/podsvid.io/v1alpha1/federatedtrustdomains/{side.name}", body)

    def looked(side: Beside) -> bool:
        """Whether the document was found to be older, with the object as it is now."""
        body = ours.relation(side.name)
        is_observed = body["status"].get("observedGeneration") == body["metadata"]["generation"]
        return bool(is_observed and ours.conditions(side.name).get("Fetched") == "Older")

    async def ends_here(both: Both, side: Beside) -> None:
        async with asyncio.timeout(DEADLINE), svid_stream(Path(both.pod.socket)) as stream:
            updates = aiter(stream)
            assert f"spiffe://{side.domain}" in (await anext(updates)).federated_bundles
            began = time.monotonic()
            await asyncio.to_thread(side.type, "To end it", "kubectl delete")
            while f"spiffe://{side.domain}" in (await anext(updates)).federated_bundles:
                pass
            took = time.monotonic() - began
        with capsys.disabled():
            print(f"\na pod has SPIRE's bundle no more {took:.2f} s after `kubectl delete` began")
        said = await talk(program, server=side.workload, client=both.pod)
        assert f'no X.509 bundle for trust domain "{side.domain}"' in str(said), said
        said = await talk(program, server=both.pod, client=side.workload)
        assert re.search(REFUSED, str(said)), said

    async def ends_there(both: Both, side: Beside) -> None:
        began = time.monotonic()
        await asyncio.to_thread(side.type, "To end it", "spire-server federation delete")
        await until(partial(forgets, side))
        took = time.monotonic() - began
        with capsys.disabled():
            print(f"\nSPIRE's workload has podsvid's bundle no more {took:.2f} s after `federation delete` began")
        said = await talk(program, server=both.pod, client=side.workload)
        assert f'no X.509 bundle for trust domain "{OURS}"' in str(said), said

    asyncio.run(run())


async def forgets(side: Beside) -> bool:
    return not await knows(side)


async def later(side: Beside, sequence: int) -> bool:
    return bool((await side.bundle())["spiffe_sequence"] > sequence)


async def renewed(side: Beside, authority_id: str) -> bool:
    """Whether the workload's SVID is by that authority."""
    status, said = await side.spire.api("fetch", "x509", "-output", "json", socket=side.spire.socket)
    if status != 0:
        return False
    leaf = certificates_from_der(b64decode(json.loads(said)["svids"][0]["x509_svid"]))[0]
    return signer_of(leaf) == authority_id


@asynccontextmanager
async def web_server(ours: Ours, folder: Path, document: bytes) -> AsyncIterator[int]:
    """One that has the endpoint's certificate, and that document for everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(ours.web, folder))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(document)}\r\n\r\n"
            writer.write(head.encode() + document)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
