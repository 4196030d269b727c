"""``podsvid quickstart``: a real agent, on a laptop, without root and without Kubernetes.

The agent runs as a child process with an embedded authority; this process plays the kubelet over the real
registration and CSI sockets and shows what happens in the volumes. All mounts are made in a mount namespace that
holds only these two processes, so however they end, no mount outlives them.

In the directory (``--dir``):

    kubelet/      the kubelet's root: pods/, plugins/, plugins_registry/
    state/        the agent's state: the authority. The only thing kept from one run to the next
    run/          the agent's run directory
    pod-1 ...     links to the volumes: short names for paths too long for a socket address
    agent.log     what the agent says
    quickstart.lock  held by whoever runs here, agent included

This module is imported to build the command line, so everything heavy is imported where it is used; that also
keeps the process single-threaded until it is in its namespace, as the kernel demands.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from podsvid.interrupts import unwinding
from podsvid.outcome import WrongUsage
from podsvid.quickstart.agent import Agent
from podsvid.quickstart.failure import QuickstartError, Stopped
from podsvid.quickstart.namespace import enter_private_mount_namespace
from podsvid.quickstart.place import DRIVER, Place, directory
from podsvid.quickstart.reading import PlayedPod, first_look
from podsvid.quickstart.settings import Settings
from podsvid.quickstart.views import View, human_view, json_view
from runtime import durations
from runtime.stopping import asked_to_stop

if TYPE_CHECKING:
    from podsvid.console.serving import Console
    from podsvid.quickstart.kubelet import StandInKubelet
    from podsvid.quickstart.pods import Pod, PodVolume

_START_TIMEOUT: Final = 30.0
_CLEAN_UP_TIMEOUT: Final = 15.0
# More of them is a mistake: kubelet takes 110.
_MOST_PODS: Final = 500
_MOST_ROTATIONS: Final = 1_000_000
_T = TypeVar("_T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``podsvid quickstart``."""
    parser.add_argument(
        "--pods", type=_between(1, _MOST_PODS), default=2, metavar="N", help="how many pods to play (default 2)"
    )
    parser.add_argument("--ttl", default="30s", metavar="DURATION", help="how long an X.509-SVID lives (default 30s)")
    parser.add_argument(
        "--trust-domain", type=_trust_domain, default="example.org", metavar="NAME", help="default example.org"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="keep everything here and go on with the same authority next time (default: a temporary directory)",
    )
    parser.add_argument(
        "--exit-after",
        type=_between(0, _MOST_ROTATIONS),
        metavar="N",
        help="stop when every pod has seen N rotations; 0 right after publishing (default: run until Ctrl-C)",
    )
    parser.add_argument(
        "--keystores", action="store_true", help="add Java's keystores and their password to each volume"
    )
    parser.add_argument("--web", action="store_true", help="show it in a browser as well: prints the page's URL")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of the live view")
    parser.add_argument("--without-mounts", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run until Ctrl-C, SIGTERM or ``--exit-after``; clean up; return the exit code. Raises QuickstartError."""
    if sys.platform != "linux":
        raise QuickstartError("mounts, namespaces and the agent itself need Linux")
    ttl = _seconds(args.ttl)
    # From here on there is something to clean up. Outside the event loop nothing runs: every context manager has
    # cleaned up on the way here.
    with contextlib.suppress(KeyboardInterrupt), unwinding(), directory(args.dir) as place:
        refusal = "--without-mounts" if args.without_mounts else enter_private_mount_namespace(place.root)
        if refusal is not None:
            _announce_plain_directories(refusal)
        settings = Settings(
            place=place,
            pods=args.pods,
            ttl=args.ttl,
            poll_interval=min(0.25, ttl / 16),
            trust_domain=args.trust_domain,
            exit_after=args.exit_after,
            keystores=args.keystores,
            mounts=refusal is None,
        )
        web = _web(place) if args.web else None
        url = web.url if web is not None else ""
        view = json_view(settings.mounts, url) if args.json else human_view(settings.mounts, url)
        asyncio.run(_Quickstart(settings, view, web or contextlib.nullcontext()).run())
    if not args.json:
        print(_removed(place, kept=args.dir is not None))
    return 0


class _Quickstart:
    """Start the agent, publish the pods' volumes, watch them, take everything away."""

    def __init__(
        self, settings: Settings, view: Callable[[], View], web: contextlib.AbstractContextManager[object]
    ) -> None:
        self._settings = settings
        self._web = web
        self._make_view = view
        self._pods: list[PlayedPod] = []
        # What may be mounted, whether or not it was ever seen to be.
        self._asked: list[tuple[Pod, PodVolume]] = []

    async def run(self) -> None:
        stop = asked_to_stop()
        agent = Agent(self._settings)
        try:
            # Not before: the agent is forked by a process of one thread.
            with self._web:
                await self._live_with(agent, stop)
        finally:
            agent.stop()

    async def _live_with(self, agent: Agent, stop: asyncio.Event) -> None:
        from podsvid.quickstart.kubelet import StandInKubelet

        async with StandInKubelet(self._settings.place.kubelet, driver=DRIVER) as kubelet:
            ended = asyncio.create_task(agent.wait_ended(), name="the agent's end")
            stopped = asyncio.create_task(stop.wait(), name="the signal to stop")
            try:
                await self._play(kubelet, ended, stopped)
            finally:
                agent_lives = not ended.done()
                ended.cancel()
                stopped.cancel()
                await self._clean_up(kubelet, agent_lives)

    async def _play(self, kubelet: StandInKubelet, ended: asyncio.Task[None], stopped: asyncio.Task[bool]) -> None:
        """Everything between start and clean-up. Returns when it is time to stop; raises AgentDied."""
        from podsvid.quickstart.errors import StandInError

        async def unless_over(work: Awaitable[_T]) -> _T:
            task = asyncio.ensure_future(work)
            await asyncio.wait((task, ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                ended.result()
            if stopped.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise Stopped
            return task.result()

        view: View | None = None
        try:
            view = self._make_view()
            await unless_over(kubelet.wait_registered(timeout=_START_TIMEOUT))
            for number in range(1, self._settings.pods + 1):
                played = await unless_over(self._publish(kubelet, number))
                self._pods.append(played)
                view.published(played)
            await unless_over(self._speak(view, stranger=True))
            while not self._enough():
                view.tick(datetime.now(UTC))
                await unless_over(asyncio.sleep(self._settings.poll_interval))
                rotated = [played for played in self._pods if played.look_again(self._settings.trust_domain)]
                for played in rotated:
                    view.rotated(played)
                if any(played in self._pods[:2] for played in rotated):
                    await unless_over(self._speak(view))
        except Stopped:
            pass
        except StandInError as error:
            raise QuickstartError(f"{error}\n{self._settings.place.log_tail()}") from error
        finally:
            if view is not None:
                view.close()

    async def _speak(self, view: View, *, stranger: bool = False) -> None:
        """Let the first two pods speak to each other; at first a stranger tries it as well."""
        from podsvid.quickstart.talking import strangers_refusal, talk

        if len(self._pods) < 2:
            return
        client, server = self._pods[:2]
        ids = client.current.spiffe_id, server.current.spiffe_id
        view.spoke(client, server, await asyncio.to_thread(talk, client.target, server.target, *ids))
        if stranger:
            why = await asyncio.to_thread(strangers_refusal, server.target, ids[0])
            view.refused(server, ids[0], why)

    def _enough(self) -> bool:
        wanted = self._settings.exit_after
        return wanted is not None and all(played.rotations >= wanted for played in self._pods)

    async def _publish(self, kubelet: StandInKubelet, number: int) -> PlayedPod:
        from podsvid.quickstart.pods import Pod, PodVolume

        pod = Pod("demo", f"pod-{number}", str(uuid.uuid4()), "app" if number == 1 else f"app-{number}")
        volume = PodVolume("spiffe", {"keystores": "pkcs12"} if self._settings.keystores else {})
        self._asked.append((pod, volume))
        target = await kubelet.publish_until(pod, volume, timeout=_START_TIMEOUT)
        link = self._settings.place.root / f"pod-{number}"
        # Relative: below /proc/<pid>/root an absolute link would lead out into the reader's own root.
        link.symlink_to(os.path.relpath(target, link.parent))
        return first_look(pod, target, link, self._settings.trust_domain)

    async def _clean_up(self, kubelet: StandInKubelet, agent_lives: bool) -> None:
        from podsvid.quickstart.errors import StandInError

        if agent_lives:
            # A dead or stuck agent is no reason to stay: what it mounted is in this process' namespace, too.
            with contextlib.suppress(StandInError, TimeoutError):
                async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
                    for pod, volume in self._asked:
                        await kubelet.unpublish_until(pod, volume)
        if self._settings.mounts:
            await kubelet.reboot()


def _web(place: Place) -> Console:
    """Raises OSError."""
    from agent.admin_socket import SOCKET
    from podsvid.console.on_node import OnNode
    from podsvid.console.serving import Console

    # Every pod's bundle has the authority; the first pod is there before any other, and as long as any.
    return Console(OnNode(str(place.run / SOCKET), "quickstart", bundle=place.root / "pod-1" / "ca.crt"))


def _removed(place: Place, *, kept: bool) -> str:
    """What is left on the disk, after a look."""
    if kept:
        names = ", ".join(sorted(each.name for each in place.root.iterdir()))
        return f"The volumes are removed; the authority stays for the next time: {place.root} has {names}."
    return (
        f"{place.root} could not be removed."
        if place.root.exists()
        else f"Everything is removed: {place.root} is gone."
    )


def _announce_plain_directories(why: str) -> None:
    print(
        f"podsvid quickstart: {why}: going on WITHOUT MOUNTS. The volumes are plain directories on this disk, "
        "private keys included, until the end. A real node never does that.",
        file=sys.stderr,
        flush=True,
    )


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        digits = text if text.isascii() and text.isdigit() and len(text) < 10 else "-1"
        if not least <= int(digits) <= most:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number from {least} to {most}")
        return int(digits)

    return parse


def _trust_domain(text: str) -> str:
    from runtime.settings import trust_domain

    try:
        trust_domain(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not {error}") from None
    return text


def _seconds(text: str) -> float:
    try:
        return durations.parse(text, durations.MIN_TTL, durations.MAX_TTL).total_seconds()
    except durations.InvalidDuration as error:
        raise WrongUsage(f"--ttl {text!r} is not {error}") from None
