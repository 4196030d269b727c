"""Envoy's secret discovery service (SDS v3) for one workload: the same feed as the Workload API, in Envoy's words.

State of the world (StreamSecrets, FetchSecrets) and incremental (DeltaSecrets).
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import grpc

from agent.pb import sds_pb2
from agent.socket.guard import DENIED, AnyContext
from agent.socket.methods import Methods, table
from agent.socket.requests import invalid, read
from agent.socket.sds_secrets import MAX_NAME, MAX_NAMES, TYPE_URL, Rendered, SdsNames, Secrets, any_of
from runtime.clock import Clock
from runtime.feed import Followed
from runtime.stopping import end
from runtime.terminal import shown
from svid.handed import Identity

_log = logging.getLogger("podsvid.sds")
SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
_WILDCARD = "*"
# The SPIFFE validator came with 1.18.
_FIRST_WITH_VALIDATOR = (1, 18)
_Requests: TypeAlias = AsyncIterator[bytes]


class SdsMetrics(Protocol):
    """What SDS counts."""

    def sds_pushed(self) -> None: ...

    def sds_rejected(self) -> None: ...


@dataclass
class _Session:
    """One stream: who it is (told once, in its first request), what it wants, what it was sent last."""

    plain: bool = False
    began: bool = False
    wanted: list[str] = field(default_factory=list)
    everything: bool = False
    sent: dict[str, str] = field(default_factory=dict)
    nonce: str = ""
    pushes: int = 0
    reported: set[str] = field(default_factory=set)


class SecretDiscovery:
    """Serves one workload's feed; `who` names it in logs."""

    def __init__(self, feed: Followed[Identity], names: SdsNames, clock: Clock, metrics: SdsMetrics, who: str) -> None:
        self._feed = feed
        self._secrets = Secrets(feed, names, clock, who)
        self._spiffe_validator = names.spiffe_validator
        self._metrics = metrics
        self._who = who

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service under its real path."""
        return Methods(self, self._METHODS)

    async def _fetch(self, data: bytes, context: AnyContext) -> bytes:
        request = await read(data, sds_pb2.DiscoveryRequest(), context)
        session = _Session()
        await self._begin(session, request, context)
        await self._want(session, request.resource_names, context)
        session.everything = not session.wanted
        found, missing = self._look(session)
        for why in filter(None, map(self._secrets.refusal, missing)):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{DENIED}: {why}")
        if missing:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "no such secret, or not yet: " + ", ".join(map(shown, missing[:8]))
            )
        return self._response(session, found).SerializeToString()

    async def _stream(self, requests: _Requests, context: AnyContext) -> None:
        session = _Session()

        async def requested(data: bytes) -> None:
            request = await read(data, sds_pb2.DiscoveryRequest(), context)
            await self._begin(session, request, context)
            answering = bool(session.nonce) and bool(request.response_nonce)
            if answering and request.response_nonce != session.nonce:
                return  # about a response that another one has replaced
            if request.HasField("error_detail"):
                self._rejected(session, request.error_detail, request.node)
            first = not session.began
            session.began = True
            names = list(dict.fromkeys(request.resource_names))
            # Without names the first request asks for everything; later it gives up what it asked for.
            everything = _WILDCARD in names or (not names and (first or session.everything))
            changed = first or everything != session.everything or set(names) != set(session.wanted)
            await self._want(session, names, context)
            session.everything = everything
            if changed:
                await push(True)

        async def push(forced: bool) -> None:
            found, missing = self._look(session)
            self._report(session, missing)
            versions = {name: rendered.version for name, rendered in found.items()}
            if found and (forced or versions != session.sent):
                session.sent = versions
                session.nonce = secrets.token_hex(8)
                session.pushes += 1
                self._metrics.sds_pushed()
                await context.write(self._response(session, found).SerializeToString())

        await self._follow(requests, requested, lambda: push(False))

    async def _delta(self, requests: _Requests, context: AnyContext) -> None:
        session = _Session()

        async def requested(data: bytes) -> None:
            request = await read(data, sds_pb2.DeltaDiscoveryRequest(), context)
            await self._begin(session, request, context)
            if request.HasField("error_detail"):
                self._rejected(session, request.error_detail, request.node)
            subscribe = list(dict.fromkeys(request.resource_names_subscribe))
            leave = set(request.resource_names_unsubscribe)
            if not session.began and not subscribe:
                session.everything = True
            first, session.began = not session.began, True
            session.everything = (session.everything or _WILDCARD in subscribe) and _WILDCARD not in leave
            await self._want(session, [*(n for n in session.wanted if n not in leave), *subscribe], context)
            for name in leave:
                session.sent.pop(name, None)
            if first:
                session.sent = await self._gone(session, request.initial_resource_versions, context)
            # What a client subscribes to is answered, whatever version it says that it has.
            await push(set(subscribe) | (set() if session.sent else {_WILDCARD}))

        async def push(forced: Iterable[str] = ()) -> None:
            found, missing = self._look(session)
            self._report(session, missing)
            due = {
                name: rendered
                for name, rendered in found.items()
                if name in forced or session.sent.get(name) != rendered.version
            }
            gone = [name for name in missing if name in forced or name in session.sent]
            gone += [name for name in session.sent if name not in found and name not in missing]
            if not due and not gone:
                return
            session.sent = {name: rendered.version for name, rendered in found.items()}
            session.nonce = secrets.token_hex(8)
            session.pushes += 1
            self._metrics.sds_pushed()
            response = sds_pb2.DeltaDiscoveryResponse(
                system_version_info=self._version(session),
                type_url=TYPE_URL,
                nonce=session.nonce,
                resources=[
                    sds_pb2.Resource(name=name, version=rendered.version, resource=any_of(TYPE_URL, rendered.data))
                    for name, rendered in due.items()
                ],
                removed_resources=gone,
            )
            await context.write(response.SerializeToString())

        await self._follow(requests, requested, push)

    async def _follow(
        self,
        requests: _Requests,
        requested: Callable[[bytes], Awaitable[None]],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """Serve requests and changes of the feed, one after the other, until the client goes; never returns."""
        inbox: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)  # a client that floods us waits for its answers

        async def take() -> None:
            async for data in requests:
                await inbox.put(data)
            # A client that sends no more may still listen, and to return would end its stream with OK.
            await asyncio.Event().wait()

        reading = asyncio.ensure_future(take())
        version = self._feed.version
        request: asyncio.Future[bytes] = asyncio.ensure_future(inbox.get())
        change: asyncio.Future[int] = asyncio.ensure_future(self._feed.wait_beyond(version))
        try:
            while True:
                waiting: list[asyncio.Future[Any]] = [reading, request, change]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if request.done():
                    data = request.result()
                    request = asyncio.ensure_future(inbox.get())
                    await requested(data)
                if change.done():
                    version = change.result()
                    change = asyncio.ensure_future(self._feed.wait_beyond(version))
                    await changed()
                if reading.done():
                    reading.result()  # the connection broke; grpc cancels this call as well
                    return
        finally:
            await end((reading, request, change))

    async def _begin(self, session: _Session, request: Any, context: AnyContext) -> None:
        if request.type_url not in ("", TYPE_URL):
            await invalid(context, f"type_url {shown(request.type_url)} is not served here; ask for {TYPE_URL}")
        if request.HasField("node"):  # Envoy may send it with the first request only
            session.plain = not self._spiffe_validator or _wants_plain(request.node)
        elif not session.began:
            session.plain = not self._spiffe_validator

    async def _want(self, session: _Session, names: Iterable[str], context: AnyContext) -> None:
        wanted = [name for name in dict.fromkeys(names) if name != _WILDCARD]
        if len(wanted) > MAX_NAMES or any(len(name) > MAX_NAME for name in wanted):
            await invalid(context, f"at most {MAX_NAMES} names of {MAX_NAME} characters are possible on one stream")
        session.wanted = wanted
        session.reported &= set(wanted)

    async def _gone(self, session: _Session, held: Iterable[str], context: AnyContext) -> dict[str, str]:
        """Of what a client says that it has from a stream before: what is not there any more, and so was not sent."""
        names = list(held)
        if len(names) > MAX_NAMES or any(len(name) > MAX_NAME for name in names):
            await invalid(context, f"at most {MAX_NAMES} names of {MAX_NAME} characters are possible on one stream")
        return {name: "" for name in names if self._secrets.get(name, session.plain) is None}

    def _look(self, session: _Session) -> tuple[dict[str, Rendered], list[str]]:
        """What the session wants: what there is by name, and the names of what there is not."""
        names = [*self._secrets.names(), *session.wanted] if session.everything else session.wanted
        found = {name: self._secrets.get(name, session.plain) for name in dict.fromkeys(names)}
        present = {name: rendered for name, rendered in found.items() if rendered is not None}
        return present, [name for name in session.wanted if name not in present]

    def _response(self, session: _Session, found: dict[str, Rendered]) -> sds_pb2.DiscoveryResponse:
        return sds_pb2.DiscoveryResponse(
            version_info=self._version(session),
            type_url=TYPE_URL,
            nonce=session.nonce,
            resources=[any_of(TYPE_URL, rendered.data) for rendered in found.values()],
        )

    def _version(self, session: _Session) -> str:
        return f"{self._feed.version}.{session.pushes}"

    def _rejected(self, session: _Session, detail: sds_pb2.Status, node: sds_pb2.Node) -> None:
        self._metrics.sds_rejected()
        _log.error(
            "Envoy rejected a secret and keeps the one before; the next rotation is tried again",
            extra={
                "pod": self._who,
                "node": shown(node.id),
                "names": [shown(name) for name in session.wanted[:8]],
                "error": shown(detail.message),
            },
        )

    def _report(self, session: _Session, missing: list[str]) -> None:
        for name in missing:
            if name not in session.reported:
                session.reported.add(name)
                _log.warning(
                    "Envoy waits for a secret that this workload does not have",
                    extra={"pod": self._who, "secret": shown(name)},
                )

    _METHODS: ClassVar = table(
        SERVICE,
        {
            "StreamSecrets": (grpc.stream_stream_rpc_method_handler, _stream),
            "DeltaSecrets": (grpc.stream_stream_rpc_method_handler, _delta),
            "FetchSecrets": (grpc.unary_unary_rpc_method_handler, _fetch),
        },
    )


def _wants_plain(node: sds_pb2.Node) -> bool:
    wish = node.metadata.fields.get("disable_spiffe_cert_validation")
    if wish is not None and (wish.bool_value or wish.string_value == "true"):
        return True
    if node.user_agent_name != "envoy" or not node.HasField("user_agent_build_version"):
        return False
    version = node.user_agent_build_version.version
    return (version.major_number, version.minor_number) < _FIRST_WITH_VALIDATOR
