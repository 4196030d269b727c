"""Google's CAS as the CA above: Google's own library, by its own messages, asks a stand-in on the loopback."""

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from google.auth.exceptions import DefaultCredentialsError
from google.cloud.security import privateca_v1
from google.cloud.security.privateca_v1.services.certificate_authority_service.transports import (
    CertificateAuthorityServiceGrpcTransport,
)

from runtime.bounded import Bounded
from runtime.settings import InvalidSetting
from signer.clouds.process import Cloud, CloudProcess, Service
from signer.googlecas_settings import GoogleCasSettings
from signer.upstream import sdk
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.chosen import chosen, needed
from signer.upstream.googlecas import MAX_CAS, MAX_CERTIFICATES, PREFIX, GoogleCas
from signer.upstream.remote import NO_HANDLE, Denied, Elsewhere, UpstreamAway
from svid.certificates import to_pem
from svid.keys import KeyAlgorithm
from tests import upstream_contract as contract
from tests.fake_kms import Inside, by_google
from tests.fake_kube import FakeKube
from tests.signer_rig import StepClock
from tests.unit.signer.test_openbao import DAY, Ca, loaded

POOL = "projects/org-pki/locations/europe-west1/caPools/podsvid"
SERVICE = "google.cloud.security.privateca.v1.CertificateAuthorityService"
OIDS = {"COMMON_NAME": NameOID.COMMON_NAME, "ORGANIZATION": NameOID.ORGANIZATION_NAME}
Instead = Callable[[str, Any], Any]


def asked_by(connect: Callable[[], Any]) -> sdk.Begin:
    """As by a process of Google's library."""
    return lambda service: CloudProcess(service, time.monotonic, lambda: Inside(by_google(connect)))


