"""What a volume holds under each layout, read by others: openssl, keytool, plain file access; and how a new process
picks it up. The directory is a real tmpfs where the host allows mounts, else a plain one."""

import json
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi import state
from csi.attributes import parse_attributes
from csi.layout import LAYOUTS
from csi.model import Contents, PodRef, Volume
from csi.profile import PROFILES
from csi.volume import VolumeDirectory
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.identity import WorkloadIdentity
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

NOW = datetime.now(UTC).replace(microsecond=0)
OWN, PARTNER = TrustDomain("example.org"), TrustDomain("partner.test")
WEB = SpiffeId.parse("spiffe://example.org/ns/default/sa/web")
KEYTOOL = shutil.which("keytool")


def authority(domain: TrustDomain) -> X509Authority:
    return X509Authority.create(domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=NOW)


ISSUER, OTHER = authority(OWN), authority(PARTNER)
SIGNING = JwtSigningKey.create(JwtAlgorithm.ES256)


def contents(algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256, *, jwt_files: dict[str, str] | None = None) -> Contents:
    key = algorithm.generate()
    chain = ISSUER.issue(key.public_key(), WEB, ttl=timedelta(hours=1), now=NOW)
    bundle = replace(ISSUER.bundle, jwt_authorities=(SIGNING.public,))
    identity = WorkloadIdentity((X509Svid(WEB, chain, key),), bundle, (OTHER.bundle,))
    tokens = {
        name: SIGNING.issue(WEB, [audience], ttl=timedelta(minutes=5), now=NOW)
        for name, audience in (jwt_files or {}).items()
    }
    return Contents(identity, tokens)


@contextmanager
def directory(
    attributes: dict[str, str], profile: str = "podsvid", group: int | None = None
) -> Iterator[tuple[Path, VolumeDirectory]]:
    options = parse_attributes(attributes, PROFILES[profile])
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as base:
        os.chmod(base, 0o755)
        group = options.group if options.group is not None else group
        volume = Volume("csi-1", base, (), PodRef("default", "web", "uid", "web"), group, options)
        found = VolumeDirectory(os.open(base, os.O_RDONLY | os.O_DIRECTORY), volume)
        try:
            yield Path(base), found
        finally:
            found.close()


def visible(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir() if not path.name.startswith("..") and not path.is_socket())


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


EXPECTED = {
    "spiffe": ["bundle.json", "ca.crt", "credential-bundle.private-key.pem", "tls.crt", "tls.key"],
    "cert-manager": ["ca.crt", "tls.crt", "tls.key"],
    "istio": ["cert-chain.pem", "key.pem", "root-cert.pem"],
    "grpc": ["ca_certificates.pem", "certificates.pem", "private_key.pem", "trust_bundles.json"],
    "spiffe-helper": ["jwt_bundle.json", "svid.pem", "svid_bundle.pem", "svid_key.pem"],
    "combined": ["ca.crt", "tls.pem"],
    "keystore": ["keystore.p12", "keystore.password", "truststore.p12"],
    "socket": [],
}
LINKS = ["api.sock", "spire-agent.sock"]


def test_every_layout_is_listed_here() -> None:
    assert set(EXPECTED) == set(LAYOUTS)


@pytest.mark.parametrize("layout", EXPECTED)
def test_the_files_of_each_layout(layout: str) -> None:
    with directory({"layout": layout}) as (base, volume):
        first = contents()
        volume.write(first, NOW)
        assert visible(base) == sorted([*EXPECTED[layout], *LINKS])
        assert all((base / name).resolve().parent.name.startswith("..2") for name in EXPECTED[layout])
        for name in EXPECTED[layout]:
            assert stat.S_IMODE((base / name).stat().st_mode) == 0o444
        assert volume.holds(first)
        assert not volume.holds(contents()) or layout in ("keystore", "socket")
        assert volume.read() == first or volume.read().identity.default.serial == first.identity.default.serial


