"""Who is taken for the signer: by its SPIFFE ID under the trusted authorities, whatever else a certificate says."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.authority import proven
from agent.authority.connection import YOUNG_SECONDS
from agent.authority.proven import FIRST, SOCKET, ProvenSigner, _signers, _to_signer, certificates
from agent.errors import AuthorityUnavailable
from signer.front.budget import GREETING, SETTINGS_SECONDS
from signer.front.way import CHUNK
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.dnsnames import SIGNER_NAME, signer_id
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem, signature_hash
from svid.spiffeid import TrustDomain
from tests.fake_signer import TRUST_DOMAIN, authority, certified
from tests.unit.agent.signer_scene import Scene, on_stage
from tests.unit.runtime.test_listening import ipv6

OWN = str(signer_id(TRUST_DOMAIN))
STRANGERS = {
    "another service of the CA above": ("https://vault.example.org",),
    "a workload with the DNS name": ("spiffe://example.org/ns/default/sa/web",),
    "no SPIFFE ID": (),
    "two, one of them the signer's": (OWN, "spiffe://example.org/ns/default/sa/web"),
    "another trust domain's signer": ("spiffe://other.test/podsvid/signer",),
    "what begins alike": (f"{OWN}/x",),
    "podsvid's own, but no signer": ("spiffe://example.org/podsvid",),
}


@pytest.mark.parametrize("uris", STRANGERS.values(), ids=list(STRANGERS))
def test_a_stranger_with_the_signers_dns_name_gets_no_token(tmp_path: Path, uris: tuple[str, ...]) -> None:
    async def play(at: Scene) -> None:
        await at.until(lambda: "SIGNER_WRONG_IDENTITY" in at.authority.contact.last_error)
        assert not at.authority.contact.connected
        assert (at.signer.bearers, at.signer.streams, at.signer.mints) == ([], 0, [])
        assert f"not {OWN}; is signer_address the signer's" in at.authority.contact.last_error

    on_stage(tmp_path, play, uris=uris, connect=False)


def test_a_mint_says_that_a_stranger_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.authority.calls.CALL_SECONDS", 2.0)

    async def play(at: Scene) -> None:
        await at.until(lambda: at.authority.contact.failures > 1)
        with pytest.raises(AuthorityUnavailable, match=r"did not answer within .* \(SIGNER_WRONG_IDENTITY: what answ"):
            await at.authority.mint_x509(at.request())
        assert not at.signer.bearers

    on_stage(tmp_path, play, uris=("spiffe://example.org/ns/default/sa/web",), connect=False)


def test_who_took_the_signers_place_gets_nothing_and_the_signer_is_found_again(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        await at.signer.stop()
        await at.until(lambda: not at.authority.contact.connected)
        streams, bearers = at.signer.streams, len(at.signer.bearers)
        at.signer.uris = ("spiffe://example.org/ns/default/sa/web",)
        await at.signer.start()
        await at.until(lambda: "SIGNER_WRONG_IDENTITY" in at.authority.contact.last_error)
        assert (at.signer.streams, len(at.signer.bearers)) == (streams, bearers)
        await at.signer.stop()
        at.signer.uris = (OWN,)
        await at.signer.start()
        await at.until(lambda: at.authority.contact.connected)
        await at.authority.mint_x509(at.request())

    on_stage(tmp_path, play)


def test_a_new_certificate_of_the_signer_is_no_other_signer(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        for _ in range(3):
            await at.signer.stop()
            await at.until(lambda: not at.authority.contact.connected)
            await at.signer.start()
            await at.until(lambda: at.authority.contact.connected)
            assert (await at.authority.mint_x509(at.request())).chain

    on_stage(tmp_path, play)


Test = Callable[["Line"], Awaitable[None]]


class Line:
    """A TLS server that says what it was sent, and a ProvenSigner that leads to it."""

    def __init__(self, base: Path) -> None:
        self.above = authority(datetime.now(UTC))
        self.roots = self.above.bundle
        self.run_dir = base / ("deep" * 30)
        # Those by which it was sent something.
        self.connections = 0
        self.ended = asyncio.Event()
        self.server: asyncio.Server | None = None
        self.port = 0
        # Instead of a certificate by `above`.
        self.shown: tuple[PrivateKey, tuple[x509.Certificate, ...]] | None = None

    async def serve(
        self, name: str = SIGNER_NAME, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, at: str = "127.0.0.1"
    ) -> None:
        key: PrivateKey = KeyAlgorithm.EC_P256.generate()
        chain = certified(self.above, key.public_key(), datetime.now(UTC), name, OWN)
        if self.shown is not None:
            key, chain = self.shown
        pem = self.run_dir.parent / "server.pem"
        pem.write_bytes(key_to_pem(key) + to_pem(chain))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = version
        context.load_cert_chain(pem)
        self.server = await asyncio.start_server(self._answer, at, self.port, ssl=context)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = False
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.connections, told = self.connections + (not told), True
                writer.write(data)
                await writer.drain()
        self.ended.set()
        writer.close()

    def proven(self, host: str = "127.0.0.1", trust_domain: TrustDomain = TRUST_DOMAIN) -> ProvenSigner:
        return ProvenSigner(f"{host}:{self.port}", trust_domain, self.run_dir, lambda: self.roots.to_pem())

    @staticmethod
    async def through(proven: ProvenSigner, data: bytes) -> bytes:
        """What comes back for `data`; nothing where the line was closed."""
        reader, writer = await asyncio.open_unix_connection(proven.open().removeprefix("unix:"))
        try:
            writer.write(data)
            return await reader.readexactly(len(data))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        finally:
            writer.close()


def lined(base: Path, test: Test) -> None:
    async def main() -> None:
        line = Line(base)
        await line.serve()
        await test(line)
        if line.server is not None:
            line.server.close()

    asyncio.run(main())


def test_what_is_sent_arrives_whole_and_both_ends_close_together(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        proven, data = line.proven(), os.urandom(3_000_000)
        assert await line.through(proven, data) == data
        assert proven.failure == ""
        async with asyncio.timeout(30):
            await line.ended.wait()
        path = line.run_dir / SOCKET
        assert path.stat().st_mode & 0o777 == 0o600
        await proven.close()
        assert not path.exists()
        await proven.close()

    lined(tmp_path, test)


def test_a_socket_that_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        line.run_dir.mkdir()
        (line.run_dir / SOCKET).write_text("left")
        proven = line.proven()
        assert proven.open() == proven.open()
        assert await line.through(proven, b"x") == b"x"
        await proven.close()

    lined(tmp_path, test)


@pytest.mark.parametrize("step", ["open", "socket", "bind", "chmod", "listen"])
def test_a_socket_that_could_not_be_made_is_made_at_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A full `/run`, or no descriptors left: whichever step it meets, nothing half is kept."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*_: object, **__: object) -> Any:
        raise full

    class Failing(socket.socket):
        bind = fails if step == "bind" else socket.socket.bind
        listen = fails if step == "listen" else socket.socket.listen

    async def test(line: Line) -> None:
        proven = line.proven()
        line.run_dir.mkdir(mode=0o700)
        before = descriptors()
        with monkeypatch.context() as broken:
            if step in ("open", "chmod"):
                broken.setattr(os, step, fails)
            else:
                broken.setattr(socket, "socket", fails if step == "socket" else Failing)
            for _ in range(3):
                with pytest.raises(OSError, match="No space left"):
                    proven.open()
        assert descriptors() == before
        assert not list(line.run_dir.iterdir())
        # Nothing to close, and nothing of others is closed.
        await proven.close()
        assert descriptors() == before
        assert await line.through(proven, b"hello") == b"hello"
        await proven.close()
        assert not list(line.run_dir.iterdir())

    lined(tmp_path, test)


def descriptors() -> set[str]:
    """Those of this process that are open, by number and what they are."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(f"{each.name} {each.readlink()}")
    return found


