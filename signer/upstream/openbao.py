"""The PKI engine of an OpenBao or a Vault as the CA above: it signs in the call itself, so nothing is submitted before.

Authorities are asked for once in weeks: each use logs in anew and gives its token back, and none is kept or renewed.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime.bodies import TooLong, whole
from runtime.bounded import Bounded
from runtime.words import line
from signer.naming import Names
from signer.openbao_settings import OpenBaoSettings
from signer.upstream import files
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.given import MAX_ABOVE, certificates, chained, is_root, shorter
from signer.upstream.remote import NO_HANDLE, Answer, CaRequest, Issued, UpstreamAway
from signer.upstream.roots import RootSet

# Seconds; each of a use's calls gets them.
CALL_SECONDS, LEAVE_SECONDS = 10.0, 2.0
MAX_ANSWER = 1024 * 1024
# Of a mount, which has a few.
MAX_ISSUERS = 32
# What another attempt may get past: too many requests, a replica that has not read yet, standbys, and what is broken.
_AWAY = (412, 429, 472, 473)
# It says with a 500 that a mount has no CA, or none of that name.
_NO_ISSUER = ("PKI issuer", "was one set")
_Decoded = TypeVar("_Decoded")
_T = TypeVar("_T")


class _Auth(msgspec.Struct):
    client_token: str


class _Login(msgspec.Struct):
    auth: _Auth | None = None


class _Signed(msgspec.Struct):
    certificate: str
    issuing_ca: str = ""
    ca_chain: list[str] | None = None


class _SignAnswer(msgspec.Struct):
    data: _Signed


class _Keys(msgspec.Struct):
    keys: list[str]


class _KeysAnswer(msgspec.Struct):
    data: _Keys


class _Issuer(msgspec.Struct):
    certificate: str


class _IssuerAnswer(msgspec.Struct):
    data: _Issuer


class _Errors(msgspec.Struct):
    errors: list[str] = []


class _Refused(Exception):
    """It answered with an error: its status, and what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True, slots=True)
