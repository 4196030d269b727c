"""AWS Private CA as the CA above: boto3, by its own model of each request, asks a stand-in that answers as AWS says."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from runtime.bounded import Bounded
from runtime.clock import SystemClock
from runtime.settings import InvalidSetting
from signer.awspca_settings import MAX_ARNS, TEMPLATES, AwsPcaSettings
from signer.clouds import aws
from signer.clouds.aws import Aws
from signer.clouds.process import Cloud, CloudProcess, Service
from signer.upstream import awspca
from signer.upstream.awspca import MAX_CERTIFICATE, AwsPca, _validity
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.chosen import chosen, needed
from signer.upstream.remote import MAX_HANDLE, Denied, Elsewhere, Pending, UpstreamAway
from svid.certificates import to_pem
from tests import upstream_contract as contract
from tests.fake_kms import Inside
from tests.fake_kube import FakeKube
from tests.openbao_contract import TD
from tests.signer_rig import START, StepClock
from tests.unit.signer.test_openbao import DAY, Ca, loaded

ARN = "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/11223344-1234-1122-2233-112233445566"
OTHER = ARN[:-1] + "7"
KEY_ID, SESSION = "AKIAEXAMPLE", "session-token-0123456789"


class StandIn:
    """Implements contract.Cloud: as much of AWS Private CA as podsvid asks for, with the errors that its API names."""

    def __init__(self) -> None:
        self.top = Ca("root")
        self.cas: dict[str, list[Ca]] = {ARN: [self.top]}
        self.issued: dict[str, Mapping[str, str]] = {}
        self.tokens: dict[tuple[str, str], str] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.thinks = 2
        self.polled = 0
        self.subjects = True
        self.instead: Callable[[str, dict[str, Any]], web.Response | None] = lambda operation, body: None
        # A client takes a moment to make: one serves all processes that there would be.
        self.libraries = {"aws": cache(Aws)}
        # Set: what it answers comes a byte at a time.
        self.drips = False

    def root(self) -> x509.Certificate:
        found: x509.Certificate = self.top.certificate
        return found

    def remote(self, *, roots: Path | None = None, blank: bool = False, arns: tuple[str, ...] = (ARN,)) -> AwsPca:
        return AwsPca(AwsPcaSettings(arns, TEMPLATES[blank], roots), SystemClock(), self.begin)

    def begin(self, service: Service) -> Cloud:
        return CloudProcess(service, time.monotonic, lambda: Inside(self.libraries))

    def is_below(self) -> None:
        self.cas[ARN] = [Ca("issuing", self.top), self.top]

    def ends_in(self, life: timedelta) -> None:
        self.top = Ca("root", life=life)
        self.cas[ARN] = [self.top]

    def forbids(self, secret: str) -> None:
        code = "SignatureDoesNotMatch" if secret else "AccessDeniedException"
        words = f"The Canonical String should have been 'x-amz-security-token:{secret}'" if secret else "not authorized"
        self.instead = lambda operation, body: _wrong(code, words)

    def is_busy(self) -> None:
        self.instead = lambda operation, body: _wrong("ThrottlingException", "Rate exceeded")

    def drops_subjects(self) -> None:
        self.subjects = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.drips:
            return await dripping(request)
        operation = request.headers["X-Amz-Target"].removeprefix("ACMPrivateCA.")
        body = await request.json()
        self.asked.append((operation, body))
        assert KEY_ID in request.headers["Authorization"]
        found = self.instead(operation, body)
        if found is not None:
            return found
        if body["CertificateAuthorityArn"] not in self.cas:
            return _wrong("ResourceNotFoundException", "Could not find it")
        if operation == "IssueCertificate":
            return self._issue(body)
        if operation == "GetCertificate":
            self.polled += 1
            if self.polled % (self.thinks + 1):
                return _wrong("RequestInProgressException", "The request to issue it is still in progress")
            return web.json_response(self.issued[body["CertificateArn"]])
        assert operation == "GetCertificateAuthorityCertificate"
        own, *above = self.cas[body["CertificateAuthorityArn"]]
        return web.json_response({"Certificate": _pem(own), **({"CertificateChain": _pem(*above)} if above else {})})

    def _issue(self, body: dict[str, Any]) -> web.Response:
        arn = body["CertificateAuthorityArn"]
        token = arn, body["IdempotencyToken"]
        ca = self.cas[arn][0]
        if token in self.tokens:
            return web.json_response({"CertificateArn": self.tokens[token]})
        template = body["TemplateArn"].removeprefix("arn:aws:acm-pca:::template/")
        blank = TEMPLATES.index(template) == 1
        passed = {"Extensions": {"KeyUsage": {"KeyCertSign": True, "CRLSign": True}}} if blank else None
        assert body.get("ApiPassthrough") == passed
        assert body["SigningAlgorithm"] == "SHA256WITHECDSA"
        now, validity = datetime.now(UTC), body["Validity"]
        ends = datetime.fromtimestamp(validity["Value"], UTC)
        life = validity["Value"] * DAY if validity["Type"] == "DAYS" else ends - now
        if now + life > ca.certificate.not_valid_after_utc:
            return _wrong("ValidationException", "The certificate validity specified exceeds the CA's")
        csr = x509.load_pem_x509_csr(base64.b64decode(body["Csr"]))
        subject = csr.subject if self.subjects else x509.Name.from_rfc4514_string("CN=other")
        own = ca.sign(subject, csr.public_key(), life, 0, *csr.extensions, digital_signature=not blank)
        name = f"{arn}/certificate/{own.serial_number:032x}"
        above = _pem(*self.cas[arn])
        self.issued[name] = {"Certificate": to_pem([own]).decode(), "CertificateChain": above}
        self.tokens[token] = name
        return web.json_response({"CertificateArn": name})


async def dripping(request: web.Request) -> web.StreamResponse:
    """Each byte is within the time that a library waits for one."""
    response = web.StreamResponse()
    response.content_length = 1_000_000
    await response.prepare(request)
    with suppress(ConnectionError):
        for _ in range(1_000):
            await response.write(b" ")
            await asyncio.sleep(0.05)
    return response


def _pem(*cas: Ca) -> str:
    return to_pem([each.certificate for each in cas]).decode()


def _wrong(code: str, words: str, status: int = 400) -> web.Response:
    return web.json_response({"__type": code, "message": words}, status=status)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the environment are the first of the SDK's chain."""
    for name, value in (("ACCESS_KEY_ID", KEY_ID), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", SESSION)):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StandIn]:
    """On the loopback, where boto3 is sent by its own variable."""
    stand_in = StandIn()
    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/", stand_in.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_ACM_PCA", f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield stand_in
    finally:
        await runner.cleanup()


def with_cloud(monkeypatch: pytest.MonkeyPatch, test: Callable[[StandIn], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving(monkeypatch) as cloud:
            await test(cloud)

    asyncio.run(run())


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda each: each.__name__)
def test_the_stand_in_keeps_the_contract(tmp_path: Path, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cloud(monkeypatch, lambda cloud: check(cloud, tmp_path))


def test_what_is_asked_for_is_a_ca_of_that_length_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cloud: StandIn) -> None:
        remote = cloud.remote()
        request = contract.a_request(remote)
        handle = await remote.submit(request.to_ca(TD))
        (_, (operation, body)) = cloud.asked
        assert operation == "IssueCertificate"
        assert x509.load_pem_x509_csr(base64.b64decode(body.pop("Csr"))) == request.csr
        assert body == {
            "CertificateAuthorityArn": ARN,
            "SigningAlgorithm": "SHA256WITHECDSA",
            "TemplateArn": "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1",
            "Validity": {"Type": "DAYS", "Value": 10},
            "IdempotencyToken": request.id[:36],
        }
        assert len(handle) <= MAX_HANDLE
        assert isinstance(await remote.poll(request.to_ca(TD), handle), Pending)
        await remote.forget(request.id, handle)

    with_cloud(monkeypatch, test)


def test_roots_of_all_are_trusted_and_the_first_one_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cloud: StandIn) -> None:
        next_one = Ca("next")
        cloud.cas[OTHER] = [next_one]
        remote = cloud.remote(arns=(ARN, OTHER))
        assert (await remote.roots()).certificates == (cloud.root(), next_one.certificate)
        assert (await contract.issued(remote)).roots == (cloud.root(),)
        # One below a root that it was not given: that may be trusted, whatever is said here.
        cloud.cas[OTHER] = [Ca("issuing", next_one)]
        found = await remote.roots()
        assert (found.certificates, found.complete) == ((cloud.root(),), False)

    with_cloud(monkeypatch, test)


def test_what_aws_gives_up_is_given_up_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cloud: StandIn) -> None:
        remote = cloud.remote()
        cloud.instead = lambda operation, body: (
            _wrong("RequestFailedException", "The request\nhas failed") if operation == "GetCertificate" else None
        )
        found = await contract.answered(remote)
        assert isinstance(found, Denied)
        assert found.permanent
        assert "RequestFailedException: GetCertificate: The request has failed" in found.reason

    with_cloud(monkeypatch, test)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("AccessDeniedException", 400, "UPSTREAM_UNUSABLE"),
        ("InvalidStateException", 400, "UPSTREAM_UNUSABLE"),
        ("MalformedCSRException", 400, "UPSTREAM_UNUSABLE"),
        ("LimitExceededException", 400, "UPSTREAM_UNUSABLE"),
        ("ThrottlingException", 400, "UPSTREAM_AWAY"),
        ("TooManyRequestsException", 429, "UPSTREAM_AWAY"),
        ("Whatever", 500, "UPSTREAM_AWAY"),
        ("ServiceUnavailable", 503, "UPSTREAM_AWAY"),
    ],
)
def test_what_may_pass_is_told_from_what_has_to_be_mended(
    monkeypatch: pytest.MonkeyPatch, code: str, status: int, reason: str
) -> None:
    async def test(cloud: StandIn) -> None:
        cloud.instead = lambda operation, body: _wrong(code, "why\nnot", status)
        said = await contract.failure(cloud.remote())
        assert said.startswith(f"{reason}: ")
        assert code in said
        assert "\n" not in said

    with_cloud(monkeypatch, test)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"Certificate": "x"},
        {"Certificate": to_pem([Ca("a").certificate] * 2).decode()},
        {"Certificate": to_pem([Ca("a").certificate]).decode(), "CertificateChain": "x" * (MAX_CERTIFICATE + 1)},
    ],
)
def test_what_is_no_certificate_is_refused(monkeypatch: pytest.MonkeyPatch, answer: dict[str, str]) -> None:
    async def test(cloud: StandIn) -> None:
        remote = cloud.remote()
        cloud.instead = lambda operation, body: web.json_response(answer) if operation == "GetCertificate" else None
        found = await contract.answered(remote)
        assert isinstance(found, Denied)
        assert found.permanent
        cloud.instead = lambda operation, body: web.json_response(answer)
        assert (await contract.failure(remote)).startswith("UPSTREAM_UNUSABLE: ")

    with_cloud(monkeypatch, test)


