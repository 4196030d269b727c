"""A SPIRE server as the CA above: by the contract that a real one keeps, and against ones that mean ill."""

import argparse
import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import looptime
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from runtime.bounded import Bounded
from runtime.clock import SystemClock
from runtime.settings import InvalidSetting
from runtime.tls import load
from signer import config, parts
from signer.authority.granting import granted
from signer.authority.lifecycle import Life
from signer.authority.request import new_request
from signer.check import lacks
from signer.config import SignerConfig
from signer.errors import CertificateRefused
from signer.pb import spire_pb2
from signer.spire_settings import SpireSettings
from signer.upstream import spire as spire_module
from signer.upstream import spire_server
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.chosen import chosen
from signer.upstream.given import MAX_ABOVE
from signer.upstream.remote import Elsewhere, UpstreamAway
from signer.upstream.rpc import MAX_ANSWER
from signer.upstream.spire import Spire
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_der, to_der, to_pem
from svid.keys import KeyAlgorithm, PrivateKey, key_to_der, key_to_pem
from svid.spiffeid import SpiffeId, TrustDomain
from tests import spire_contract as contract
from tests.fake_kube import FakeKube
from tests.openbao_contract import POLICY, TD
from tests.ports import free_port

SERVER = SpiffeId.parse(f"{TD.id}/spire/server")
SIGNER = SpiffeId.parse(f"{TD.id}/podsvid-signer")
DAY = timedelta(days=1)
# It dates what it signs so far back.
SKEW = timedelta(seconds=10)
Handler = Callable[[bytes, Any], Awaitable[bytes]]


class Ca:
    """A CA as SPIRE makes one: its name has a number, and all below it have that name and one word more."""

    def __init__(self, trust_domain: TrustDomain = TD, life: timedelta = DAY) -> None:
        self.trust_domain = trust_domain
        self.key = KeyAlgorithm.EC_P256.generate()
        self.serial = x509.random_serial_number()
        # How far its clock is ahead.
        self.ahead = timedelta(0)
        self.certificate = self.sign(self.key.public_key(), life, downstream=False)

    def sign(self, key: Any, life: timedelta, *, downstream: bool = True) -> x509.Certificate:
        now = datetime.now(UTC).replace(microsecond=0) + self.ahead
        end = now + life
        if downstream:
            end = min(end, self.certificate.not_valid_after_utc)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        own = x509.UniformResourceIdentifier(str(self.trust_domain.id))
        return (
            x509.CertificateBuilder(
                self._name(False), self._name(downstream), key, x509.random_serial_number(), now - SKEW, end
            )
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
            .add_extension(x509.SubjectAlternativeName([own]), False)
            .sign(self.key, hashes.SHA256())
        )

    def _name(self, downstream: bool) -> x509.Name:
        parts = [(NameOID.COUNTRY_NAME, "US"), (NameOID.ORGANIZATION_NAME, "SPIFFE")]
        parts += [(NameOID.ORGANIZATIONAL_UNIT_NAME, "DOWNSTREAM-1")] if downstream else []
        return x509.Name([x509.NameAttribute(*each) for each in (*parts, (NameOID.SERIAL_NUMBER, str(self.serial)))])

    def svid(self, whose: SpiffeId, ttl: timedelta = DAY / 24) -> tuple[tuple[x509.Certificate, ...], PrivateKey]:
        bundle = TrustBundle(self.trust_domain, (self.certificate,))
        authority = X509Authority(self.trust_domain, (self.certificate,), self.key, bundle)
        key = KeyAlgorithm.EC_P256.generate()
        return authority.issue(key.public_key(), whose, ttl=ttl, now=datetime.now(UTC)), key


