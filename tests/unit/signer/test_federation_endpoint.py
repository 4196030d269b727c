"""A partner's bundle endpoint over real TLS: who it is, and what it may say (SPIFFE_Federation.md 5.2)."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from signer.cluster import decoding
from signer.cluster.objects import FederatedTrustDomainObject
from signer.federation import endpoint as room
from signer.federation.endpoint import FetchFailed, HttpsEndpoint
from signer.federation.relation import Profile, Relation, read_relation
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.federation import MAX_DOCUMENT
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from tests.fake_authority import root

PARTNER, OTHER = TrustDomain("partner.test"), TrustDomain("other.test")
SERVER = SpiffeId(PARTNER, "/spire/server")
DOCUMENT = b'{"keys": []}'
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


class Web:
    """A CA of the web, and a server's certificate by it."""

    def __init__(self) -> None:
        self.key = KeyAlgorithm.EC_P256.generate()
        self.name = x509.Name.from_rfc4514_string("CN=web")
        self.root = self.sign(self.name, self.key, ca=True)

    def sign(self, subject: x509.Name, key: PrivateKey, *names: x509.GeneralName, ca: bool = False) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            self.name,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            NOW - HOUR,
            NOW + HOUR,
        ).add_extension(x509.BasicConstraints(ca, None), True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        return builder.sign(self.key, hashes.SHA256())

    def relation(self, port: int, path: str = "/", host: str = "localhost") -> Relation:
        return Relation(
            "uid",
            "partner",
            "",
            trust_domain=PARTNER,
            url=f"https://{host}:{port}{path}",
            ca_bundle=to_pem([self.root]).decode(),
        )


def says(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


@asynccontextmanager
async def served(
    tmp_path: Path, chain: tuple[x509.Certificate, ...], key: PrivateKey, answer: Answer
) -> AsyncIterator[int]:
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.pem"
    file.write_bytes(key_to_pem(key) + to_pem(chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            assert request.startswith(b"GET /")
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def web_server(tmp_path: Path, web: Web, answer: Answer, *names: x509.GeneralName) -> AbstractAsyncContextManager[int]:
    key = KeyAlgorithm.EC_P256.generate()
    leaf = web.sign(
        x509.Name([]), key, *(names or (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))))
    )
    return served(tmp_path, (leaf,), key, answer)


def fetched(relation: Relation, trusted: TrustBundle | None = None) -> Awaitable[bytes]:
    return HttpsEndpoint(lambda: datetime.now(UTC)).fetch(relation, trusted)


async def refused(relation: Relation, trusted: TrustBundle | None = None) -> str:
    with pytest.raises(FetchFailed) as found:
        await fetched(relation, trusted)
    return str(found.value)


def spiffe(port: int, expected: SpiffeId = SERVER) -> Relation:
    # Whatever name or address it has: it plays no part.
    url = f"https://127.0.0.1:{port}/"
    return Relation("uid", "partner", "", trust_domain=PARTNER, url=url, profile=Profile.SPIFFE, endpoint_id=expected)


def svid(
    authority: X509Authority, of: SpiffeId = SERVER, ttl: timedelta = HOUR, now: datetime = NOW
) -> tuple[tuple[x509.Certificate, ...], PrivateKey]:
    key = KeyAlgorithm.EC_P256.generate()
    return authority.issue(key.public_key(), of, ttl=ttl, now=now), key


def roomy_root() -> X509Authority:
    """A root that may have an intermediate below."""
    key = KeyAlgorithm.EC_P256.generate()
    name = x509.Name.from_rfc4514_string("CN=partner")
    usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, NOW - 24 * HOUR, NOW + 24 * HOUR)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(usage, True)
        .sign(key, hashes.SHA256())
    )
    return X509Authority(PARTNER, (certificate,), key, TrustBundle(PARTNER, (certificate,)))


@pytest.mark.spec("FED-9", "FED-22", "FED-29")
def test_https_web_wants_a_certificate_of_the_host_by_a_known_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        web, stranger = Web(), Web()
        async with web_server(tmp_path, web, says(DOCUMENT)) as port:
            assert await fetched(web.relation(port)) == DOCUMENT
            assert await fetched(web.relation(port, "/a?b=c", "127.0.0.1")) == DOCUMENT
            said = await refused(stranger.relation(port))
            assert "not accepted by https_web" in said
            assert said.endswith("is the profile https_spiffe?")
            # Without a CA of its own it is the system's that count.
            system = Relation("uid", "partner", "", trust_domain=PARTNER, url=f"https://localhost:{port}/")
            assert "not accepted by https_web" in await refused(system)
            (tmp_path / "system.crt").write_bytes(to_pem([web.root]))
            with monkeypatch.context() as patch:
                patch.setenv("SSL_CERT_FILE", str(tmp_path / "system.crt"))
                assert await fetched(system) == DOCUMENT
        async with web_server(tmp_path, web, says(DOCUMENT), x509.DNSName("elsewhere.test")) as port:
            assert "not accepted by https_web" in await refused(web.relation(port))
        assert "it cannot be reached" in await refused(web.relation(port))

    asyncio.run(run())


