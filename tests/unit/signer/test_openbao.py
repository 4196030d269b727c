"""OpenBao as the CA above: by the contract that a real one keeps, and against one that means ill."""

import argparse
import asyncio
import json
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from runtime.bounded import Bounded
from runtime.settings import InvalidSetting
from signer import config
from signer.config import SignerConfig
from signer.naming import Names
from signer.openbao_settings import OpenBaoSettings
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.given import certificates
from signer.upstream.openbao import MAX_ANSWER, OpenBao, _Signed
from signer.upstream.remote import UpstreamAway
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm, key_to_pem
from tests import openbao_contract as contract

DAY = timedelta(days=1)
# It dates what it signs so far back.
SKEW = timedelta(seconds=30)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Ca:
    """A CA of the stand-in."""

    def __init__(self, name: str, above: "Ca | None" = None, life: timedelta = 365 * DAY) -> None:
        self.key = KeyAlgorithm.EC_P256.generate()
        self.name = x509.Name.from_rfc4514_string(f"CN={name}")
        by = above or self
        self.certificate = by.sign(self.name, self.key.public_key(), life, None)

    def sign(
        self,
        subject: x509.Name,
        key: Any,
        life: timedelta,
        path_length: int | None,
        *names: Any,
        digital_signature: bool = False,
    ) -> Any:
        now = datetime.now(UTC).replace(microsecond=0)
        usage = x509.KeyUsage(digital_signature, False, False, False, False, True, True, False, False)
        builder = (
            x509.CertificateBuilder(
                self.name, subject, key, x509.random_serial_number(), now - DAY / 24 / 120, now + life
            )
            .add_extension(x509.BasicConstraints(True, path_length), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
        )
        for each in names:
            builder = builder.add_extension(each.value, each.critical)
        return builder.sign(self.key, hashes.SHA256())


class StandIn:
    """Implements contract.Engine: as much of OpenBao as podsvid asks for, with the answers of a real one."""

    address = ""

    def __init__(self) -> None:
        self.mounts: dict[str, Ca] = {}
        self.shortest: dict[str, timedelta] = {}
        self.sealed = False
        self.tokens: set[str] = set()
        self.revoked: list[str] = []
        self.asked: list[tuple[str, Mapping[str, str], Any]] = []
        self.instead: Handler | None = None

    def root_of(self, mount: str) -> x509.Certificate:
        found: x509.Certificate = self.mounts.setdefault(mount, Ca(f"{mount} root")).certificate
        return found

    def issuing(self, mount: str, root: str) -> None:
        self.mounts[mount] = Ca(mount, self.mounts[root])

    def most(self, mount: str, lifetime: timedelta) -> None:
        self.shortest[mount] = lifetime

    def credential(self) -> tuple[str, str]:
        return "role-0123456789", "secret-0123456789"

    def seal(self) -> None:
        self.sealed = True

    def unseal(self) -> None:
        self.sealed = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v1/")
        body: Any = await request.json() if request.can_read_body else None
        self.asked.append((path, dict(request.headers), body))
        if self.instead is not None:
            return await self.instead(request)
        if self.sealed:
            return _wrong(503, "Vault is sealed")
        if path == "auth/approle/login":
            if (body["role_id"], body["secret_id"]) != self.credential():
                return _wrong(400, "invalid role or secret ID")
            return self._token()
        if path == "auth/kubernetes/login":
            return self._token() if body == {"role": "podsvid", "jwt": "header.claims.mac"} else _wrong(403, "denied")
        token = request.headers.get("X-Vault-Token", "")
        if path == "auth/token/revoke-self":
            self.tokens.remove(token)
            self.revoked.append(token)
            return web.Response(status=204)
        mount, _, rest = path.partition("/")
        if rest.startswith("issuer/nobody/"):
            # Its words, by OpenBao 2.7.2.
            return _wrong(500, "unable to find PKI issuer for reference: nobody")
        if rest.endswith("sign-intermediate"):
            if token not in self.tokens or mount not in self.mounts:
                return _wrong(403, "permission denied")
            return self._signed(mount, body)
        if rest == "issuers":
            return web.json_response({"data": {"keys": ["an-id"]}})
        if rest == "issuer/an-id/json":
            return web.json_response({"data": {"certificate": _pem(self.mounts[mount].certificate)}})
        return _wrong(404)

    def _token(self) -> web.Response:
        token = f"s.token-{len(self.asked)}"
        self.tokens.add(token)
        return web.json_response({"auth": {"client_token": token, "lease_duration": 300}, "warnings": None})

    def _signed(self, mount: str, body: Any) -> web.Response:
        assert (body["use_csr_values"], body["max_path_length"]) == (True, 0)
        csr, ca = x509.load_pem_x509_csr(body["csr"].encode()), self.mounts[mount]
        life = min(timedelta(seconds=int(body["ttl"].removesuffix("s"))), self.shortest.get(mount, 3650 * DAY))
        own = _pem(ca.sign(csr.subject, csr.public_key(), life, 0, *csr.extensions))
        above = _pem(ca.certificate)
        data = {"certificate": own, "issuing_ca": above, "ca_chain": [own, above], "expiration": 1}
        return web.json_response({"data": data, "warnings": ["anything"]})


def _pem(certificate: x509.Certificate) -> str:
    return to_pem([certificate]).decode()


def _wrong(status: int, *errors: str) -> web.Response:
    return web.json_response({"errors": list(errors)}, status=status)


@asynccontextmanager
async def serving(stand_in: StandIn, tls: ssl.SSLContext | None = None) -> AsyncIterator[StandIn]:
    """On the loopback."""
    app = web.Application(client_max_size=1 << 20)
    app.router.add_route("*", "/{path:.*}", stand_in.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    stand_in.address = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    try:
        yield stand_in
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda each: each.__name__)
def test_the_stand_in_keeps_the_contract_of_a_real_one(tmp_path: Path, check: Any) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:
            await check(engine, tmp_path)

    asyncio.run(run())


def test_each_use_logs_in_and_gives_its_token_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:
            engine.root_of("pki")
            jwt = tmp_path / "jwt"
            jwt.write_text("header.claims.mac\n")
            to = contract.signer(engine, tmp_path)
            remote = to.at("pki", auth="kubernetes", role="podsvid", token_file=jwt, namespace="team/a", issuer="next")
            for _ in range(2):
                await contract.issued(remote)
            assert (len(engine.revoked), engine.tokens) == (2, set())
            paths = [path for path, _, _ in engine.asked]
            assert paths[:3] == ["auth/kubernetes/login", "pki/issuer/next/sign-intermediate", "auth/token/revoke-self"]
            assert {headers["X-Vault-Namespace"] for _, headers, _ in engine.asked} == {"team/a"}
            assert "X-Vault-Token" not in engine.asked[0][1]

    asyncio.run(run())


def test_what_is_not_allowed_to_sign_gives_its_token_back_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:
            assert "does not sign: 403" in await contract.unusable(contract.signer(engine, tmp_path).at("pki"))
            assert engine.tokens == set()

    asyncio.run(run())


async def _said(engine: StandIn, folder: Path, instead: Handler) -> str:
    """What comes of a server that answers so to whatever it is asked after the login."""
    engine.root_of("pki")

    async def after(request: web.Request) -> web.StreamResponse:
        return engine._token() if request.path.endswith("/login") else await instead(request)

    engine.instead = after
    try:
        await contract.issued(contract.signer(engine, folder).at("pki"))
    except (UpstreamAway, UpstreamUnusable) as error:
        return f"{error.reason}: {error}"
    raise AssertionError("it certified")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "UPSTREAM_UNUSABLE"),
        (403, "UPSTREAM_UNUSABLE"),
        (404, "UPSTREAM_UNUSABLE"),
        (412, "UPSTREAM_AWAY"),
        (429, "UPSTREAM_AWAY"),
        (473, "UPSTREAM_AWAY"),
        (500, "UPSTREAM_AWAY"),
        (503, "UPSTREAM_AWAY"),
    ],
)
def test_what_may_pass_is_told_from_what_has_to_be_mended(tmp_path: Path, status: int, reason: str) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:

            async def wrong(request: web.Request) -> web.Response:
                return _wrong(status, "why\nnot")

            said = await _said(engine, tmp_path, wrong)
            assert said.startswith(reason)
            assert "why not" in said

    asyncio.run(run())


