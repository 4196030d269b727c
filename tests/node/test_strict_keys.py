"""Every SVID signed in a PKCS#11 token: SoftHSM, whole replicas, and no private key anywhere else."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from podsvid.cli import main
from runtime.child import ChildProcess
from signer.authority import key_care
from signer.authority.slots import KINDS, Stage
from signer.authority.state import AuthorityState
from signer.daemon import Replica
from signer.errors import StateDamaged
from signer.held_key import ref_of
from signer.keystore import token as token_module
from signer.keystore.store import KeyStoreUnavailable
from signer.keystore.token import TokenStore
from signer.keystore.worker import Worker
from signer.pkcs11_uri import parse_token
from svid.certificates import certificates_from_der
from svid.keys import KeyAlgorithm, PrivateKey, algorithm_of
from tests import key_store_contract as contract
from tests.node.test_signer_admin_steps import Rig
from tests.node.test_signer_settings import WEB, Caller
from tests.signer_rig import Serving, Site, StepClock, serving
from tests.softhsm import MODULE, Token, needed

pytestmark = needed
START = datetime.now(UTC).replace(microsecond=0)
SECRET = "/api/v1/namespaces/podsvid/secrets/podsvid-authority"
KINDS_OF_KEYS = [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048]
# The OIDs of PKCS #8's content, as DER has them: id-ecPublicKey and rsaEncryption after a version.
PKCS8 = (
    b"\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01",
    b"\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01",
)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Token:
    found = Token(tmp_path)
    found.make(monkeypatch)
    return found


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("signer.daemon.REFRESH_SECONDS", 0.05)
    monkeypatch.setattr("signer.telling.REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(key_care, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(key_care, "TROUBLED_SECONDS", 0.05)
    monkeypatch.setattr(token_module, "FIRST_PAUSE", 0.0)


class Seconds:
    """That only grow, when they are told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@contextmanager
def store(uri: str, seconds: Seconds | None = None) -> Iterator[TokenStore]:
    worker = Worker("token")
    found = TokenStore(parse_token(uri), worker, seconds or Seconds())
    try:
        yield found
    finally:
        found.close()


def sign(key: PrivateKey, data: bytes = b"data") -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(SHA256()))
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.sign(data, padding.PKCS1v15(), SHA256())


def child_of(found: TokenStore) -> int:
    child = found._child
    assert isinstance(child, ChildProcess)
    return child._process.pid


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda each: each.__name__)
def test_a_token_keeps_the_contract(token: Token, check: Any) -> None:
    check(partial(store, token.whole_uri))


@pytest.mark.parametrize("algorithm", KINDS_OF_KEYS)
def test_a_key_is_made_signs_is_found_by_another_process_and_ends(token: Token, algorithm: KeyAlgorithm) -> None:
    with store(token.whole_uri) as one, store(token.whole_uri) as two:
        made = one.create("podsvid-a-1", algorithm)
        assert algorithm_of(made.public_key()) is algorithm
        sign(made)
        ref = ref_of(made)
        assert ref is not None
        # What it signs is verified by itself.
        sign(two.open(ref, made.public_key()))
        assert list(two.names("podsvid-a-")) == ["podsvid-a-1"]
        assert list(two.names("podsvid-b-")) == []
        two.delete("podsvid-a-1")
        two.delete("podsvid-a-1")
        assert list(one.names("")) == []
        with pytest.raises(KeyStoreUnavailable, match="the token has no key podsvid-a-1"):
            sign(two.open(ref, made.public_key()))


def test_a_key_cannot_be_had_of_the_token(token: Token) -> None:
    with store(token.whole_uri) as found:
        found.create("mine", KeyAlgorithm.EC_P256)
    script = (
        "import sys, pkcs11\n"
        "session = pkcs11.lib(sys.argv[1]).get_token(token_label='hsm').open(user_pin=sys.argv[2])\n"
        "key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label='mine')\n"
        "A = pkcs11.Attribute\n"
        "assert key[A.SENSITIVE] and not key[A.EXTRACTABLE] and key[A.PRIVATE] and key[A.NEVER_EXTRACTABLE]\n"
        "assert not key[A.DECRYPT] and not key[A.UNWRAP]\n"
        "try:\n    key[A.VALUE]\nexcept pkcs11.exceptions.AttributeSensitive:\n    print('kept')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(MODULE), token.pin], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "kept\n", done.stderr


def test_its_process_may_die_at_any_time(token: Token) -> None:
    with store(token.whole_uri) as found:
        made = found.create("mine", KeyAlgorithm.EC_P256)
        before = child_of(found)
        os.kill(before, signal.SIGKILL)
        sign(made)
        assert child_of(found) != before


def test_a_process_that_hangs_is_ended(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_module, "SIGN_SECONDS", 2.0)
    with store(token.whole_uri) as found:
        made = found.create("mine", KeyAlgorithm.EC_P256)
        before = child_of(found)
        os.kill(before, signal.SIGSTOP)
        # The second attempt is another process's.
        sign(made)
        assert child_of(found) != before
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)


