"""The page of troubles has what podsvid says, and those who meet its certificates: nothing new is without advice."""

import ast
import mmap
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.admin import ADVICE
from agent.metrics import STATES
from docs import reasons
from runtime import advice
from signer.errors import Reason
from svid.authority import X509Authority
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGES = ("agent", "csi", "podsvid", "runtime", "signer", "svid")
_WORD = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_BEGINS = re.compile(rf"({_WORD.pattern}): ")
# Words in capitals that are no reasons: names of environments, of capabilities, and of what clouds and tokens have.
NO_REASON = frozenset(
    {
        *("ADMIN_SOCKET", "RUN_DIR", "PODSVID_ADMIN_SOCKET", "PODSVID_RUN_DIR", "PODSVID_DIR", "AUTHORITY_ID"),
        *(
            "SPIFFE_ENDPOINT_SOCKET",
            "KUBERNETES_EXEC_INFO",
            "KUBERNETES_SERVICE_HOST",
            "GRPC_SSL_CIPHER_SUITES",
            "LC_ALL",
            "MALLOC_ARENA_MAX",
        ),
        *("GRPC_VERBOSITY", "PODSVID_DOCS_URL", "DOCS_URL"),
        # A kind of key in a protocol of podsvid's.
        "KIND_X509",
        # Statuses of gRPC's that are no reasons of podsvid's.
        *(
            "DEADLINE_EXCEEDED",
            "ALREADY_EXISTS",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "OUT_OF_RANGE",
            "DATA_LOSS",
        ),
        *("SC_CLK_TCK", "SC_PAGE_SIZE", "DAC_OVERRIDE", "SYS_ADMIN", "COMMON_NAME"),
        *("ECC_NIST_P256", "ECC_NIST_P384", "EC_EDWARDS", "EC_SIGN_P256_SHA256", "EC_SIGN_P384_SHA384"),
        *("RSA_2048", "RSA_3072", "RSA_4096", "SHA256_RSA_PKCS", "SIGN_VERIFY", "ASYMMETRIC_SIGN"),
        *(f"RSA_SIGN_PKCS1_{bits}_SHA256" for bits in (2048, 3072, 4096)),
        *("ML_DSA_44", "ML_DSA_65", "ML_DSA_87", "PENDING_GENERATION", "INVALID_ARGUMENT"),
    }
)


@pytest.fixture(scope="module")
def trees() -> list[ast.Module]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths if path.parent.name != "pb"]


