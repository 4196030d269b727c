"""Keys in AWS KMS and Google Cloud KMS: their own libraries ask stand-ins, on the wire that the clouds have."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport
from hypothesis import given
from hypothesis import strategies as st

from signer.clouds.google import Google
from signer.clouds.process import CloudProcess, Failed, Service
from signer.held_key import KeyRef, Unsupported
from signer.keystore.kms import KmsStore
from signer.keystore.store import KeyMissing, KeyStore, KeyStoreUnavailable, KeyUnfinished
from signer.keystore.worker import Worker
from signer.kms import gcpkms
from signer.kms.chosen import kms_of_key, kms_of_place
from signer.kms.gcpkms import GoogleKms
from signer.kms.interface import id_of, named
from signer.kms_uri import parse_aws_key, parse_aws_place, parse_google_key, parse_google_ring
from signer.upstream.certify import FileUpstream, UpstreamUnusable
from signer.upstream.kms import KmsCaKey
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm, PrivateKey, key_to_pem, signature_hash
from tests import fake_kms
from tests import key_store_contract as contract
from tests.fake_kms import ACCOUNT, RING, SESSION, Inside, Wrong, by_google
from tests.key_store_contract import NAME, NEXT, OWN, sign
from tests.signer_rig import START
from tests.unit.signer.test_lifecycle import TD, done
from tests.unit.signer.test_openbao import DAY

AWS_PLACE = parse_aws_place(f"awskms:///{ACCOUNT}:alias/podsvid")
GOOGLE_PLACE = parse_google_ring(f"gcpkms://{RING}")
ALIAS = f"alias/podsvid/{id_of(NAME)}"
VERSION = f"{RING}/cryptoKeys/{id_of(NAME)}/cryptoKeyVersions/1"


class Seconds:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@contextmanager
def aws_store(seconds: Seconds | None = None) -> Iterator[KmsStore]:
    """Of a new process, as it were."""
    now = seconds or Seconds()
    kms = kms_of_place(AWS_PLACE, now, lambda service, its: CloudProcess(service, its, Inside))
    found = KmsStore(AWS_PLACE, kms, Worker("keys"))
    try:
        yield found
    finally:
        found.close()


@contextmanager
def google_store(cloud: fake_kms.GoogleKms, seconds: Seconds | None = None) -> Iterator[KmsStore]:
    now = seconds or Seconds()
    begun = CloudProcess(Service("google", "kms"), now, lambda: Inside(by_google(cloud.connect)))
    found = KmsStore(GOOGLE_PLACE, GoogleKms(begun, RING, True, now, lambda _: None), Worker("keys"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_kms.AwsKms]:
    with fake_kms.aws_kms(monkeypatch) as found:
        yield found


@pytest.fixture
def google() -> Iterator[fake_kms.GoogleKms]:
    with fake_kms.google_kms() as found:
        yield found


@pytest.fixture(params=["aws", "google"])
def opened(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], AbstractContextManager[KeyStore]]]:
    with ExitStack() as until:
        if request.param == "aws":
            until.enter_context(fake_kms.aws_kms(monkeypatch))
            yield aws_store
        else:
            cloud = until.enter_context(fake_kms.google_kms())
            cloud.takes = 2
            yield partial(google_store, cloud)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda each: each.__name__)
def test_a_kms_keeps_the_contract(opened: Any, check: Any) -> None:
    check(opened)


# AWS.


def test_what_aws_is_asked_for(aws: fake_kms.AwsKms) -> None:
    with aws_store() as store:
        made = store.create(NAME, KeyAlgorithm.EC_P384)
        sign(made)
    assert [each for each, _ in aws.asked] == ["CreateKey", "CreateAlias", "GetPublicKey", "Sign"]
    assert aws.asked[0][1]["KeySpec"] == "ECC_NIST_P384"
    (arn,) = aws.keys
    assert aws.aliases == {ALIAS: arn}
    # By its ARN in the process that made it: elsewhere an alias may not be known yet.
    assert aws.asked[-1][1]["KeyId"] == arn
    assert aws.asked[-1][1]["SigningAlgorithm"] == "ECDSA_SHA_384"
    aws.asked.clear()
    with aws_store() as other:
        sign(other.open(KeyRef("awskms", NAME), made.public_key()))
        assert aws.asked[-1][1]["KeyId"] == f"{ACCOUNT}:{ALIAS}"
        other.delete(NAME)
    assert aws.keys[arn].state == "PendingDeletion"
    assert aws.asked[-2][1] == {"KeyId": arn, "PendingWindowInDays": 7}
    assert aws.aliases == {}


def test_a_key_that_aws_made_and_cannot_be_used_is_not_left_there(aws: fake_kms.AwsKms) -> None:
    def refuse(operation: str, body: Any) -> Any:
        if operation == "CreateAlias":
            raise Wrong("LimitExceededException", "You have exceeded the number of aliases")

    aws.instead = refuse
    with (
        aws_store() as store,
        pytest.raises(KeyStoreUnavailable, match="LimitExceededException: CreateAlias: "),
    ):
        store.create(NAME, KeyAlgorithm.EC_P256)
    assert [each.state for each in aws.keys.values()] == ["PendingDeletion"]
    other = KeyAlgorithm.EC_P384.generate()

    def another(operation: str, body: Any) -> Any:
        return aws.GetPublicKey({"KeyId": aws.put(other)}) if operation == "GetPublicKey" else None

    aws.instead = another
    with aws_store() as store, pytest.raises(KeyStoreUnavailable, match="made a key that is not ec-p256"):
        store.create(NEXT, KeyAlgorithm.EC_P256)


@pytest.mark.parametrize("ends", [True, False])
def test_a_role_that_may_make_keys_and_not_finish_them_leaves_none_or_says_which(
    aws: fake_kms.AwsKms, ends: bool
) -> None:
    def refuse(operation: str, body: Any) -> Any:
        if operation == "CreateAlias" or (operation == "ScheduleKeyDeletion" and not ends):
            raise Wrong("AccessDeniedException", "not authorized to perform")

    aws.instead = refuse
    with aws_store() as store, pytest.raises(KeyUnfinished, match="AccessDeniedException: CreateAlias") as caught:
        store.create(NAME, KeyAlgorithm.EC_P256)
    ((arn, made),) = aws.keys.items()
    assert made.state == ("PendingDeletion" if ends else "Enabled")
    assert (f"{arn} was made, and is there and paid for until somebody destroys it" in str(caught.value)) is not ends
    assert not caught.value.again


def test_a_role_that_may_make_no_key_makes_none_in_vain(aws: fake_kms.AwsKms, google: fake_kms.GoogleKms) -> None:
    def refuse(code: Any) -> Any:
        raise Wrong(code, "not authorized")

    aws.instead = lambda operation, body: refuse("AccessDeniedException")
    google.instead = lambda method, asked: refuse(grpc.StatusCode.PERMISSION_DENIED)
    for opened in (aws_store(), google_store(google)):
        with opened as store, pytest.raises(KeyStoreUnavailable) as caught:
            store.create(NAME, KeyAlgorithm.EC_P256)
        assert not isinstance(caught.value, KeyUnfinished)


def test_a_key_that_aws_made_in_another_account_is_not_taken(aws: fake_kms.AwsKms) -> None:
    elsewhere = "arn:aws:kms:eu-west-1:999999999999:key/11223344-1234-1122-2233-112233445566"
    aws.instead = lambda operation, body: {"KeyMetadata": {"Arn": elsewhere, "KeyId": "a"}}
    with aws_store() as store, pytest.raises(KeyStoreUnavailable, match="made a key elsewhere"):
        store.create(NAME, KeyAlgorithm.EC_P256)


def test_a_key_that_an_alias_was_led_to_is_neither_used_nor_destroyed(aws: fake_kms.AwsKms) -> None:
    """Who may change aliases and no keys has the CA's key destroyed by nobody."""
    with aws_store() as store:
        made = store.create(NAME, KeyAlgorithm.EC_P256)
    aws.aliases[ALIAS] = ca = aws.put(KeyAlgorithm.EC_P256.generate(), "the CA's")
    with aws_store() as store:
        with pytest.raises(InvalidSignature):
            sign(store.open(KeyRef("awskms", NAME), made.public_key()))
        with pytest.raises(KeyStoreUnavailable, match="leads to a key that was not made as podsvid-example"):
            store.delete(NAME)
    assert aws.keys[ca].state == "Enabled"


