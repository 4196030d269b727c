"""The signer's API for agents: its methods, and the streams on which agents learn what to trust."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeVar

import grpc
import grpc.aio

from runtime.clock import Clock
from runtime.feed import Feed
from runtime.stopping import end
from runtime.tracing import NO_TRACING, Tracing
from signer.attestation.attestor import Attestor
from signer.authority.acknowledgements import Agents
from signer.authority.trust import Broadcast
from signer.cluster.events import Events
from signer.errors import Reason, Refused
from signer.front.audit import Audit
from signer.front.batch import Batches
from signer.front.budget import BATCHES, MAX_REPORT, MINTS, TRUST_STREAMS
from signer.front.callers import Callers, Gate
from signer.front.calls import Context, Messages, abort, ended, headers_of, only, parsed, refused_by
from signer.front.limits import NodeLimits, Slots
from signer.front.mints import Asked, Mints
from signer.metrics import Metrics
from signer.minting.minting import Minting
from signer.model import Agent
from signer.pb import signer_pb2
from signer.policy.policies import Policies

_log = logging.getLogger("podsvid.api")
SERVICE = "podsvid.signer.v1.Signer"
# A stream ends while its agent's token is good still, and not later than this: agents spread over replicas again.
STREAM_LIFE = timedelta(minutes=30)
TOKEN_MARGIN = timedelta(seconds=60)
_Request = TypeVar("_Request", signer_pb2.MintX509SVIDRequest, signer_pb2.MintJWTSVIDRequest)


def _seconds() -> float:
    return asyncio.get_running_loop().time()


def _stops() -> Refused:
    return Refused(Reason.RECONNECT, "this replica stops; ask another one")


class SignerService:
    """Implements podsvid.signer.v1.Signer.

    Handlers begin when a call's headers are there. Its message is read once they have proven an agent: one; what
    comes after that is never read.
    """

    def __init__(
        self,
        attestor: Attestor,
        policies: Policies,
        minting: Minting,
        limits: NodeLimits,
        gate: Gate,
        agents: Agents,
        trust: Feed[Broadcast],
        events: Events,
        audit: Audit,
        metrics: Metrics,
        clock: Clock,
        rng: random.Random,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._limits = limits
        self._callers = Callers(attestor, limits, gate, metrics)
        self._mints = Mints(self._callers, attestor, policies, minting, limits, events, audit, metrics, tracing)
        self._places = Slots(MINTS, _seconds)
        # An async generator itself, which grpc looks for.
        self.mint_x509s = Batches(self._callers, self._mints, limits, self._places, Slots(BATCHES, _seconds)).mint
        self._streams = Slots(TRUST_STREAMS)
        self._agents = agents
        self._trust = trust
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        # Of the trust streams that are open: who reads what their agents say.
        self._reading: set[asyncio.Future[None]] = set()
        self._stopping = False

    def end_streams(self) -> None:
        """Send agents on to another replica: for ever, this one stops."""
        self._stopping = True
        for each in self._reading:
            each.cancel()

    def handlers(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        return grpc.method_handlers_generic_handler(SERVICE, self.methods())

    def methods(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """Its methods by their names."""
        # Messages stay bytes: they are looked at after the call's headers.
        return {
            "MintX509SVID": grpc.stream_unary_rpc_method_handler(
                self.mint_x509, None, signer_pb2.MintX509SVIDResponse.SerializeToString
            ),
            "MintX509SVIDs": grpc.stream_stream_rpc_method_handler(
                self.mint_x509s, None, signer_pb2.MintX509SVIDsResponse.SerializeToString
            ),
            "MintJWTSVID": grpc.stream_unary_rpc_method_handler(
                self.mint_jwt, None, signer_pb2.MintJWTSVIDResponse.SerializeToString
            ),
            "WatchTrust": grpc.stream_stream_rpc_method_handler(
                self.watch_trust, None, signer_pb2.WatchTrustResponse.SerializeToString
            ),
        }

    async def mint_x509(self, messages: Messages, context: Context) -> signer_pb2.MintX509SVIDResponse:
        try:
            return await self._mints.x509(self._asked(signer_pb2.MintX509SVIDRequest, messages, context))
        except Refused as refusal:
            await abort(context, refusal)

    async def mint_jwt(self, messages: Messages, context: Context) -> signer_pb2.MintJWTSVIDResponse:
        try:
            return await self._mints.jwt(self._asked(signer_pb2.MintJWTSVIDRequest, messages, context))
        except Refused as refusal:
            await abort(context, refusal)

    def _asked(self, form: type[_Request], messages: Messages, context: Context) -> Asked[_Request]:
        """By a call of its own."""
        callers, headers = self._callers, headers_of(context)
        return Asked(
            context,
            time.perf_counter(),
            lambda: callers.proven(context, headers),
            lambda agent: callers.place(self._places, "mints", agent.node_uid),
            lambda place: only(form, messages, callers.patience, place, given_up=callers.given_up),
            headers,
        )

    async def watch_trust(self, messages: Messages, context: Context) -> AsyncIterator[signer_pb2.WatchTrustResponse]:
        agent: Agent | None = None
        place = ExitStack()
        try:
            agent = await self._callers.proven(context, headers_of(context))
            if self._stopping:
                raise _stops()
            place.enter_context(self._callers.place(self._streams, "streams"))
            handle = self._agents.connect(agent)
        except Exception as error:
            refusal = refused_by(error)
            self._audit.refused("trust", agent, None, refusal.reason, str(refusal), 0.0)
            place.close()
            await abort(context, refusal)
            raise
        now = self._clock.now()
        # Spread: after a restart all streams began at the same time, and must not end so.
        life = min(STREAM_LIFE * self._rng.uniform(0.5, 1.0), agent.token_expires_at - TOKEN_MARGIN - now)
        reading = asyncio.ensure_future(self._read(agent, messages))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        waiting = asyncio.ensure_future(self._trust.wait_beyond(0))
        try:
            async with asyncio.timeout(max(life.total_seconds(), 1.0)):
                while not reading.done():
                    await asyncio.wait([waiting, reading], return_when=asyncio.FIRST_COMPLETED)
                    if not waiting.done():
                        break
                    version = waiting.result()
                    found = self._trust.current
                    assert found is not None
                    yield found.message
                    waiting = asyncio.ensure_future(self._trust.wait_beyond(version))
            if self._stopping:
                await abort(context, _stops())
            await ended(reading, context)
        except TimeoutError:
            refusal = Refused(Reason.RECONNECT, "the stream's time is over; open it again")
            await abort(context, refusal)
        finally:
            # Trust changes once in weeks: what waits for it would stay for each stream that ended until then.
            try:
                await end((reading, waiting))
            finally:
                self._agents.disconnect(handle)
                place.close()

    async def _read(self, agent: Agent, messages: Messages) -> None:
        """Take what an agent says, as fast as a node may speak; what comes faster stays where it is. Raises Refused."""
        async for message in messages:
            if len(message) > MAX_REPORT:
                self._metrics.turned_away("report")
                raise Refused(Reason.INVALID_REQUEST, f"a message of WatchTrust is longer than {MAX_REPORT} bytes")
            await self._limits.heard(agent.node_uid)
            request = parsed(signer_pb2.WatchTrustRequest, message)
            in_use = {each.authority_id: each.svids for each in request.in_use}
            self._agents.acknowledged(agent.node_name, request.acknowledged_sequence, in_use, request.digest)
