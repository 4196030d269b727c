"""A CA above whose key is in a PKCS#11 token: SoftHSM's library, loaded for real, and all that a token refuses."""

import asyncio
import base64
import os
import subprocess
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import which

import pytest
from cryptography import x509

from podsvid.cli import main
from signer.authority.slots import Stage
from signer.daemon import Replica
from signer.pkcs11_uri import KeyUri, parse
from signer.upstream import pkcs11
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from signer.upstream.pkcs11 import TokenKey
from svid.authority import X509Authority
from svid.certificates import certificates_from_der, to_pem
from svid.keys import KeyAlgorithm, PrivateKey, signature_hash
from svid.spiffeid import SpiffeId, TrustDomain
from tests.node.test_signer_admin_steps import Rig
from tests.node.test_signer_settings import Caller
from tests.signer_rig import Site, StepClock, serving
from tests.softhsm import MODULE, Token, needed

pytestmark = needed
TD = TrustDomain("example.org")
DAY = timedelta(days=1)
START = datetime.now(UTC).replace(microsecond=0)
KINDS = [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048, KeyAlgorithm.ED25519]


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Token:
    found = Token(tmp_path)
    found.make(monkeypatch)
    return found


def above(token: Token, algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> x509.Certificate:
    """A CA whose key is in the token, and whose certificate is in ca.crt."""
    key, name, now = algorithm.generate(), x509.Name.from_rfc4514_string("CN=above"), datetime.now(UTC)
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now - DAY, now + 100 * DAY)
        .add_extension(x509.BasicConstraints(True, 1), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, signature_hash(key))
    )
    token.put(key)
    (token.folder / "ca.crt").write_bytes(to_pem([certificate]))
    return certificate


def certified(token: Token, key: TokenKey, mine: PrivateKey | None = None) -> X509Authority:
    mine = mine or KeyAlgorithm.EC_P256.generate()
    return asyncio.run(FileUpstream(token.folder / "ca.crt", key).certify(TD, mine, DAY, datetime.now(UTC)))


def refusal(token: Token, uri: KeyUri | None = None, key: TokenKey | None = None) -> str:
    with pytest.raises(UpstreamUnusable) as caught:
        certified(token, key or TokenKey(uri or token.uri()))
    assert token.pin not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("algorithm", KINDS)
def test_an_authority_is_certified_by_a_key_that_never_leaves_its_token(token: Token, algorithm: KeyAlgorithm) -> None:
    ca = above(token, algorithm)
    made = certified(token, TokenKey(token.uri()))
    leaf = made.issue(
        KeyAlgorithm.EC_P256.generate().public_key(), SpiffeId.parse("spiffe://example.org/a"), ttl=DAY / 24,
        now=datetime.now(UTC),
    )  # fmt: skip
    root, between, last = (token.folder / name for name in ("root.pem", "between.pem", "leaf.pem"))
    root.write_bytes(to_pem([ca]))
    between.write_bytes(to_pem(leaf[1:]))
    last.write_bytes(to_pem(leaf[:1]))
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", root, "-untrusted", between, last], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_key_is_found_by_its_id_and_by_what_an_uri_says(token: Token) -> None:
    above(token)
    token.put(KeyAlgorithm.EC_P256.generate(), number="02")
    assert "several private keys that are called so; name its id as well (id=)" in refusal(token)
    text = f"pkcs11:token=hsm;object=ca;id=%01;type=private?module-path={MODULE}&pin-source=file://{token.pin_file}"
    certified(token, TokenKey(parse(text)))
    assert "is not the key of" in refusal(token, token.uri(number=b"\x02"))


def test_what_a_token_refuses_is_a_sentence_without_the_pin(token: Token, tmp_path: Path) -> None:
    above(token)
    assert "no such token" in refusal(token, token.uri(token="other"))
    assert "no private key of that name" in refusal(token, token.uri(label="other"))
    assert "cannot be loaded as a PKCS#11 module" in refusal(token, token.uri(module=tmp_path / "absent.so"))
    assert "cannot be loaded as a PKCS#11 module" in refusal(token, token.uri(module=tmp_path / "ca.crt"))
    assert "shows none that is private (pin-source=)" in refusal(token, replace(token.uri(), pin_file=None))
    for none in ("\n", f"{token.pin}\nx", f"\ufeff{token.pin}", "1" * 1025):
        token.pin_file.write_text(none)
        assert f"{token.pin_file} holds no PIN: one line of printable UTF-8" in refusal(token)
    token.pin_file.unlink()
    assert f"{token.pin_file} cannot be read: No such file or directory" in refusal(token)
    token.pin_file.write_text(token.pin)
    certified(token, TokenKey(token.uri()))


def test_a_wrong_pin_is_tried_once(token: Token) -> None:
    """A token locks itself after a few wrong ones, and the leader asks again and again."""
    above(token)
    asked: list[bytes] = []

    def counted(request: bytes, seconds: float) -> "subprocess.CompletedProcess[bytes]":
        asked.append(request)
        return pkcs11.run(request, seconds)

    key = TokenKey(token.uri(), counted)
    token.pin_file.write_text("wrong-pin")
    assert "the token refuses the PIN in" in refusal(token, key=key)
    for again in ("wrong-pin", "wrong-pin\n"):
        token.pin_file.write_text(again)
        # It was not asked: it would have counted.
        assert "(before)" in refusal(token, key=key)
        assert "wrong-pin" not in refusal(token, key=key)
    assert all(token.pin.encode() not in each and b"wrong-pin" not in each for each in asked)
    token.pin_file.write_text("other-pin")
    assert "(PinIncorrect)" in refusal(token, key=key)
    token.pin_file.write_text(token.pin)
    certified(token, key)


