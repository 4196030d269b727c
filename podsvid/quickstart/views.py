"""Where news of the played pods go: lines of JSON, lines for people, or a live view."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from podsvid.outcome import OutputFailed
from podsvid.quickstart.failure import Stopped
from podsvid.quickstart.reading import PlayedPod, Seen
from podsvid.quickstart.talking import Talk

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


class View(Protocol):
    """Where news go."""

    def published(self, pod: PlayedPod) -> None: ...

    def rotated(self, pod: PlayedPod) -> None: ...

    def spoke(self, client: PlayedPod, server: PlayedPod, talk: Talk) -> None: ...

    def refused(self, server: PlayedPod, spiffe_id: str, why: str) -> None: ...

    def tick(self, now: datetime) -> None: ...

    def close(self) -> None: ...


class JsonView:
    """One JSON object a line."""

    def __init__(self, pid: int, way: str, url: str = "") -> None:
        self._pid = pid
        self._way = way
        if url:
            self._print(event="web", url=url)

    def published(self, pod: PlayedPod) -> None:
        self._print(
            event="published",
            pod=f"{pod.pod.namespace}/{pod.pod.name}",
            spiffe_id=pod.current.spiffe_id,
            trust_domain=pod.current.trust_domain,
            volume=f"{self._way}{pod.link}",
            socket=f"{self._way}{pod.link / 'socket'}",
            serial=pod.current.serial,
            not_after=_rfc3339(pod.current.not_after),
            pid=self._pid,
            target_path=str(pod.target),
        )

    def rotated(self, pod: PlayedPod) -> None:
        self._print(
            event="rotated",
            pod=f"{pod.pod.namespace}/{pod.pod.name}",
            spiffe_id=pod.current.spiffe_id,
            serial=pod.current.serial,
            not_after=_rfc3339(pod.current.not_after),
            rotation=pod.rotations,
        )

    def spoke(self, client: PlayedPod, server: PlayedPod, talk: Talk) -> None:
        self._print(
            event="spoke",
            client=_name(client),
            server=_name(server),
            client_seen={"spiffe_id": talk.client.spiffe_id, "serial": talk.client.serial},
            server_seen={"spiffe_id": talk.server.spiffe_id, "serial": talk.server.serial},
        )

    def refused(self, server: PlayedPod, spiffe_id: str, why: str) -> None:
        self._print(event="refused", server=_name(server), claimed=spiffe_id, why=why)

    def tick(self, now: datetime) -> None:
        pass

    def close(self) -> None:
        pass

    def _print(self, **line: object) -> None:
        try:
            print(json.dumps(line), flush=True)
        except OutputFailed as error:
            if not error.nobody_reads:
                raise
            # The reader has seen enough. What is buffered must not be written again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Stopped from None


class PlainView:
    """A line for each piece of news: for output that is not a terminal."""

    def __init__(self, console: Console, commands: Callable[[PlayedPod], tuple[str, ...]], url: str = "") -> None:
        self._console = console
        self._commands = commands
        self._told = False
        self._say(f"watch it in a browser: {url or f'{_own_command()} quickstart --web'}")

    def published(self, pod: PlayedPod) -> None:
        self._say(f"{pod.pod.namespace}/{pod.pod.name} published: {_one_line(pod.current)}")
        # Once, as in a terminal: of many pods the same two commands would hide all else.
        if not self._told:
            self._told = True
            self._say("try in another terminal:")
            for command in self._commands(pod):
                self._say(f"    {command}")

    def rotated(self, pod: PlayedPod) -> None:
        self._say(f"{pod.pod.namespace}/{pod.pod.name} rotated: {_one_line(pod.current)}")

    def spoke(self, client: PlayedPod, server: PlayedPod, talk: Talk) -> None:
        for line in _spoken(client, server, talk):
            self._say(line)

    def refused(self, server: PlayedPod, spiffe_id: str, why: str) -> None:
        self._say(_refusal(server, spiffe_id, why))

    def tick(self, now: datetime) -> None:
        pass

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class LiveView:
    """The live terminal view: redrawn in place whenever the volumes were looked at, and never longer than it."""

    def __init__(self, console: Console, commands: Callable[[PlayedPod], tuple[str, ...]], url: str = "") -> None:
        from rich.live import Live

        self._url = url
        self._console = console
        self._commands = commands
        self._pods: list[PlayedPod] = []
        self._spoken: tuple[str, ...] = ()
        self._refused = ""
        # No refresh thread: this process draws when it has looked, and stays single-threaded.
        self._live: Live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()
        # An agent takes its time to start: who waits is told for what.
        self.tick(datetime.now(UTC))

    def published(self, pod: PlayedPod) -> None:
        self._pods.append(pod)
        if len(self._pods) <= self._console.height:
            self.tick(datetime.now(UTC))

    def rotated(self, pod: PlayedPod) -> None:
        pass

    def spoke(self, client: PlayedPod, server: PlayedPod, talk: Talk) -> None:
        self._spoken = (f"{_rfc3339(datetime.now(UTC))}, mutual TLS:", *_spoken(client, server, talk))

    def refused(self, server: PlayedPod, spiffe_id: str, why: str) -> None:
        self._refused = _refusal(server, spiffe_id, why)

    def tick(self, now: datetime) -> None:
        self._live.update(self._draw(now, going_on=True), refresh=True)

    def close(self) -> None:
        # What stays on the screen is what was so in the end: no command that finds nothing any more.
        self._live.update(self._draw(datetime.now(UTC), going_on=False), refresh=True)
        self._live.stop()

    def _draw(self, now: datetime, *, going_on: bool) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        below: list[RenderableType] = []
        if self._spoken:
            below.append(Text(self._spoken[0], style="bold"))
            said = [line for line in (*self._spoken[1:], self._refused) if line]
            below += [Padding(Text(line, overflow="fold"), (0, 0, 0, 2), expand=False) for line in said]
        if going_on and not self._pods:
            below.append(Text("Starting an agent, and publishing the first volume ..."))
        elif going_on:
            below.append(Text("Try in another terminal:", style="bold"))
            below += [Text(f"  {each}", style="cyan", overflow="fold") for each in self._commands(self._pods[0])]
        if going_on and self._url:
            below.append(Text("Watch it in a browser:", style="bold"))
            below.append(Text(f"  {self._url}", style="cyan", overflow="fold"))
        if going_on and not self._url:
            below.append(Text(f"{_own_command()} quickstart --web shows it in a browser as well.", style="dim"))
        below.append(Text("Ctrl-C takes everything away again." if going_on else "Stopped.", style="dim"))
        # The line below the last one is the cursor's.
        room = self._console.height - 1 - len(self._console.render_lines(Group(*below), pad=False))
        above: list[RenderableType] = []
        for number, pod in enumerate(self._pods):
            block = self._pod(pod, now, going_on=going_on)
            more = len(self._pods) - number
            height = len(self._console.render_lines(block, pad=False))
            if height > room - (more > 1):
                above.append(Text(f"and {more} more pods", style="dim"))
                break
            above.append(block)
            room -= height
        return Group(*above, *below)

    def _pod(self, pod: PlayedPod, now: datetime, *, going_on: bool) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        seen = pod.current
        life = Table.grid(padding=(0, 1))
        # What stays on the screen is read later: how long it has left would not be true any more.
        left = _time_left(seen, now, width=16) if going_on else Text(f"valid until {_rfc3339(seen.not_after)}")
        times = "1 rotation" if pod.rotations == 1 else f"{pod.rotations} rotations"
        life.add_row(Text(f"  serial {seen.serial[:16]}…, {times},"), left)
        return Group(Text.assemble(f"{_name(pod)} ", (seen.spiffe_id, "bold green"), overflow="fold"), life)


def _name(pod: PlayedPod) -> str:
    return f"{pod.pod.namespace}/{pod.pod.name}"


def _spoken(client: PlayedPod, server: PlayedPod, talk: Talk) -> tuple[str, str]:
    names = client.pod.name, server.pod.name
    return (
        f"{names[0]} met {talk.server.spiffe_id}, serial {talk.server.serial[:8]}…",
        f"{names[1]} met {talk.client.spiffe_id}, serial {talk.client.serial[:8]}…",
    )


def _refusal(server: PlayedPod, spiffe_id: str, why: str) -> str:
    return f"{server.pod.name} refused a stranger as {spiffe_id}: {why}"


def _time_left(seen: Seen, now: datetime, *, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    left = max((seen.not_after - now).total_seconds(), 0.0)
    whole = max((seen.not_after - seen.at).total_seconds(), 0.001)
    life = Table.grid(padding=(0, 1))
    life.add_row(ProgressBar(total=whole, completed=min(left, whole), width=width), f"{left:.0f} s")
    return life


def _one_line(seen: Seen) -> str:
    return f"{seen.spiffe_id} serial {seen.serial} until {_rfc3339(seen.not_after)}"


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_view(mounts: bool, url: str) -> Callable[[], View]:
    """`url`: of the page that shows the same; empty where there is none."""
    return lambda: JsonView(os.getpid(), _way(mounts), url)


def _way(mounts: bool) -> str:
    """What leads into the volumes: with mounts, only processes in this namespace see them by their paths."""
    return f"/proc/{os.getpid()}/root" if mounts else ""


def human_view(mounts: bool, url: str) -> Callable[[], View]:
    """The same, for people."""

    def make() -> View:
        from rich.console import Console

        way = _way(mounts)

        def commands(pod: PlayedPod) -> tuple[str, ...]:
            volume = f"{way}{pod.link}"
            return (
                f"openssl x509 -in {volume}/tls.crt -noout -text",
                # Wrapped by the view instead, it would be two commands for the shell it is pasted into.
                f"SPIFFE_ENDPOINT_SOCKET=unix://{volume}/socket \\\n  {_own_command()} api fetch x509",
            )

        console = Console()
        redrawable = console.is_terminal and not console.is_dumb_terminal
        return LiveView(console, commands, url) if redrawable else PlainView(console, commands, url)

    return make


def _own_command() -> str:
    """How to call podsvid from another terminal, whose PATH may not have it."""
    beside = Path(sys.executable).with_name("podsvid")
    return str(beside) if shutil.which("podsvid") is None and beside.exists() else "podsvid"