@pytest.mark.skipif(which("cc") is None, reason="needs a C compiler: apt-get install gcc libc6-dev")
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("abort();", r"the process that asks the token ended \(status -6\)"),
        ("for (;;) pause();", r"the token did not answer within 1 s"),
    ],
)
def test_a_library_that_dies_or_hangs_is_asked_again_ever_more_rarely(
    token: Token, body: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_module, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(token_module, "OPEN_SECONDS", 1.0 if "pause" in body else token_module.OPEN_SECONDS)
    source, bad = token.folder / "bad.c", token.folder / "bad.so"
    source.write_text(
        f"#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) static void begin(void) {{ {body} }}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", bad, source], check=True, timeout=60)
    seconds, begun = Seconds(), []

    def start() -> ChildProcess:
        begun.append(1)
        return ChildProcess("signer.keystore.token_child")

    worker = Worker("token")
    uri = parse_token(token.whole_uri.replace(str(MODULE), str(bad)))
    found = TokenStore(uri, worker, seconds, start)
    for wait, count in ((0.0, 1), (0.0, 2), (0.4, 2), (0.2, 3), (0.9, 3), (0.2, 4)):
        seconds.at += wait
        with pytest.raises(KeyStoreUnavailable, match=said):
            found.names("")
        assert len(begun) == count
    found.close()


def test_a_wrong_pin_is_tried_once(token: Token) -> None:
    token.pin_file.write_text("wrong-pin")
    with store(token.whole_uri) as found:
        for said in (r"\(PinIncorrect\)", r"\(before\)", r"\(before\)"):
            with pytest.raises(KeyStoreUnavailable, match=said) as caught:
                found.names("")
            assert "wrong-pin" not in str(caught.value)
        token.pin_file.write_text(token.pin)
        assert list(found.names("")) == []


def test_what_the_library_prints_is_no_answer_and_no_descriptor_of_the_signer_reaches_it(token: Token) -> None:
    kept = os.open(token.pin_file, os.O_RDONLY)
    try:
        with store(token.whole_uri) as found:
            found.names("")
            named = {os.readlink(f"/proc/{child_of(found)}/fd/{each}") for each in _descriptors(child_of(found))}
            assert str(token.pin_file) not in named
    finally:
        os.close(kept)


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        pytest.skip("it is not dumpable, so that only root looks into it")


# Whole replicas.


