"""The public listeners of a real replica: strangers get the documents over TLS, and hostile ones nothing else."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import generate_latest

from signer.public.limits import BY_ADDRESS
from signer.public.shown import Pair
from svid import oidc
from svid.bundle import TrustBundle
from svid.federation import bundle_document
from svid.oidc import Issuer
from svid.spiffeid import TrustDomain
from svid.x509svid import check_x509_svid
from tests.ports import free_port
from tests.public_rig import HOST, PATIENCE, Got, connect, fetch, trusting, web_pair, write_pair
from tests.signer_rig import START, Serving, Site, serving

ISSUER = f"https://{HOST}/prod"
HINT = "2m"
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Here:
    """A replica with public listeners."""

    serving: Serving
    bundle: tuple[str, int]
    oidc: tuple[str, int]
    folder: Path

    @property
    def pid(self) -> int:
        """Of the process that serves strangers."""
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        lines = {each: Path(f"/proc/{each}/cmdline").read_bytes() for each in children}
        (found,) = [each for each, line in lines.items() if b"signer.public.child" in line]
        return int(found)

    async def fetch(self, address: tuple[str, int], *more: object, **named: object) -> Got:
        return await asyncio.to_thread(fetch, address, *more, **named)  # type: ignore[arg-type]

    async def soon(self, look: Callable[[], Awaitable[_Answer]], right: Callable[[_Answer], bool]) -> _Answer:
        """What is looked at once it is right."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    found = await look()
                    if right(found):
                        return found
                await asyncio.sleep(0.05)


@asynccontextmanager
async def listening(folder: Path, *flags: str) -> AsyncIterator[Here]:
    # Of the replica's clock and of this host's, by which clients go.
    chain, key = write_pair(web_pair(datetime.now(UTC), timedelta(days=3650)), folder)
    ports = free_port(), free_port()
    on = (
        *("--bundle-listen", f"127.0.0.1:{ports[0]}", "--bundle-hint", HINT),
        *("--oidc-listen", f"127.0.0.1:{ports[1]}", "--jwt-issuer", ISSUER),
        *("--oidc-cert-file", str(chain), "--oidc-key-file", str(key), "--jwt-algorithm", "ES256"),
    )
    site = Site()
    async with serving(site, folder, site.clock, *on, *flags) as found:
        here = Here(found, ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1]), folder)
        for each in (here.bundle, here.oidc):
            await here.soon(lambda each=each: here.fetch(each, "/"), lambda got: bool(got.status))  # type: ignore[misc]
        yield here


def beside(folder: Path, test: Callable[[Here], Awaitable[None]], *flags: str) -> None:
    async def run() -> None:
        async with listening(folder, *flags) as here:
            await test(here)

    asyncio.run(run())


