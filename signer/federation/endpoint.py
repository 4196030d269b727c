"""A partner's bundle endpoint, asked over HTTPS (SPIFFE_Federation.md 5.2): what it says is somebody else's word."""

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime
from functools import partial
from socket import AF_INET, AddressFamily
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from runtime.bodies import TooLong, session, whole
from runtime.bounded import Bounded, Unanswered
from runtime.tls import shown
from signer.errors import SignerError
from signer.federation.relation import InvalidRelation, Profile, Relation, endpoint_url, is_refused
from signer.naming import Names
from svid.bundle import TrustBundle
from svid.certificates import certificate_from_der
from svid.errors import InvalidSvid
from svid.federation import MAX_DOCUMENT
from svid.spiffeid import SpiffeId
from svid.x509svid import check_x509_svid

# Seconds for a connection, and for everything.
CONNECT_SECONDS, ALL_SECONDS = 5.0, 10.0
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
# Certificates that an endpoint may show, each of which is tried with each authority: a SPIRE below others shows three.
_MAX_SHOWN = 5
_MOST_ASIDE = 1024


class FetchFailed(SignerError):
    """There is no bundle there now; the text says why, and what to look at."""

    reason = "FEDERATION_FETCH_FAILED"


class Endpoint(Protocol):
    """Whoever can ask where a bundle is published."""

    async def fetch(self, relation: Relation, trusted: TrustBundle | None) -> bytes:
        """The document, `MAX_DOCUMENT` bytes at most. `trusted`: the bundle of the trust domain of `endpoint_id`, for
        `https_spiffe`. Raises FetchFailed."""
        ...


class HttpsEndpoint:
    """Asks anew each time: names are resolved again, and no connection is kept. Belongs to one event loop."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        # By the relation's uid: a name whose servers are silent holds up nobody else's.
        self._aside: dict[str, Bounded] = {}

    async def fetch(self, relation: Relation, trusted: TrustBundle | None) -> bytes:
        if len(self._aside) >= _MOST_ASIDE:
            self._aside.clear()
        aside = self._aside.setdefault(relation.uid, Bounded(CONNECT_SECONDS))
        try:
            # The system's authorities are read from files, and are many.
            context = await aside.do(partial(self._context, relation, trusted))
        except (ssl.SSLError, ValueError, TypeError, OSError):
            raise FetchFailed("caBundle, or the bundle to know the endpoint by, cannot be used for TLS") from None
        except Unanswered:
            raise FetchFailed("what this host trusts, or the endpoint's name, cannot be read in time") from None
        async with session(context, _Partners(aside), CONNECT_SECONDS) as asking:
            try:
                async with asyncio.timeout(ALL_SECONDS):
                    return await self._follow(asking, relation)
            except TimeoutError:
                raise FetchFailed(f"no whole answer within {ALL_SECONDS:g} s") from None

    async def _follow(self, asking: aiohttp.ClientSession, relation: Relation) -> bytes:
        # Always from the configured URL: where it sends to is never kept (FED-32).
        url = relation.url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with asking.get(
                    url, allow_redirects=False, headers={"Accept": "application/json", "Accept-Encoding": "identity"}
                ) as response:
                    if response.status not in _REDIRECTS:
                        return await _document(response)
                    url = _target(url, response.headers.get("Location", ""))
            except (aiohttp.ClientError, ValueError, OSError) as error:
                raise FetchFailed(_why(error, relation)) from None
        raise FetchFailed(f"it sends on more than {MAX_REDIRECTS} times")

    def _context(self, relation: Relation, trusted: TrustBundle | None) -> ssl.SSLContext:
        if relation.profile is Profile.WEB:
            context = ssl.create_default_context(cadata=relation.ca_bundle or None)
        else:
            assert relation.endpoint_id is not None
            if trusted is None or not trusted.x509_authorities:
                raise FetchFailed(
                    f"there is no bundle of {relation.endpoint_id.trust_domain} to know the endpoint by: give one in "
                    "trustDomainBundle"
                )
            context = _spiffe_context(relation.endpoint_id, trusted, self._now)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class _Partners(AbstractResolver):
    """Names' addresses, without those that no partner has."""

    def __init__(self, looks: Bounded) -> None:
        self._names = Names(looks)

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_INET) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        allowed = [each for each in found if not is_refused(each["host"])]
        if not allowed:
            raise OSError(None, "its name leads to no address where a trust domain could be published")
        return allowed

    async def close(self) -> None:
        return None


def _spiffe_context(expected: SpiffeId, trusted: TrustBundle, now: Callable[[], datetime]) -> ssl.SSLContext:
    """TLS to whoever has an X509-SVID of that ID; host names play no part (5.2.2.4)."""

    class Proven(ssl.SSLObject):
        """Checked before a byte of HTTP goes either way."""

        def do_handshake(self) -> None:
            super().do_handshake()
            try:
                chain = [certificate_from_der(each) for each in shown(self)]
                if len(chain) > _MAX_SHOWN:
                    raise InvalidSvid(f"it shows more than {_MAX_SHOWN} certificates")
                found = check_x509_svid(chain, trusted, now())
            except (InvalidSvid, ValueError) as error:
                raise ssl.SSLCertVerificationError(f"no X509-SVID of {expected}: {error}") from None
            if found != expected:
                raise ssl.SSLCertVerificationError(f"{found} is there, and not {expected}")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The validator of SVIDs says who is trusted; TLS only proves that the key is there.
    context.verify_mode = ssl.CERT_NONE
    context.sslobject_class = Proven
    return context


async def _document(response: aiohttp.ClientResponse) -> bytes:
    if response.status != 200:
        raise FetchFailed(f"it answers {response.status}")
    try:
        return bytes(await whole(response, MAX_DOCUMENT))
    except TooLong:
        raise FetchFailed(f"it answers with more than {MAX_DOCUMENT >> 10} KiB") from None


def _target(base: str, location: str) -> str:
    """Where a redirect leads to, if a bundle may be fetched from there. Raises FetchFailed."""
    try:
        return endpoint_url(urljoin(base, location))
    except (InvalidRelation, ValueError) as error:
        where = urlsplit(location).scheme if "://" in location else ""
        raise FetchFailed(f"it sends on to what is no endpoint ({where or 'no URL'}): {error}") from None


def _why(error: Exception, relation: Relation) -> str:
    said = getattr(error, "certificate_error", None) or error
    if isinstance(said, ssl.SSLCertVerificationError):
        text = said.verify_message if getattr(said, "verify_message", "") else str(said)
        other = Profile.SPIFFE if relation.profile is Profile.WEB else Profile.WEB
        return f"its certificate is not accepted by {relation.profile} ({text[:300]}); is the profile {other}?"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"it cannot be reached (no connection within {CONNECT_SECONDS:g} s)"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it cannot be reached ({(error.strerror or type(error.os_error).__name__)[:200]})"
    return f"it gives no answer that can be read ({type(error).__name__})"
