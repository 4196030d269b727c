"""`podsvid oidc probe`: against the listener of a real replica, and against whoever else answers at an issuer's URL."""

import argparse
import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from google.protobuf.timestamp_pb2 import Timestamp

from docs import shapes
from podsvid import documents, outside, probe
from podsvid.asked import NoDocument, signer_of
from podsvid.authority import CommandFailed
from podsvid.output import to_json
from podsvid.probe import findings
from podsvid.waiting import Waiting
from signer.pb import admin_pb2
from svid import oidc
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, key_to_pem
from svid.oidc import Issuer
from svid.spiffeid import TrustDomain
from tests.node.test_public import Here, beside
from tests.public_rig import HOST
from tests.unit.signer.test_federation_endpoint import Web

OWN = Issuer.of(f"https://{HOST}/prod", None)
OLD, NOW, NEXT = (JwtSigningKey.create(JwtAlgorithm.ES256) for _ in range(3))
Pages = dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]]


def parsed(*line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    documents.add_oidc_arguments(parser)
    return parser.parse_args(["probe", *line])


def bundle(*keys: JwtSigningKey) -> TrustBundle:
    return TrustBundle(TrustDomain("example.org"), (), tuple(each.public for each in keys))


def signer(*keys: JwtSigningKey, **members: Any) -> admin_pb2.PublishResponse:
    named = {"issuer": OWN.url, "token_issuer": OWN.url, "jwks_uri": OWN.jwks_uri, "trust_domain": "example.org"}
    return admin_pb2.PublishResponse(**{**named, "jwks": oidc.keys(bundle(*keys)).decode(), **members})


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=1_800_000_000 + seconds)


def status(stolen: JwtSigningKey | None = None, left: bool = True) -> admin_pb2.AuthorityStatus:
    found = admin_pb2.AuthorityStatus(to_do=["jwt: present a token", "x509: replace that root"])
    for key, stage in ((NOW, "active"), (NEXT, "prepared")):
        found.authorities.add(kind=admin_pb2.KIND_JWT, id=key.key_id, stage=stage)
    if stolen is not None:
        gone = {"left_at": at(60)} if left else {}
        found.abandoned.add(kind=admin_pb2.KIND_JWT, id=stolen.key_id, asked_at=at(0), **gone)
    return found


def says(body: bytes, line: str = "200 OK", *headers: str) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {line}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(head).encode() + body)
        await writer.drain()

    return answer


def pages(*keys: JwtSigningKey, **more: Any) -> Pages:
    """What an honest server has; `keys` and `configuration` are other answers of it."""
    return {
        OWN.configuration_path: more.get("configuration", says(oidc.configuration(bundle(NOW), OWN))),
        OWN.keys_path: more.get(
            "keys", says(oidc.keys(bundle(*(keys or (NOW,)))), "200 OK", "Cache-Control: max-age=60")
        ),
    }


