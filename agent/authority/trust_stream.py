"""The stream of the signer's trust: bundles and early renewals in, acknowledgements out."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from agent.authority.connection import Connection, SignerSettings
from agent.authority.contact import Contact
from agent.authority.endings import SERVICE, explain, is_cancelled
from agent.authority.held import HeldTrust
from agent.authority.protocol import EarlyRenewal
from agent.errors import AuthorityUnavailable
from runtime.feed import Feed
from runtime.stopping import end, stay_cancelled
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.identity import Trust
from svid.renewal import RenewalWindow
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.authority")
FIRST_ANSWER_SECONDS = 5.0
# Seconds in which a stream that is to be ended is read to its end.
LAST_SECONDS = 1.0
# How the signer ends a stream that it wants opened again.
_RECONNECT = "RECONNECT"


class TrustStream:
    """Brings what the signer says into `trust` and `early_renewals`, and tells it what the workloads hold."""

    def __init__(
        self,
        settings: SignerSettings,
        connection: Connection,
        contact: Contact,
        trust: HeldTrust,
        early_renewals: Feed[tuple[EarlyRenewal, ...]],
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._contact = contact
        self._trust = trust
        self._early_renewals = early_renewals
        self._issues_jwt = True
        self._report = signer_pb2.WatchTrustRequest(agent_version=settings.agent_version)
        self._reported = asyncio.Event()
        self._answered = asyncio.Event()

    @property
    def issues_jwt(self) -> bool:
        """Whether the signer issues JWT-SVIDs; taken for true before its first answer."""
        return self._issues_jwt

    async def wait_answered(self) -> None:
        """Wait for the signer's first answer, though not long: volumes must be picked up whether it is there or not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                await self._answered.wait()

    def hold(self, trust: Trust, svids: Mapping[str, int]) -> None:
        """Report from now on that all workloads have `trust`, and how many SVIDs they hold by authority.

        Only what the signer sent can be acknowledged to it.
        """
        if not trust.proven:
            return
        report = signer_pb2.WatchTrustRequest(
            acknowledged_sequence=self._trust.said(trust),
            in_use=[signer_pb2.AuthorityUse(authority_id=name, svids=count) for name, count in sorted(svids.items())],
            agent_version=self._settings.agent_version,
            digest=trust.bundle.digest(),
        )
        if report != self._report:
            self._report = report
            self._reported.set()

    async def run(self) -> None:
        """Follow the signer's trust for ever, over one stream after the other."""
        try:
            while True:
                try:
                    self._contact.ended(await self._watch())
                except grpc.aio.AioRpcError as error:
                    reason, text, _ = explain(error)
                    why = text if reason else self._connection.why(text)
                    if reason == _RECONNECT:
                        # Each agent's stream ends at another time: so they come anew one after the other.
                        self._connection.renew()
                        self._contact.ended(why)
                    else:
                        self._contact.lost(why)
                except (OSError, AuthorityUnavailable) as error:
                    self._contact.lost(str(error))
                except asyncio.CancelledError:
                    self._contact.lost("the connection was closed")
                # A call that fails while this task is cancelled raises its own error instead of CancelledError.
                stay_cancelled()
                await self._connection.pause(self._contact.delay())
        finally:
            await self._connection.close()

    async def _watch(self) -> str:
        """Follow one stream; why it ended, if that is no failure."""
        leaving: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()

        def leave() -> None:
            nonlocal leaving
            # By what came while this process did not run the next connection may have to be proven: it is read first.
            leaving = loop.call_later(LAST_SECONDS, call.cancel)

        with self._connection.held() as channel:
            call = channel.stream_stream(
                SERVICE + "WatchTrust",
                signer_pb2.WatchTrustRequest.SerializeToString,
                signer_pb2.WatchTrustResponse.FromString,
            )(metadata=self._connection.credentials(), wait_for_ready=False)
            reporting = loop.create_task(self._send_reports(call), name="report to signer")
            # Without reports the signer would wait for this agent: rather a new stream than half of one.
            reporting.add_done_callback(lambda _: call.cancel())
            try:
                async for answer in call:
                    self._take(answer)
                    seconds = self._connection.leave_in(channel) if leaving is None else None
                    if seconds is not None:
                        leaving = loop.call_later(seconds, leave)
            except asyncio.CancelledError:
                if leaving is None or is_cancelled():
                    raise
                return "what proved the signer's connection is trusted no more"
            finally:
                if leaving is not None:
                    leaving.cancel()
                await end([reporting])
                call.cancel()
        return "the signer ended the stream"

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
                EarlyRenewal(each.authority_id, RenewalWindow(instant(getattr(each, "from")), instant(each.until)))
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
        if answer.digest and answer.digest != bundles[0].digest():
            # Of a kind of key that this agent does not know, perhaps: the signer is told what was taken.
            _log.warning(
                "the signer's trust bundle has more than this agent can take", extra={"sequence": answer.sequence}
            )
        self._contact.answered(answer.sequence)
        if self._trust.take(trust):
            self._issues_jwt = answer.issues_jwt
            if renewals != (self._early_renewals.current or ()):
                self._early_renewals.publish(renewals)
        self._answered.set()


def instant(value: Timestamp) -> datetime:
    """A message's time, aware."""
    return value.ToDatetime(UTC)