@pytest.mark.spec("TD-3", "FED-10", "FED-40", "FED-44", "FED-46")
def test_partners_get_the_bundle_from_who_is_the_signer(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        state = here.serving.replica._rotation.state
        assert state is not None
        got = await here.fetch(here.bundle)
        assert got.status == 200
        assert got.headers["content-type"] == "application/json"
        assert got.headers["cache-control"] == "public, max-age=60"
        leaf = x509.load_der_x509_certificate(got.leaf)
        found = check_x509_svid((leaf,), state.bundle, here.serving.site.clock.now())
        assert str(found) == "spiffe://example.org/podsvid/signer"
        document = json.loads(got.body)
        assert document["spiffe_refresh_hint"] == 120
        assert TrustBundle.from_jwks(TrustDomain("example.org"), got.body).sequence == state.sequence
        again = await here.fetch(here.bundle, headers={"If-None-Match": got.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        head = await here.fetch(here.bundle, method="HEAD")
        assert (head.status, head.body, head.headers["etag"]) == (200, b"", got.headers["etag"])
        for method, path, status in (("POST", "/", 405), ("GET", "/other", 404), ("GET", "/keys", 404)):
            assert (await here.fetch(here.bundle, path, method=method)).status == status

    beside(tmp_path, test)


@pytest.mark.spec("TD-4", "FED-1")
def test_a_change_of_trust_is_served_by_a_higher_sequence(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        before = await here.fetch(here.bundle)
        await here.serving.replica._rotation.step("prepare", "x509", "", forced=False)

        def roots(got: Got) -> int:
            return sum(key["use"] == "x509-svid" for key in json.loads(got.body)["keys"])

        after = await here.soon(lambda: here.fetch(here.bundle), lambda got: roots(got) == 2)
        assert roots(before) == 1
        assert json.loads(after.body)["spiffe_sequence"] > json.loads(before.body)["spiffe_sequence"]
        assert before.headers["etag"] != after.headers["etag"]

    beside(tmp_path, test)


@pytest.mark.spec("FED-10", "FED-20", "FED-24", "FED-26", "FED-27")
def test_https_web_is_by_files_that_are_read_anew_and_stay_when_they_break(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    pair = web_pair(START)
    chain, key = write_pair(pair, tmp_path / "web")
    flags = ("--bundle-profile", "https_web", "--bundle-cert-file", str(chain), "--bundle-key-file", str(key))

    async def test(here: Here) -> None:
        # As who trusts the CA and compares the host.
        got = await here.fetch(here.bundle, context=believing(pair))
        assert (got.status, got.headers["content-type"]) == (200, "application/json")
        assert json.loads(got.body.decode("utf-8"))["keys"]
        assert got.leaf == x509.load_pem_x509_certificate(pair.chain).public_bytes(Encoding.DER)
        metrics = here.serving.replica.metrics
        chain.write_bytes(b"broken")

        async def trouble() -> float:
            metrics.refresh()
            return metrics.registry.get_sample_value("podsvid_signer_public_trouble", {"listener": "bundle"}) or 0.0

        assert await trouble() == 0.0
        await here.soon(trouble, lambda found: found == 1.0)
        assert (await here.fetch(here.bundle)).leaf == got.leaf
        assert await here.serving.replica.not_ready() is None
        other = web_pair(START)
        write_pair(other, tmp_path / "web")
        leaf = x509.load_pem_x509_certificate(other.chain).public_bytes(Encoding.DER)
        await here.soon(lambda: here.fetch(here.bundle), lambda found: found.leaf == leaf)
        await here.soon(trouble, lambda found: found == 0.0)

    beside(tmp_path, test, *flags)


def test_verifiers_by_openid_connect_find_the_keys_whatever_host_they_name(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        state = here.serving.replica._rotation.state
        assert state is not None
        evil = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
        got = await here.fetch(here.oidc, "/prod/.well-known/openid-configuration", headers=evil)
        assert got.body == oidc.configuration(state.bundle, Issuer.of(ISSUER, None))
        found = json.loads(got.body)
        assert (found["issuer"], found["jwks_uri"]) == (ISSUER, f"{ISSUER}/keys")
        keys = await here.fetch(here.oidc, "/prod/keys")
        assert keys.body == oidc.keys(state.bundle)
        assert keys.headers["cache-control"] == "public, max-age=60"
        for path in ("/", "/keys", "/.well-known/openid-configuration"):
            assert (await here.fetch(here.oidc, path)).status == 404
        assert b"evil" not in got.body

    beside(tmp_path, test)


def test_keys_are_served_where_jwks_uri_says(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        found = json.loads((await here.fetch(here.oidc, "/prod/.well-known/openid-configuration")).body)
        assert found["jwks_uri"] == "https://keys.example.org/k/jwks.json"
        assert (await here.fetch(here.oidc, "/k/jwks.json")).status == 200
        assert (await here.fetch(here.oidc, "/prod/keys")).status == 404

    beside(tmp_path, test, "--jwks-uri", "https://keys.example.org/k/jwks.json")


def test_a_process_that_is_killed_is_followed_by_another_with_the_same(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        before, pid = await here.fetch(here.bundle), here.pid
        os.kill(pid, signal.SIGKILL)
        after = await here.soon(lambda: here.fetch(here.bundle), lambda got: got.status == 200)
        assert after.body == before.body
        assert here.pid != pid
        assert await here.serving.replica.not_ready() is None

    beside(tmp_path, test)


def test_what_serves_strangers_has_neither_the_signers_modules_nor_its_files(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        maps = Path(f"/proc/{here.pid}/maps").read_text()
        assert "_rust.abi3" not in maps, "cryptography"
        assert "cygrpc" not in maps
        assert os.getpriority(os.PRIO_PROCESS, here.pid) >= min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
        files = {os.readlink(each) for each in Path(f"/proc/{here.pid}/fd").iterdir()}
        assert not [each for each in files if str(tmp_path) in each]
        status = dict(each.split(":\t") for each in Path(f"/proc/{here.pid}/status").read_text().splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    beside(tmp_path, test)


def test_a_thousand_silent_connections_of_one_take_no_place_of_another(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        hostile: list[socket.socket] = []
        loop = asyncio.get_running_loop()
        try:
            for _ in range(1000):
                peer = socket.socket()
                peer.setblocking(False)
                hostile.append(peer)
                peer.bind(("127.0.0.66", 0))
                async with asyncio.timeout(PATIENCE):
                    await loop.sock_connect(peer, here.bundle)
                with contextlib.suppress(OSError):
                    peer.send(b"\x16\x03\x01")
            for number in range(10):
                got = await here.fetch(here.bundle, source=f"127.0.0.{number + 2}")
                assert got.status == 200
            assert len(os.listdir(f"/proc/{here.pid}/fd")) < BY_ADDRESS + 32
        finally:
            for peer in hostile:
                peer.close()
        await here.soon(counts(here), lambda found: found.get("address", 0) + found.get("rate", 0) > 900)

    beside(tmp_path, test)


def believing(pair: Pair) -> ssl.SSLContext:
    """A client that takes that certificate and its host only, at whatever time the test is played."""
    found = trusting(pair.chain)
    found.verify_flags |= ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME
    return found


def counts(here: Here) -> Callable[[], Awaitable[dict[str, float]]]:
    async def look() -> dict[str, float]:
        found = {}
        for family in here.serving.replica.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "podsvid_signer_http_refused_total" and sample.labels["listener"] == "bundle":
                    found[sample.labels["why"]] = sample.value
        return found

    return look


def test_strangers_that_are_no_clients_are_ended_and_counted(tmp_path: Path) -> None:
    def say(here: Here, data: bytes, *, in_tls: bool) -> bytes:
        raw = socket.create_connection(here.bundle, timeout=PATIENCE)
        with connect(here.bundle) if in_tls else raw as peer:
            with contextlib.suppress(OSError):
                peer.sendall(data)
            found = b""
            with contextlib.suppress(OSError):
                while more := peer.recv(4096):
                    found += more
            raw.close()
            return found

    async def test(here: Here) -> None:
        assert b"HTTP" not in await asyncio.to_thread(say, here, b"GET / HTTP/1.1\r\n\r\n", in_tls=False)
        assert b"HTTP" not in await asyncio.to_thread(say, here, b"\x16\x03\x01\x40\x00" + b"\xff" * 4096, in_tls=False)
        large = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 64 * 1024
        assert (await asyncio.to_thread(say, here, large, in_tls=True))[:12] in (b"HTTP/1.1 431", b"")
        three = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3
        assert (await asyncio.to_thread(say, here, three, in_tls=True)).count(b"HTTP/1.1 ") == 1
        old = trusting()
        with contextlib.suppress(ssl.SSLError, ValueError):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError):
                await asyncio.to_thread(connect, here.bundle, old)
        assert (await here.fetch(here.bundle)).status == 200
        found = await here.soon(counts(here), lambda found: found.get("tls", 0) >= 2 and found.get("head", 0) >= 1)
        assert found["tls"] >= 2

    beside(tmp_path, test)


def test_who_is_slow_is_cut_off_in_time(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        def slowly() -> bytes:
            with connect(here.bundle) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n")
                return peer.recv(1)

        with contextlib.suppress(OSError):
            assert await asyncio.to_thread(slowly) == b""
        await here.soon(counts(here), lambda found: found.get("deadline", 0) == 1)

    beside(tmp_path, test)


def test_nothing_is_listened_at_unless_it_is_switched_on(tmp_path: Path) -> None:
    async def run() -> None:
        site = Site()
        async with serving(site, tmp_path, site.clock) as found:
            page = generate_latest(found.replica.metrics.registry).decode()
            assert 'listener="bundle"' not in page
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            lines = [Path(f"/proc/{each}/cmdline").read_bytes() for each in children]
            assert not [line for line in lines if b"signer.public" in line]

    asyncio.run(run())


def test_before_the_state_is_read_there_is_no_document(tmp_path: Path) -> None:
    async def test(here: Here) -> None:
        replica = here.serving.replica
        shown = replica._public.showing(None)
        assert all(page is None for each in shown.values() for page in each.pages.values())
        state = replica._rotation.state
        assert state is not None
        made = replica._public.showing(state)["bundle"].pages["/"]
        assert made is not None
        hint = replica._config.bundle_hint
        assert made.body == bundle_document(state.bundle, hint)

    beside(tmp_path, test)
