"""cert-manager as the CA above: a CertificateRequest, which any of its issuers answers, at once or once it is approved.

What stands in its status others wrote. It is read within bounds, and what cannot be read ends the request: cert-manager
decides each once.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeAlias

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime.bounded import Bounded
from runtime.words import line
from signer.certmanager_settings import DEFAULT_GROUP, DEFAULT_KIND, CertManagerSettings
from signer.cluster.kube import OWN_LABELS, KubeApi, Object
from signer.cluster.objects import CertificateRequest
from signer.errors import Conflict, Forbidden, NotFound, SignerError
from signer.upstream import files
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.given import MAX_ABOVE, certificates, chained, check_name, shorter
from signer.upstream.remote import Answer, CaRequest, Denied, Issued, Pending, UpstreamAway
from signer.upstream.roots import RootSet

API = "/apis/cert-manager.io/v1"
# And the request's id: an object of that name is there once, whoever asks again.
PREFIX = "podsvid-authority-"
# Its value names the trust domain, which may be longer than a label's.
LABEL = "podsvid.io/authority-request"
READ_SECONDS = 10.0
# One small object, read by one replica.
LOOK_AGAIN = timedelta(seconds=5)
# Of a status: characters of base64, and how many conditions; there are four kinds.
MAX_CERTIFICATE, MAX_CA, MAX_CONDITIONS = 256 * 1024, 64 * 1024, 32
# Of leftovers, which are two at most.
_PAGE = "20"


class _Condition(msgspec.Struct):
    type: str | None = None
    status: str | None = None
    reason: str | None = None
    message: str | None = None


class _Status(msgspec.Struct):
    conditions: list[_Condition] | None = None
    certificate: str | None = None
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class Certified:
    """What an issuer gave, in PEM: `chain` begins with the new certificate, and `ca` may be a root, or nothing."""

    chain: str
    ca: str


Verdict: TypeAlias = Pending | Denied | Certified


def verdict(data: bytes, which: str) -> Verdict:
    """What the status of the request `which` says. Whoever says no is heard before whoever says yes."""
    try:
        status = msgspec.json.decode(data, type=_Status | None) or _Status()
    except (ValueError, RecursionError):
        return Denied(f"the status of {which} cannot be read", permanent=True)
    conditions = status.conditions or []
    if len(conditions) > MAX_CONDITIONS:
        return Denied(f"the status of {which} has {len(conditions)} conditions", permanent=True)
    approved = ready = None
    for each in conditions:
        if each.type in ("Denied", "InvalidRequest") and each.status == "True":
            what = "was denied" if each.type == "Denied" else "is none that cert-manager takes"
            return Denied(f"{which} {what}{_why(each)}", permanent=True)
        if each.type == "Ready" and each.status == "False" and each.reason in ("Failed", "Denied"):
            return Denied(f"{which} failed{_why(each)}", permanent=True)
        if each.type == "Approved" and each.status == "True":
            approved = each
        if each.type == "Ready":
            ready = each
    if ready is not None and ready.status == "True" and status.certificate:
        return _certified(status, which)
    if approved is None:
        return Pending(f"{which} is not approved yet", LOOK_AGAIN, by_person=True)
    return Pending(f"{which} is approved, and waits for its issuer{_why(ready)}", LOOK_AGAIN)


def _certified(status: _Status, which: str) -> Certified | Denied:
    chain, ca = status.certificate or "", status.ca or ""
    if len(chain) > MAX_CERTIFICATE or len(ca) > MAX_CA:
        return Denied(f"{which} was answered with more than {MAX_CERTIFICATE >> 10} KiB", permanent=True)
    try:
        return Certified(_decoded(chain), _decoded(ca))
    except ValueError:
        return Denied(f"{which} was answered with something that is no PEM", permanent=True)


def _decoded(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("ascii")


def _why(condition: _Condition | None) -> str:
    """Its reason and message, which are somebody's."""
    said = [] if condition is None else [line(each) for each in (condition.reason, condition.message) if each]
    return f": {': '.join(said)}" if said else ""


