"""A signer for an agent to talk to: a real grpc.aio server with TLS, whose answers the test decides."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from runtime.clock import Clock
from runtime.feed import Feed
from signer.pb import signer_pb2
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import to_der, to_pem
from svid.dnsnames import SIGNER_NAME, signer_id
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import KeyAlgorithm, PublicKey, key_to_pem, signature_hash
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain

TRUST_DOMAIN = TrustDomain("example.org")
SERVICE = "podsvid.signer.v1.Signer"
_Context = Any


@dataclass(frozen=True)
class Refusal(Exception):
    """How a call is to fail; without a reason there are no details, as when no signer made the error."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "no"
    retry_after: timedelta | None = None

    async def abort(self, context: _Context) -> None:
        await context.abort_with_status(rpc_status.to_status(self.status()))

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason:
            info = any_pb2.Any()
            info.Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain="signer.podsvid.io"))
            status.details.append(info)
        if self.retry_after is not None:
            nanos = int(self.retry_after / timedelta(microseconds=1)) * 1000
            delay = duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status


@dataclass
class Mint:
    """What the next answers are like: what differs from a signer that grants everything for an hour."""

    ttl: timedelta = timedelta(hours=1)
    # How far the signer's clock is ahead of the agent's.
    skew: timedelta = timedelta(0)
    sequence: int | None = None
    hint: str = ""
    federates_with: tuple[str, ...] | None = None
    notice: str = ""
    chain: bytes | None = None
    # Refusals of the next calls, in order; then all succeed.
    refusals: list[Refusal] = field(default_factory=list)
    # Calls that are not refused go on only when this is set.
    gate: asyncio.Event | None = None
    # As many calls go on as it was released: a signer that is slow.
    turnstile: asyncio.Semaphore | None = None
    # Whether it knows batches; what is said of the next ones, by their items' pods: nothing of these.
    batches: bool = True
    silent_of: frozenset[str] = frozenset()
    mute: bool = False
    # Each item is answered with what was made for the one before it, and the first with the last one's.
    mixed_up: bool = False
    # How the next batches end after so many answers.
    breaks: list[tuple[int, Refusal]] = field(default_factory=list)


def authority(now: datetime, trust_domain: TrustDomain = TRUST_DOMAIN) -> X509Authority:
    """A root that began long enough ago for any clock."""
    began = now - timedelta(hours=2)
    return X509Authority.create(trust_domain, algorithm=KeyAlgorithm.EC_P256, lifetime=timedelta(days=1), now=began)


def certified(
    above: X509Authority, key: PublicKey, now: datetime, name: str, *uris: str
) -> tuple[x509.Certificate, ...]:
    """A server's certificate, as a CA may make one that asks for nothing but a key: names of any kind and number."""
    names = [x509.DNSName(name), *map(x509.UniformResourceIdentifier, uris)]
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(above.chain[0].subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=6))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(above.private_key, signature_hash(above.private_key))
    )
    return (leaf, *above.chain[:-1])


