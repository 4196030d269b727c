"""Keys in a cloud's KMS, by the process that has its library: whole replicas, hanging answers, and no key elsewhere."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from podsvid.cli import main
from runtime.child import ChildProcess
from signer.authority import key_care
from signer.authority.slots import KINDS
from signer.clouds import process
from signer.clouds.process import CloudProcess, Failed, Service
from signer.keystore.kms import KmsStore
from signer.keystore.store import KeyStoreUnavailable
from signer.keystore.worker import Worker
from signer.kms import awskms
from signer.kms.awskms import AwsKms
from signer.kms.interface import id_of
from signer.kms_uri import parse_aws_place
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm
from tests import fake_kms
from tests.fake_kms import ACCOUNT
from tests.key_store_contract import NAME, sign
from tests.node.test_signer_admin_steps import Rig
from tests.node.test_strict_keys import START, no_key_in, refs, replaced, run, until, verified
from tests.signer_rig import Site, StepClock, serving
from tests.unit.signer.test_openbao import Ca

PLACE = parse_aws_place(f"awskms:///{ACCOUNT}:alias/podsvid")
FLAGS = ("--authority-key-uri", str(PLACE), "--jwt-algorithm", "ES256")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_kms.AwsKms]:
    with fake_kms.aws_kms(monkeypatch) as found:
        yield found


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.authority.rotation.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("signer.daemon.REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(key_care, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(key_care, "TROUBLED_SECONDS", 0.05)
    monkeypatch.setattr(process, "FIRST_PAUSE", 0.0)


@contextmanager
def store() -> Iterator[tuple[KmsStore, CloudProcess]]:
    cloud = CloudProcess(Service("aws", "kms", "eu-west-1"), time.monotonic)
    found = KmsStore(PLACE, AwsKms(cloud, PLACE.at, PLACE.prefix, time.monotonic), Worker("keys"))
    try:
        yield found, cloud
    finally:
        found.close()


def child_of(cloud: CloudProcess) -> int:
    assert isinstance(cloud._child, ChildProcess)
    return cloud._child._process.pid


def test_its_process_may_die_or_hang_at_any_time(aws: fake_kms.AwsKms, monkeypatch: pytest.MonkeyPatch) -> None:
    with store() as (found, cloud):
        made = found.create(NAME, KeyAlgorithm.EC_P256)
        before = child_of(cloud)
        os.kill(before, signal.SIGKILL)
        sign(made)
        second = child_of(cloud)
        assert second != before
        monkeypatch.setattr(awskms, "SIGN_SECONDS", 0.5)
        os.kill(second, signal.SIGSTOP)
        monkeypatch.setattr(process, "OPEN_SECONDS", 60.0)
        with pytest.raises(Failed, match="did not answer within"):
            cloud.ask("list_aliases", {}, 0.5)
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        monkeypatch.setattr(awskms, "SIGN_SECONDS", 60.0)
        sign(made)


def test_an_answer_that_comes_a_byte_at_a_time_is_given_up_and_the_next_one_is_as_any_other(
    aws: fake_kms.AwsKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is within the time that the library waits for one."""
    with store() as (found, cloud):
        made = found.create(NAME, KeyAlgorithm.EC_P256)
        monkeypatch.setattr(awskms, "SIGN_SECONDS", 1.0)
        aws.drips.set()
        before = child_of(cloud)
        with pytest.raises(KeyStoreUnavailable, match="did not answer within 1 s"):
            sign(made)
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        aws.drips.clear()
        monkeypatch.setattr(awskms, "SIGN_SECONDS", 60.0)
        sign(made)


def test_every_svid_is_signed_there_through_restarts_and_rotations(aws: fake_kms.AwsKms) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        seen: set[str] = set()
        for start in range(2):
            async with serving(site, folder, clock, *FLAGS) as signer:
                await verified(signer, f"{start}-first")
                no_key_in(site)
                rig = Rig(signer, folder)
                assert start == 0 or refs(rig.state) <= seen
                before = refs(rig.state)
                for kind in KINDS:
                    await replaced(rig, kind)
                assert not before & refs(rig.state)
                await verified(signer, f"{start}-rotated")
                no_key_in(site)
                seen |= before | refs(rig.state)
        # As the state names them.
        assert {f"alias/podsvid/{id_of(each)}" for each in seen} == set(aws.aliases)
        assert {each.about["Description"] for each in aws.keys.values()} == seen

    run(work)


