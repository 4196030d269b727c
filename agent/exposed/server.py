"""The exposed end of the channel: does what the agent orders, and has nothing of its own to do."""

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from agent.channel import messages
from agent.channel.frames import Wire
from agent.channel.snapshots import Reader
from agent.exposed import exhaustion
from agent.exposed.counts import Counts
from agent.exposed.saying import Saying
from agent.exposed.tokens import Tokens
from agent.exposed.weighing import Weighing
from agent.socket import reflection
from agent.socket.accounts import Accounts, Limits
from agent.socket.closing import Closers
from agent.socket.connections import Connections
from agent.socket.endpoint import Endpoint
from agent.socket.relay import Relay
from agent.socket.sds_secrets import SdsNames
from agent.socket.serving import Serving
from runtime import unlogged
from runtime.clock import SystemClock
from runtime.feed import Feed
from runtime.frames import BadFrame
from runtime.peers import credentials_of
from svid.errors import SvidError
from svid.handed import UnreadIdentity

_log = logging.getLogger("podsvid.exposed")


# Connections of one socket without the relay, where nobody counts those of a pod and of all: each may keep 213 KB of
# the kernel, and have gRPC keep headers of 16 MB.
UNCOUNTED_CONNECTIONS = 8


def run(channel: int, lacking: tuple[str, ...], *, alone: bool) -> None:
    """Serve until the channel ends. `lacking`: what could not be given up. `alone`: whether nobody else is in this
    process's network, in which the relay connects to gRPC."""
    asyncio.run(_serve(channel, lacking if alone else (*lacking, messages.UNCOUNTED), alone=alone))


async def _serve(channel: int, lacking: tuple[str, ...], *, alone: bool) -> None:
    asyncio.get_running_loop().set_exception_handler(exhaustion.of_loop)
    wire: Wire[messages.Order] = Wire(
        socket.socket(fileno=channel), messages.orders(), messages.MAX_SNAPSHOT, descriptors=True
    )
    saying = Saying(wire)
    logging.getLogger().handlers[:] = [saying]
    unlogged.leave_out_headers()
    await wire.send(messages.Ready(lacking))
    with suppress(OSError, BadFrame):
        served = Served(wire, alone=alone)
        loops = [
            asyncio.ensure_future(each)
            for each in (saying.run(), served.counts.run(wire), served.weighing.run(wire), served.run())
        ]
        # Each ends with the channel.
        await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        for each in loops:
            if each.done():
                each.result()


class Served:
    """The sockets that are open, by the volume's number."""

    def __init__(self, wire: Wire[messages.Order], *, alone: bool = True) -> None:
        self._wire = wire
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = SystemClock()
        self._reader = Reader()
        self.counts = Counts()
        self._connections = Connections(Closers(), self.counts.call_refused)
        self.weighing = Weighing(self._connections)
        self._relay = Relay(self._connections) if alone else None
        self._serving = Serving()
        self._accounts = self._accounts_within(Limits())
        self._shared = reflection.handlers()
        self._tokens = Tokens(wire, self._clock)
        self._feeds: dict[int, Feed[UnreadIdentity]] = {}
        self._endpoints: dict[int, Endpoint] = {}

    async def run(self) -> None:
        """Follow orders until the channel ends. Raises BadFrame, OSError."""
        async for order in self._wire.received():
            await self._follow(order)
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def _follow(self, order: messages.Order) -> None:
        match order:
            case messages.Begin():
                self._begin(order)
            case messages.Open():
                try:
                    directory = self._wire.descriptor()
                except OSError as error:
                    await self._wire.send(messages.Opened(order.volume, str(error)))
                else:
                    await self._open(order, directory)
            case messages.Changed():
                self._change(order.volume, order.snapshot)
            case messages.Close():
                # What it ends takes its time, and the others' orders wait for nobody.
                self._later(self._close(order.volume))
            case messages.Token() | messages.NoToken():
                self._tokens.answered(order)
            case messages.Forget():
                self._tokens.forget(order.volume)
            case messages.Look():
                self._later(self._look(order))
            case messages.Ping():
                self._later(self._pong())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, order: messages.Begin) -> None:
        logging.getLogger().setLevel(order.log_level)
        names = SdsNames(order.svid_name, order.bundle_name, order.all_bundles_name, order.spiffe_validator)
        connections = order.connections if self._relay else min(order.connections, UNCOUNTED_CONNECTIONS)
        self._accounts = self._accounts_within(Limits(connections, order.calls, order.rate, order.burst))
        self._serving = Serving(names, self._shared, self._relay)
        self._connections.allow(order.all_connections)

    def _accounts_within(self, limits: Limits) -> Accounts:
        now = asyncio.get_running_loop().time
        self.weighing.accounts = Accounts(limits, self._connections.shut, now, self.weighing.changed)
        return self.weighing.accounts

    async def _open(self, order: messages.Open, directory: int) -> None:
        number = order.volume
        feed: Feed[UnreadIdentity] = Feed()
        self._feeds[number] = feed
        if order.snapshot is not None:
            self._change(number, order.snapshot)
        tokens = self._tokens.of(number) if order.jwt else None
        # By its uid: a pod that is made anew under the same name is another one, and both may be there.
        account = self._accounts.begin(number, order.uid)
        endpoint = self._serving.endpoint(feed, tokens, self._clock, self.counts, order.pod, account)
        error = ""
        try:
            try:
                # A path from here: it is short, and needs no view of /proc. Orders are followed one after the other.
                os.fchdir(directory)
                await endpoint.open(messages.name(number))
            finally:
                os.chdir("/")
                os.close(directory)
        except OSError as failure:
            error = failure.strerror or type(failure).__name__
            await endpoint.close()
            self._forget(number)
        else:
            self._endpoints[number] = endpoint
        await self._wire.send(messages.Opened(number, error))

    def _change(self, number: int, snapshot: messages.Snapshot) -> None:
        feed = self._feeds.get(number)
        if feed is None:
            return
        try:
            feed.publish(self._reader.identity(snapshot))
        except SvidError as error:
            _log.error("a snapshot cannot be read", extra={"error": str(error)})

    async def _close(self, number: int) -> None:
        endpoint = self._endpoints.pop(number, None)
        if endpoint is not None:
            await endpoint.close()
        self._forget(number)
        await self._wire.send(messages.Closed(number))

    def _forget(self, number: int) -> None:
        self._accounts.end(number)
        self._tokens.closed(number)
        self._feeds.pop(number, None)

    async def _pong(self) -> None:
        await self._wire.send(await self.weighing.look())
        await self._wire.send(messages.Pong())

    async def _look(self, order: messages.Look) -> None:
        endpoint = self._endpoints.get(order.volume)
        calls = endpoint.open_calls[:1024] if endpoint else []
        peers: list[tuple[int, int, int]] = []
        if endpoint is not None and order.peers:
            peers = await asyncio.to_thread(credentials_of, messages.name(order.volume))
        await self._wire.send(messages.Seen(order.request, tuple(calls), tuple(peers[:1024])))