class OpenBao:
    """One PKI engine. Files are read at each use: a replaced credential or CA needs no restart."""

    settings: OpenBaoSettings
    reader: Bounded = field(default_factory=lambda: Bounded(CALL_SECONDS), repr=False, compare=False)
    resolver: Bounded = field(default_factory=lambda: Bounded(CALL_SECONDS), repr=False, compare=False)

    @property
    def name(self) -> str:
        by = self.settings
        issuer = f", issuer {by.issuer}" if by.issuer else ""
        namespace = f" in namespace {by.namespace}" if by.namespace else ""
        return f"OpenBao {by.address}/v1/{by.mount}{issuer}{namespace}"

    async def submit(self, request: CaRequest) -> str:
        return NO_HANDLE

    async def forget(self, request_id: str, handle: str) -> None:
        return None

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        by = self.settings
        issuer = f"issuer/{quote(by.issuer, safe='')}" if by.issuer else "root"
        body = {
            "csr": request.csr.public_bytes(serialization.Encoding.PEM).decode(),
            # Or its own idea of the names: the organisation and the trust domain's URI would be lost.
            "use_csr_values": True,
            "max_path_length": 0,
            "format": "pem",
            "ttl": f"{int(request.lifetime.total_seconds())}s",
        }
        async with await self._session() as session:
            credential = await self._credential()
            token = await self._logged_in(session, credential)
            try:
                path = f"{by.mount}/{issuer}/sign-intermediate"
                data = await self._call(session, "POST", path, body, token, credential)
            except _Refused as error:
                raise self._unusable("sign", error) from None
            finally:
                if by.auth != "token":
                    await self._logged_out(session, token)
        given = self.settings.roots
        roots = () if given is None else await self._read(partial(files.roots, given))
        return self._issued(_decoded(data, _SignAnswer).data, roots, request)

    async def roots(self) -> RootSet:
        if self.settings.roots is not None:
            return RootSet(await self._read(partial(files.roots, self.settings.roots)), complete=True)
        mount = self.settings.mount
        async with await self._session() as session:
            try:
                listed = await self._call(session, "GET", f"{mount}/issuers?list=true")
                names = _decoded(listed, _KeysAnswer).data.keys
                if len(names) > MAX_ISSUERS:
                    raise UpstreamUnusable(f"{self.name} has {len(names)} issuers; {MAX_ISSUERS} at most are trusted")
                found = [
                    self._one(await self._call(session, "GET", f"{mount}/issuer/{quote(name, safe='')}/json"))
                    for name in names
                ]
            except _Refused as error:
                raise self._unusable("name its issuers", error) from None
        return RootSet(tuple(each for each in found if is_root(each)), complete=True)

    def _one(self, answer: bytes) -> x509.Certificate:
        """An issuer's. Of more than one, of which an answer has room for thousands, each would be verified."""
        found = certificates([_decoded(answer, _IssuerAnswer).data.certificate], "OpenBao")
        if len(found) != 1:
            raise UpstreamUnusable(f"{self.name} gives {len(found)} certificates as an issuer")
        return found[0]

    def _issued(self, signed: _Signed, given: tuple[x509.Certificate, ...], request: CaRequest) -> Issued:
        (own, *_) = certificates([signed.certificate], "OpenBao") or (None,)
        above = certificates([*(signed.ca_chain or []), signed.issuing_ca], "OpenBao")
        if own is None or len(above) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} gave no certificate, or more than {MAX_ABOVE} above it")
        chain, root = chained(own, above)
        note = shorter(own, request.lifetime, self.name, ": see max_lease_ttl of the mount")
        return Issued(chain, given or (() if root is None else (root,)), note)

    def files(self) -> Mapping[str, Callable[[], object]]:
        """By setting, what reads a file that it needs. Each raises UpstreamUnusable. Blocks."""
        by = self.settings
        found: dict[str, Callable[[], object]] = {}
        if by.ca_file is not None:
            found["openbao_ca_file"] = self._tls
        if by.auth == "cert":
            for name, path in (("openbao_cert_file", by.cert_file), ("openbao_key_file", by.key_file)):
                found[name] = partial(files.readable, path)
        for name, path in (("openbao_token_file", by.token_file), ("openbao_secret_id_file", by.secret_id_file)):
            if path is not None:
                found[name] = partial(files.credential, path)
        if by.roots is not None:
            found["upstream_bundle_file"] = partial(files.roots, by.roots)
        return found

    async def _session(self) -> aiohttp.ClientSession:
        context = await self._read(self._tls)
        # No proxy, cookies or netrc of the environment, and what comes is not unpacked.
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context if context is not None else True, limit=1, resolver=Names(self.resolver)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )

    def _tls(self) -> ssl.SSLContext | None:
        by = self.settings
        assert by.address is not None
        if not by.address.startswith("https://"):
            return None
        try:
            context = ssl.create_default_context(cafile=str(by.ca_file))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if by.auth == "cert" and by.cert_file is not None:
                context.load_cert_chain(by.cert_file, by.key_file, password=_no_password)
        except OSError as error:
            files = ", ".join(str(each) for each in (by.ca_file, by.cert_file, by.key_file) if each is not None)
            why = error.strerror or "it is not what it should be"
            raise UpstreamUnusable(f"{error.filename or files} cannot be used: {why}") from None
        return context

    async def _read(self, work: Callable[[], _T]) -> _T:
        return await files.read(self.reader, work, self.name)

    async def _credential(self) -> str:
        """What the signer logs in with; empty where that is its certificate."""
        by = self.settings
        return (
            "" if by.auth == "cert" else await self._read(partial(files.credential, by.token_file or by.secret_id_file))
        )

    async def _logged_in(self, session: aiohttp.ClientSession, credential: str) -> str:
        by = self.settings
        if by.auth == "token":
            return credential
        body: dict[str, str] = {}
        if by.auth == "kubernetes":
            body = {"role": by.role or "", "jwt": credential}
        elif by.auth == "approle":
            body = {"role_id": by.role_id or "", "secret_id": credential}
        elif by.role is not None:
            body = {"name": by.role}
        try:
            login = f"auth/{by.auth_mount or by.auth}/login"
            data = await self._call(session, "POST", login, body, secret=credential)
        except _Refused as error:
            raise self._unusable(f"log the signer in by {by.auth}", error) from None
        found = _decoded(data, _Login).auth
        if found is None:
            raise UpstreamUnusable(f"{self.name} logged the signer in without a token")
        return found.client_token

    async def _logged_out(self, session: aiohttp.ClientSession, token: str) -> None:
        """As far as it goes: the token ends by itself."""
        with suppress(_Refused, UpstreamAway, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._call(session, "POST", "auth/token/revoke-self", {}, token)

    async def _call(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        token: str = "",
        secret: str = "",
    ) -> bytes:
        """Its answer. Raises UpstreamAway, and _Refused for what asking again does not change.

        Of what it says nothing is told that is the `token` or the `secret`, with which that was got.
        """
        headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity"}
        if self.settings.namespace is not None:
            headers["X-Vault-Namespace"] = self.settings.namespace
        if token:
            headers["X-Vault-Token"] = token
        url = f"{self.settings.address}/v1/{path}"
        try:
            async with (
                asyncio.timeout(CALL_SECONDS),
                # A redirect would take the token to whom it names.
                session.request(method, url, json=body, headers=headers, allow_redirects=False) as response,
            ):
                data = await self._body(response)
                status = response.status
        except (aiohttp.ClientError, ValueError, OSError, TimeoutError) as error:
            what = "its certificate is not trusted" if _is_untrusted(error) else type(error).__name__
            raise UpstreamAway(f"{self.name} cannot be reached ({what})") from None
        if 200 <= status < 300:
            return data
        said = _said(data, [token, secret])
        if 300 <= status < 400:
            raise UpstreamAway(f"{self.name} redirects ({status}), which is not followed: name the active one")
        if status == 503:
            raise UpstreamAway(f"{self.name} is sealed or not ready ({said})")
        if status == 500 and any(each in said for each in _NO_ISSUER):
            raise _Refused(status, said)
        if status >= 500 or status in _AWAY:
            raise UpstreamAway(f"{self.name} answers {status} ({said})")
        raise _Refused(status, said)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return bytes(await whole(response, MAX_ANSWER))
        except TooLong:
            raise UpstreamAway(f"{self.name} answers with more than {MAX_ANSWER >> 20} MiB") from None

    def _unusable(self, what: str, error: _Refused) -> UpstreamUnusable:
        hint = {
            403: ": a bad credential, or its policy does not allow it",
            500: ": the mount has no such CA: is openbao_mount or openbao_issuer another one?",
            404: ": is openbao_mount, openbao_auth_mount or openbao_issuer another one?",
        }.get(error.status, "")
        return UpstreamUnusable(f"{self.name} does not {what}: {error.status} ({error}){hint}")


def _no_password() -> str:
    # Without one the library asks at the terminal.
    raise OSError(None, "an encrypted key is not supported")


def _is_untrusted(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError)


def _decoded(data: bytes, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError):
        raise UpstreamUnusable("what answered is no OpenBao: its answer cannot be read") from None


def _said(data: bytes, secrets: Sequence[str]) -> str:
    """Its own words, without any that were sent."""
    try:
        errors = msgspec.json.decode(data, type=_Errors).errors
    except (ValueError, RecursionError):
        return "without words"
    text = "; ".join(errors)
    for each in secrets:
        text = text.replace(each, "…") if len(each) > 3 else text
    return line(text) or "without words"