def test_keys_that_sign_no_more_are_destroyed_after_a_week(aws: fake_kms.AwsKms) -> None:
    async def work(folder: Path) -> None:
        site, clock = Site(START), StepClock(START)
        site.clock = clock
        async with serving(site, folder, clock, *FLAGS) as signer:
            rig = Rig(signer, folder)
            first = refs(rig.state)
            await rig.authority("rotate", "--forced")
            clock.pass_by(minutes=5)
            await until(lambda: not refs(rig.state) & first)
            left = {each.ref.name for each in rig.state.left}
            assert first <= left
            clock.pass_by(days=8)
            ended = {f"alias/podsvid/{id_of(each)}" for each in first}
            await until(lambda: not ended & set(aws.aliases))
            gone = {each.about["Description"] for each in aws.keys.values() if each.state == "PendingDeletion"}
            assert first <= gone
            # And no others.
            assert gone & refs(rig.state) == set()

    run(work)


def test_google_is_asked_by_its_library_where_that_goes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By TLS, with a service account's key, which is sent to nobody."""
    ca = Ca("above")
    (tmp_path / "ca.crt").write_bytes(to_pem([ca.certificate]))
    with fake_kms.google_at_its_name(monkeypatch, tmp_path) as google:
        uri = f"gcpkms://{google.put(ca.key)}"
        code, said = check(tmp_path, capsys, upstream_cert_file=str(tmp_path / "ca.crt"), upstream_key_uri=uri)
        assert code == 0, said
        assert [each for each, _ in google.asked] == ["AsymmetricSign"]
        code, said = check(tmp_path, capsys, authority_key_uri=f"gcpkms://{fake_kms.RING}", jwt_algorithm="ES256")
        assert code == 0, said
        assert {each for each, _ in google.asked[1:]} == {"ListCryptoKeys"}


def check(folder: Path, capsys: pytest.CaptureFixture[str], **flags: str) -> tuple[int, str]:
    (folder / "kubeconfig").write_text(
        'apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: "http://127.0.0.1:9"}}]\n'
        "contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\ncurrent-context: a\n"
    )
    given = {
        "trust-domain": "example.org",
        "kubeconfig": str(folder / "kubeconfig"),
        "admin-socket": str(folder / "admin.sock"),
        "listen": "127.0.0.1:0",
        "metrics-listen": "off",
        **{name.replace("_", "-"): value for name, value in flags.items()},
    }
    code = main(["signer", "--check", *(f"--{flag}={value}" for flag, value in given.items())])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_check_signs_with_the_key_of_the_ca_above(
    aws: fake_kms.AwsKms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = Ca("above")
    (tmp_path / "ca.crt").write_bytes(to_pem([ca.certificate]))
    flags = {"upstream_cert_file": str(tmp_path / "ca.crt"), "upstream_key_uri": f"awskms:///{aws.put(ca.key)}"}
    code, said = check(tmp_path, capsys, **flags)
    assert code == 0, said
    (made,) = aws.keys.values()
    made.key = KeyAlgorithm.EC_P256.generate()
    code, said = check(tmp_path, capsys, **flags)
    assert code != 0
    assert "is not the key of" in said


def test_check_asks_where_keys_are_to_be_made_and_makes_none(
    aws: fake_kms.AwsKms, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"authority_key_uri": str(PLACE), "jwt_algorithm": "ES256"}
    code, said = check(tmp_path, capsys, **flags)
    assert code == 0, said
    assert {each for each, _ in aws.asked} == {"ListAliases"}
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    code, said = check(tmp_path, capsys, **flags)
    assert code != 0
    assert "NoCredentialsError" in said