def test_a_token_that_is_away_and_back(token: Token) -> None:
    above(token)
    key = TokenKey(token.uri())
    certified(token, key)
    with token.away():
        assert "no such token" in refusal(token, key=key)
    certified(token, key)


@pytest.mark.skipif(which("cc") is None, reason="needs a C compiler: apt-get install gcc libc6-dev")
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("abort();", r"the process that asks the token ended \(status -6\)"),
        ('puts("{}"); fflush(stdout); _exit(0);', r"the token failed \(no answer\)"),
        ("for (;;) pause();", r"the token did not sign within 1 s"),
    ],
)
def test_a_library_that_dies_prints_or_hangs_harms_nobody(
    token: Token, body: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    above(token)
    source = token.folder / "bad.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        f"__attribute__((constructor)) static void begin(void) {{ {body} }}\n"
    )
    bad = token.folder / "bad.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", bad, source], check=True, timeout=60)

    monkeypatch.setattr(pkcs11, "SECONDS", 1.0 if "pause" in body else pkcs11.SECONDS)
    with pytest.raises(UpstreamUnusable, match=said):
        certified(token, TokenKey(token.uri(module=bad)))


def test_a_wrong_pin_at_the_first_start_is_said_and_not_tried_at_one_start_after_the_other(token: Token) -> None:
    above(token)
    token.pin_file.write_text("wrong-pin")
    flags = ("--upstream-cert-file", str(token.folder / "ca.crt"), "--upstream-key-uri", str(token.uri()))

    async def run(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock

        async def mended() -> None:
            while "waits for the first authority: UPSTREAM_UNUSABLE" not in (await replicas[0].not_ready() or ""):
                await asyncio.sleep(0.02)
            # What the alert PodsvidAuthorityWanted looks at.
            assert replicas[0]._rotation.waiting_since == START
            token.pin_file.write_text(token.pin)
            clock.pass_by(seconds=75)

        replicas: list[Replica] = []
        task = asyncio.create_task(mended())
        async with serving(site, folder, clock, *flags, made=replicas.append):
            await task

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))


def test_check_tries_the_token(token: Token, capsys: pytest.CaptureFixture[str]) -> None:
    above(token)
    uri = f"pkcs11:token=hsm;object=%s?module-path={MODULE}&pin-source=file:{token.pin_file}"
    (token.folder / "kubeconfig").write_text(
        'apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: "http://127.0.0.1:9"}}]\n'
        "contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\ncurrent-context: a\n"
    )

    def check(name: str) -> tuple[int, str]:
        flags = {
            "trust-domain": "example.org",
            "kubeconfig": token.folder / "kubeconfig",
            "admin-socket": token.folder / "admin.sock",
            "listen": "127.0.0.1:0",
            "metrics-listen": "off",
            "upstream-cert-file": token.folder / "ca.crt",
            "upstream-key-uri": uri % name,
        }
        code = main(["signer", "--check", *(f"--{flag}={value}" for flag, value in flags.items())])
        found = capsys.readouterr()
        return code, found.out + found.err

    assert check("ca")[0] == 0
    code, said = check("other")
    assert code == 1
    assert "podsvid: UPSTREAM_UNUSABLE: " in said
    assert "the token has no private key of that name" in said


def test_nothing_of_the_directory_that_the_signer_is_in_is_loaded(
    token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    above(token)
    for name in ("json", "pkcs11", "signer"):
        (token.folder / f"{name}.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(token.folder)
    certified(token, TokenKey(token.uri()))


def test_no_descriptor_of_the_signer_reaches_the_library(token: Token) -> None:
    above(token)
    kept = os.open(token.pin_file, os.O_RDONLY)
    try:
        before = set(os.listdir("/proc/self/fd"))
        certified(token, TokenKey(token.uri()))
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(kept)


def test_a_signer_below_it_starts_rotates_and_outlives_the_tokens_absence(token: Token) -> None:
    root = above(token)

    async def run(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        flags = ("--upstream-cert-file", str(token.folder / "ca.crt"), "--upstream-key-uri", str(token.uri()))
        for start in range(2):
            async with serving(site, folder, clock, *flags) as signer:
                caller, claim = Caller(signer, site.agent()), site.pod(f"pod-{start}")
                answer = await caller.x509(claim, site.token(claim))
                chain = certificates_from_der(answer.chain)
                assert chain[-1].issuer == root.subject
                rig = Rig(signer, folder)
                # Who lacks what is prepared: without anybody it signs at the leader's next look.
                rig.agent("node-a")
                async with asyncio.timeout(60):
                    while not rig.rotation.live_nodes():
                        await asyncio.sleep(0.01)
                assert rig.state.bundle.x509_authorities == (root,)
                with token.away():
                    assert "no such token" in await rig.refused("prepare")
                    claim = site.pod(f"meanwhile-{start}")
                    await caller.x509(claim, site.token(claim))
                await rig.authority("prepare")
                prepared = rig.state.find("x509", Stage.PREPARED)
                assert prepared is not None
                await rig.authority("revoke", prepared.id)
        secret = site.kube.objects["/api/v1/namespaces/podsvid/secrets/podsvid-authority"]
        assert token.pin not in base64.b64decode(secret["data"]["state.json"]).decode()

    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(run(Path(folder)))