class StandIn:
    """Implements contract.Server: as much of SPIRE as podsvid asks for, with the answers of a real one."""

    address = ""
    agent_socket = Path()

    def __init__(self, server: SpiffeId = SERVER) -> None:
        self.cas = [Ca()]
        self.of_server = server
        self.is_downstream = True
        self.instead: Handler | None = None
        self.agent_instead: Handler | None = None
        self.callers: list[str] = []
        # By which CA the signer's SVID is signed, and what it is told to trust.
        self.signers_ca = self.cas[0]
        self.told = self.cas[0]

    async def downstream(self, yes: bool) -> None:
        self.is_downstream = yes

    async def authorities(self) -> tuple[x509.Certificate, ...]:
        return tuple(each.certificate for each in self.cas)

    async def another_ca(self) -> None:
        self.cas.append(Ca())

    async def files(self, folder: Path) -> None:
        chain, key = self.signers_ca.svid(SIGNER)
        (folder / "tls.crt").write_bytes(to_pem(chain))
        (folder / "tls.key").write_bytes(key_to_pem(key))
        (folder / "ca.crt").write_bytes(to_pem([self.told.certificate]))

    async def new_ca(self, data: bytes, context: Any) -> bytes:
        pem = context.auth_context()["x509_pem_cert"][0]
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        self.callers += names.value.get_values_for_type(x509.UniformResourceIdentifier)
        if self.instead is not None:
            return await self.instead(data, context)
        if not self.is_downstream:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "authorization denied for method")
        asked = spire_pb2.NewDownstreamX509CARequest.FromString(data)
        csr = x509.load_der_x509_csr(asked.csr)
        made = self.cas[-1].sign(csr.public_key(), timedelta(seconds=asked.preferred_ttl))
        return spire_pb2.NewDownstreamX509CAResponse(
            ca_cert_chain=[to_der([made])], x509_authorities=[to_der([each.certificate]) for each in self.cas]
        ).SerializeToString()

    async def bundle(self, data: bytes, context: Any) -> bytes:
        if self.instead is not None:
            return await self.instead(data, context)
        roots = [spire_pb2.X509Certificate(asn1=to_der([each.certificate])) for each in self.cas]
        return spire_pb2.Bundle(trust_domain=TD.name, x509_authorities=roots).SerializeToString()

    async def fetch(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        if self.agent_instead is not None:
            yield await self.agent_instead(data, context)
        else:
            yield self.answer(SIGNER)
        await asyncio.Event().wait()  # until the caller leaves

    def answer(self, *whose: SpiffeId, ttl: timedelta = DAY / 24) -> bytes:
        """What the agent gives a workload with those SVIDs."""
        answer = spire_pb2.FetchX509SVIDResponse()
        for each in whose:
            chain, key = self.signers_ca.svid(each, ttl)
            roots = to_der([self.told.certificate])
            answer.svids.add(spiffe_id=str(each), x509_svid=to_der(chain), x509_svid_key=key_to_der(key), bundle=roots)
        return answer.SerializeToString()


@asynccontextmanager
async def serving(stand_in: StandIn) -> AsyncIterator[StandIn]:
    """A server over mTLS, and an agent's socket."""
    server, agent = grpc.aio.server(), grpc.aio.server()
    for service, methods in (
        ("spire.api.server.svid.v1.SVID", {"NewDownstreamX509CA": stand_in.new_ca}),
        ("spire.api.server.bundle.v1.Bundle", {"GetBundle": stand_in.bundle}),
    ):
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(work) for name, work in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    fetch: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "FetchX509SVID": grpc.unary_stream_rpc_method_handler(stand_in.fetch)
    }
    agent.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", fetch),))
    chain, key = stand_in.cas[0].svid(stand_in.of_server)
    credentials = grpc.ssl_server_credentials(
        [(key_to_pem(key), to_pem(chain))], to_pem([stand_in.cas[0].certificate]), require_client_auth=True
    )
    with tempfile.TemporaryDirectory(prefix="sp", dir="/tmp") as folder:
        stand_in.agent_socket = Path(folder) / "agent.sock"
        stand_in.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        agent.add_insecure_port(f"unix:{stand_in.agent_socket}")
        await server.start()
        await agent.start()
        try:
            yield stand_in
        finally:
            await asyncio.gather(server.stop(None), agent.stop(None))