class Refused(Exception):
    """Raised by a stand-in's method: the call ends so."""

    def __init__(self, status: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.status = status


class StandIn:
    """Implements contract.Cloud: a pool of the Enterprise tier, as far as podsvid asks it."""

    def __init__(self) -> None:
        self.top = Ca("root")
        self.cas: list[list[Ca]] = [[self.top]]
        self.named: dict[str, Any] = {}
        self.by_request: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        self.subjects = True
        self.instead: Instead = lambda method, request: None
        self.address = ""
        self.channels: list[grpc.Channel] = []

    def root(self) -> x509.Certificate:
        found: x509.Certificate = self.top.certificate
        return found

    def remote(self, *, roots: Path | None = None, blank: bool = False) -> GoogleCas:
        return GoogleCas(GoogleCasSettings(POOL, "first" if blank else None, roots), asked_by(self.connect))

    def connect(self) -> Any:
        self.channels.append(grpc.insecure_channel(self.address))
        transport = CertificateAuthorityServiceGrpcTransport(channel=self.channels[-1])
        return privateca_v1.CertificateAuthorityServiceClient(transport=transport)

    def is_below(self) -> None:
        self.cas = [[Ca("issuing", self.top), self.top]]

    def ends_in(self, life: timedelta) -> None:
        self.top = Ca("root", life=life)
        self.cas = [[self.top]]

    def forbids(self, secret: str) -> None:
        status = grpc.StatusCode.UNAUTHENTICATED if secret else grpc.StatusCode.PERMISSION_DENIED
        self._fails(status, f"invalid authentication credential {secret}" if secret else "Permission denied on pool")

    def is_busy(self) -> None:
        self._fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded")

    def _fails(self, status: grpc.StatusCode, words: str) -> None:
        def fail(method: str, request: Any) -> Any:
            raise Refused(status, words)

        self.instead = fail

    def drops_subjects(self) -> None:
        self.subjects = False

    def answer(self, method: str, request: Any) -> Any:
        self.asked.append((method, request))
        found = self.instead(method, request)
        if found is not None:
            return found
        if method == "FetchCaCerts":
            assert request.ca_pool == POOL
            chains = [{"certificates": [_pem(each) for each in chain]} for chain in self.cas]
            return privateca_v1.FetchCaCertsResponse({"ca_certs": chains})
        if method == "GetCertificate":
            return self.named[request.name]
        return self._create(request)

    def _create(self, request: Any) -> Any:
        assert request.parent == POOL
        assert uuid.UUID(request.request_id).int
        if request.request_id in self.by_request:
            return self.by_request[request.request_id]
        name = f"{POOL}/certificates/{request.certificate_id}"
        if name in self.named:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, "there is one")
        config, ca = request.certificate.config, self.cas[0]
        options, usage = config.x509_config.ca_options, config.x509_config.key_usage.base_key_usage
        assert (options.is_ca, "max_issuer_path_length" in options) == (True, True)
        assert (usage.cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
        assert config.public_key.format_ == privateca_v1.PublicKey.KeyFormat.PEM
        subject = _name(config.subject_config.subject) if self.subjects else x509.Name.from_rfc4514_string("CN=other")
        uris = [x509.UniformResourceIdentifier(each) for each in config.subject_config.subject_alt_name.uris]
        names = x509.Extension(x509.SubjectAlternativeName.oid, False, x509.SubjectAlternativeName(uris))
        key = serialization.load_pem_public_key(config.public_key.key)
        # It cuts what would outlive the CA.
        left = ca[0].certificate.not_valid_after_utc - datetime.now(UTC) - timedelta(seconds=1)
        life = min(request.certificate.lifetime, left)
        own = ca[0].sign(subject, key, life, options.max_issuer_path_length, names)
        made = privateca_v1.Certificate(
            name=name, pem_certificate=to_pem([own]).decode(), pem_certificate_chain=[_pem(each) for each in ca]
        )
        self.named[name] = self.by_request[request.request_id] = made
        return made


def _pem(ca: Ca) -> str:
    return to_pem([ca.certificate]).decode()


def _name(subject: Any) -> x509.Name:
    found = []
    for each in (attribute for rdn in subject.rdn_sequence for attribute in rdn.attributes):
        path = ".".join(map(str, each.object_id.object_id_path))
        found.append(x509.NameAttribute(OIDS[each.type_.name] if not path else x509.ObjectIdentifier(path), each.value))
    return x509.Name(found)


@contextmanager
def serving() -> Iterator[StandIn]:
    """On the loopback; with threads of its own, as Google's library has its calls in others."""
    stand_in = StandIn()

    def method(name: str, request: Any, response: Any) -> Any:
        def answer(asked: Any, context: grpc.ServicerContext) -> Any:
            try:
                return stand_in.answer(name, asked)
            except Refused as error:
                context.abort(error.status, str(error))

        return grpc.unary_unary_rpc_method_handler(answer, request.deserialize, response.serialize)

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {
        "CreateCertificate": method(
            "CreateCertificate", privateca_v1.CreateCertificateRequest, privateca_v1.Certificate
        ),
        "GetCertificate": method("GetCertificate", privateca_v1.GetCertificateRequest, privateca_v1.Certificate),
        "FetchCaCerts": method("FetchCaCerts", privateca_v1.FetchCaCertsRequest, privateca_v1.FetchCaCertsResponse),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    stand_in.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield stand_in
    finally:
        for channel in stand_in.channels:
            channel.close()
        server.stop(None).wait()


def with_pool(test: Callable[[StandIn], Awaitable[None]]) -> None:
    async def run(pool: StandIn) -> None:
        await test(pool)

    with serving() as pool:
        asyncio.run(run(pool))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda each: each.__name__)
def test_the_stand_in_keeps_the_contract(tmp_path: Path, check: Any) -> None:
    with_pool(lambda pool: check(pool, tmp_path))


def test_what_is_asked_for_is_a_ca_of_that_key_in_that_pool() -> None:
    async def test(pool: StandIn) -> None:
        remote = pool.remote(blank=True)
        request = contract.a_request(remote)
        await contract.issued(remote, request)
        ((method, asked),) = pool.asked
        assert method == "CreateCertificate"
        assert asked.certificate_id == f"{PREFIX}{request.id}"
        assert len(asked.certificate_id) <= 63
        assert asked.issuing_certificate_authority_id == "first"
        assert asked.certificate.lifetime == timedelta(days=10)
        assert not asked.certificate.pem_csr
        await remote.forget(request.id, NO_HANDLE)

    with_pool(test)


def test_one_that_was_issued_long_ago_is_found_by_its_name() -> None:
    """A request's own id is known for an hour; a leader may come back to it later."""

    async def test(pool: StandIn) -> None:
        remote = pool.remote()
        request = contract.a_request(remote)
        first = await contract.issued(remote, request)
        pool.by_request.clear()
        assert (await contract.issued(remote, request)).chain == first.chain
        assert [method for method, _ in pool.asked][-2:] == ["CreateCertificate", "GetCertificate"]

    with_pool(test)


def test_the_roots_of_all_cas_of_the_pool_are_trusted() -> None:
    async def test(pool: StandIn) -> None:
        other = Ca("next")
        pool.cas += [[other], [Ca("issuing", pool.top), pool.top]]
        found = await pool.remote().roots()
        assert (found.certificates, found.complete) == ((pool.root(), other.certificate), True)
        # One whose chain ends below a root: that may be trusted, whatever is said here.
        pool.cas[1] = [Ca("below", other)]
        found = await pool.remote().roots()
        assert (found.certificates, found.complete) == ((pool.root(),), False)
        pool.cas = [[other]] * (MAX_CAS + 1)
        with pytest.raises(UpstreamUnusable, match="33 CAs; 32 at most"):
            await pool.remote().roots()

    with_pool(test)


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_UNUSABLE", True),
        (grpc.StatusCode.NOT_FOUND, "UPSTREAM_UNUSABLE", True),
        (grpc.StatusCode.FAILED_PRECONDITION, "UPSTREAM_UNUSABLE", True),
        (grpc.StatusCode.PERMISSION_DENIED, "UPSTREAM_UNUSABLE", True),
        (grpc.StatusCode.UNAUTHENTICATED, "UPSTREAM_UNUSABLE", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_AWAY", True),
        (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_AWAY", False),
        (grpc.StatusCode.INTERNAL, "UPSTREAM_AWAY", False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "UPSTREAM_AWAY", False),
    ],
)
def test_what_may_pass_is_told_from_what_has_to_be_mended(status: grpc.StatusCode, reason: str, told: bool) -> None:
    async def test(pool: StandIn) -> None:
        pool._fails(status, "why\nnot")
        said = await contract.failure(pool.remote())
        assert said.startswith(f"{reason}: ")
        assert ("why not" in said) == told

    with_pool(test)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"pem_certificate": "x"},
        {"pem_certificate": to_pem([Ca("a").certificate] * 2).decode()},
        {"pem_certificate": _pem(Ca("a")), "pem_certificate_chain": ["-----BEGIN CERTIFICATE-----"]},
        {"pem_certificate": _pem(Ca("a")), "pem_certificate_chain": [_pem(Ca("b")) for _ in range(33)]},
    ],
)
def test_what_is_no_certificate_is_refused(made: dict[str, Any]) -> None:
    async def test(pool: StandIn) -> None:
        pool.instead = lambda method, request: privateca_v1.Certificate(made)
        found = await contract.answered(pool.remote())
        assert isinstance(found, Denied)
        assert found.permanent

    with_pool(test)


