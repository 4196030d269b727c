"""The authority in a cluster: a signer that is asked over one connection and never gets a workload's private key."""

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from agent.authority.protocol import EarlyRenewal, JwtRequest, Minted, MintedJwt, MintRequest
from agent.errors import AuthorityDamaged, AuthorityRefused, AuthorityUnavailable
from csi.model import PodRef, PodToken
from runtime.clock import Clock
from runtime.federation import read_bundle
from runtime.feed import Feed
from runtime.tracing import NO_TRACING, Tracing
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_der
from svid.dnsnames import SIGNER_NAME
from svid.errors import InvalidBundle, InvalidSvid, SvidError
from svid.identity import Trust
from svid.jwtsvid import parse_jwt_svid_unverified
from svid.keys import PrivateKey, signature_hash
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import check_x509_svid

_log = logging.getLogger("podsvid.authority")
_SERVICE = "/podsvid.signer.v1.Signer/"
# Seconds. The workloads give a mint 30; this one must be over before, to say why.
CALL_SECONDS = 20.0
FIRST_ANSWER_SECONDS = 5.0
# The trust that a new SVID needs comes by the other stream: moments before or after.
TRUST_SECONDS = 5.0
FIRST_RETRY, MAX_RETRY = 1.0, 60.0
# A call that the signer puts off is repeated when it said; under lasting pressure these grow beyond that.
LEAST_WAIT, MOST_LEAST_WAIT = 0.05, 1.0
# How the signer ends a stream that it wants opened again.
_RECONNECT = "RECONNECT"
CLOSE_SECONDS = CALL_SECONDS
MAX_MESSAGE = 8 * 1024 * 1024
# Statuses at which waiting helps. UNAUTHENTICATED is about the agent's own token, which is read anew at each call.
_TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class SignerSettings:
    """How to reach and trust the signer. `bundle_file`: trust bundle (PEM or SPIFFE JWKS) for the first contact."""

    address: str
    bundle_file: Path
    token_file: Path
    audience: str
    trust_domain: TrustDomain
    agent_version: str = ""