@pytest.mark.parametrize(
    ("layout", "chain", "key", "roots"),
    [
        ("spiffe", "tls.crt", "tls.key", "ca.crt"),
        ("spiffe", "credential-bundle.private-key.pem", "credential-bundle.private-key.pem", "ca.crt"),
        ("cert-manager", "tls.crt", "tls.key", "ca.crt"),
        ("istio", "cert-chain.pem", "key.pem", "root-cert.pem"),
        ("grpc", "certificates.pem", "private_key.pem", "ca_certificates.pem"),
        ("spiffe-helper", "svid.pem", "svid_key.pem", "svid_bundle.pem"),
        ("combined", "tls.pem", "tls.pem", "ca.crt"),
    ],
)
def test_openssl_takes_them(layout: str, chain: str, key: str, roots: str) -> None:
    with directory({"layout": layout}) as (base, volume):
        volume.write(contents(), NOW)
        assert "OK" in openssl("verify", "-CAfile", str(base / roots), str(base / chain))
        public = openssl("x509", "-in", str(base / chain), "-noout", "-pubkey")
        assert public == openssl("pkey", "-in", str(base / key), "-pubout")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(base / chain, base / key)
        context.load_verify_locations(base / roots)
        # A federated root in there could speak for our own IDs with a consumer that looks at nothing but the chain.
        assert (base / roots).read_bytes() == ISSUER.bundle.to_pem()


@pytest.mark.spec("TD-40", "TD-41", "TD-43")
def test_the_bundle_map_holds_x509_entries_only() -> None:
    with directory({"layout": "grpc"}) as (base, volume):
        volume.write(contents(), NOW)
        members: list[str] = []
        text = (base / "trust_bundles.json").read_bytes()
        json.loads(text, object_pairs_hook=lambda pairs: members.extend(name for name, _ in pairs))
        assert members.count("partner.test") == members.count("example.org") == 1
        found = json.loads(text)
        assert sorted(found) == ["trust_domains"]
        assert sorted(found["trust_domains"]) == ["example.org", "partner.test"]
        for name, document in found["trust_domains"].items():
            assert {key["use"] for key in document["keys"]} == {"x509-svid"}
            assert set(document) <= {"keys", "spiffe_sequence"}
            assert TrustBundle.from_jwks(TrustDomain(name), json.dumps(document).encode()).x509_authorities


def test_names_modes_owner_and_group_by_attribute() -> None:
    wishes = {"certificateFile": "server.crt", "keyFile": "server.key", "keyMode": "0600", "fileMode": "0644"}
    with directory({**wishes, "fileOwner": "70", "fsGroup": "71", "layout": "cert-manager"}) as (base, volume):
        if os.geteuid() != 0:
            pytest.skip("giving files away needs root")
        volume.write(contents(), NOW)
        assert visible(base) == sorted(["ca.crt", "server.crt", "server.key", *LINKS])
        key, chain = (base / "server.key").stat(), (base / "server.crt").stat()
        assert (stat.S_IMODE(key.st_mode), key.st_uid, key.st_gid) == (0o600, 70, 71)
        assert (stat.S_IMODE(chain.st_mode), chain.st_uid, chain.st_gid) == (0o644, 70, 71)
        kept = (base / "..data" / state.NAME).stat()
        assert (stat.S_IMODE(kept.st_mode), kept.st_uid) == (0o400, 0)
        assert kept.st_gid != 71


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_show_what_their_drivers_show(profile: str) -> None:
    with directory({}, profile) as (base, volume):
        volume.write(contents(), NOW)
        assert visible(base) == sorted([*EXPECTED[PROFILES[profile].layout], *LINKS])


def test_jwt_svids_are_files_too() -> None:
    with directory({"jwt-audiences": "db,sts=https://sts.test"}) as (base, volume):
        made = contents(jwt_files={"db.jwt": "db", "sts": "https://sts.test"})
        volume.write(made, NOW)
        assert (base / "db.jwt").read_text() == made.jwt_svids["db.jwt"].token
        assert (base / "sts").read_text() == made.jwt_svids["sts"].token
        assert volume.read().jwt_svids == made.jwt_svids