def run(work: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as folder:
        asyncio.run(work(Path(folder)))


def flags(token: Token, *more: str) -> tuple[str, ...]:
    return ("--authority-key-uri", token.whole_uri, "--jwt-algorithm", "ES256", *more)


def secret(site: Site) -> str:
    return base64.b64decode(site.kube.objects[SECRET]["data"]["state.json"]).decode()


def no_key_in(site: Site) -> None:
    """In no object of the API server."""
    text = secret(site)
    everything = "".join(str(each) for each in site.kube.objects.values()) + text
    assert "PRIVATE KEY" not in everything
    for each in text.split('"'):
        with_newlines = each.replace("\\n", "\n")
        if "-----BEGIN" in with_newlines:
            body = "".join(line for line in with_newlines.splitlines() if not line.startswith("-----"))
            assert not any(oid in base64.b64decode(body) for oid in PKCS8)
    assert '"key_ref"' in text


async def verified(signer: Serving, number: int | str, kinds: tuple[str, ...] = KINDS) -> None:
    """Both kinds of SVIDs, which verify by the published bundle."""
    caller, state = Caller(signer, signer.site.agent()), signer.replica._rotation.state
    assert state is not None
    claim = signer.site.pod(f"pod-{number}")
    chain = certificates_from_der((await caller.x509(claim, signer.site.token(claim))).chain)
    assert any(each.subject == chain[-1].issuer for each in state.bundle.x509_authorities)
    if "jwt" in kinds:
        assert (await caller.jwt(claim, signer.site.token(claim)))["sub"] == WEB


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


async def replaced(rig: Rig, kind: str) -> None:
    """Have another authority of that kind sign: there is no agent that would have to know it first."""

    def active() -> str:
        found = rig.state.find(kind, Stage.ACTIVE)
        return found.id if found is not None else ""

    before = active()
    await rig.authority("prepare", "--kind", kind)
    if kind == "jwt":
        # Others look at a scheduled one for a day.
        await rig.authority("activate", "--kind", kind, "--forced")
    await until(lambda: active() != before)


def refs(state: AuthorityState) -> set[str]:
    return {each.name for each in state.key_refs}


def test_every_svid_is_signed_there_through_restarts_and_rotations(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        seen: set[str] = set()
        for start in range(2):
            async with serving(site, folder, clock, *flags(token)) as signer:
                await verified(signer, f"{start}-first")
                no_key_in(site)
                rig = Rig(signer, folder)
                assert start == 0 or refs(rig.state) <= seen
                before = refs(rig.state)
                for kind in KINDS:
                    await replaced(rig, kind)
                after = refs(rig.state)
                assert not before & after
                assert {each.ref.name for each in rig.state.left} >= before
                await verified(signer, f"{start}-rotated")
                no_key_in(site)
                # All of one cluster.
                assert len({each.rpartition("-")[0] for each in before | after}) == 1
                seen |= before | after
        with store(token.whole_uri) as found:
            # For a week an older Secret finds its keys.
            assert set(found.names("podsvid-example.org-")) == seen

    run(work)


def test_after_a_theft_everything_is_made_anew_in_it(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        async with serving(site, folder, clock, *flags(token)) as signer:
            rig = Rig(signer, folder)
            before = refs(rig.state)
            await rig.authority("rotate", "--forced")
            await until(lambda: len(refs(rig.state)) > len(before) or not refs(rig.state) & before)
            clock.pass_by(minutes=5)
            await until(lambda: not refs(rig.state) & before)
            await verified(signer, "after")
            no_key_in(site)

    run(work)


def test_what_nothing_signs_with_is_destroyed_after_a_week(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        long = ("--authority-ttl", "90d", "--jwt-key-period", "90d")
        async with serving(site, folder, clock, *flags(token, *long)) as signer:
            rig = Rig(signer, folder)
            before = refs(rig.state)
            begun = next(iter(before)).rpartition("-")[0]
            keys = signer.replica._keys
            at = keys.store
            assert at is not None
            of_another = "podsvid-example.org-00000000-0000000000000001"
            for name in (f"{begun}-0000000000000001", of_another):
                await keys.ask(partial(at.create, name, KeyAlgorithm.EC_P256))
            await replaced(rig, "x509")
            (gone,) = before - refs(rig.state)
            clock.pass_by(minutes=11)
            await until(lambda: len(rig.state.left) == 2)
            present = set(await keys.ask(partial(at.names, "")))
            assert gone in present
            clock.pass_by(days=7, minutes=11)
            await until(lambda: rig.state.left == ())
            present = set(await keys.ask(partial(at.names, "")))
            assert present == refs(rig.state) | {of_another}

    run(work)


def test_a_token_that_is_away_makes_wait_and_is_used_again_when_it_is_back(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        async with serving(site, folder, clock, *flags(token)) as signer:
            replica, caller = signer.replica, Caller(signer, site.agent())
            await verified(signer, 1)
            with token.away():
                # What knows the objects of before is not there any more.
                _end_child(replica)
                claim = site.pod("waits")
                refused = await caller.refused(caller.x509(claim, site.token(claim)))
                assert refused == "AUTHORITY_KEY_STORE_UNAVAILABLE"
                assert await caller.refused(caller.jwt(claim, site.token(claim))) == "AUTHORITY_KEY_STORE_UNAVAILABLE"
                await until(lambda: bool(replica._key_watch.trouble))
                said = await replica.not_ready()
                assert said is not None
                assert "no such token" in said
                assert token.pin not in said
                assert "no such token" in await Rig(signer, folder).refused("prepare")
            clock.pass_by(seconds=60)
            await until(lambda: not replica._key_watch.trouble)
            assert await replica.not_ready() is None
            await verified(signer, 2)

    run(work)


def _end_child(replica: Replica) -> None:
    found = replica._keys.store
    assert isinstance(found, TokenStore)
    os.kill(child_of(found), signal.SIGKILL)


def test_two_replicas_sign_with_the_same_keys(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        (folder / "two").mkdir()
        async with (
            serving(site, folder, clock, *flags(token)) as one,
            serving(site, folder / "two", clock, *flags(token), "--identity", "signer-2") as two,
        ):
            await verified(one, 1)
            await verified(two, 2)
            await replaced(Rig(two, folder / "two"), "x509")
            state = two.replica._rotation.state
            assert state is not None
            await until(lambda: (one.replica._rotation.state or state).sequence >= state.sequence)
            await verified(one, 3)

    run(work)


def test_a_signer_whose_token_lacks_the_keys_is_not_ready_and_says_so(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        async with serving(site, folder, clock, *flags(token)) as signer:
            state = signer.replica._rotation.state
            assert state is not None
        active = ref_of(state.active_x509.private_key)
        assert active is not None
        with store(token.whole_uri) as found:
            found.delete(active.name)
        replicas: list[Replica] = []
        starting = asyncio.create_task(_entered(serving(site, folder, clock, *flags(token), made=replicas.append)))
        async with asyncio.timeout(30):
            while f"the token has no key {active.name}" not in (await _said(replicas) or ""):
                await asyncio.sleep(0.02)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    run(work)


async def _said(replicas: list[Replica]) -> str | None:
    return await replicas[0].not_ready() if replicas else None


async def _entered(manager: Any) -> None:
    async with manager:
        pass


def test_a_token_that_is_away_at_the_first_start_is_waited_for(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        replicas: list[Replica] = []

        async def back() -> None:
            async with asyncio.timeout(30):
                while "waits for the first authority: AUTHORITY_KEY_STORE_UNAVAILABLE" not in (
                    await _said(replicas) or ""
                ):
                    await asyncio.sleep(0.02)
            kept.rename(token.objects)
            clock.pass_by(seconds=75)

        kept = token.objects.rename(token.folder / "away")
        task = asyncio.create_task(back())
        async with serving(site, folder, clock, *flags(token), made=replicas.append) as signer:
            await task
            await verified(signer, 1)

    run(work)


def test_keys_go_into_the_token_and_back_into_the_secret_by_rotations(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock

        async def moved(*given: str, inside: bool) -> None:
            async with serving(site, folder, clock, *given) as signer:
                rig = Rig(signer, folder)
                await verified(signer, f"{len(given)}-{inside}")

                def placed(kind: str, stage: Stage) -> bool:
                    found = rig.state.find(kind, stage)
                    return found is not None and bool(ref_of(found.private_key)) is inside

                await until(lambda: placed("x509", Stage.ACTIVE) and placed("jwt", Stage.PREPARED))
                await rig.authority("activate", "--kind", "jwt", "--forced")
                assert placed("jwt", Stage.ACTIVE)
                await verified(signer, f"{len(given)}-{inside}-moved")

        async with serving(site, folder, clock, "--jwt-algorithm", "ES256"):
            assert "PRIVATE KEY" in secret(site)
        await moved(*flags(token), inside=True)
        no_key_in(site)
        await moved(*flags(token), "--authority-keys-return", "true", inside=False)
        assert '"key"' in secret(site)
        assert '"key_ref"' not in secret(site)

    run(work)


def test_one_without_the_token_refuses_what_is_in_it(token: Token) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        async with serving(site, folder, clock, *flags(token)):
            pass
        with pytest.raises(StateDamaged, match="set authority_key_uri as the other signers have it"):
            async with serving(site, folder, clock):
                pass

    run(work)


def test_check_tries_the_token(token: Token, capsys: pytest.CaptureFixture[str]) -> None:
    (token.folder / "kubeconfig").write_text(
        'apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: "http://127.0.0.1:9"}}]\n'
        "contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\ncurrent-context: a\n"
    )

    def check(uri: str) -> tuple[int, str]:
        given = {
            "trust-domain": "example.org",
            "kubeconfig": token.folder / "kubeconfig",
            "admin-socket": token.folder / "admin.sock",
            "listen": "127.0.0.1:0",
            "metrics-listen": "off",
            "authority-key-uri": uri,
        }
        code = main(["signer", "--check", *(f"--{flag}={value}" for flag, value in given.items())])
        found = capsys.readouterr()
        return code, found.out + found.err

    assert check(token.whole_uri)[0] == 0
    with store(token.whole_uri) as found:
        assert list(found.names("")) == []
    code, said = check(token.whole_uri.replace("token=hsm", "token=other"))
    assert code == 1
    assert "AUTHORITY_KEY_STORE_UNAVAILABLE" in said
    assert "no such token" in said