async def looked(
    folder: Path,
    found: Pages,
    published: admin_pb2.PublishResponse | None = None,
    known: admin_pb2.AuthorityStatus | None = None,
    host: str = HOST,
) -> tuple[probe.Outside, list[str], str]:
    """What a server with these pages is to the probe: what was read, the reasons of what was found, their texts."""
    web, key = Web(), KeyAlgorithm.EC_P256.generate()
    file = folder / "server.pem"
    file.write_bytes(key_to_pem(key) + to_pem([web.sign(x509.Name([]), key, x509.DNSName(host))]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert f"Host: {HOST}\r\n" in request
            await found[request.split(" ")[1]](writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    try:
        trusted = ssl.create_default_context(cadata=to_pem([web.root]).decode())
        published, known = published or signer(NOW), known or status()
        port = server.sockets[0].getsockname()[1]
        seen = await probe.read(published, known, trusted, ("127.0.0.1", port))
    finally:
        server.close()
    told = list(findings(seen, published, known))
    return seen, [each.reason for each in told], " ".join(each.text for each in told)


def test_the_own_listener_shows_what_the_signer_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(here: Here) -> None:
        line = (
            *("--socket", str(tmp_path / "a.sock"), "--ca-file", str(tmp_path / "tls.crt")),
            *("--connect-to", f"127.0.0.1:{here.oidc[1]}"),
        )
        assert await asyncio.to_thread(documents.run_oidc, parsed(*line)) == 0
        said = capsys.readouterr().out
        assert "verifiers outside can read what the signer publishes, and nothing else" in said
        assert f"keys at {OWN.jwks_uri}: kept for 60 s, 0 s old" in said
        assert await asyncio.to_thread(documents.run_oidc, parsed(*line, "-o", "json")) == 0
        told = json.loads(capsys.readouterr().out)
        assert list(shapes.of("oidc probe").faults(told)) == []
        state = here.serving.replica._rotation.state
        assert state is not None
        (key,) = state.bundle.jwt_authorities
        assert told["keys"] == [{"id": key.key_id, "outside": "published", "stage": "active"}]
        assert told["findings"] == []
        # By the system's CAs nobody believes that server.
        without = parsed(*line[:2], *line[4:])
        assert await asyncio.to_thread(documents.run_oidc, without) == 3
        said = capsys.readouterr().out
        assert said.count("DOCUMENT_UNREADABLE: ") == 2
        assert "its certificate is not accepted" in said
        assert "--ca-file" in said

    beside(tmp_path, test)


def test_a_key_that_was_stolen_and_is_still_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    async def run() -> None:
        keys = says(oidc.keys(bundle(OLD, NOW)), "200 OK", "Cache-Control: max-age=86400", "Age: 7")
        seen, reasons, text = await looked(tmp_path, pages(keys=keys), known=status(OLD))
        assert reasons == ["KEY_ABANDONED", "KEPT_TOO_LONG"]
        assert f"key {OLD.key_id} was declared stolen at 2027-01-15T08:00:00Z" in text
        assert "(the answer was in a cache for 7 s)" in text
        assert "oidc export" in text
        assert "86400 s" in text
        assert seen.kept_until is not None
        assert (seen.kept_until - seen.at).total_seconds() == 86400
        # The signer itself has it still.
        _, reasons, text = await looked(tmp_path, pages(OLD, NOW), signer(OLD, NOW), status(OLD, left=False))
        assert reasons == ["KEY_ABANDONED"]
        assert "it leaves once its tokens are re-issued" in text

    asyncio.run(run())


def test_what_lacks_or_is_another_outside_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        _, reasons, text = await looked(tmp_path, pages(OLD), signer(NOW, NEXT))
        assert reasons == ["KEY_NOT_PUBLISHED", "KEY_MISSING", "KEY_MISSING"]
        assert (
            f"key {NOW.key_id} (active) of the signer is not there: verifiers refuse the tokens that it signs" in text
        )
        assert "verifiers would refuse what it is about to sign" in text
        forged = json.loads(oidc.keys(bundle(OLD)))
        forged["keys"][0]["kid"] = NOW.key_id
        _, reasons, text = await looked(tmp_path, pages(keys=says(json.dumps(forged).encode())))
        assert reasons == ["KEY_IS_ANOTHER", "KEY_MISSING"]
        assert "somebody else answers" in text
        strange = says(json.dumps({"keys": [{"kid": "\x1b[2J\n" + "x" * 500}]}).encode())
        _, reasons, text = await looked(tmp_path, pages(keys=strange))
        assert reasons == ["KEY_NOT_PUBLISHED", "KEY_MISSING"]
        assert "\x1b" not in text
        assert "x" * 100 not in text

    asyncio.run(run())


def test_documents_of_another_issuer_lead_nowhere(tmp_path: Path) -> None:
    """And what they lead to is not asked: no page is there for it."""

    async def run() -> None:
        other = Issuer("https://oidc.example.org/prod/", "https://169.254.169.254/latest")
        configuration = says(oidc.configuration(bundle(NOW), other))
        _, reasons, text = await looked(tmp_path, pages(configuration=configuration))
        assert reasons == ["ISSUER_DIFFERS", "JWKS_URI_DIFFERS"]
        assert "'https://oidc.example.org/prod/', not https://oidc.example.org/prod:" in text

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(b"<html>"), "it is not JSON"),
        (says(b"[]"), "it is no JSON object"),
        (says(b"{}"), "it has no "),
        (says(b"", "302 Found", "Location: https://elsewhere.test/"), "sends on to elsewhere (302)"),
        (says(b"", "503 Service Unavailable"), "it answers 503"),
        (says(b"", "206 Partial Content"), "it answers 206"),
        (says(b" " * (513 << 10)), "more than 512 KiB"),
        (says(b"", "200 OK", "X: " + "y" * 100_000), "no answer that can be read"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_no_document_is_said(tmp_path: Path, answer: Any, why: str) -> None:
    async def run() -> None:
        _, reasons, text = await looked(tmp_path, pages(configuration=answer, keys=answer))
        assert reasons == ["DOCUMENT_UNREADABLE", "DOCUMENT_UNREADABLE"]
        assert text.count(why) == 2, text

    asyncio.run(run())


def test_who_answers_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "DOCUMENT_SECONDS", 0.3)
    ended = asyncio.Event()

    async def drips(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.is_set():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def run() -> None:
        async with asyncio.timeout(30):
            _, reasons, text = await looked(tmp_path, pages(configuration=drips, keys=drips))
        ended.set()
        assert reasons == ["DOCUMENT_UNREADABLE", "DOCUMENT_UNREADABLE"]
        assert "no whole answer within" in text

    asyncio.run(run())


def test_a_server_that_proves_to_be_another_is_not_read(tmp_path: Path) -> None:
    async def run() -> None:
        _, reasons, text = await looked(tmp_path, pages(), host="127.0.0.1")
        assert reasons == ["DOCUMENT_UNREADABLE", "DOCUMENT_UNREADABLE"]
        assert "its certificate is not accepted" in text

    asyncio.run(run())


class Told:
    """A signer that was asked."""

    def __init__(self, published: admin_pb2.PublishResponse) -> None:
        self._published = published

    def published(self) -> admin_pb2.PublishResponse:
        return self._published

    def status(self) -> admin_pb2.AuthorityStatus:
        return status()


@pytest.mark.parametrize(
    ("published", "why"),
    [
        (signer(NOW, issuer="", token_issuer=""), "JWT-SVIDs name no issuer: set jwt_issuer"),
        (
            signer(NOW, issuer="", token_issuer="https://A.example"),
            "name the issuer https://A.example, which verifiers",
        ),
        (signer(NOW, jwks=""), "no JWT authority"),
    ],
)
def test_where_nothing_is_to_be_discovered_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, published: admin_pb2.PublishResponse, why: str
) -> None:
    monkeypatch.setattr(probe, "signer_of", lambda *_: Told(published))
    with pytest.raises(NoDocument, match=why):
        probe.run(parsed())


def test_a_file_of_cas_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM")
    with pytest.raises(CommandFailed, match="has no certificate"):
        probe.run(parsed("--ca-file", str(tmp_path / "ca.pem")))
    with pytest.raises(FileNotFoundError):
        probe.run(parsed("--ca-file", str(tmp_path / "absent.pem")))


@pytest.mark.parametrize("address", ["off", ":1", "a:0", "a", "a b:1", "a:99999"])
def test_an_address_that_is_none_is_wrong_usage(address: str) -> None:
    with pytest.raises(SystemExit):
        parsed("--connect-to", address)


def test_it_says_what_people_have_to_do_and_ends_with_three(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def read(*_: object) -> probe.Outside:
        return probe.Outside(datetime(2030, 1, 1, tzinfo=UTC), probe.Read("a", why="\x1b no"), probe.Read("b"))

    monkeypatch.setattr(probe, "signer_of", lambda *_: Told(signer(NOW)))
    monkeypatch.setattr(probe, "read", read)
    for form in ("text", "json", "yaml"):
        assert probe.run(parsed("-o", form)) == 3
        said = capsys.readouterr().out
        assert "present a token" in said
        assert "replace that root" not in said
        assert "\x1b" not in said


class Kubeconfig:
    """Implements what is asked of a cluster by exec: pods that come and go."""

    host = "https://api.test"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def signer(self) -> str:
        return f"signer-{len(self.asked)}"

    def run(self, pod: str, container: str, command: list[str]) -> object:
        assert container == "signer"
        self.asked.append((pod, command))
        message = signer(NOW) if command[1] == "bundle" else status(OLD)
        return json.loads(to_json(message))


def test_from_anywhere_else_one_pod_is_asked_for_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = Kubeconfig()
    monkeypatch.setattr("podsvid.by_kubeconfig.KubeconfigCluster", lambda *_: cluster)
    found = signer_of(parsed("--kubeconfig", str(tmp_path / "config")), Waiting(30), "oidc probe")
    assert found.published() == signer(NOW)
    assert found.status() == status(OLD)
    assert [pod for pod, _ in cluster.asked] == ["signer-0", "signer-0"]
    line = ["podsvid", "authority", "show", "--socket", "/run/podsvid-signer/admin.sock", "--output", "json"]
    assert cluster.asked[1][1] == line