@pytest.mark.parametrize("handle", ["{}", "[]", "[" * 1000, json.dumps({"certificate": OTHER + "/certificate/1"})])
def test_another_cas_certificate_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, handle: str) -> None:
    async def test(cloud: StandIn) -> None:
        remote = cloud.remote()
        found = await remote.poll(contract.a_request(remote).to_ca(TD), handle)
        assert isinstance(found, Denied)
        assert cloud.asked == []

    with_cloud(monkeypatch, test)


def test_a_certificate_of_another_name_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cloud: StandIn) -> None:
        cloud.instead = lambda operation, body: (
            web.json_response({"CertificateArn": OTHER + "/certificate/1"}) if operation == "IssueCertificate" else None
        )
        assert "something that is not its own" in await contract.failure(cloud.remote())

    with_cloud(monkeypatch, test)


def test_without_credentials_it_says_whose_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes those that come later."""

    async def test(cloud: StandIn) -> None:
        with monkeypatch.context() as without:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                without.delenv(name)
            remote = cloud.remote()
            said = await contract.failure(remote)
        cloud.libraries["aws"] = cache(Aws)
        assert said.startswith("UPSTREAM_UNUSABLE: ")
        assert "NoCredentialsError): has the signer's service account a role?" in said
        await contract.issued(remote)

    with_cloud(monkeypatch, test)


@asynccontextmanager
async def sts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[list[str]]:
    """One that fails and repeats what it was sent, where a role is asked for with a token; what it was sent."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text(SESSION)
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.text())
        said = f"<Code>InternalFailure</Code><Message>Value '{SESSION}' at 'webIdentityToken'</Message>"
        text = f"<ErrorResponse><Error>{said}</Error></ErrorResponse>"
        return web.Response(status=500, text=text, content_type="text/xml")

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/podsvid")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    try:
        yield asked
    finally:
        await runner.cleanup()