def test_an_answer_is_read_up_to_a_bound() -> None:
    async def test(pool: StandIn) -> None:
        long = "x" * (MAX_CERTIFICATES + 1)
        pool.instead = lambda method, request: privateca_v1.Certificate(pem_certificate_chain=[long])
        assert "answered with more than 512 KiB" in await contract.failure(pool.remote())

    with_pool(test)


def test_another_key_of_that_name_is_not_taken() -> None:
    """Who may make certificates in the pool can have made one of the name that comes next."""

    async def test(pool: StandIn) -> None:
        remote = pool.remote()
        request = contract.a_request(remote)
        other = KeyAlgorithm.EC_P256.generate().public_key()
        own = pool.top.sign(request.csr.subject, other, 10 * DAY, 0)
        pool.named[f"{POOL}/certificates/{PREFIX}{request.id}"] = privateca_v1.Certificate(
            pem_certificate=to_pem([own]).decode(), pem_certificate_chain=[_pem(pool.top)]
        )
        found = await contract.answered(remote, request)
        assert isinstance(found, Denied)
        assert "is of another key" in found.reason

    with_pool(test)


def test_without_credentials_it_says_whose_are_missing() -> None:
    """And takes those that come later."""

    async def test(pool: StandIn) -> None:
        there: list[bool] = []

        def connect() -> Any:
            if not there:
                raise DefaultCredentialsError("Your default credentials were not found: /secret")  # type: ignore[no-untyped-call]
            return pool.connect()

        remote = GoogleCas(GoogleCasSettings(POOL, None, None), asked_by(connect))
        said = await contract.failure(remote)
        assert said.startswith("UPSTREAM_UNUSABLE: ")
        assert "(DefaultCredentialsError): has the signer's service account an identity at Google?" in said
        assert "secret" not in said
        there.append(True)
        await contract.issued(remote)

    with_pool(test)


