"""AWS Private CA as the CA above: a certificate that is issued a few seconds after it was asked for.

boto3 asks, in a process of its own, with the credentials that it finds by itself: a role of the pod's service account,
or of its node.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa

from runtime.bounded import Bounded, Unanswered
from runtime.clock import Clock
from signer.awspca_settings import TEMPLATES, AwsPcaSettings, partition_of, region_of
from signer.clouds.process import PASSING, Cloud, Failed, Service
from signer.upstream import files, sdk
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.given import MAX_ABOVE, certificates, chained, check_name, is_root, shorter
from signer.upstream.remote import Answer, CaRequest, Denied, Issued, Pending, UpstreamAway
from signer.upstream.roots import RootSet

# Seconds: of one answer, and of all that one call takes, with the start of its process and the credentials' way.
ANSWER_SECONDS, CALL_SECONDS = 10.0, 28.0
READ_SECONDS = 10.0
LOOK_AGAIN = timedelta(seconds=3)
# Characters, of a certificate or of what is above it.
MAX_CERTIFICATE = 256 * 1024
# Of what AWS takes as one.
MAX_TOKEN = 36
_DAY = timedelta(days=1)
_BLANK = TEMPLATES[1]
_BY_CURVE: Mapping[int, str] = MappingProxyType(
    {256: "SHA256WITHECDSA", 384: "SHA384WITHECDSA", 521: "SHA512WITHECDSA"}
)
_BY_KIND = (
    (mldsa.MLDSA44PublicKey, "ML_DSA_44"),
    (mldsa.MLDSA65PublicKey, "ML_DSA_65"),
    (mldsa.MLDSA87PublicKey, "ML_DSA_87"),
)
_IN_PROGRESS = "RequestInProgressException"
_T = TypeVar("_T")


class _Failed(Exception):
    """AWS answered for the CA `by` with an error: its code, and what is told of it."""

    def __init__(self, by: str, code: str, said: str) -> None:
        super().__init__(said)
        self.by = by
        self.code = code


@dataclass(frozen=True, slots=True)
class AwsPca:
    """Private CAs, of which the first one certifies."""

    settings: AwsPcaSettings
    clock: Clock = field(repr=False, compare=False)
    begin: sdk.Begin = field(default=sdk.begun, repr=False, compare=False)
    asks: Bounded = field(default_factory=lambda: Bounded(CALL_SECONDS), repr=False, compare=False)
    reader: Bounded = field(default_factory=lambda: Bounded(READ_SECONDS), repr=False, compare=False)

    @property
    def name(self) -> str:
        return _name(self._arn)

    async def submit(self, request: CaRequest) -> str:
        arn = await self._asked(self._arn, "certify", partial(self._submitted, request))
        return json.dumps({"certificate": arn})

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        arn = _named(handle)
        if not arn.startswith(f"{self._arn}/"):
            return Denied(f"{self.name} was not asked for what is waited for", permanent=True)
        try:
            found = await self._do(self._arn, partial(self._got, arn))
        except _Failed as error:
            if error.code == _IN_PROGRESS:
                return Pending(f"{self.name} is issuing it", LOOK_AGAIN)
            if error.code == "RequestFailedException":
                return Denied(f"{self.name} did not issue it ({error})", permanent=True)
            raise _unusable("give the certificate", error) from None
        given = await files.given(self.reader, self.settings.roots, self.name)
        try:
            return self._issued(_text(found, "Certificate"), _text(found, "CertificateChain"), given, request)
        except UpstreamUnusable as error:
            # The same answer would come again.
            return Denied(str(error), permanent=True)

    async def forget(self, request_id: str, handle: str) -> None:
        """What was issued stays: it is of a key that nobody uses."""

    async def roots(self) -> RootSet:
        given = await files.given(self.reader, self.settings.roots, self.name)
        if given:
            return RootSet(given, complete=True)
        found: dict[str, x509.Certificate | None] = {}
        for region in dict.fromkeys(map(region_of, self.settings.arns)):
            arns = [each for each in self.settings.arns if region_of(each) == region]
            found |= await self._asked(arns[0], "name its root", partial(self._roots, arns))
        roots = tuple(root for arn in self.settings.arns if (root := found[arn]) is not None)
        # Of a CA below another one that did not give it its root nothing is said.
        return RootSet(roots, complete=len(roots) == len(found))

    @property
    def _arn(self) -> str:
        return self.settings.arns[0]

    def _submitted(self, request: CaRequest, cloud: Cloud) -> str:
        ca = self._ca(self._arn, cloud)[0]
        template = self.settings.template
        asked: dict[str, Any] = {
            "CertificateAuthorityArn": self._arn,
            "Csr": request.csr.public_bytes(serialization.Encoding.PEM),
            "SigningAlgorithm": _algorithm(ca, self.name),
            # Without one it would be the certificate of a server.
            "TemplateArn": f"arn:{partition_of(self._arn)}:acm-pca:::template/{template}",
            "Validity": _validity(request.lifetime, ca.not_valid_after_utc, self.clock.now()),
            # For five minutes the same one is the same request.
            "IdempotencyToken": request.id[:MAX_TOKEN],
        }
        if template == _BLANK:
            asked["ApiPassthrough"] = {"Extensions": {"KeyUsage": {"KeyCertSign": True, "CRLSign": True}}}
        arn = _text(self._call(cloud, self._arn, "issue_certificate", asked), "CertificateArn")
        if not arn.startswith(f"{self._arn}/"):
            raise UpstreamUnusable(f"{self.name} names what it issues by something that is not its own")
        return arn

    def _got(self, arn: str, cloud: Cloud) -> Mapping[str, Any]:
        asked = {"CertificateAuthorityArn": self._arn, "CertificateArn": arn}
        return self._call(cloud, self._arn, "get_certificate", asked)

    def _issued(
        self, own_text: str, above_text: str, given: tuple[x509.Certificate, ...], request: CaRequest
    ) -> Issued:
        found = certificates([own_text], self.name)
        above = certificates([above_text], self.name)
        if len(found) != 1 or len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} gave {len(found)} certificates, and {len(above)} above")
        check_name(found[0], request.csr, self.name, "take a template that passes it through")
        chain, root = chained(found[0], above)
        note = shorter(found[0], request.lifetime, self.name, ": see when the private CA ends")
        return Issued(chain, given or (() if root is None else (root,)), note)

    def _ca(self, arn: str, cloud: Cloud) -> tuple[x509.Certificate, ...]:
        """Its certificate, and what is above it."""
        asked, by = {"CertificateAuthorityArn": arn}, _name(arn)
        found = self._call(cloud, arn, "get_certificate_authority_certificate", asked)
        own = certificates([_text(found, "Certificate")], by)
        above = certificates([_text(found, "CertificateChain")], by)
        if len(own) != 1 or len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{by} has {len(own)} certificates, and {len(above)} above")
        return *own, *above

    def _roots(self, arns: Sequence[str], cloud: Cloud) -> dict[str, x509.Certificate | None]:
        return {each: self._root(each, cloud) for each in arns}

    def _root(self, arn: str, cloud: Cloud) -> x509.Certificate | None:
        own, *above = self._ca(arn, cloud)
        return own if is_root(own) else chained(own, above)[1]

    async def _asked(self, arn: str, what: str, work: Callable[[Cloud], _T]) -> _T:
        try:
            return await self._do(arn, work)
        except _Failed as error:
            raise _unusable(what, error) from None

    async def _do(self, arn: str, work: Callable[[Cloud], _T]) -> _T:
        """Raises UpstreamAway, UpstreamUnusable, and _Failed for what asking again does not change."""
        asked = partial(self._with_cloud, arn, work)
        try:
            return await self.asks.do(asked)
        except Unanswered:
            raise UpstreamAway(f"{_name(arn)} did not answer within {self.asks.seconds:g} s") from None

    def _with_cloud(self, arn: str, work: Callable[[Cloud], _T]) -> _T:
        with closing(self.begin(Service("aws", "acm-pca", region_of(arn)))) as cloud:
            return work(cloud)

    def _call(self, cloud: Cloud, arn: str, method: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """What AWS says of that CA. Raises as `_do`."""
        by = _name(arn)
        try:
            return cloud.ask(method, asked, ANSWER_SECONDS)
        except Failed as failed:
            if failed.kind in PASSING:
                raise UpstreamAway(f"{by}: {failed}") from None
            if not failed.code:
                raise UpstreamUnusable(f"{by}: {failed}") from None
            raise _Failed(by, failed.code, str(failed)) from None


def _name(arn: str) -> str:
    return f"AWS Private CA {arn}"


def _unusable(what: str, error: _Failed) -> UpstreamUnusable:
    hint = ": what its role and the CA's policy allow is in docs/awspca.md" if "AccessDenied" in error.code else ""
    return UpstreamUnusable(f"{error.by} does not {what} ({error}){hint}")


def needed(settings: AwsPcaSettings) -> Mapping[str, Callable[[], object]]:
    """By setting, what says that something is missing. Each raises UpstreamUnusable. Blocks."""
    found: dict[str, Callable[[], object]] = {"upstream": partial(sdk.check_installed, "boto3", "boto3", "aws")}
    if settings.roots is not None:
        found["upstream_bundle_file"] = partial(files.roots, settings.roots)
    return found


def _validity(lifetime: timedelta, ca_ends: datetime, now: datetime) -> dict[str, Any]:
    """Whole days where it can be: the same request is the same one later, too. AWS refuses what outlives the CA."""
    if lifetime % _DAY or now + lifetime >= ca_ends:
        return {"Type": "ABSOLUTE", "Value": int(min(now + lifetime, ca_ends).timestamp())}
    return {"Type": "DAYS", "Value": lifetime // _DAY}


def _algorithm(ca: x509.Certificate, name: str) -> str:
    """By which it signs: it has to be of its key's kind."""
    key: object = None
    with suppress(ValueError, UnsupportedAlgorithm):
        key = ca.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return "SHA256WITHRSA"
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size in _BY_CURVE:
        return _BY_CURVE[key.curve.key_size]
    for kind, algorithm in _BY_KIND:
        if isinstance(key, kind):
            return algorithm
    raise UpstreamUnusable(f"{name} has a key of an algorithm that is not known here")


def _named(handle: str) -> str:
    """The certificate that a handle is of; empty where it is none."""
    try:
        found = json.loads(handle)["certificate"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def _text(found: Mapping[str, Any], name: str) -> str:
    """What an answer has by that name; empty where it has nothing."""
    text = found.get(name) or ""
    if not isinstance(text, str) or len(text) > MAX_CERTIFICATE:
        raise UpstreamUnusable(f"AWS Private CA answered with more than {MAX_CERTIFICATE >> 10} KiB")
    return text