@pytest.mark.spec("FED-9", "FED-48", "C-111", "C-113", "C-114")
def test_https_spiffe_wants_exactly_the_id_by_the_bundle_and_no_host_name(tmp_path: Path) -> None:
    async def run() -> None:
        theirs, others = roomy_root(), root(NOW, PARTNER)
        below = theirs.issue_intermediate(KeyAlgorithm.EC_P256.generate(), lifetime=HOUR, now=NOW)
        for authority in (theirs, below):
            async with served(tmp_path, *svid(authority), says(DOCUMENT)) as port:
                assert await fetched(spiffe(port), theirs.bundle) == DOCUMENT
                assert "not accepted by https_spiffe" in await refused(spiffe(port), others.bundle)
                said = await refused(spiffe(port, SpiffeId(PARTNER, "/spire")), theirs.bundle)
                assert "spiffe://partner.test/spire/server is there, and not spiffe://partner.test/spire" in said
                assert "there is no bundle of partner.test" in await refused(spiffe(port), None)
                assert "there is no bundle" in await refused(spiffe(port), TrustBundle(PARTNER))
        old = svid(theirs, ttl=HOUR, now=NOW - 3 * HOUR)
        async with served(tmp_path, *old, says(DOCUMENT)) as port:
            assert "expired" in await refused(spiffe(port), theirs.bundle)
        web = Web()
        async with web_server(tmp_path, web, says(DOCUMENT)) as port:
            said = await refused(spiffe(port), theirs.bundle)
            assert "0 URI SANs" in said
            assert said.endswith("is the profile https_web?")
        foreign = root(NOW, OTHER)
        async with served(tmp_path, *svid(foreign, SpiffeId(OTHER, "/x")), says(DOCUMENT)) as port:
            # Known by the bundle of its own trust domain, not by the one that it publishes.
            assert await fetched(spiffe(port, SpiffeId(OTHER, "/x")), foreign.bundle) == DOCUMENT
            assert "not of trust domain partner.test" in await refused(
                spiffe(port, SpiffeId(OTHER, "/x")), theirs.bundle
            )

    asyncio.run(run())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_spoken(
    tmp_path: Path, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ssl.SSLContext.load_cert_chain

    def limited(context: ssl.SSLContext, file: Path) -> None:
        context.minimum_version = context.maximum_version = version
        real(context, file)

    async def run() -> None:
        theirs = root(NOW, PARTNER)
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", limited)
        async with served(tmp_path, *svid(theirs), says(DOCUMENT)) as port:
            assert await fetched(spiffe(port), theirs.bundle) == DOCUMENT

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(b"no", "500 Internal Server Error"), "it answers 500"),
        (says(b"<html>", "404 Not Found"), "it answers 404"),
        (says(b"", "304 Not Modified"), "it answers 304"),
        (says(b"", "204 No Content"), "it answers 204"),
        (says(b"x" * (MAX_DOCUMENT + 1)), "more than 512 KiB"),
        (says(b"{}", length=100), "no answer that can be read"),
        (says(b"", "200 OK", "X: " + "y" * 100_000), "no answer that can be read"),
        (says(b"", "302 Found"), "sends on"),
        (says(b"", "302 Found", "Location: http://partner.test/"), "has to begin with https://"),
        (says(b"", "307 Temporary Redirect", "Location: https://me@partner.test/"), "has a user or password"),
        (says(b"", "301 Moved", "Location: https://169.254.169.254/"), "no trust domain is published"),
        (says(b"", "303 See Other", "Location: file:///etc/passwd"), "has to begin with https://"),
        (says(b"", "308 Permanent Redirect", "Location: /again"), "sends on more than 3 times"),
    ],
)
@pytest.mark.spec("FED-17", "FED-31", "C-106", "C-109")
def test_what_is_no_answer_is_none(tmp_path: Path, answer: Answer, why: str) -> None:
    async def run() -> None:
        web = Web()
        async with web_server(tmp_path, web, answer) as port:
            assert why in await refused(web.relation(port))

    asyncio.run(run())