def test_each_connection_is_verified_by_the_roots_of_its_time(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        proven = line.proven()
        assert await line.through(proven, b"x") == b"x"
        line.roots = authority(datetime.now(UTC)).bundle
        assert await line.through(proven, b"x") == b""
        assert proven.failure.startswith(f"SIGNER_NOT_TRUSTED: what answers at 127.0.0.1:{line.port} has a certificate")
        line.roots = line.above.bundle
        assert await line.through(proven, b"x") == b"x"
        assert (proven.failure, line.connections) == ("", 2)
        await proven.close()

    lined(tmp_path, test)


def test_it_is_known_which_roots_proved_the_connections(tmp_path: Path) -> None:
    """Of those that were trusted then; when one of them is trusted no more, what it proved has to be proven again."""

    async def test(line: Line) -> None:
        first, second, other = line.above, *(authority(datetime.now(UTC)) for _ in range(2))
        line.roots = TrustBundle(TRUST_DOMAIN, (*first.chain, *second.chain, *other.chain))
        proven = line.proven()
        assert not proven.proven_by
        assert await line.through(proven, b"x") == b"x"
        assert proven.proven_by == certificates(to_pem(first.chain))
        await stopped(line)
        line.above = second
        await line.serve()
        assert await line.through(proven, b"x") == b"x"
        assert (proven.proven, proven.proven_by) == (2, certificates(to_pem((*first.chain, *second.chain))))
        proven.forget(1)
        assert proven.proven_by == certificates(to_pem(second.chain))
        proven.forget(2)
        assert not proven.proven_by
        await proven.close()

    lined(tmp_path, test)


def test_where_another_authority_stands_between_any_root_may_have_proved_it() -> None:
    now = datetime.now(UTC)
    roots = certificates(to_pem((*authority(now).chain, *authority(now).chain)))
    assert len(roots) == 2
    leaf = certified(authority(now), KeyAlgorithm.EC_P256.generate().public_key(), now, "x")[0]
    assert _signers(leaf, roots) == roots


EKU = ExtendedKeyUsageOID
FOR = {
    "of nothing in particular": (None, False, True),
    "of servers": (x509.ExtendedKeyUsage([EKU.SERVER_AUTH, EKU.CLIENT_AUTH]), False, True),
    "of anything": (x509.ExtendedKeyUsage([EKU.ANY_EXTENDED_KEY_USAGE]), False, True),
    "of mail": (x509.ExtendedKeyUsage([EKU.EMAIL_PROTECTION]), False, False),
    "of clients": (x509.ExtendedKeyUsage([EKU.CLIENT_AUTH]), True, False),
    "of another name": (x509.NameConstraints([x509.DNSName("other.example")], None), True, False),
}


@pytest.mark.parametrize("below", [False, True], ids=["a root", "a CA below a root"])
@pytest.mark.parametrize(("limit", "critical", "taken"), FOR.values(), ids=list(FOR))
def test_a_ca_for_something_else_certifies_no_signer(
    tmp_path: Path, limit: x509.ExtensionType | None, critical: bool, taken: bool, below: bool
) -> None:
    """Under a root that others share there are CAs for mail, for clients, for one department's names."""

    async def test(line: Line) -> None:
        await stopped(line)
        root = ca("root", None, None if below else limit, critical)
        above = ca("issuing", root, limit, critical) if below else root
        key: PrivateKey = KeyAlgorithm.EC_P256.generate()
        line.shown = key, certified(above, key.public_key(), datetime.now(UTC), SIGNER_NAME, OWN)
        line.roots = TrustBundle(TRUST_DOMAIN, (root.chain[0],))
        await line.serve()
        proven = line.proven()
        assert await line.through(proven, b"x") == (b"x" if taken else b"")
        assert proven.failure.startswith("" if taken else "SIGNER_NOT_TRUSTED: ")
        assert line.connections == taken
        await proven.close()

    lined(tmp_path, test)


def ca(name: str, above: X509Authority | None, limit: x509.ExtensionType | None, critical: bool) -> X509Authority:
    """As one that a PKI makes, also such as podsvid would not sign with."""
    key, now = KeyAlgorithm.EC_P256.generate(), datetime.now(UTC)
    subject = x509.Name.from_rfc4514_string(f"CN={name}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.chain[0].subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
    )
    if limit is not None:
        builder = builder.add_extension(limit, critical=critical)
    signing = above.private_key if above else key
    own = builder.sign(signing, signature_hash(signing))
    return cast(X509Authority, SimpleNamespace(chain=(own, *(above.chain if above else ())), private_key=key))


def test_the_dns_name_must_be_the_signers_too(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        await stopped(line)
        await line.serve("web.default.svc")
        proven = line.proven()
        assert await line.through(proven, b"x") == b""
        assert proven.failure.startswith("SIGNER_NOT_TRUSTED: ")
        await proven.close()

    lined(tmp_path, test)


def test_the_identity_is_of_the_agents_own_trust_domain(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        proven = line.proven(trust_domain=TrustDomain("other.test"))
        assert await line.through(proven, b"x") == b""
        assert f"SIGNER_WRONG_IDENTITY: what answers at 127.0.0.1:{line.port} proves to be {OWN}" in proven.failure
        await proven.close()

    lined(tmp_path, test)


def test_nothing_older_than_tls_1_3_and_nothing_that_is_no_tls(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        await stopped(line)
        await line.serve(version=ssl.TLSVersion.TLSv1_2)
        proven = line.proven()
        assert await line.through(proven, b"x") == b""
        assert proven.failure.startswith(f"SIGNER_UNREACHABLE: 127.0.0.1:{line.port}: ")
        await stopped(line)
        assert await line.through(proven, b"x") == b""
        assert proven.failure == f"SIGNER_UNREACHABLE: 127.0.0.1:{line.port}: Connection refused"
        await proven.close()

    lined(tmp_path, test)


def test_a_name_without_an_address_is_unreachable(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        proven = line.proven("absent.invalid")
        assert await line.through(proven, b"x") == b""
        assert proven.failure.startswith(f"SIGNER_UNREACHABLE: absent.invalid:{line.port}: ")
        await proven.close()

    lined(tmp_path, test)


def test_an_authority_that_a_ca_above_signed_is_trusted_as_it_stands_in_the_bundle(tmp_path: Path) -> None:
    """An anchor need not be a root: then the CA above vouches for nobody here."""

    async def test(line: Line) -> None:
        await stopped(line)
        line.roots = TrustBundle(TRUST_DOMAIN, (under(line.above, authority(datetime.now(UTC))),))
        await line.serve()
        proven = line.proven()
        assert await line.through(proven, b"x") == b"x"
        await proven.close()

    lined(tmp_path, test)


def test_a_certificate_that_has_ended_or_not_begun_is_not_trusted(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        for ahead, why in ((timedelta(hours=7), "expired at"), (timedelta(hours=-1), "not valid before")):
            proven = ProvenSigner(
                f"127.0.0.1:{line.port}",
                TRUST_DOMAIN,
                line.run_dir,
                line.roots.to_pem,
                now=lambda ahead=ahead: datetime.now(UTC) + ahead,  # type: ignore[misc]
            )
            assert await line.through(proven, b"x") == b""
            assert proven.failure.startswith("SIGNER_NOT_TRUSTED: ")
            assert why in proven.failure
            await proven.close()
        assert line.connections == 0

    lined(tmp_path, test)


def test_what_an_authority_below_a_trusted_one_may_not_sign_proves_nobody(tmp_path: Path) -> None:
    """A pod's SVID is no CA: what is signed with its key leads nowhere."""

    async def test(line: Line) -> None:
        await stopped(line)
        key, now = KeyAlgorithm.EC_P256.generate(), datetime.now(UTC)
        pod = certified(line.above, key.public_key(), now, "web", "spiffe://example.org/ns/default/sa/web")[0]
        real = certified(line.above, key.public_key(), now, SIGNER_NAME, OWN)[0]
        forged = x509.CertificateBuilder(
            pod.subject,
            real.subject,
            key.public_key(),
            x509.random_serial_number(),
            real.not_valid_before_utc,
            real.not_valid_after_utc,
            list(real.extensions),
        ).sign(key, signature_hash(key))
        line.shown = (key, (forged, pod))
        await line.serve()
        proven = line.proven()
        assert await line.through(proven, b"x") == b""
        assert proven.failure.startswith("SIGNER_NOT_TRUSTED: ")
        assert "signing certificate is not a CA certificate" in proven.failure
        await proven.close()

    lined(tmp_path, test)


def under(signed: X509Authority, above: X509Authority) -> x509.Certificate:
    """`signed`'s certificate as `above` makes one for it."""
    own = signed.chain[0]
    builder = x509.CertificateBuilder(
        above.chain[0].subject,
        own.subject,
        own.public_key(),
        x509.random_serial_number(),
        own.not_valid_before_utc,
        own.not_valid_after_utc,
        list(own.extensions),
    )
    return builder.sign(above.private_key, signature_hash(above.private_key))


async def stopped(line: Line) -> None:
    assert line.server is not None
    line.server.close()
    await line.server.wait_closed()
    line.server = None


@ipv6
def test_a_signer_at_an_ipv6_address(tmp_path: Path) -> None:
    async def main() -> None:
        line = Line(tmp_path)
        await line.serve(at="::1")
        proven = line.proven("[::1]")
        assert await line.through(proven, b"x") == b"x"
        await proven.close()
        assert line.server is not None
        line.server.close()

    asyncio.run(main())


class Written:
    """A writer that takes all, and how much of it at once: a record of TLS each."""

    def __init__(self) -> None:
        self.records: list[int] = []

    def write(self, data: bytes) -> None:
        self.records.append(len(data))

    async def drain(self) -> None:
        await asyncio.sleep(0)


def records(young: float, size: int) -> list[int]:
    """In which so many bytes are written that were there at once."""

    async def main() -> list[int]:
        reader, writer = asyncio.StreamReader(limit=size), Written()
        reader.feed_data(bytes(size))
        reader.feed_eof()
        await _to_signer(reader, cast(Any, writer), young)
        assert sum(writer.records) == size
        return writer.records

    return asyncio.run(main())


def test_what_the_signer_reads_of_a_stranger_is_in_small_records_and_what_comes_later_is_not() -> None:
    """Of whoever has proven nothing it reads no more than that, and of a record nothing before it is whole."""
    size = 4 * CHUNK
    found = records(0.0, size)
    small = -(-GREETING // proven._TO_SIGNER)
    assert set(found[:small]) == {proven._TO_SIGNER}
    # Agents that ask for much do it in the fewest.
    assert len(found) == small + -(-(size - GREETING) // CHUNK)
    assert (FIRST, proven._TO_SIGNER_LATER) == (GREETING, CHUNK)


def test_a_connection_whose_signer_is_gone_is_over_at_once() -> None:
    """Among its first bytes too: grpc learns of it, and need not say more first."""

    class Gone(Written):
        async def drain(self) -> None:
            raise ConnectionResetError

    async def main() -> None:
        for young in (0.0, 60.0):
            reader, writer = asyncio.StreamReader(), Gone()
            # No end comes after it.
            reader.feed_data(b"x")
            async with asyncio.timeout(5):
                await _to_signer(reader, cast(Any, writer), young)
            assert writer.records == [1]

    asyncio.run(main())


def test_a_young_connections_records_are_small_however_much_was_said() -> None:
    """Of all young ones together the signer holds little: a part of a large record would hold what others need."""
    assert max(records(60.0, 4 * GREETING)) == proven._TO_SIGNER
    assert YOUNG_SECONDS > SETTINGS_SECONDS


def test_the_signers_connection_is_young_for_as_long_as_nothing_large_is_asked_on_it(tmp_path: Path) -> None:
    async def play(at: Scene) -> None:
        # At a real connection: that it is told so, and for how long.
        assert at.authority.connection._signer._young == YOUNG_SECONDS
        assert (await at.authority.mint_x509(at.request())).chain

    on_stage(tmp_path, play)