def loop_of_its_own() -> Any:
    """One whose time is what is waited for."""
    return looptime.new_event_loop(start=0)


def run(work: Callable[[StandIn], Awaitable[None]], stand_in: StandIn | None = None) -> None:
    """`work` with a SPIRE."""

    async def whole() -> None:
        async with serving(stand_in or StandIn()) as spire:
            await work(spire)

    asyncio.run(whole())


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_the_contract(tmp_path: Path, check: Callable[[contract.Server, Path], Awaitable[None]]) -> None:
    run(lambda spire: check(spire, tmp_path))


def test_the_server_is_shown_the_svid_of_the_signer(tmp_path: Path) -> None:
    async def work(spire: StandIn) -> None:
        await contract.issued(contract.signer(spire))
        assert spire.callers == [str(SIGNER)]

    run(work)


def test_of_several_svids_the_wanted_one_is_shown_and_else_the_first() -> None:
    other = SpiffeId.parse(f"{TD.id}/other")

    async def work(spire: StandIn) -> None:
        async def several(data: bytes, context: Any) -> bytes:
            return spire.answer(other, SIGNER)

        spire.agent_instead = several
        await contract.issued(contract.signer(spire))
        await contract.issued(contract.signer(spire, spiffe_id=SIGNER))
        assert spire.callers == [str(other), str(SIGNER)]

    run(work)


def test_only_the_server_of_the_trust_domain_is_asked() -> None:
    """Each has a certificate that the bundle verifies, or the right name: not both."""

    async def another_workload(spire: StandIn) -> None:
        said = await contract.unusable(contract.signer(spire))
        assert f"proves to be {TD.id}/web, not {SERVER}" in said
        assert spire.callers == []
        with pytest.raises(UpstreamUnusable, match="proves to be"):
            await contract.signer(spire).roots()

    run(another_workload, StandIn(SpiffeId.parse(f"{TD.id}/web")))

    async def another_root(spire: StandIn) -> None:
        spire.signers_ca = spire.told = Ca()
        said = await contract.unusable(contract.signer(spire))
        assert "is not trusted by the bundle that came with the signer's SVID" in said
        assert spire.callers == []

    run(another_root)


def test_an_svid_that_the_server_does_not_take() -> None:
    """It ends the connection after the handshake: with TLS 1.3 the signer hears that late."""

    async def work(spire: StandIn) -> None:
        stranger = Ca()

        async def strange(data: bytes, context: Any) -> bytes:
            chain, key = stranger.svid(SIGNER)
            answer = spire_pb2.FetchX509SVIDResponse()
            roots = to_der([stranger.certificate, spire.cas[0].certificate])
            answer.svids.add(
                spiffe_id=str(SIGNER), x509_svid=to_der(chain), x509_svid_key=key_to_der(key), bundle=roots
            )
            return answer.SerializeToString()

        spire.agent_instead = strange
        assert "does not certify now (UNAVAILABLE" in await contract.away(contract.signer(spire))

    run(work)


def test_why_a_server_ends_the_connection_is_said() -> None:
    """As SPIRE says it: gRPC, which gets no byte of TLS, would only say that its socket was closed."""

    async def work(spire: StandIn) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=to_pem([Ca().certificate]).decode())
        chain, key = spire.cas[0].svid(SERVER)
        load(context, to_pem(chain), key_to_pem(key))
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            # Of asyncio's own server no client hears it.
            context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False) as guarded,
        ):
            remote = contract.signer(spire, address=f"127.0.0.1:{guarded.getsockname()[1]}")

            guarded.settimeout(60)

            def refuse() -> ssl.SSLSocket:
                accepted, _ = guarded.accept()
                with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
                    accepted.do_handshake()
                return accepted

            refusing = asyncio.create_task(asyncio.to_thread(refuse))
            said = await contract.away(remote)
            (await refusing).close()
        assert re.search(rf"ended the connection of {SIGNER} \(.*alert unknown ca", said), said

    run(work)


