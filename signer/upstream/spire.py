"""A SPIRE server as the CA above, in the same trust domain: it answers in the call itself.

The signer is to it what a nested SPIRE server is: it shows an SVID whose entry is marked downstream. Each use fetches
that anew and makes a connection of its own; nothing is kept.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime.bounded import Bounded
from runtime.clock import Clock
from signer.pb import spire_pb2
from signer.spire_settings import SERVER_PATH, SpireSettings
from signer.upstream import downstream, files, rpc
from signer.upstream.certify import UpstreamUnusable
from signer.upstream.downstream import DownstreamSvid
from signer.upstream.given import MAX_ABOVE, shorter
from signer.upstream.remote import NO_HANDLE, Answer, CaRequest, Issued, UpstreamAway
from signer.upstream.roots import RootSet
from signer.upstream.spire_server import connected
from svid.certificates import certificate_from_der, check_readable
from svid.spiffeid import SpiffeId

READ_SECONDS = 10.0
# SPIRE dates what it signs back by as much; a clock that is behind by more than twice that is to be set.
MAX_AHEAD_SECONDS = 10.0
_NEW_CA = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"
_GET_BUNDLE = "/spire.api.server.bundle.v1.Bundle/GetBundle"
_MOST_SECONDS = 2**31 - 1
# What does not pass by itself, and what to look at; everything else may.
_FOR_GOOD: Mapping[grpc.StatusCode, str] = MappingProxyType(
    {
        grpc.StatusCode.PERMISSION_DENIED: ": is the entry of {shown} marked -downstream, and still there?",
        grpc.StatusCode.UNAUTHENTICATED: ": it does not take the signer's SVID",
        grpc.StatusCode.INVALID_ARGUMENT: "",
        grpc.StatusCode.NOT_FOUND: "",
        grpc.StatusCode.UNIMPLEMENTED: ": is spire_address a SPIRE server's?",
    }
)


@dataclass(frozen=True, slots=True)
class Spire:
    """One server, or several behind one address."""

    settings: SpireSettings
    clock: Clock = field(repr=False, compare=False)
    reader: Bounded = field(default_factory=lambda: Bounded(READ_SECONDS), repr=False, compare=False)
    resolver: Bounded = field(default_factory=lambda: Bounded(READ_SECONDS), repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"SPIRE server {self.settings.address}"

    async def submit(self, request: CaRequest) -> str:
        return NO_HANDLE

    async def forget(self, request_id: str, handle: str) -> None:
        return None

    async def poll(self, request: CaRequest, handle: str) -> Answer:
        asked = spire_pb2.NewDownstreamX509CARequest(
            csr=request.csr.public_bytes(serialization.Encoding.DER),
            preferred_ttl=min(int(request.lifetime.total_seconds()), _MOST_SECONDS),
        )
        async with self._server("certify") as server:
            found = await rpc.call(server, _NEW_CA, asked, spire_pb2.NewDownstreamX509CAResponse())
        chain = self._certificates(found.ca_cert_chain)
        if not chain or len(chain) > MAX_ABOVE:
            raise UpstreamUnusable(f"{self.name} gave {len(chain)} certificates, of 1 to {MAX_ABOVE}")
        await _begun(chain, self.clock, self.name)
        note = shorter(chain[0], request.lifetime, self.name, ": see its ca_ttl, and when its CA ends")
        # All of one SPIRE CA have one name, which is made of its own.
        return Issued(chain, self._certificates(found.x509_authorities), note, named_alike=True)

    async def roots(self) -> RootSet:
        asked = spire_pb2.GetBundleRequest(output_mask=spire_pb2.BundleMask(x509_authorities=True))
        async with self._server("name its bundle") as server:
            found = await rpc.call(server, _GET_BUNDLE, asked, spire_pb2.Bundle())
        if found.trust_domain != self.settings.trust_domain.name:
            raise UpstreamUnusable(f"{self.name} names the bundle of another trust domain")
        return RootSet(self._certificates(each.asn1 for each in found.x509_authorities), complete=True)

    @asynccontextmanager
    async def _server(self, what: str) -> AsyncIterator[grpc.aio.Channel]:
        """Raises UpstreamAway and UpstreamUnusable, also for calls that fail meanwhile."""
        by = self.settings
        assert by.address is not None
        now = self.clock.now()
        wanted = SpiffeId.parse(f"{by.trust_domain.id}{SERVER_PATH}")
        own = await self._downstream_svid()
        try:
            async with connected(by.address, wanted, own, self.resolver, now) as server:
                yield server
        except rpc.CallFailed as error:
            if error.code in _FOR_GOOD:
                advice = _FOR_GOOD[error.code].format(shown=own.svid.spiffe_id)
                raise UpstreamUnusable(f"{self.name} does not {what} ({error}){advice}") from None
            raise UpstreamAway(f"{self.name} does not {what} now ({error})") from None

    async def _downstream_svid(self) -> DownstreamSvid:
        if self.settings.agent_socket is not None:
            return await downstream.from_agent(self.settings, self.clock.now())
        read = partial(downstream.from_files, self.settings, self.clock.now())
        return await files.read(self.reader, read, self.name)

    def _certificates(self, given: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
        try:
            found = tuple(map(certificate_from_der, given))
            for each in found:
                check_readable(each)
        except ValueError:
            raise UpstreamUnusable(f"{self.name} gave something that is no certificate") from None
        return found

    def files(self) -> Mapping[str, Callable[[], object]]:
        """By setting, what looks at a file that it needs. Each raises UpstreamUnusable. Blocks."""
        by = self.settings
        if by.agent_socket is not None:
            return {"spire_agent_socket": partial(downstream.look, by.agent_socket)}
        if by.svid_dir is not None:
            return {"spire_svid_dir": lambda: downstream.from_files(by, self.clock.now())}
        return {}


async def _begun(chain: Sequence[x509.Certificate], clock: Clock, by: str) -> None:
    """Waits for the time from which they are valid, which is soon. Raises UpstreamAway where it is not."""
    ahead = (max(each.not_valid_before_utc for each in chain) - clock.now()).total_seconds()
    if ahead > MAX_AHEAD_SECONDS:
        raise UpstreamAway(f"{by} certifies from a time that is {ahead:.0f} s ahead of here: look at the clocks")
    if ahead > 0:
        await asyncio.sleep(ahead)