class SignerAuthority:
    """Implements agent.authority.protocol.Authority by calls to a signer. Belongs to one event loop.

    What it trusts of the signer's certificate is the newest of the bundle file and of what the signer itself sent.
    """

    def __init__(
        self, settings: SignerSettings, clock: Clock, rng: random.Random, tracing: Tracing = NO_TRACING
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self._clock = clock
        self._rng = rng
        self.trust: Feed[Trust] = Feed()
        self.early_renewals: Feed[tuple[EarlyRenewal, ...]] = Feed()
        self.issues_jwt = True
        self._channel: grpc.aio.Channel | None = None
        # The one that carries the trust stream: an older one until that stream ends by itself.
        self._watching: grpc.aio.Channel | None = None
        self._roots = b""
        self._file_roots: tuple[tuple[int, int], TrustBundle] | None = None
        self._report = signer_pb2.WatchTrustRequest(agent_version=settings.agent_version)
        self._reported = asyncio.Event()
        self._answered = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._connected = False
        self._away_since: datetime | None = clock.now()
        self._last_error = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether the signer answers on the trust stream."""
        return self._connected

    @property
    def away_since(self) -> datetime | None:
        """Since when the signer does not answer; None while it does."""
        return self._away_since

    def load(self) -> None:
        """Take the bundle file as the first trust, so that there is one before anything is served.

        Raises AuthorityDamaged.
        """
        try:
            self.trust.publish(Trust(self._read_bundle_file()))
        except (OSError, SvidError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            raise AuthorityDamaged(
                f"signer_bundle {self._settings.bundle_file} cannot be used: {why}; it must be the trust bundle that "
                "the signer publishes (ConfigMap podsvid-bundle)"
            ) from None

    async def wait_answered(self) -> None:
        """Wait for the signer's first answer, though not long: volumes must be picked up whether it is there or not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                await self._answered.wait()

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        sequence = trust.bundle.sequence or 0
        report = signer_pb2.WatchTrustRequest(
            acknowledged_sequence=sequence,
            in_use=[signer_pb2.AuthorityUse(authority_id=name, svids=count) for name, count in sorted(svids.items())],
            agent_version=self._settings.agent_version,
        )
        if report != self._report:
            self._report = report
            self._reported.set()

    async def mint_x509(self, request: MintRequest) -> Minted:
        message = signer_pb2.MintX509SVIDRequest(
            pod=_pod(request.pod),
            pod_token=self._pod_token(request.token),
            csr=_request_for(request.key),
            ttl_seconds=int(request.ttl.total_seconds()) if request.ttl else 0,
            dns_names=request.dns_names,
        )
        answer: signer_pb2.MintX509SVIDResponse = await self._call(
            "MintX509SVID", message, signer_pb2.MintX509SVIDResponse.FromString
        )
        trust = await self._trust_of(answer.trust_sequence)
        try:
            chain = certificates_from_der(answer.chain)
            self._check_trust(chain, trust, answer.trust_sequence)
            federated = None if answer.federates_with_all else tuple(map(TrustDomain, answer.federates_with))
            return Minted(
                SpiffeId.parse(answer.spiffe_id),
                chain,
                trust,
                self._window(answer, chain[0].not_valid_after_utc),
                answer.notice,
                answer.hint,
                federated,
            )
        except (SvidError, ValueError) as error:
            raise AuthorityRefused(f"the signer's answer cannot be used: {error}") from None

    async def mint_jwt(self, request: JwtRequest) -> MintedJwt:
        message = signer_pb2.MintJWTSVIDRequest(
            pod=_pod(request.pod),
            pod_token=self._pod_token(request.token),
            spiffe_id=str(request.spiffe_id),
            audiences=request.audiences,
        )
        answer: signer_pb2.MintJWTSVIDResponse = await self._call(
            "MintJWTSVID", message, signer_pb2.MintJWTSVIDResponse.FromString
        )
        try:
            svid = parse_jwt_svid_unverified(answer.token)
            window = self._window(answer, svid.expires_at)
        except (SvidError, ValueError) as error:
            raise AuthorityRefused(f"the signer's answer cannot be used: {error}") from None
        return MintedJwt(svid, window, answer.reusable)

    async def run(self) -> None:
        """Follow the signer's trust for ever, reconnecting with full jitter: a signer's restart is no storm."""
        try:
            while True:
                try:
                    await self._watch()
                    self._ended("the signer ended the stream")
                except grpc.aio.AioRpcError as error:
                    reason, text, _ = _explain(error)
                    (self._ended if reason == _RECONNECT else self._lost)(text)
                except (OSError, AuthorityUnavailable) as error:
                    self._lost(str(error))
                except asyncio.CancelledError:
                    self._lost("the connection was closed")
                # A call that fails while this task is cancelled raises its own error instead of CancelledError.
                if _is_cancelled():
                    raise asyncio.CancelledError
                await asyncio.sleep(self._delay())
        finally:
            for closing in self._closing:
                closing.cancel()
            await asyncio.gather(*self._closing, return_exceptions=True)
            if self._channel is not None:
                await self._channel.close()

    async def _watch(self) -> None:
        channel = self._watching = self._connect()
        call = channel.stream_stream(
            _SERVICE + "WatchTrust",
            signer_pb2.WatchTrustRequest.SerializeToString,
            signer_pb2.WatchTrustResponse.FromString,
        )(metadata=self._credentials(), wait_for_ready=False)
        reporting = asyncio.get_running_loop().create_task(self._send_reports(call), name="report to signer")
        # Without reports the signer would wait for this agent: rather a new stream than half of one.
        reporting.add_done_callback(lambda _: call.cancel())
        try:
            async for answer in call:
                self._take(answer)
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            call.cancel()
            self._watching = None
            if channel is not self._channel:
                self._close(channel)

    async def _send_reports(self, call: Any) -> None:
        """What the workloads hold, first as it is now and then after each change. Ends with the stream, by an error."""
        while True:
            self._reported.clear()
            await call.write(self._report)
            await self._reported.wait()

    def _take(self, answer: signer_pb2.WatchTrustResponse) -> None:
        try:
            bundles = [TrustBundle.from_jwks(TrustDomain(each.trust_domain), each.jwks) for each in answer.bundles]
            renewals = tuple(
                EarlyRenewal(each.authority_id, RenewalWindow(_instant(getattr(each, "from")), _instant(each.until)))
                for each in answer.renew
            )
        except (SvidError, ValueError) as error:
            # The present trust stays: an answer that cannot be read must not take anything away.
            _log.error("the signer sent a trust bundle that cannot be used", extra={"error": str(error)})
            return
        if not bundles or bundles[0].trust_domain != self._settings.trust_domain or not bundles[0].x509_authorities:
            _log.error("the signer sent no trust bundle of this trust domain; is it another cluster's?")
            return
        trust = Trust(bundles[0], tuple(bundles[1:]))
        if not self._connected:
            _log.info("signer connected", extra={"address": self._settings.address, "sequence": answer.sequence})
        self._connected, self._away_since, self._failures = True, None, 0
        self.issues_jwt = answer.issues_jwt
        present = self.trust.current
        older = present is not None and (trust.bundle.sequence or 0) < (present.bundle.sequence or 0)
        # A replica that lags behind another has nothing to say.
        if not older and trust != present:
            self.trust.publish(trust)
        if not older and renewals != (self.early_renewals.current or ()):
            self.early_renewals.publish(renewals)
        self._answered.set()

    async def _call(self, method: str, message: Any, parse: Callable[[bytes], _Answer]) -> _Answer:
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        least, put_off = LEAST_WAIT, None
        while True:
            left = deadline - asyncio.get_running_loop().time()
            call = self._connect().unary_unary(_SERVICE + method, type(message).SerializeToString, parse)
            # Waits for the connection: a signer that restarts costs a pod's start a moment and not a failure.
            answering: Awaitable[_Answer] = call(
                message,
                metadata=(*self._credentials(), *self._tracing.headers()),
                timeout=left,
                wait_for_ready=True,
            )
            try:
                return await answering
            except grpc.aio.AioRpcError as error:
                if _is_cancelled():
                    raise asyncio.CancelledError from None
                reason, text, retry = _explain(error)
                if put_off is not None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
                    raise put_off from None
                put_off = self._failed(error.code(), reason, text)
                wait = max(retry or 0.0, least) * self._rng.uniform(1.0, 2.0)
                if retry is None or wait >= deadline - asyncio.get_running_loop().time():
                    raise put_off from None
                least = min(least * 2, MOST_LEAST_WAIT)
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                wait = 0.0  # the old connection was closed
            await asyncio.sleep(wait)

    def _failed(self, code: grpc.StatusCode, reason: str, text: str) -> AuthorityUnavailable | AuthorityRefused:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
            return AuthorityUnavailable(
                f"SIGNER_UNREACHABLE: the signer at {self._settings.address} did not answer within {CALL_SECONDS:g} s"
                + (f" ({self._last_error})" if not self._connected else "")
            )
        found = f"{reason or code.name}: {text}"
        return AuthorityUnavailable(found) if code in _TRY_AGAIN else AuthorityRefused(found)

    async def _trust_of(self, sequence: int) -> Trust:
        """The newest trust, which is to be that of `sequence` or newer; soon at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TRUST_SECONDS):
                version = 0
                while (self._trust().bundle.sequence or 0) < sequence:
                    version = await self.trust.wait_beyond(max(version, self.trust.version))
        return self._trust()

    def _check_trust(self, chain: tuple[x509.Certificate, ...], trust: Trust, sequence: int) -> None:
        """Tell an SVID whose trust is late from one that is no good. Raises AuthorityUnavailable."""
        if (trust.bundle.sequence or 0) >= sequence:
            return
        try:
            check_x509_svid(chain, trust.bundle, self._clock.now())
        except InvalidSvid:
            raise AuthorityUnavailable(
                "TRUST_BEHIND: the SVID is of an authority whose trust bundle the signer has not sent yet"
            ) from None

    def _window(
        self, answer: signer_pb2.MintX509SVIDResponse | signer_pb2.MintJWTSVIDResponse, ends_at: datetime
    ) -> RenewalWindow:
        """When to renew, by this node's clock."""
        window, now = RenewalWindow(_instant(answer.renew_from), _instant(answer.renew_until)), self._clock.now()
        # The clocks differ by as much as that: it would be due again as soon as it is there.
        return window if window.start > now else RenewalWindow.of(now, ends_at)

    def _trust(self) -> Trust:
        trust = self.trust.current
        assert trust is not None
        return trust

    def _connect(self) -> grpc.aio.Channel:
        """The connection, made anew when what it is to trust has changed.

        The signer's next certificate may be of an authority that the old connection's roots do not have. Agents come to
        this at their next mint, each in its own time.
        """
        roots = self._newest_roots()
        if self._channel is not None and roots == self._roots:
            return self._channel
        if self._channel is not None and self._channel is not self._watching:
            self._close(self._channel)
        first = int(self._rng.uniform(0.5, 3.0) * 1000)
        options = (
            ("grpc.ssl_target_name_override", SIGNER_NAME),
            ("grpc.default_authority", SIGNER_NAME),
            ("grpc.initial_reconnect_backoff_ms", first),
            ("grpc.min_reconnect_backoff_ms", first),
            ("grpc.max_reconnect_backoff_ms", int(MAX_RETRY * 1000)),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.enable_retries", 0),
        )
        self._channel = grpc.aio.secure_channel(
            self._settings.address, grpc.ssl_channel_credentials(roots), options=options
        )
        self._roots = roots
        return self._channel

    def _close(self, channel: grpc.aio.Channel) -> None:
        """Mints in flight are finished on it."""
        closing = asyncio.get_running_loop().create_task(channel.close(CLOSE_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _newest_roots(self) -> bytes:
        bundle = self._trust().bundle
        try:
            file = self._read_bundle_file()
        except (OSError, SvidError):
            file = bundle
        mine, theirs = bundle.sequence, file.sequence
        # The file is what helps an agent that was cut off for longer than the authorities it knew were trusted.
        newer = theirs is not None and (mine is None or theirs > mine)
        if newer or (theirs is None and not self._connected and self._failures > 2):
            bundle = file
        return bundle.to_pem()

    def _read_bundle_file(self) -> TrustBundle:
        path = self._settings.bundle_file
        found = path.stat()
        seen = (found.st_ino, found.st_mtime_ns)
        if self._file_roots is None or self._file_roots[0] != seen:
            bundle = read_bundle(self._settings.trust_domain, path)
            if not bundle.x509_authorities:
                # grpc trusts the host's own roots where it is given none.
                raise InvalidBundle("it has no X.509 authority")
            self._file_roots = (seen, bundle)
        return self._file_roots[1]

    def _credentials(self) -> tuple[tuple[str, str], ...]:
        path = self._settings.token_file
        try:
            token = path.read_text(encoding="ascii").strip()
            if not _is_token(token):
                raise ValueError("not one token")
        except (OSError, ValueError):
            raise AuthorityUnavailable(
                f"AGENT_TOKEN_MISSING: agent_token_file {path} has no token; project a service account token of "
                f"audience {self._settings.audience} there"
            ) from None
        return (("authorization", f"Bearer {token}"),)

    def _pod_token(self, token: PodToken | None) -> str:
        audience = self._settings.audience
        advice = f"the CSIDriver object needs tokenRequests with audience {audience} and requiresRepublish true"
        if token is None:
            # After an agent's restart kubelet brings it within about a minute, with its next republish.
            raise AuthorityUnavailable(f"POD_TOKEN_MISSING: kubelet has not passed a token of this pod; {advice}")
        try:
            found = json.loads(token.text)[audience]
            text, expired = found["token"], datetime.fromisoformat(found["expirationTimestamp"]) <= self._clock.now()
            if not isinstance(text, str) or not _is_token(text):
                raise ValueError("not one token")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AuthorityUnavailable(
                f"POD_TOKEN_MISSING: kubelet passed no token of audience {audience}; {advice}"
            ) from None
        if expired:
            raise AuthorityUnavailable("POD_TOKEN_EXPIRED: kubelet has not passed a new token of this pod yet")
        return text

    def _ended(self, why: str) -> None:
        """The signer ends each stream after a while; that is an outage only if the next one does not come about."""
        if self._failures or not self._connected:
            self._lost(why)
        else:
            self._failures = 1

    def _lost(self, why: str) -> None:
        self._last_error = why
        self._failures += 1
        if self._connected or self._failures == 1:
            _log.warning("signer lost; SVIDs are kept", extra={"address": self._settings.address, "error": why})
        if self._connected:
            self._away_since = self._clock.now()
        self._connected = False

    def _delay(self) -> float:
        most: float = min(MAX_RETRY, FIRST_RETRY * 2 ** min(self._failures, 10))
        return self._rng.uniform(0.0, most)


def _request_for(key: PrivateKey) -> bytes:
    """A DER certificate request that proves possession of `key` and names nobody: who it is for is not ours to say."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


def _is_token(text: str) -> bool:
    """Whether `text` can stand in a header: visible ASCII, something of it."""
    return text.isascii() and text.isprintable() and text != "" and " " not in text


def _is_cancelled() -> bool:
    """Whether this task is to end. grpc also raises CancelledError where a connection was closed below a call."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _explain(error: grpc.aio.AioRpcError) -> tuple[str, str, float | None]:
    """Reason code, text for people, and seconds to wait where the signer said so."""
    reason, retry = "", None
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:
        status = None
    for detail in status.details if status else ():
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = str(info.reason)
        elif detail.Unpack(delay):
            retry = timedelta(seconds=delay.retry_delay.seconds, microseconds=delay.retry_delay.nanos // 1000)
    return reason, error.details() or error.code().name, retry.total_seconds() if retry else None


def _pod(pod: PodRef) -> signer_pb2.Pod:
    return signer_pb2.Pod(namespace=pod.namespace, name=pod.name, uid=pod.uid)


def _instant(value: Timestamp) -> datetime:
    return value.ToDatetime(UTC)