def test_a_server_that_is_away_may_come_back() -> None:
    async def work(spire: StandIn) -> None:
        nobody = contract.signer(spire, address=f"127.0.0.1:{free_port()}")
        assert "cannot be reached" in await contract.away(nobody)
        with pytest.raises(UpstreamAway, match="cannot be reached"):
            await nobody.roots()

    run(work)


def test_an_agent_that_is_away_may_come_back(tmp_path: Path) -> None:
    async def work(spire: StandIn) -> None:
        nobody = contract.signer(spire, agent_socket=tmp_path / "a socket%41")
        said = await contract.away(nobody)
        assert f"the SPIRE agent at {tmp_path}/a socket%41 cannot be asked" in said

    run(work)


@pytest.mark.parametrize("name", ["plain", "with space", "percent%41", "ä", "q?a#b"])
def test_a_socket_is_where_its_name_says(tmp_path: Path, name: str) -> None:
    async def work(spire: StandIn) -> None:
        link = Path(tempfile.mkdtemp(prefix="sp", dir="/tmp")) / name
        try:
            link.symlink_to(spire.agent_socket)
            assert (await contract.issued(contract.signer(spire, agent_socket=link))).chain
        finally:
            link.unlink()
            link.parent.rmdir()

    run(work)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, UpstreamUnusable, "is there a registration entry"),
        (grpc.StatusCode.UNAVAILABLE, UpstreamAway, "cannot be asked for the signer's SVID"),
        (grpc.StatusCode.INTERNAL, UpstreamUnusable, "gives this signer no SVID"),
    ],
)
def test_what_an_agent_says_is_told(code: grpc.StatusCode, kind: type[Exception], said: str) -> None:
    async def work(spire: StandIn) -> None:
        async def refuse(data: bytes, context: Any) -> bytes:
            await context.abort(code, "no identity\nissued")
            return b""

        spire.agent_instead = refuse
        with pytest.raises(kind, match=said) as caught:
            await contract.issued(contract.signer(spire))
        assert "no identity issued" in str(caught.value)

    run(work)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, UpstreamUnusable),
        (grpc.StatusCode.INVALID_ARGUMENT, UpstreamUnusable),
        (grpc.StatusCode.UNIMPLEMENTED, UpstreamUnusable),
        (grpc.StatusCode.UNAVAILABLE, UpstreamAway),
        (grpc.StatusCode.INTERNAL, UpstreamAway),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UpstreamAway),
    ],
)
def test_what_a_server_says_is_told_in_one_line(code: grpc.StatusCode, kind: type[Exception]) -> None:
    async def work(spire: StandIn) -> None:
        async def refuse(data: bytes, context: Any) -> bytes:
            await context.abort(code, "some\nwords " + "x" * 2000)
            return b""

        spire.instead = refuse
        with pytest.raises(kind) as caught:
            await contract.issued(contract.signer(spire))
        assert f"({code.name}: some words x" in str(caught.value)
        assert len(str(caught.value)) < 600

    run(work)


async def of_the_server(spire: StandIn, answer: bytes) -> Exception:
    async def other(data: bytes, context: Any) -> bytes:
        return answer

    spire.instead = other
    try:
        await contract.issued(contract.signer(spire))
    except (UpstreamUnusable, UpstreamAway) as error:
        return error
    raise AssertionError("it certified")


def test_what_is_no_answer_is_refused() -> None:
    async def work(spire: StandIn) -> None:
        answer = spire_pb2.NewDownstreamX509CAResponse
        one = to_der([spire.cas[0].certificate])
        for data, said in (
            (b"\xff", "what answered is no SPIRE"),
            (b"", "gave 0 certificates"),
            (answer(ca_cert_chain=[b"none"]).SerializeToString(), "no certificate"),
            (answer(ca_cert_chain=[one, one + b"\0"]).SerializeToString(), "no certificate"),
            (answer(ca_cert_chain=[one] * (MAX_ABOVE + 1)).SerializeToString(), "of 1 to 32"),
            (answer(ca_cert_chain=[b"x" * MAX_ANSWER]).SerializeToString(), "RESOURCE_EXHAUSTED"),
        ):
            assert said in str(await of_the_server(spire, data))
        with pytest.raises(UpstreamUnusable, match="the bundle of another trust domain"):
            spire.instead = _always(spire_pb2.Bundle(trust_domain="other.example").SerializeToString())
            await contract.signer(spire).roots()

    run(work)