def test_a_redirect_does_not_take_the_token_along(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as thief, serving(StandIn()) as engine:

            async def elsewhere(request: web.Request) -> web.Response:
                return web.Response(status=307, headers={"Location": thief.address + request.path})

            said = await _said(engine, tmp_path, elsewhere)
            assert "redirects" in said
            assert thief.asked == []

    asyncio.run(run())


def test_an_answer_is_read_up_to_a_bound(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:

            async def endless(request: web.Request) -> web.Response:
                return web.Response(body=b" " * (MAX_ANSWER + 1))

            assert "answers with more than 1 MiB" in await _said(engine, tmp_path, endless)

    asyncio.run(run())


def test_what_was_sent_is_not_repeated_whatever_the_server_says(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:

            async def echo(request: web.Request) -> web.Response:
                return _wrong(400, f"bad token {request.headers.get('X-Vault-Token')}")

            assert "s.token" not in await _said(engine, tmp_path, echo)

            async def echo_login(request: web.Request) -> web.Response:
                return _wrong(400, f"bad secret {(await request.json())['secret_id']}")

            async def echo_both(request: web.Request) -> web.Response:
                return _wrong(400, f"no podsvid.role for {engine.credential()[1]} and {engine.credential()[0]}")

            # Who it is there is no secret, and says what is wrong.
            said = await _said(engine, tmp_path, echo_both)
            assert engine.credential()[1] not in said
            assert engine.credential()[0] in said

            engine.instead = echo_login
            said = await contract.unusable(contract.signer(engine, tmp_path).at("pki"))
            assert "bad secret" in said
            assert "0123456789" not in said

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"data": {}}',
        b'{"data": {"certificate": ""}}',
        b'{"data": {"certificate": "-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----"}}',
        json.dumps({"data": {"certificate": "x", "ca_chain": [1]}}).encode(),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, answer: bytes) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:

            async def other(request: web.Request) -> web.Response:
                return web.Response(body=answer)

            assert (await _said(engine, tmp_path, other)).startswith("UPSTREAM_UNUSABLE")

    asyncio.run(run())


def test_an_issuer_is_one_certificate(tmp_path: Path) -> None:
    """Each would be verified, and there is room for thousands."""

    async def run() -> None:
        async with serving(StandIn()) as engine:
            many = "".join(_pem(Ca(str(number)).certificate) for number in range(2))

            async def issuers(request: web.Request) -> web.Response:
                keys = {"keys": ["one"], "certificate": many}
                return web.json_response({"data": keys})

            engine.instead = issuers
            with pytest.raises(UpstreamUnusable, match="gives 2 certificates as an issuer"):
                await contract.signer(engine, tmp_path).at("pki").roots()

    asyncio.run(run())


def test_a_date_that_is_none_is_no_certificate() -> None:
    """They are parsed late; what nobody foresaw ended one replica after the other."""
    found = to_pem([Ca("a").sign(Ca("a").name, Ca("b").key.public_key(), 365 * 40 * DAY, None)])
    der = x509.load_pem_x509_certificate(found).public_bytes(serialization.Encoding.DER)
    at = der.index(b"\x18\x0f20") + 2
    none = x509.load_der_x509_certificate(der[:at] + b"0000" + der[at + 4 :])
    with pytest.raises(UpstreamUnusable, match="no PEM certificate"):
        certificates([_pem(none)], "OpenBao")


def test_a_root_that_another_one_signed_ends_the_chain(tmp_path: Path) -> None:
    """A mount that moves from one root to another has both; the old one is not to be published anew."""
    old, new = Ca("old"), Ca("new")
    crossed = old.sign(new.name, new.key.public_key(), DAY, None)
    remote = OpenBao(
        OpenBaoSettings("http://127.0.0.1:1", "pki", None, None, None, *("cert", *[None] * 8))  # type: ignore[arg-type]
    )
    request = contract.a_request(remote).to_ca(contract.TD)
    own = new.sign(request.csr.subject, request.csr.public_key(), DAY, 0)
    signed = _Signed(_pem(own), _pem(crossed), [_pem(each) for each in (crossed, new.certificate, old.certificate)])
    found = remote._issued(signed, (), request)
    assert (found.chain, found.roots) == ((own,), (new.certificate,))


def test_names_are_looked_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        ended = threading.Event()
        found = await Names(Bounded(5.0)).resolve("localhost", 7)
        assert {(each["port"], each["flags"]) for each in found} == {(7, socket.AI_NUMERICHOST)}
        monkeypatch.setattr(socket, "getaddrinfo", lambda *rest: ended.wait(10))
        with pytest.raises(OSError, match="not found in time"):
            await Names(Bounded(0.05)).resolve("openbao.openbao.svc", 7)
        ended.set()

    asyncio.run(run())


def test_only_the_server_of_the_named_ca_is_sent_a_credential(tmp_path: Path) -> None:
    async def run() -> None:
        mine, other = Ca("mine"), Ca("other")
        key = KeyAlgorithm.EC_P256.generate()
        names = x509.Extension(
            x509.SubjectAlternativeName.oid, False, x509.SubjectAlternativeName([x509.DNSName("localhost")])
        )
        now = datetime.now(UTC)
        own = x509.Name.from_rfc4514_string("CN=localhost")
        builder = x509.CertificateBuilder(mine.name, own, key.public_key(), 7, now - DAY, now + DAY)
        leaf = builder.add_extension(names.value, False).sign(mine.key, hashes.SHA256())
        (tmp_path / "tls.pem").write_bytes(to_pem([leaf]) + key_to_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "tls.pem")
        for name, ca in (("mine", mine), ("other", other)):
            (tmp_path / name).write_bytes(to_pem([ca.certificate]))
        async with serving(StandIn(), context) as engine:
            engine.root_of("pki")
            to = contract.signer(engine, tmp_path)
            said = await contract.away(to.at("pki", ca_file=tmp_path / "other"))
            assert "its certificate is not trusted" in said
            assert engine.asked == []
            await contract.issued(to.at("pki", ca_file=tmp_path / "mine"))

    asyncio.run(run())


def test_nobody_there_is_away(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:
            to = contract.signer(engine, tmp_path)
        assert "cannot be reached" in await contract.away(to.at("pki"))

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff", b"x" * 70_000])
def test_a_file_without_a_credential_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:
            to = contract.signer(engine, tmp_path)
            assert to.settings.secret_id_file is not None
            to.settings.secret_id_file.write_bytes(content)
            said = await contract.unusable(to.at("pki"))
            assert said.endswith("secret-id holds no credential: one line of printable characters")

    asyncio.run(run())


def loaded(given: Mapping[str, str | None]) -> SignerConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    return config.load(parser.parse_args(["--trust-domain", "example.org", *flags]), {})


SOUND = {
    "upstream": "openbao",
    "openbao_address": "https://openbao.example:8200",
    "openbao_ca_file": "/ca.pem",
    "openbao_role": "podsvid",
    "openbao_token_file": "/token",
}


def test_the_settings_that_a_kubernetes_login_needs() -> None:
    found = loaded(SOUND).above.openbao
    assert (found.mount, found.auth, found.address) == ("pki", "kubernetes", "https://openbao.example:8200")
    assert OpenBao(found).name == "OpenBao https://openbao.example:8200/v1/pki"
    assert OpenBao(replace(found, issuer="a", namespace="b")).name.endswith("/v1/pki, issuer a in namespace b")
    assert isinstance(found, OpenBaoSettings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"openbao_address": None}, "say where OpenBao is"),
        ({"openbao_address": "http://openbao.example:8200"}, "http:// only on the loopback"),
        ({"openbao_address": "https://u:p@openbao.example"}, "https://HOST:PORT"),
        ({"openbao_address": "https://openbao.example/v1"}, "https://HOST:PORT"),
        ({"openbao_address": "ftp://127.0.0.1"}, "https://HOST:PORT"),
        ({"openbao_address": "http://127.0.0.1:8200"}, "http:// has no certificates"),
        (
            {
                "openbao_address": "http://127.0.0.1:8200",
                "openbao_ca_file": None,
                "openbao_auth": "cert",
                "openbao_token_file": None,
                "openbao_cert_file": "/tls.crt",
                "openbao_key_file": "/tls.key",
            },
            "http:// has no certificates",
        ),
        ({"openbao_ca_file": None}, "nobody knows whom the token is sent to"),
        ({"openbao_role": None}, "login by kubernetes needs openbao_role and openbao_token_file"),
        ({"openbao_auth": "approle", "openbao_role": None}, "does not use openbao_token_file"),
        ({"openbao_auth": "cert"}, "needs openbao_cert_file and openbao_key_file"),
        ({"openbao_auth": "token", "openbao_role": None, "openbao_auth_mount": "x"}, "there is no login"),
        ({"openbao_mount": "../sys"}, "a path such as pki"),
        ({"openbao_mount": "pki?x=y"}, "a path such as pki"),
        ({"upstream_dir": "/upstream"}, "they name two upstream CAs"),
        ({"upstream": "files"}, "nothing is asked of OpenBao"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, str | None], said: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        loaded({**SOUND, **change})
    assert said in str(caught.value)


def test_files_that_hang_are_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(StandIn()) as engine:
            remote = contract.signer(engine, tmp_path).at("pki")
            pipe = tmp_path / "pipe"
            os.mkfifo(pipe)
            held = replace(remote, settings=replace(remote.settings, secret_id_file=pipe), reader=Bounded(0.05))
            assert "their file system hangs" in await contract.unusable(held)
            # Who reads it waits for a writer.
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    asyncio.run(run())