def test_a_key_that_somebody_destroys_already_is_left_to_that(aws: fake_kms.AwsKms) -> None:
    with aws_store() as store:
        store.create(NAME, KeyAlgorithm.EC_P256)
        (made,) = aws.keys.values()
        made.state = "PendingDeletion"
        store.delete(NAME)
        assert list(store.names(OWN)) == []


def test_a_key_whose_alias_is_not_known_yet_is_destroyed_all_the_same(aws: fake_kms.AwsKms) -> None:
    """Right after it was made, where nothing came of what it was made for."""

    def unknown(operation: str, body: Any) -> Any:
        if "alias/" in body.get("KeyId", "") or operation == "DeleteAlias":
            raise Wrong("NotFoundException", "Alias is not found.")

    with aws_store() as store:
        store.create(NAME, KeyAlgorithm.EC_P256)
        aws.instead = unknown
        assert store.delete(NAME)
    assert [each.state for each in aws.keys.values()] == ["PendingDeletion"]


@pytest.mark.parametrize("kind", ["aws", "google"])
def test_what_somebody_else_has_there_is_not_named_and_hides_nothing(
    kind: str, aws: fake_kms.AwsKms, google: fake_kms.GoogleKms
) -> None:
    with aws_store() if kind == "aws" else google_store(google) as store:
        store.create(NAME, KeyAlgorithm.EC_P256)
        begun = id_of(OWN)
        for rest in ("", "backup", "0011223344556677x", "00112233445566778", "001122334455667G"):
            if kind == "aws":
                aws.aliases[f"alias/podsvid/{begun}{rest}"] = aws.put(KeyAlgorithm.EC_P256.generate())
            else:
                google.put(KeyAlgorithm.EC_P256.generate(), f"{begun}{rest}")
        assert list(store.names(OWN)) == [NAME]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("AccessDeniedException", 400, "why not: what its role has to be allowed is in docs/kms.md"),
        ("LimitExceededException", 400, "LimitExceededException: Sign: why not"),
        ("SignatureDoesNotMatch", 403, "SignatureDoesNotMatch: Sign"),
        ("UnrecognizedClientException", 400, "UnrecognizedClientException: Sign"),
        ("ThrottlingException", 400, "it answers 400 (ThrottlingException: Sign"),
        ("KMSInternalException", 500, "it answers 500 (KMSInternalException: Sign"),
    ],
)
def test_what_aws_refuses_is_told_but_for_words_about_a_credential(
    aws: fake_kms.AwsKms, code: str, status: int, said: str
) -> None:
    def refuse(operation: str, body: Any) -> Any:
        raise Wrong(code, f"why\nnot {SESSION}" if code == "SignatureDoesNotMatch" else "why\nnot", status)

    with aws_store() as store:
        made = store.create(NAME, KeyAlgorithm.EC_P256)
        aws.instead = refuse
        with pytest.raises(KeyStoreUnavailable) as caught:
            sign(made)
        assert said in str(caught.value)
        assert SESSION not in str(caught.value)
        assert not isinstance(caught.value, KeyMissing)