def _always(answer: bytes) -> Handler:
    async def other(data: bytes, context: Any) -> bytes:
        return answer

    return other


def test_what_is_no_svid_is_refused() -> None:
    async def work(spire: StandIn) -> None:
        whole = spire_pb2.FetchX509SVIDResponse.FromString(spire.answer(SIGNER))
        elsewhere = Ca(TrustDomain("other.example"))
        chain, key = elsewhere.svid(SpiffeId.parse("spiffe://other.example/podsvid-signer"))
        foreign = spire_pb2.FetchX509SVIDResponse()
        foreign.svids.add(
            x509_svid=to_der(chain), x509_svid_key=key_to_der(key), bundle=to_der([elsewhere.certificate])
        )
        broken = spire_pb2.FetchX509SVIDResponse()
        broken.svids.add(x509_svid=b"none")
        keyless = spire_pb2.FetchX509SVIDResponse.FromString(whole.SerializeToString())
        keyless.svids[0].x509_svid_key = key_to_der(KeyAlgorithm.EC_P256.generate())
        many = spire_pb2.FetchX509SVIDResponse(svids=[spire_pb2.X509SVID()] * 65)
        for answer, said in (
            (b"\xff", "what answered is no SPIRE"),
            (b"", "gives this signer no SVID"),
            (foreign.SerializeToString(), "not of the signer's trust domain"),
            (broken.SerializeToString(), "cannot be used"),
            (keyless.SerializeToString(), "private key does not match"),
            (many.SerializeToString(), "gives 65 SVIDs"),
        ):
            spire.agent_instead = _always(answer)
            assert said in await contract.unusable(contract.signer(spire))
        assert spire.callers == []

    run(work)


def test_an_svid_that_has_ended_is_not_shown() -> None:
    class Later(SystemClock):
        def now(self) -> datetime:
            return super().now() + 2 * DAY

    async def work(spire: StandIn) -> None:
        with pytest.raises(UpstreamUnusable, match="gives cannot be used: certificate expired"):
            await contract.issued(Spire(contract.settings(spire), Later()))
        assert spire.callers == []

    run(work)


def test_an_svid_in_files_that_cannot_be_used(tmp_path: Path) -> None:
    async def work(spire: StandIn) -> None:
        remote = contract.signer(spire, agent_socket=None, svid_dir=tmp_path)
        assert f"{tmp_path}/tls.crt cannot be read" in await contract.unusable(remote)
        await spire.files(tmp_path)
        (tmp_path / "ca.crt").write_text("none")
        assert f"the SVID in {tmp_path} cannot be used" in await contract.unusable(remote)
        await spire.files(tmp_path)
        (tmp_path / "tls.key").write_bytes(key_to_pem(KeyAlgorithm.EC_P256.generate()))
        said = await contract.unusable(remote)
        assert "private key does not match" in said
        assert "PRIVATE" not in said

    run(work)


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spire_server, "CONNECT_SECONDS", 0.1)

    async def work(spire: StandIn) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            remote = contract.signer(spire, address=f"127.0.0.1:{mute.getsockname()[1]}")
            assert "does not answer within 0.1 s" in await contract.away(remote)

    run(work)