@pytest.mark.skipif(KEYTOOL is None, reason="needs keytool: apt-get install default-jre-headless")
@pytest.mark.parametrize("password", [None, "changeit"])
@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048])
def test_keytool_reads_the_keystores(password: str | None, algorithm: KeyAlgorithm) -> None:
    chosen = {"keystorePassword": password} if password else {}
    with directory({"keystores": "pkcs12", "keyAlgorithm": algorithm.value, **chosen}) as (base, volume):
        made = contents(algorithm)
        volume.write(made, NOW)
        word = (base / "keystore.password").read_text()
        assert (word == password) if password else len(word) >= 20
        listed = {}
        for name in ("keystore.p12", "truststore.p12"):
            command = [str(KEYTOOL), "-list", "-v", "-keystore", str(base / name), "-storepass", word]
            listed[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert listed["keystore.p12"].count("Entry type: PrivateKeyEntry") == 1
        assert "Alias name: svid" in listed["keystore.p12"]
        # It writes numbers, not bytes.
        assert f"Serial number: {made.identity.default.serial.lstrip('0')}\n" in listed["keystore.p12"]
        assert str(WEB) in listed["keystore.p12"]
        assert listed["truststore.p12"].count("Entry type: trustedCertEntry") == 1


def test_a_made_password_stays_over_rotations_and_restarts() -> None:
    with directory({"layout": "keystore"}) as (base, volume):
        volume.write(contents(), NOW)
        word = (base / "keystore.password").read_bytes()
        volume.write(contents(), NOW)
        assert (base / "keystore.password").read_bytes() == word
        options = parse_attributes({"layout": "keystore"})
        again = Volume("csi-1", str(base), (), PodRef("default", "web", "uid", "web"), None, options)
        second = VolumeDirectory(os.open(base, os.O_RDONLY | os.O_DIRECTORY), again)
        second.read()
        second.write(contents(), NOW)
        second.close()
        assert (base / "keystore.password").read_bytes() == word


def test_a_file_that_was_changed_is_noticed() -> None:
    with directory({}) as (base, volume):
        made = contents()
        volume.write(made, NOW)
        assert volume.holds(made)
        (base / "tls.crt").resolve().chmod(0o644)
        (base / "tls.crt").resolve().write_bytes(b"x")
        assert not volume.holds(made)
        volume.write(made, NOW)
        (base / "ca.crt").resolve().unlink()
        assert not volume.holds(made)


HINTS = st.lists(st.text(max_size=20), min_size=1, max_size=3, unique=True)


@pytest.mark.spec("C-44")
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(HINTS, st.booleans(), st.text(max_size=20))
def test_the_state_comes_back_as_it_was_but_for_what_all_volumes_have_alike(
    hints: list[str], federated: bool, password: str
) -> None:
    svids = []
    for hint in hints:
        key = KeyAlgorithm.EC_P256.generate()
        svids.append(X509Svid(WEB, ISSUER.issue(key.public_key(), WEB, ttl=timedelta(hours=1), now=NOW), key, hint))
    bundle = replace(ISSUER.bundle, jwt_authorities=(SIGNING.public,))
    identity = WorkloadIdentity(tuple(svids), bundle, (OTHER.bundle,) if federated else ())
    token = SIGNING.issue(WEB, ["db"], ttl=timedelta(minutes=5), now=NOW)
    kept = state.load(state.dump(state.State(Contents(identity, {"db.jwt": token}), password)))
    found = kept.contents.identity
    assert (found.bundle, found.federated, kept.password) == (identity.bundle, (), password)
    assert [(each.spiffe_id, each.chain, each.hint) for each in found.svids] == [
        (each.spiffe_id, each.chain, each.hint) for each in identity.svids
    ]
    assert [each.key_der() for each in found.svids] == [each.key_der() for each in identity.svids]
    assert kept.contents.jwt_svids["db.jwt"].token == token.token


SAMPLE = state.dump(state.State(contents(jwt_files={"db.jwt": "db"}), "sesame-1"))


@settings(max_examples=150)
@given(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=3), st.integers(0, 40))
def test_a_damaged_state_is_refused_and_quoted_nowhere(at: int, put: bytes, cut: int) -> None:
    damaged = SAMPLE[:at] + put + SAMPLE[at + cut :]
    try:
        state.load(damaged)
    except SvidError as error:
        assert "PRIVATE KEY" not in str(error)
        assert "eyJ" not in str(error)
        assert "sesame" not in str(error)


def test_a_rotation_with_everything_in_it_fits_the_volume() -> None:
    many = tuple(replace(authority(TrustDomain(f"p{n}.test")).bundle) for n in range(100))
    audiences = {f"a{n}.jwt": f"a{n}" for n in range(8)}
    attributes = {"layout": "grpc", "keystores": "pkcs12", "jwt-audiences": ",".join(audiences.values())}
    with directory(attributes) as (base, volume):
        for _ in range(4):
            made = contents(KeyAlgorithm.EC_P256, jwt_files=audiences)
            made = replace(made, identity=replace(made.identity, federated=many))
            volume.write(made, NOW)
        used = sum(path.lstat().st_size for path in base.rglob("*"))
        inodes = len(list(base.rglob("*")))
        assert len(list(base.glob("..2*"))) == 3
        assert used * 4 / 3 < 4 * 1024 * 1024 * 0.9
        assert inodes * 4 / 3 < 256 * 0.9


@pytest.mark.spec("X509-25")
def test_what_is_written_is_what_was_minted() -> None:
    with directory({}) as (base, volume):
        made = contents()
        volume.write(made, NOW)
        (leaf, *_) = x509.load_pem_x509_certificates((base / "tls.crt").read_bytes())
        assert leaf == made.identity.default.leaf