def test_a_key_that_is_disabled_is_said_to_be_missing_and_another_one_signs_on(aws: fake_kms.AwsKms) -> None:
    with aws_store() as store:
        made, other = store.create(NAME, KeyAlgorithm.EC_P256), store.create(NEXT, KeyAlgorithm.EC_P256)
        aws.keys[aws.aliases[ALIAS]].state = "Disabled"
        with pytest.raises(KeyMissing, match=r"DisabledException: .* is Disabled"):
            sign(made)
        sign(other)


def test_what_passes_is_asked_once_more_and_then_ever_more_rarely(aws: fake_kms.AwsKms) -> None:
    seconds, failures = Seconds(), [1]

    def throttle(operation: str, body: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise Wrong("ThrottlingException")

    with aws_store(seconds) as store:
        made = store.create(NAME, KeyAlgorithm.EC_P256)
        aws.instead = throttle
        sign(made)
        failures[0], asked = 100, len(aws.asked)
        with pytest.raises(KeyStoreUnavailable, match="ThrottlingException"):
            sign(made)
        for _ in range(20):
            with pytest.raises(KeyStoreUnavailable, match="asked again in"):
                sign(made)
        assert len(aws.asked) == asked + 2
        failures[0] = 0
        seconds.at += 60
        sign(made)


def test_without_credentials_it_says_whose_are_missing_and_takes_those_that_come(
    aws: fake_kms.AwsKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = Seconds()
    with aws_store(seconds) as store:
        with monkeypatch.context() as without:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                without.delenv(name)
            with pytest.raises(KeyStoreUnavailable, match=r"NoCredentialsError\): has the signer's"):
                store.probe(KeyAlgorithm.EC_P256)
        seconds.at += 60
        store.probe(KeyAlgorithm.EC_P256)
    assert [each for each, _ in aws.asked] == ["ListAliases"]


@pytest.mark.parametrize(
    "answer",
    [{}, {"Signature": "AA=="}, {"Signature": ""}, {"Signature": "MAYCAQECAQE="}, {"Signature": "MAYCAQECAf8="}],
)
def test_what_is_no_signature_is_given_out_by_nobody(aws: fake_kms.AwsKms, answer: Any) -> None:
    with aws_store() as store:
        made = store.create(NAME, KeyAlgorithm.EC_P256)
        aws.instead = lambda operation, body: answer
        with pytest.raises((KeyStoreUnavailable, InvalidSignature)):
            sign(made)


# Google.


def test_what_google_is_asked_for(google: fake_kms.GoogleKms) -> None:
    with google_store(google) as store:
        made = store.create(NAME, KeyAlgorithm.EC_P384)
        sign(made)
        assert [each for each, _ in google.asked] == [
            "CreateCryptoKey",
            "GetCryptoKeyVersion",
            "GetPublicKey",
            "AsymmetricSign",
        ]
        assert google.keys[VERSION].about["level"] == "HSM"
        assert dict(google.asked[0][1].crypto_key.labels) == {"podsvid": "example_org"}
        assert google.asked[-1][1].name == VERSION
        store.delete(NAME)
        assert google.keys[VERSION].state == "DESTROY_SCHEDULED"


def test_a_key_ring_of_software_is_asked_for_such_keys(google: fake_kms.GoogleKms) -> None:
    place = parse_google_ring(f"gcpkms://{RING}?protection-level=software")
    kms = kms_of_place(
        place, Seconds(), lambda service, now: CloudProcess(service, now, lambda: Inside(by_google(google.connect)))
    )
    kms.create(NAME, KeyAlgorithm.EC_P256)
    assert google.keys[VERSION].about["level"] == "SOFTWARE"
    assert str(place).endswith("?protection-level=software")


def test_a_key_that_google_does_not_make_is_waited_for_so_long(google: fake_kms.GoogleKms) -> None:
    seconds, slept = Seconds(), list[float]()

    def sleep(pause: float) -> None:
        slept.append(pause)
        seconds.at += pause

    google.takes = 10_000
    kms = GoogleKms(
        CloudProcess(Service("google", "kms"), seconds, lambda: Inside(by_google(google.connect))),
        RING,
        True,
        seconds,
        sleep,
    )
    store = KmsStore(GOOGLE_PLACE, kms, Worker("keys"))
    with pytest.raises(KeyStoreUnavailable, match="the key that it made is PENDING_GENERATION"):
        store.create(NAME, KeyAlgorithm.EC_P256)
    assert sum(slept) == gcpkms.MAKE_SECONDS


@pytest.mark.parametrize("ends", [True, False])
def test_an_identity_that_may_make_keys_and_not_finish_them_leaves_none_or_says_which(
    google: fake_kms.GoogleKms, ends: bool
) -> None:
    def refuse(method: str, asked: Any) -> Any:
        if method == "GetPublicKey" or (method == "DestroyCryptoKeyVersion" and not ends):
            raise Wrong(grpc.StatusCode.PERMISSION_DENIED, "not authorized to perform")

    google.instead = refuse
    with google_store(google) as store, pytest.raises(KeyUnfinished, match="PermissionDenied") as caught:
        store.create(NAME, KeyAlgorithm.EC_P256)
    assert google.keys[VERSION].state == ("DESTROY_SCHEDULED" if ends else "ENABLED")
    assert (f"{VERSION} was made, and is there and paid for" in str(caught.value)) is not ends


@pytest.mark.parametrize("service", ["kms", "privateca"])
def test_google_is_connected_to_again_as_often_as_it_is_asked(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its default gRPC waits for two minutes in the end."""
    account = {
        "type": "service_account",
        "private_key": key_to_pem(KeyAlgorithm.RSA_2048.generate()).decode(),
        "client_email": "podsvid@org-pki.iam.gserviceaccount.com",
        "token_uri": "https://127.0.0.1:9/token",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    options: list[Any] = []

    def channel(*_: Any, **asked: Any) -> grpc.Channel:
        options.extend(asked["options"])
        return grpc.insecure_channel("127.0.0.1:9")

    monkeypatch.setattr("google.api_core.grpc_helpers.create_channel", channel)
    Google(service, "")
    assert ("grpc.max_reconnect_backoff_ms", 5000) in options
    assert ("grpc.max_receive_message_length", -1) in options


def test_where_google_gives_no_token_it_is_begun_anew_and_its_words_are_told_to_nobody(tmp_path: Path) -> None:
    class Metadata(grpc.AuthMetadataPlugin):
        def __call__(self, context: Any, callback: Any) -> None:
            raise RuntimeError(SESSION)

    # By a Unix socket, where gRPC sends credentials without TLS.
    local = grpc.LocalConnectionType.UDS
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_secure_port(f"unix:{tmp_path}/kms", grpc.local_server_credentials(local))
    server.start()
    by = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(local), grpc.metadata_call_credentials(Metadata())
    )
    began: list[Inside] = []
    with grpc.secure_channel(f"unix:{tmp_path}/kms", by) as channel:

        def connect() -> Any:
            return kms_v1.KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))

        def begin() -> Inside:
            began.append(Inside(by_google(connect)))
            return began[-1]

        cloud = CloudProcess(Service("google", "kms"), Seconds(), begin)
        with pytest.raises(Failed, match="has the signer's service account an identity at Google") as caught:
            cloud.ask("list_crypto_keys", {"parent": RING})
    server.stop(None).wait()
    assert caught.value.kind == "credentials"
    assert SESSION not in str(caught.value)
    assert [each.ended for each in began] == [True]


def test_destroyed_keys_which_google_lists_for_ever_are_looked_at_once(google: fake_kms.GoogleKms) -> None:
    with google_store(google) as store:
        for number in range(5):
            store.create(f"{OWN}{number:016x}", KeyAlgorithm.EC_P256)
        for made in list(google.keys.values())[:4]:
            made.state = "DESTROYED"
        assert list(store.names(OWN)) == [f"{OWN}{4:016x}"]
        google.asked.clear()
        assert list(store.names(OWN)) == [f"{OWN}{4:016x}"]
    assert [each for each, _ in google.asked].count("GetCryptoKeyVersion") == 1


@pytest.mark.parametrize("cloud", ["aws", "google"])
def test_names_are_looked_for_only_so_long(aws: fake_kms.AwsKms, google: fake_kms.GoogleKms, cloud: str) -> None:
    """Mints wait meanwhile, and an account has as many aliases as others make."""
    seconds = Seconds()
    with aws_store(seconds) if cloud == "aws" else google_store(google, seconds) as store:
        for number in range(8):
            store.create(f"{OWN}{number:016x}", KeyAlgorithm.EC_P256)

        def slow(method: str, asked: Any) -> None:
            seconds.at += 0.6 if method.startswith("List") else 0.0

        aws.instead = google.instead = slow
        assert 0 < len(store.names(OWN)) < 8


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "PermissionDenied: why not: what its identity needs is in docs/kms.md"),
        (grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "it answers 429 (ResourceExhausted"),
        (grpc.StatusCode.UNAVAILABLE, "it answers 503"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "it answers 504"),
    ],
)
def test_what_google_refuses_is_told_but_for_words_about_a_credential(
    google: fake_kms.GoogleKms, status: grpc.StatusCode, said: str
) -> None:
    def refuse(method: str, asked: Any) -> Any:
        raise Wrong(status, f"why\nnot {SESSION}" if status is grpc.StatusCode.UNAUTHENTICATED else "why\nnot")

    with google_store(google) as store:
        made = store.create(NAME, KeyAlgorithm.EC_P256)
        google.instead = refuse
        with pytest.raises(KeyStoreUnavailable) as caught:
            sign(made)
    assert said in str(caught.value)
    assert SESSION not in str(caught.value)


# How keys are called there.


NAMES = st.builds(
    "podsvid-{}-{}-{}".format,
    st.from_regex(r"[a-z0-9._-]{1,255}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
)


@given(NAMES, NAMES)
def test_a_name_and_what_it_is_called_belong_together(one: str, other: str) -> None:
    begins = one.rpartition("-")[0] + "-"
    assert named(id_of(one), begins) == one
    assert len(id_of(one)) <= 63
    assert (named(id_of(other), begins) == other) == other.startswith(begins)
    assert (id_of(one) == id_of(other)) == (one == other)


@given(st.text(max_size=80) | st.text("podsvid-0a/.", max_size=80).map("podsvid-a-".__add__))
def test_a_name_that_podsvid_does_not_give_leads_nowhere(name: str) -> None:
    try:
        found = id_of(name)
    except Unsupported:
        return
    assert set(found) <= set("podsvi-0123456789abcdef")


# The key of the CA above.


@contextmanager
def above(
    kind: str, algorithm: KeyAlgorithm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FileUpstream, list[Inside], Any]]:
    """A CA whose certificate is in a file and whose key is in that cloud; which processes were begun."""
    key, began = algorithm.generate(), list[Inside]()
    with ExitStack() as until:
        cloud: Any
        if kind == "aws":
            cloud = until.enter_context(fake_kms.aws_kms(monkeypatch))
            uri: Any = parse_aws_key(f"awskms:///{cloud.put(key)}")
        else:
            cloud = until.enter_context(fake_kms.google_kms())
            uri = parse_google_key(f"gcpkms://{cloud.put(key)}")

        def begin(service: Service, now: Callable[[], float]) -> CloudProcess:
            began.append(Inside(by_google(cloud.connect)) if kind == "google" else Inside())
            return CloudProcess(service, now, lambda: began[-1])

        (folder / "ca.crt").write_bytes(to_pem([root_of(key)]))
        ca_key = KmsCaKey(uri, lambda each: kms_of_key(each, Seconds(), begin))
        yield FileUpstream(folder / "ca.crt", ca_key), began, cloud


def root_of(key: PrivateKey) -> x509.Certificate:
    name = x509.Name.from_rfc4514_string("CN=above")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 7, START - DAY, START + 365 * DAY)
        .add_extension(x509.BasicConstraints(True, 1), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, signature_hash(key))
    )


@pytest.mark.parametrize("kind", ["aws", "google"])
@pytest.mark.parametrize("algorithm", contract.KINDS)
def test_an_authority_is_certified_by_a_key_in_a_kms(
    kind: str, algorithm: KeyAlgorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = KeyAlgorithm.EC_P256.generate()
    with above(kind, algorithm, tmp_path, monkeypatch) as (ca, began, cloud):
        made = done(ca.certify(TD, mine, 10 * DAY, START))
        made.chain[0].verify_directly_issued_by(made.bundle.x509_authorities[0])
        # What asked once in weeks has ended.
        assert [each.ended for each in began] == [True]
        assert [each.lower() for each, _ in cloud.asked] == ["sign" if kind == "aws" else "asymmetricsign"]


@pytest.mark.parametrize("kind", ["aws", "google"])
def test_an_authority_is_not_certified_by_another_key(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with above(kind, KeyAlgorithm.EC_P256, tmp_path, monkeypatch) as (ca, began, cloud):
        (made,) = cloud.keys.values()
        made.key = KeyAlgorithm.EC_P256.generate()
        with pytest.raises(UpstreamUnusable, match=r"what (awskms:///arn|gcpkms://projects).* names is not the key of"):
            done(ca.certify(TD, KeyAlgorithm.EC_P256.generate(), 10 * DAY, START))
        cloud.keys.clear()
        with pytest.raises(UpstreamUnusable, match=r"^(awskms|gcpkms)://.*: (NotFoundException: Sign|NotFound: )"):
            done(ca.certify(TD, KeyAlgorithm.EC_P256.generate(), 10 * DAY, START))
        assert [each.ended for each in began] == [True, True]


def test_a_key_of_an_algorithm_that_is_not_asked_for_is_said_to_be(tmp_path: Path) -> None:
    key = KeyAlgorithm.ED25519.generate()
    (tmp_path / "ca.crt").write_bytes(to_pem([root_of(key)]))
    ca = FileUpstream(tmp_path / "ca.crt", KmsCaKey(parse_google_key(f"gcpkms://{VERSION}")))
    with pytest.raises(UpstreamUnusable, match="in a KMS a key is EC P-256, EC P-384 or RSA"):
        done(ca.certify(TD, KeyAlgorithm.EC_P256.generate(), 10 * DAY, START))