def test_an_address_that_says_nothing_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several behind one name. What one does not use of its share is the others'."""
    asked: list[tuple[str, float]] = []
    started = loop_of_its_own()

    async def several(*_: object) -> list[tuple[str, int]]:
        return [("mute", 1), ("refuses", 1), ("mute too", 1), ("serves", 1)]

    async def opened(host: str, port: int, **_: object) -> str:
        asked.append((host, started.time()))
        if host == "refuses":
            raise ConnectionRefusedError
        if host != "serves":
            await asyncio.Event().wait()
        return host

    monkeypatch.setattr(spire_server, "addresses", several)
    monkeypatch.setattr(asyncio, "open_connection", opened)
    context = ssl.create_default_context()
    with closing(started) as loop:
        found: object = loop.run_until_complete(spire_server._reached("spire:1", context, Bounded(1.0)))
    assert found == "serves"
    share = spire_server.CONNECT_SECONDS / 4
    rest = share + 3 * share / 2
    assert [host for host, _ in asked] == ["mute", "refuses", "mute too", "serves"]
    assert [at for _, at in asked] == pytest.approx([0, share, share, rest])


@dataclass(frozen=True)
class Behind(SystemClock):
    """So many seconds before `made` is valid, when the loop starts."""

    made: x509.Certificate
    seconds: float
    loop: asyncio.AbstractEventLoop

    def now(self) -> datetime:
        return self.made.not_valid_before_utc + timedelta(seconds=self.loop.time() - self.seconds)


@pytest.mark.parametrize(("behind", "waited"), [(-5.0, 0.0), (0.0, 0.0), (0.5, 0.5), (10.0, 10.0), (10.6, None)])
def test_a_clock_that_is_a_little_behind_is_waited_for(behind: float, waited: float | None) -> None:
    with closing(loop_of_its_own()) as loop:
        clock = Behind(Ca().certificate, behind, loop)
        waiting = spire_module._begun([clock.made], clock, "it")
        if waited is None:
            with pytest.raises(UpstreamAway, match="it certifies from a time that is 11 s ahead of here"):
                loop.run_until_complete(waiting)
        else:
            loop.run_until_complete(waiting)
        assert loop.time() == pytest.approx(waited or 0.0)


def test_what_is_not_valid_for_long_is_not_taken() -> None:
    """It would be refused, and asked for again an hour later: with clocks that are set it is there soon."""

    async def work(spire: StandIn) -> None:
        spire.cas[-1].ahead = timedelta(minutes=5)
        assert "s ahead of here: look at the clocks" in await contract.away(contract.signer(spire))

    run(work)


def test_another_process_cannot_speak_as_the_signer() -> None:
    """What gRPC connects to has a name that everybody in the network namespace may read."""
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(bytes.fromhex(sys.argv[1])); "
        "s.settimeout(30); print(len(s.recv(1)))"
    )

    async def work() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listening:
            listening.bind("")
            listening.listen(1)
            accepting = asyncio.create_task(spire_server._own_connection(listening))
            other = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, listening.getsockname().hex(), stdout=subprocess.PIPE
            )
            out, _ = await other.communicate()
            assert out == b"0\n", "its connection was closed"
            with socket.socket(socket.AF_UNIX) as own:
                own.connect(listening.getsockname())
                accepted = await accepting
                accepted.close()

    asyncio.run(work())


def test_nothing_is_left_open() -> None:
    async def work(spire: StandIn) -> None:
        remote = contract.signer(spire)
        await contract.issued(remote)
        before, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        for _ in range(12):
            await contract.issued(remote)
        # gRPC closes its own ends a little later. One left by each use would be 12 here.
        async with asyncio.timeout(30):
            while len(os.listdir("/proc/self/fd")) >= before + 12 or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)

    run(work)