def test_neither_what_is_sent_nor_what_is_answered_is_logged(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nor told: STS repeats the token that it was sent."""

    async def test(cloud: StandIn) -> None:
        remote = AwsPca(AwsPcaSettings((ARN,), TEMPLATES[0], None), SystemClock())
        await contract.issued(remote)
        async with sts(monkeypatch, tmp_path) as asked:
            said = await contract.failure(remote)
        assert said.startswith("UPSTREAM_")
        assert SESSION not in said
        # Nor is STS asked again by boto3 itself.
        assert [SESSION in each for each in asked] == [True]

    with_cloud(monkeypatch, test)
    assert "".join(capfd.readouterr()) == ""


def test_an_answer_that_comes_a_byte_at_a_time_is_given_up_and_the_next_one_is_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It held the signer until its next start: AWS was not asked again before that answer had ended."""

    async def test(cloud: StandIn) -> None:
        remote = AwsPca(AwsPcaSettings((ARN,), TEMPLATES[0], None), SystemClock())
        cloud.drips = True
        with monkeypatch.context() as short:
            short.setattr(awspca, "ANSWER_SECONDS", 1.0)
            with pytest.raises(UpstreamAway, match="it did not answer within 1 s"):
                await remote.roots()
        cloud.drips = False
        assert (await remote.roots()).certificates == (cloud.root(),)

    with_cloud(monkeypatch, test)


def test_all_that_is_asked_has_an_end() -> None:
    config = Aws("acm-pca", "eu-west-1")._client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (aws.CONNECT_SECONDS, aws.READ_SECONDS)


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_WEB_IDENTITY_TOKEN_FILE", "/none"), ("AWS_ENDPOINT_URL_ACM_PCA", "nowhere")]
)
def test_what_is_around_boto3_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    async def test(cloud: StandIn) -> None:
        async with sts(monkeypatch, tmp_path):
            monkeypatch.setenv(name, value)
            assert (await contract.failure(cloud.remote())).startswith("UPSTREAM_UNUSABLE: AWS Private CA arn:")

    with_cloud(monkeypatch, test)