def test_nobody_there_is_away() -> None:
    with serving() as pool:
        pass
    said = asyncio.run(contract.failure(pool.remote()))
    assert said.startswith("UPSTREAM_AWAY: ")


def test_a_library_that_hangs_is_given_up() -> None:
    async def run() -> None:
        ended = threading.Event()

        def hangs(service: Service) -> Cloud:
            ended.wait(10)
            raise AssertionError

        remote = GoogleCas(GoogleCasSettings(POOL, None, None), hangs, Bounded(0.05))
        with pytest.raises(UpstreamAway, match="did not answer within"):
            await remote.roots()
        ended.set()

    asyncio.run(run())


SOUND = {"upstream": "google-cas", "google_cas_pool": POOL}


def test_the_settings_that_are_needed_are_a_pool() -> None:
    found = loaded({**SOUND, "google_cas_ca": "first"})
    assert found.above.google_cas == GoogleCasSettings(POOL, "first", None)
    ca = chosen(found.above, FakeKube(StepClock()), StepClock())
    assert isinstance(ca.remote, GoogleCas)
    assert ca.above == Elsewhere(f"Google CA pool {POOL}, CA first")
    assert chosen(loaded(SOUND).above, FakeKube(StepClock()), StepClock()).above == Elsewhere(f"Google CA pool {POOL}")


def test_without_the_library_nothing_starts_and_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.util.find_spec", absent)
    said = r"upstream is google-cas, and google-cloud-private-ca is not installed: .*podsvid\[google\]"
    with pytest.raises(InvalidSetting, match=said):
        chosen(loaded(SOUND).above, FakeKube(StepClock()), StepClock())
    with pytest.raises(UpstreamUnusable) as caught:
        needed(loaded(SOUND).above)["upstream"]()
    assert caught.value.reason == "NOT_INSTALLED"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"google_cas_pool": None}, "say which pool certifies"),
        ({"google_cas_pool": "podsvid"}, "projects/PROJECT/locations/LOCATION/caPools/POOL"),
        ({"google_cas_pool": POOL + "/certificates/a"}, "projects/PROJECT/locations/LOCATION/caPools/POOL"),
        ({"google_cas_ca": "a/b"}, "the name of a CA of that pool"),
        ({"upstream_dir": "/upstream"}, "they name two upstream CAs"),
        ({"upstream": "files"}, "nothing is asked of Google's CAS"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, str | None], said: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        loaded({**SOUND, **change})
    assert said in str(caught.value)