def test_two_of_one_name_are_refused_where_the_ca_did_not_say_so() -> None:
    """Of any other CA it is a template that replaces the name."""

    async def work(spire: StandIn) -> None:
        policy = replace(POLICY, authority_ttl=contract.LIFE, x509_max_ttl=timedelta(minutes=10))
        remote, now = contract.signer(spire), datetime.now(UTC)
        state = await Life(policy, Elsewhere(remote.name), TD).first(now)
        assert state.request is not None
        state, _ = granted(state, await contract.answered(remote, state.request.to_ca(TD)), policy, now)
        request = new_request(remote.name, TD, KeyAlgorithm.EC_P256.generate(), contract.LIFE, now, wished=True)
        again = await contract.answered(remote, request.to_ca(TD))
        with pytest.raises(CertificateRefused, match="has the name of another authority"):
            granted(replace(state, request=request), replace(again, named_alike=False), policy, now)

    run(work)


SOUND = {
    "upstream": "spire",
    "spire_address": "spire-server.spire:8081",
    "spire_agent_socket": "/run/spire/agent.sock",
    "spire_spiffe_id": str(SIGNER),
}


def loaded(changes: dict[str, str | None]) -> SignerConfig:
    return config.load(_arguments(changes), {})


def _arguments(changes: dict[str, str | None]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    given = {"trust_domain": TD.name, "identity": "a", **SOUND, **changes}
    words = [
        word for name, value in given.items() if value is not None for word in (f"--{name.replace('_', '-')}", value)
    ]
    return parser.parse_args(words)


def test_the_settings_say_whom_to_ask() -> None:
    found = loaded({})
    assert found.above.spire == SpireSettings(
        TD, "spire-server.spire:8081", Path("/run/spire/agent.sock"), None, SIGNER, None
    )
    ca = chosen(found.above, FakeKube(SystemClock()), SystemClock())
    assert isinstance(ca.remote, Spire)
    assert ca.above == Elsewhere("SPIRE server spire-server.spire:8081")
    assert parts.policy(found).reserved_ids == {SIGNER}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spire_address": None}, "say where the SPIRE server is"),
        ({"spire_address": "https://spire:8081"}, "HOST:PORT such as"),
        ({"spire_agent_socket": None}, "give a SPIRE agent's socket, or a folder with files"),
        ({"spire_svid_dir": "/run/svid"}, "they name two SVIDs"),
        ({"spire_agent_socket": "/" + "a" * 107}, "too long for a socket"),
        ({"spire_spiffe_id": None}, "by which SPIFFE ID the SPIRE server knows the signer"),
        ({"spire_spiffe_id": "spiffe://other.example/a"}, "its own trust domain"),
        ({"spire_spiffe_id": str(TD.id)}, "a SPIFFE ID with a path"),
        ({"spire_spiffe_id": "a"}, "a SPIFFE ID such as"),
        ({"upstream_bundle_file": "/roots.pem"}, "says itself what is to be trusted"),
        ({"upstream": "files"}, "nothing is asked of a SPIRE server"),
        ({"openbao_mount": "pki"}, "nothing is asked of OpenBao"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, str | None], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        loaded(changes)


def test_check_says_what_is_missing_on_this_host(tmp_path: Path) -> None:
    def found(changes: dict[str, str | None]) -> str:
        examined = config.examine(_arguments(changes), {})
        return "\n".join(each.text for each in lacks(examined) if "spire" in each.text)

    assert "is the SPIRE agent's socket mounted there?" in found({"spire_agent_socket": str(tmp_path / "none")})
    (tmp_path / "file").touch()
    assert "is no socket" in found({"spire_agent_socket": str(tmp_path / "file")})
    said = found({"spire_agent_socket": None, "spire_svid_dir": str(tmp_path)})
    assert f"{tmp_path}/tls.crt cannot be read" in said
    asyncio.run(StandIn().files(tmp_path))
    assert found({"spire_agent_socket": None, "spire_svid_dir": str(tmp_path)}) == ""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        assert found({"spire_agent_socket": str(tmp_path / "s")}) == ""


def test_the_stand_in_makes_what_spire_makes() -> None:
    ca = Ca()
    made = certificates_from_der(to_der([ca.sign(KeyAlgorithm.EC_P256.generate().public_key(), DAY)]))[0]
    assert made.subject != ca.certificate.subject
    assert made.not_valid_after_utc <= ca.certificate.not_valid_after_utc