@pytest.mark.spec("FED-31", "FED-32", "FED-51", "FED-52", "C-110")
def test_a_redirect_is_followed_to_whoever_proves_to_be_it_and_is_never_kept(tmp_path: Path) -> None:
    async def run() -> None:
        theirs, asked = root(NOW, PARTNER), list[int]()
        impostor = svid(theirs, SpiffeId(PARTNER, "/other"))
        real = svid(theirs)
        async with (
            served(tmp_path, *real, says(DOCUMENT)) as good,
            served(tmp_path, *impostor, says(b'{"keys": [1]}')) as bad,
        ):

            async def leads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                target = (good, bad)[len(asked) % 2]
                asked.append(target)
                moved = ("301 Moved Permanently", "302 Found", "308 Permanent Redirect")[len(asked) - 1]
                await says(b"", moved, f"Location: https://localhost:{target}/")(reader, writer)

            async with served(tmp_path, *svid(theirs), leads) as port:
                assert await fetched(spiffe(port), theirs.bundle) == DOCUMENT
                assert "/other is there" in await refused(spiffe(port), theirs.bundle)
                assert await fetched(spiffe(port), theirs.bundle) == DOCUMENT
                assert asked == [good, bad, good]

    asyncio.run(run())


@pytest.mark.spec("FED-17")
def test_who_answers_without_end_is_waited_for_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ALL_SECONDS", 0.3)
    ended = asyncio.Event()

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.is_set():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()

    async def run() -> None:
        web = Web()
        for answer in (drips, silent):
            async with web_server(tmp_path, web, answer) as port, asyncio.timeout(20):
                assert "no whole answer within" in await refused(web.relation(port))
        ended.set()

    asyncio.run(run())


def test_a_ca_bundle_is_read_whatever_stands_around_it(tmp_path: Path) -> None:
    async def run() -> None:
        web = Web()
        async with web_server(tmp_path, web, says(DOCUMENT)) as port:
            pem = web.relation(port).ca_bundle
            for written in (f"# Zürich Root\n{pem}", f"subject=web\n\n{pem}\n\n"):
                spec = {
                    "trustDomain": "partner.test",
                    "bundleEndpointURL": f"https://localhost:{port}/",
                    "bundleEndpointProfile": {"type": "https_web"},
                    "caBundle": written,
                }
                body = {"metadata": {"uid": "uid", "name": "partner"}, "spec": spec}
                relation = read_relation(decoding.one(json.dumps(body).encode(), FederatedTrustDomainObject))
                assert relation is not None
                assert (relation.problem, await fetched(relation)) == ("", DOCUMENT)
            # Whatever becomes of it later is said and ends nothing.
            said = await refused(replace(web.relation(port), ca_bundle="-----BEGIN CERTIFICATE-----\nAA\n"))
            assert "cannot be used for TLS" in said

    asyncio.run(run())


def test_an_endpoint_shows_no_long_chain(tmp_path: Path) -> None:
    async def run() -> None:
        theirs = root(NOW, PARTNER)
        (leaf,), key = svid(theirs)
        for number, taken in ((5, True), (6, False)):
            async with served(tmp_path, (leaf, *theirs.chain * (number - 1)), key, says(DOCUMENT)) as port:
                if taken:
                    assert await fetched(spiffe(port), theirs.bundle) == DOCUMENT
                else:
                    assert "more than 5 certificates" in await refused(spiffe(port), theirs.bundle)

    asyncio.run(run())


def test_a_name_whose_servers_are_silent_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def look(host: str, *rest: object) -> list[object]:
        if host == "slow.test":
            ended.wait(60)
        return [(2, 1, 6, "", ("0.0.0.0", 443))]

    async def run() -> None:
        endpoint = HttpsEndpoint(lambda: NOW)
        relations = [
            Relation(name, name, "", trust_domain=PARTNER, url=f"https://{name}.test/") for name in ("slow", "good")
        ]
        slow = asyncio.create_task(endpoint.fetch(relations[0], None))
        async with asyncio.timeout(30):
            with pytest.raises(FetchFailed, match="no address where"):
                await endpoint.fetch(relations[1], None)
        assert not slow.done()
        ended.set()
        with pytest.raises(FetchFailed):
            await slow

    monkeypatch.setattr("socket.getaddrinfo", look)
    # A machine that is busy is no slow name server.
    monkeypatch.setattr(room, "CONNECT_SECONDS", 60.0)
    monkeypatch.setattr(room, "ALL_SECONDS", 60.0)
    asyncio.run(run())


def test_a_name_that_leads_to_no_partners_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*addresses: str) -> str:
        monkeypatch.setattr("socket.getaddrinfo", lambda *rest: [(2, 1, 6, "", (each, 443)) for each in addresses])
        relation = Relation("uid", "partner", "", trust_domain=PARTNER, url="https://metadata.test/")
        with pytest.raises(FetchFailed) as found:
            await HttpsEndpoint(lambda: NOW).fetch(relation, None)
        return str(found.value)

    assert "no address where a trust domain could be published" in asyncio.run(run("169.254.169.254"))
    assert "no address where a trust domain could be published" in asyncio.run(run("fe80::1", "0.0.0.0"))