def test_of_several_cas_it_says_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cloud: StandIn) -> None:
        with pytest.raises(UpstreamUnusable, match=rf"^AWS Private CA {OTHER} does not name its root"):
            await cloud.remote(arns=(ARN, OTHER)).roots()

    with_cloud(monkeypatch, test)


def test_nobody_there_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with serving(monkeypatch) as cloud:
            pass
        said = await contract.failure(cloud.remote())
        assert said.startswith("UPSTREAM_AWAY: ")
        assert "cannot be reached (EndpointConnectionError)" in said

    asyncio.run(run())


def test_a_library_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        ended = threading.Event()

        def hangs(service: Service) -> Cloud:
            ended.wait(10)
            raise AssertionError(service)

        remote = AwsPca(AwsPcaSettings((ARN,), TEMPLATES[0], None), SystemClock(), hangs, Bounded(0.05))
        with pytest.raises(UpstreamAway, match="did not answer within"):
            await remote.roots()
        ended.set()

    asyncio.run(run())


def test_a_ca_is_asked_in_its_own_region() -> None:
    async def run() -> None:
        asked: list[str] = []

        def other(service: Service) -> Cloud:
            asked.append(service.region)
            raise UpstreamUnusable("none")

        china = "arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/11223344-1234-1122-2233-112233445566"
        with pytest.raises(UpstreamUnusable, match="none"):
            await AwsPca(AwsPcaSettings((china,), TEMPLATES[0], None), SystemClock(), other).roots()
        assert asked == ["cn-north-1"]

    asyncio.run(run())