@dataclass(frozen=True, slots=True)
class CertManager:
    """One issuer, asked in one namespace."""

    settings: CertManagerSettings
    api: KubeApi = field(repr=False, compare=False)
    reader: Bounded = field(default_factory=lambda: Bounded(READ_SECONDS), repr=False, compare=False)

    @property
    def name(self) -> str:
        by = self.settings
        group = "" if by.issuer_group == DEFAULT_GROUP else f".{by.issuer_group}"
        return f"cert-manager {by.issuer_kind}{group} {by.issuer_name}, asked in namespace {by.namespace}"

    async def submit(self, request: CaRequest) -> str:
        which = self._which(request.id)
        try:
            made = await self.api.create(self._collection, self._body(request))
        except Conflict:
            # The answer to the same request was lost, or a leader ended before it could store it.
            found = await self._found(request.id)
            if not self._is(found, request):
                raise UpstreamUnusable(f"{which} is there, and is not what the signer asks for: delete it") from None
            return _handle(found.metadata.uid)
        except NotFound as error:
            raise UpstreamUnusable(
                f"no CertificateRequest can be made in namespace {self.settings.namespace}: is cert-manager installed, "
                f"and is there such a namespace? ({error})"
            ) from None
        except SignerError as error:
            raise self._failed("make", which, error) from None
        return _handle((made.get("metadata") or {}).get("uid"))

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        which = self._which(request.id)
        try:
            found = await self._found(request.id)
        except _Deleted:
            return Denied(f"{which} was deleted before it was answered", permanent=True)
        if _handle(found.metadata.uid) != handle or not self._is(found, request):
            return Denied(f"{which} was replaced by another one", permanent=True)
        said = verdict(bytes(found.status), which)
        if not isinstance(said, Certified):
            return said
        given = await files.given(self.reader, self.settings.roots, self.name)
        try:
            return self._issued(said, given, request)
        except UpstreamUnusable as error:
            # The same answer would come again.
            return Denied(str(error), permanent=True)

    async def forget(self, request_id: str, handle: str) -> None:
        """What an issuer or a person refused stays for people to look at, until the next one is forgotten."""
        try:
            own = await self._found(request_id)
        except _Deleted:
            return
        try:
            if not isinstance(self._verdict(own), Denied):
                await self._delete(own)
            listed = await self.api.list(
                self._collection, CertificateRequest, {"labelSelector": self._selector(own), "limit": _PAGE}
            )
            for each in listed.items:
                older = _age(each) < _age(own) and (each.metadata.name or "").startswith(PREFIX)
                if older and not isinstance(self._verdict(each), Pending):
                    await self._delete(each)
        except SignerError as error:
            raise self._failed("clean up", self._which(request_id), error) from None

    async def roots(self) -> RootSet:
        given = await files.given(self.reader, self.settings.roots, self.name)
        # cert-manager says what is to be trusted with a certificate, and at no other time.
        return RootSet(given, complete=bool(given))

    def _issued(self, said: Certified, given: tuple[x509.Certificate, ...], request: CaRequest) -> Issued:
        found = certificates([said.chain], self.name)
        if not found:
            raise UpstreamUnusable(f"{self.name} gave no certificate")
        own, above = found[0], (*found[1:], *certificates([said.ca], self.name))
        if len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} gave more than {MAX_ABOVE} certificates above the one asked for")
        check_name(own, request.csr, self.name, "take an issuer that keeps it")
        chain, root = chained(own, above)
        note = shorter(own, request.lifetime, self.name, ": see the issuer, and what it asks in turn")
        return Issued(chain, given or (() if root is None else (root,)), note)

    async def _found(self, request_id: str) -> CertificateRequest:
        """Raises _Deleted, and as all of this does."""
        try:
            return await self.api.read(f"{self._collection}/{PREFIX}{request_id}", CertificateRequest)
        except NotFound:
            raise _Deleted(f"{self._which(request_id)} is gone") from None
        except SignerError as error:
            raise self._failed("read", self._which(request_id), error) from None

    def _is(self, found: CertificateRequest, request: CaRequest) -> bool:
        """Whether it asks for what `request` does: who may make such objects could have put another in its place."""
        spec = found.spec
        if spec is None or spec.issuer_ref is None or not spec.is_ca or spec.request != _encoded(request):
            return False
        to, by = spec.issuer_ref, self.settings
        named = to.name, to.kind or DEFAULT_KIND, to.group or DEFAULT_GROUP
        return named == (by.issuer_name, by.issuer_kind, by.issuer_group)

    async def _delete(self, found: CertificateRequest) -> None:
        path = f"{self._collection}/{found.metadata.name}"
        # Another replica did, or it is another one by now.
        with suppress(Conflict, NotFound):
            await self.api.delete(path, {"preconditions": {"uid": found.metadata.uid}})

    def _body(self, request: CaRequest) -> Object:
        by = self.settings
        return {
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {
                "name": f"{PREFIX}{request.id}",
                "namespace": by.namespace,
                "labels": {**OWN_LABELS, LABEL: _digest(request.trust_domain.name)},
                "annotations": {"podsvid.io/trust-domain": request.trust_domain.name},
            },
            "spec": {
                "request": _encoded(request),
                "isCA": True,
                # Without any the CA would get those of a server, too.
                "usages": ["cert sign", "crl sign"],
                "duration": f"{int(request.lifetime.total_seconds())}s",
                "issuerRef": {"name": by.issuer_name, "kind": by.issuer_kind, "group": by.issuer_group},
            },
        }

    def _failed(self, what: str, which: str, error: SignerError) -> SignerError:
        if isinstance(error, Forbidden):
            return UpstreamUnusable(f"the signer may not {what} {which}: {error}")
        return UpstreamAway(f"the signer could not {what} {which}: {error}")

    def _verdict(self, found: CertificateRequest) -> Verdict:
        return verdict(bytes(found.status), found.metadata.name or "")

    def _selector(self, own: CertificateRequest) -> str:
        return f"{LABEL}={(own.metadata.labels or {}).get(LABEL, '')}"

    def _which(self, request_id: str) -> str:
        return f"CertificateRequest {self.settings.namespace}/{PREFIX}{request_id}"

    @property
    def _collection(self) -> str:
        return f"{API}/namespaces/{self.settings.namespace}/certificaterequests"


class _Deleted(UpstreamAway):
    """The object is not there, or not any more."""


def needed_files(settings: CertManagerSettings) -> Mapping[str, Callable[[], object]]:
    """By setting, what reads a file that is needed. Each raises UpstreamUnusable. Blocks."""
    return {} if settings.roots is None else {"upstream_bundle_file": partial(files.roots, settings.roots)}


def _handle(uid: object) -> str:
    return json.dumps({"uid": str(uid or "")[:64]})


def _age(found: CertificateRequest) -> tuple[str, str]:
    return found.metadata.creation_timestamp or "", found.metadata.name or ""


def _encoded(request: CaRequest) -> str:
    return base64.b64encode(request.csr.public_bytes(serialization.Encoding.PEM)).decode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]