def said(tree: ast.AST) -> Iterator[str]:
    """Every reason in a module: the `reason` of its errors, whatever is in capitals, and what its texts begin with."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if found := _WORD.fullmatch(text) or _BEGINS.match(text):
                yield found[0].removesuffix(": ")
            case ast.Assign(targets=[ast.Name(id="reason")], value=ast.Constant(value=str(text))) if text.isupper():
                yield text
            case ast.AnnAssign(target=ast.Name(id="reason"), value=ast.Constant(value=str(text))) if text.isupper():
                yield text


def test_reasons_are_found_however_they_are_said() -> None:
    source = 'class A(Exception):\n    reason = "GONE"\nf"TOO_BAD: {1}"\nLack("NO_LUCK", "")\n"prose"\n"PROSE"\n'
    assert sorted(said(ast.parse(source))) == ["GONE", "NO_LUCK", "TOO_BAD"]


def test_every_reason_has_its_place_and_nothing_else_has(trees: list[ast.Module]) -> None:
    known = [row.reason for group in reasons.groups() for row in group.rows]
    assert len(known) == len(set(known))
    found = {each for tree in trees for each in said(tree)} - NO_REASON | set(Reason)
    assert not found - set(known), (
        "give them a row in docs/reasons.py or docs/command_reasons.py, or say in NO_REASON that they are none"
    )
    assert not set(known) - found, "nobody says that any more"


def test_reasons_of_the_signer_that_an_agent_says_too_say_so() -> None:
    """Its events lead to a heading below which only the signer would be named."""
    known = set()
    for path in (path for package in ("agent", "csi") for path in (ROOT / package).rglob("*.py")):
        if path.parent.name != "pb":
            known |= {each for each in said(ast.parse(path.read_text(encoding="utf-8"))) if each in set(Reason)}
    # What it only knows by name: to give advice, to ask anew, and to hand out no SVID any more.
    only_known = set(ADVICE) | {"POLICY_DENIED", "POD_TOKEN_EXPIRED", "RECONNECT"}
    assert known - only_known <= set(reasons.SAID_BY_AGENT) <= known
    (rows,) = (group.rows for group in reasons.groups() if group.title == "Reasons of the signer")
    assert {row.reason for row in rows if "or by the agent, " in row.means} == set(reasons.SAID_BY_AGENT)


def test_each_reason_says_what_it_means_and_what_to_do() -> None:
    for row in (row for group in reasons.groups() for row in group.rows):
        for text in (row.means, row.to_do):
            assert text, row.reason
            assert not text.endswith("."), row.reason
        assert f"\n### `{row.reason}`\n" in PAGE
        # The anchor that renderers make of that heading.
        assert advice.link(row.reason) == f"docs/troubleshooting.md#{row.reason.lower()}"


def test_each_state_of_a_volume_is_there() -> None:
    assert set(re.findall(r"^\| `([a-z]+)(?: \(see explain\))?` \|", PAGE, re.MULTILINE)) == set(STATES)


def test_each_event_of_the_signer_is_there(trees: list[ast.Module]) -> None:
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(attr="surprise"), args=[_, ast.Constant(value=str(event)), *_]):
                    found.add(event)
                case ast.Call(func=ast.Attribute(attr="_say"), args=[_, _, ast.Constant(value=str(event)), *_]):
                    found.add(event)
                case ast.Call(func=ast.Attribute(attr="_warn"), args=[_, _, ast.Constant(value=str(event)), *_]):
                    found.add(event)
                case ast.Call(func=ast.Attribute(attr="_queued"), args=[_, _, ast.Constant(value=str(event)), *_]):
                    found.add(event)
    assert len(found) > 6
    assert {event for event in found if f"\n| `{event}` |" not in PAGE} == set()
    # Where the event itself says that it is explained.
    assert {event for event in found if f'<a id="{advice.link(event).partition("#")[2]}"></a>' not in PAGE} == set()


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("security header missing", "agent/socket/guard.py"),
        ("no identity issued", "agent/socket/guard.py"),
        ("this socket is being closed; try again", "agent/socket/guard.py"),
        ("the agent ended this call; try again", "agent/socket/guard.py"),
        ("on this pod's sockets; try again later", "agent/socket/guard.py"),
        ("no such method here", "agent/socket/guard.py"),
        ("the SVID could not be renewed in time; try again", "agent/socket/workload_api.py"),
        ("no JWT-SVID now", "agent/socket/workload_api.py"),
        ("to this workload", "agent/socket/workload_api.py"),
    ],
)
def test_a_socket_says_what_the_page_quotes(text: str, file: str) -> None:
    assert text in PAGE
    assert text in (ROOT / file).read_text(encoding="utf-8")


Made = tuple[bytes, bytes]
OWN = TrustDomain("example.org")
DAY = timedelta(days=1)


class _Pki:
    """An authority as podsvid makes one, and SVIDs of it; times are the host's, since OpenSSL looks at its clock."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.authority = X509Authority.create(
            OWN, algorithm=KeyAlgorithm.EC_P256, lifetime=30 * DAY, now=self.now - 9 * DAY
        )

    def svid(self, at: float = 0) -> Made:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self.authority.issue(
            key.public_key(),
            SpiffeId.parse("spiffe://example.org/ns/shop/sa/cart"),
            ttl=DAY / 24,
            now=self.now + at * DAY,
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return b"".join(each.public_bytes(Encoding.PEM) for each in chain), secret

    def pem(self) -> str:
        return self.authority.chain[0].public_bytes(Encoding.PEM).decode()


def _context(side: int, made: Made | None, trusted: str, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted)
    if made is not None:
        (folder / "chain").write_bytes(made[0])
        (folder / "key").write_bytes(made[1])
        context.load_cert_chain(folder / "chain", folder / "key")
    return context


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str | None = None) -> list[str]:
    """What either side says of it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    errors = []
    # The client reads at the end: of TLS 1.3 it is told only then that the server refuses it.
    steps: list[Callable[[], object]] = [*[each.do_handshake for each in sides] * 4, lambda: sides[0].read(1)]
    for step in steps:
        try:
            step()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            errors.append(str(error))
    return errors


def _unknown(own: _Pki, folder: Path) -> list[str]:
    other = _Pki()
    # A server that has its own root to verify clients would show it.
    client = _context(ssl.PROTOCOL_TLS_CLIENT, None, other.pem(), folder)
    return _handshake(client, _context(ssl.PROTOCOL_TLS_SERVER, own.svid(), other.pem(), folder))


def _with_its_root(own: _Pki, folder: Path) -> list[str]:
    return _shown_to(_Pki().pem(), own.svid(), own, folder)


def _expired(own: _Pki, folder: Path) -> list[str]:
    return _shown_to(own.pem(), own.svid(at=-2), own, folder)


def _early(own: _Pki, folder: Path) -> list[str]:
    return _shown_to(own.pem(), own.svid(at=1), own, folder)


def _by_name(own: _Pki, folder: Path) -> list[str]:
    client = _context(ssl.PROTOCOL_TLS_CLIENT, own.svid(), own.pem(), folder)
    client.check_hostname = True
    return _handshake(client, _context(ssl.PROTOCOL_TLS_SERVER, own.svid(), own.pem(), folder), "cart.shop")


def _without(own: _Pki, folder: Path) -> list[str]:
    client = _context(ssl.PROTOCOL_TLS_CLIENT, None, own.pem(), folder)
    return _handshake(client, _context(ssl.PROTOCOL_TLS_SERVER, own.svid(), own.pem(), folder))


def _of_two_renewals(own: _Pki, folder: Path) -> list[str]:
    with pytest.raises(ssl.SSLError) as caught:
        _context(ssl.PROTOCOL_TLS_SERVER, (own.svid()[0], own.svid()[1]), own.pem(), folder)
    return [str(caught.value)]


def _shown_to(trusted: str, made: Made, own: _Pki, folder: Path) -> list[str]:
    client = _context(ssl.PROTOCOL_TLS_CLIENT, own.svid(), trusted, folder)
    return _handshake(client, _context(ssl.PROTOCOL_TLS_SERVER, made, own.pem(), folder))


@pytest.mark.parametrize(
    ("text", "happens"),
    [
        ("unable to get local issuer certificate", _unknown),
        ("self-signed certificate in certificate chain", _with_its_root),
        ("certificate has expired", _expired),
        ("certificate is not yet valid", _early),
        ("Hostname mismatch", _by_name),
        ("peer did not return a certificate", _without),
        ("certificate required", _without),
        ("key values mismatch", _of_two_renewals),
    ],
)
def test_openssl_says_what_the_page_quotes(
    text: str, happens: Callable[[_Pki, Path], list[str]], tmp_path: Path
) -> None:
    assert text in PAGE
    found = happens(_Pki(), tmp_path)
    # OpenSSL 1.1.1 writes it in two words.
    texts = {text, text.replace("self-signed", "self signed")}
    assert any(one in each.lower().replace("_", " ") or one in each for one in texts for each in found), found


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("SPIFFE endpoint socket: socket must be set", "config.py"),
        ("SPIFFE endpoint socket: scheme must be set", "config.py"),
        ("Authority not found for key ID", "bundle/jwt_bundle/errors.py"),
    ],
)
def test_py_spiffe_says_what_the_page_quotes(text: str, file: str) -> None:
    spiffe = pytest.importorskip("spiffe")
    assert text in PAGE
    assert text in (Path(spiffe.__file__).parent / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "Secret is not supplied by SDS",
        "verify SAN list",
        "CERTIFICATE_VERIFY_FAILED",
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    ],
)
def test_envoy_says_what_the_page_quotes(text: str) -> None:
    envoy = pytest.importorskip("envoy")
    assert text in PAGE
    (program,) = (each for each in Path(envoy.__file__).parent.rglob("envoy") if each.is_file())
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert held.find(text.encode()) >= 0