def test_nothing_outlives_the_ca() -> None:
    """AWS refuses such a request; the same one is the same later, too, as long as it can be."""
    hour = timedelta(hours=1)
    later = START + 30 * DAY
    assert _validity(10 * DAY, later, START) == {"Type": "DAYS", "Value": 10}
    assert _validity(30 * DAY, later, START) == {"Type": "ABSOLUTE", "Value": int(later.timestamp())}
    assert _validity(40 * DAY, later, START) == {"Type": "ABSOLUTE", "Value": int(later.timestamp())}
    assert _validity(36 * hour, later, START) == {"Type": "ABSOLUTE", "Value": int((START + 36 * hour).timestamp())}


@pytest.mark.parametrize(
    ("curve", "algorithm"), [(ec.SECP256R1(), "SHA256WITHECDSA"), (ec.SECP384R1(), "SHA384WITHECDSA")]
)
def test_the_signature_is_of_the_cas_own_kind(curve: ec.EllipticCurve, algorithm: str) -> None:
    key = ec.generate_private_key(curve)
    certificate = Ca("above").sign(x509.Name.from_rfc4514_string("CN=ca"), key.public_key(), DAY, 0)
    assert awspca._algorithm(certificate, "it") == algorithm


SOUND = {"upstream": "aws-pca", "aws_pca_arns": ARN}


def test_the_settings_that_are_needed_are_an_arn() -> None:
    found = loaded(SOUND)
    assert found.above.aws_pca == AwsPcaSettings((ARN,), TEMPLATES[0], None)
    ca = chosen(found.above, FakeKube(StepClock()), StepClock())
    assert isinstance(ca.remote, AwsPca)
    assert ca.above == Elsewhere(f"AWS Private CA {ARN}")


def test_without_the_library_nothing_starts_and_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidSetting, match=r"upstream is aws-pca, and boto3 is not installed: .*podsvid\[aws\]"):
        chosen(loaded(SOUND).above, FakeKube(StepClock()), StepClock())
    with pytest.raises(UpstreamUnusable) as caught:
        needed(loaded(SOUND).above)["upstream"]()
    assert caught.value.reason == "NOT_INSTALLED"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"aws_pca_arns": None}, "say which private CA certifies"),
        ({"aws_pca_arns": "x"}, "the ARN of a private CA"),
        ({"aws_pca_arns": ARN + "/certificate/1"}, "the ARN of a private CA"),
        ({"aws_pca_arns": f"{ARN},{ARN}"}, "it has an ARN twice"),
        ({"aws_pca_arns": ",".join(f"{ARN[:-1]}{each:x}" for each in range(MAX_ARNS + 1))}, "name 8 at most"),
        ({"aws_pca_template": "EndEntityCertificate/V1"}, "one of SubordinateCACertificate_PathLen0/V1"),
        ({"upstream_dir": "/upstream"}, "they name two upstream CAs"),
        ({"upstream": "files"}, "nothing is asked of AWS Private CA"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, str | None], said: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        loaded({**SOUND, **change})
    assert said in str(caught.value)