def key_identifier(of: X509Authority) -> str:
    """As renewal directives name an authority."""
    extension = of.chain[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return extension.value.digest.hex()


class FakeSigner:
    """Listens on the loopback. What agents sent is kept: `mints`, `jwts`, `reports`, `bearers`, `arrivals`."""

    def __init__(
        self, clock: Clock, server_name: str = SIGNER_NAME, uris: Sequence[str] = (str(signer_id(TRUST_DOMAIN)),)
    ) -> None:
        self._clock = clock
        self._server_name = server_name
        # What the server's certificate says it is, beside that name.
        self.uris = uris
        self.authority = authority(clock.now())
        self.jwt_key = JwtSigningKey.create(JwtAlgorithm.ES256)
        self.mint = Mint()
        self.mints: list[signer_pb2.MintX509SVIDRequest] = []
        # How many items each batch had.
        self.batches: list[int] = []
        self.jwts: list[signer_pb2.MintJWTSVIDRequest] = []
        self.bearers: list[str] = []
        self.arrivals: list[float] = []
        self.reports: Feed[signer_pb2.WatchTrustRequest] = Feed()
        self.first_reports: list[signer_pb2.WatchTrustRequest] = []
        self.streams = 0
        # How many answers have left.
        self.sent = 0
        self.watch_refusals: list[Refusal] = []
        self._ending: asyncio.Event = asyncio.Event()
        self._end: Refusal | None = None
        self._trust: Feed[signer_pb2.WatchTrustResponse] = Feed()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def bundle(self, sequence: int, *authorities: X509Authority) -> TrustBundle:
        """The own trust domain's; of the present authority when none is named."""
        roots = tuple(each.chain[-1] for each in authorities or (self.authority,))
        return TrustBundle(TRUST_DOMAIN, roots, (self.jwt_key.public,), sequence=sequence)

    def publish(
        self,
        bundles: TrustBundle | Sequence[TrustBundle],
        renew: Mapping[str, tuple[datetime, datetime]] | None = None,
        *,
        issues_jwt: bool = True,
    ) -> None:
        """Send this to every agent, now and when it connects."""
        bundles = [bundles] if isinstance(bundles, TrustBundle) else list(bundles)
        answer = signer_pb2.WatchTrustResponse(sequence=bundles[0].sequence or 0, issues_jwt=issues_jwt)
        for bundle in bundles:
            answer.bundles.add(trust_domain=bundle.trust_domain.name, jwks=bundle.to_jwks())
        for name, (start, end) in (renew or {}).items():
            added = answer.renew.add(authority_id=name)
            getattr(added, "from").FromDatetime(start)
            added.until.FromDatetime(end)
        self.send(answer)

    def send(self, answer: signer_pb2.WatchTrustResponse) -> None:
        """As `publish`, whatever is in it."""
        self._trust.publish(answer)

    def end_streams(self, how: Refusal | None = None) -> None:
        """End every open stream, with a status or cleanly."""
        self._end = how
        ending, self._ending = self._ending, asyncio.Event()
        ending.set()

    async def start(self, *, certificate_of: X509Authority | None = None) -> None:
        """Listen, on the same port again after a stop; the server certificate is the present authority's."""
        key = KeyAlgorithm.EC_P256.generate()
        above = certificate_of or self.authority
        chain = certified(above, key.public_key(), self._clock.now(), self._server_name, *self.uris)
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        credentials = grpc.ssl_server_credentials([(key_to_pem(key), to_pem(chain))])
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Go away at once, as a process that is killed."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "MintX509SVID": grpc.unary_unary_rpc_method_handler(
                self._mint_x509,
                signer_pb2.MintX509SVIDRequest.FromString,
                signer_pb2.MintX509SVIDResponse.SerializeToString,
            ),
            "MintX509SVIDs": grpc.unary_stream_rpc_method_handler(
                self._mint_x509s,
                signer_pb2.MintX509SVIDsRequest.FromString,
                signer_pb2.MintX509SVIDsResponse.SerializeToString,
            ),
            "MintJWTSVID": grpc.unary_unary_rpc_method_handler(
                self._mint_jwt,
                signer_pb2.MintJWTSVIDRequest.FromString,
                signer_pb2.MintJWTSVIDResponse.SerializeToString,
            ),
            "WatchTrust": grpc.stream_stream_rpc_method_handler(
                self._watch_trust,
                signer_pb2.WatchTrustRequest.FromString,
                signer_pb2.WatchTrustResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _mint_x509s(
        self, request: signer_pb2.MintX509SVIDsRequest, context: _Context
    ) -> AsyncIterator[signer_pb2.MintX509SVIDsResponse]:
        if not self.mint.batches:
            await Refusal(grpc.StatusCode.UNIMPLEMENTED, message="Method not found!").abort(context)
        self.batches.append(len(request.items))
        if self.mint.mute:
            await asyncio.Event().wait()
        ends_after, how = self.mint.breaks.pop(0) if self.mint.breaks else (len(request.items), None)
        if how is not None and not ends_after:
            await how.abort(context)
        answers = [
            asyncio.ensure_future(self._item(number, each.request, context))
            for number, each in enumerate(request.items)
            if each.request.pod.name not in self.mint.silent_of
        ]
        try:
            left = set(answers)
            while left and ends_after > 0:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for each in list(done)[:ends_after]:
                    outcome = each.result()
                    if self.mint.mixed_up:
                        outcome.item = (outcome.item + 1) % len(request.items)
                    yield signer_pb2.MintX509SVIDsResponse(outcomes=[outcome])
                    ends_after -= 1
            if how is not None:
                await how.abort(context)
        finally:
            for each in answers:
                each.cancel()
            await asyncio.gather(*answers, return_exceptions=True)

    async def _item(
        self, number: int, request: signer_pb2.MintX509SVIDRequest, context: _Context
    ) -> signer_pb2.MintX509SVIDOutcome:
        try:
            return signer_pb2.MintX509SVIDOutcome(item=number, answer=await self._minted(request, context))
        except Refusal as refusal:
            return signer_pb2.MintX509SVIDOutcome(item=number, refusal=refusal.status().SerializeToString())

    async def _enter(self, context: _Context) -> None:
        self.arrivals.append(asyncio.get_running_loop().time())
        self.bearers.append(dict(context.invocation_metadata()).get("authorization", ""))
        if self.mint.refusals:
            raise self.mint.refusals.pop(0)
        if self.mint.gate is not None:
            await self.mint.gate.wait()
        if self.mint.turnstile is not None:
            await self.mint.turnstile.acquire()

    async def _mint_x509(
        self, request: signer_pb2.MintX509SVIDRequest, context: _Context
    ) -> signer_pb2.MintX509SVIDResponse:
        try:
            return await self._minted(request, context)
        except Refusal as refusal:
            await refusal.abort(context)
            raise

    async def _minted(
        self, request: signer_pb2.MintX509SVIDRequest, context: _Context
    ) -> signer_pb2.MintX509SVIDResponse:
        self.mints.append(request)
        await self._enter(context)
        how, now = self.mint, self._clock.now() + self.mint.skew
        csr = x509.load_der_x509_csr(request.csr)
        assert csr.is_signature_valid
        spiffe_id = SpiffeId.from_segments(TRUST_DOMAIN, "ns", request.pod.namespace, "sa", "web")
        key: Any = csr.public_key()
        chain = self.authority.issue(key, spiffe_id, ttl=how.ttl, now=now, dns_names=list(request.dns_names))
        current = self._trust.current
        answer = signer_pb2.MintX509SVIDResponse(
            spiffe_id=str(spiffe_id),
            chain=to_der(chain) if how.chain is None else how.chain,
            trust_sequence=how.sequence if how.sequence is not None else (current.sequence if current else 0),
            hint=how.hint,
            federates_with=how.federates_with or (),
            federates_with_all=how.federates_with is None,
            notice=how.notice,
            policy="(default)",
        )
        answer.signed_at.FromDatetime(now)
        _window(answer, RenewalWindow.of(now, chain[0].not_valid_after_utc))
        return answer

    async def _mint_jwt(
        self, request: signer_pb2.MintJWTSVIDRequest, context: _Context
    ) -> signer_pb2.MintJWTSVIDResponse:
        self.jwts.append(request)
        try:
            await self._enter(context)
        except Refusal as refusal:
            await refusal.abort(context)
        how, now = self.mint, self._clock.now() + self.mint.skew
        svid = self.jwt_key.issue(SpiffeId.parse(request.spiffe_id), list(request.audiences), ttl=how.ttl, now=now)
        answer = signer_pb2.MintJWTSVIDResponse(token=svid.token, reusable=True)
        _window(answer, RenewalWindow.of(now, svid.expires_at))
        return answer

    async def _watch_trust(
        self, requests: AsyncIterator[signer_pb2.WatchTrustRequest], context: _Context
    ) -> AsyncIterator[signer_pb2.WatchTrustResponse]:
        self.arrivals.append(asyncio.get_running_loop().time())
        self.bearers.append(dict(context.invocation_metadata()).get("authorization", ""))
        self.streams += 1
        if self.watch_refusals:
            await self.watch_refusals.pop(0).abort(context)
        reading = asyncio.ensure_future(self._read(requests))
        ending = asyncio.ensure_future(self._ending.wait())
        version = 0
        try:
            while True:
                waiting = asyncio.ensure_future(self._trust.wait_beyond(version))
                await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    waiting.cancel()
                    if self._end is not None:
                        await self._end.abort(context)
                    return
                version = waiting.result()
                assert self._trust.current is not None
                yield self._trust.current
                self.sent += 1
        finally:
            reading.cancel()
            ending.cancel()
            await asyncio.gather(reading, ending, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[signer_pb2.WatchTrustRequest]) -> None:
        first = True
        async for request in requests:
            if first:
                self.first_reports.append(request)
                first = False
            self.reports.publish(request)


def _window(answer: signer_pb2.MintX509SVIDResponse | signer_pb2.MintJWTSVIDResponse, window: RenewalWindow) -> None:
    answer.renew_from.FromDatetime(window.start)
    answer.renew_until.FromDatetime(window.end)
