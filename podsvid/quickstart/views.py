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

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


class View(Protocol):
    """Where news go."""

    def published(self, pod: PlayedPod) -> None: ...

    def rotated(self, pod: PlayedPod) -> None: ...

    def tick(self, now: datetime) -> None: ...

    def close(self) -> None: ...


class JsonView:
    """One JSON object a line."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def published(self, pod: PlayedPod) -> None:
        self._print(
            event="published",
            pod=f"{pod.pod.namespace}/{pod.pod.name}",
            spiffe_id=pod.current.spiffe_id,
            trust_domain=pod.current.trust_domain,
            volume=str(pod.link),
            socket=str(pod.link / "socket"),
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

    def __init__(self, console: Console, commands: Callable[[PlayedPod], tuple[str, ...]]) -> None:
        self._console = console
        self._commands = commands

    def published(self, pod: PlayedPod) -> None:
        self._say(f"{pod.pod.namespace}/{pod.pod.name} published: {_one_line(pod.current)}")
        for command in self._commands(pod):
            self._say(f"    {command}")

    def rotated(self, pod: PlayedPod) -> None:
        self._say(f"{pod.pod.namespace}/{pod.pod.name} rotated: {_one_line(pod.current)}")

    def tick(self, now: datetime) -> None:
        pass

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class LiveView:
    """The live terminal view: redrawn in place whenever the volumes were looked at."""

    def __init__(self, console: Console, commands: Callable[[PlayedPod], tuple[str, ...]]) -> None:
        from rich.live import Live

        self._commands = commands
        self._pods: list[PlayedPod] = []
        # No refresh thread: this process draws when it has looked, and stays single-threaded.
        self._live: Live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def published(self, pod: PlayedPod) -> None:
        self._pods.append(pod)

    def rotated(self, pod: PlayedPod) -> None:
        pass

    def tick(self, now: datetime) -> None:
        self._live.update(self._draw(now), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _draw(self, now: datetime) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        # A panel each while they fit a screen, a line each when there are many.
        parts: list[RenderableType]
        parts = [self._panel(pod, now) for pod in self._pods] if len(self._pods) < 3 else [self._table(now)]
        if self._pods:
            parts.append(Text("Try in another terminal:", style="bold"))
            parts.extend(
                Text(f"  {command}", style="cyan", overflow="fold") for command in self._commands(self._pods[0])
            )
        parts.append(Text("Ctrl-C takes everything away again.", style="dim"))
        return Group(*parts)

    def _table(self, now: datetime) -> RenderableType:
        from rich.table import Table

        table = Table()
        for heading in ("pod", "SPIFFE ID", "serial", "time left", "rotations", "volume"):
            table.add_column(heading, overflow="fold")
        for pod in self._pods:
            table.add_row(
                pod.pod.name,
                pod.current.spiffe_id,
                f"{pod.current.serial[:8]}...",
                _time_left(pod.current, now, width=16),
                str(pod.rotations),
                str(pod.link),
            )
        return table

    def _panel(self, pod: PlayedPod, now: datetime) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        seen = pod.current
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        facts.add_row("SPIFFE ID", Text(seen.spiffe_id, style="bold green"))
        facts.add_row("volume", str(pod.target))
        facts.add_row("socket", str(pod.link / "socket"))
        facts.add_row("serial", seen.serial)
        facts.add_row("expires", _rfc3339(seen.not_after))
        facts.add_row("time left", _time_left(seen, now, width=40))
        facts.add_row("rotations", str(pod.rotations))
        news = [
            Text(f"{new.at.astimezone():%H:%M:%S} rotated to {new.serial}", style="dim", overflow="ellipsis")
            for new in pod.history
        ]
        return Panel(Group(facts, *news), title=f"pod {pod.pod.namespace}/{pod.pod.name}", title_align="left")


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


def json_view() -> Callable[[], View]:
    return lambda: JsonView(os.getpid())


def human_view(mounts: bool) -> Callable[[], View]:
    def make() -> View:
        from rich.console import Console

        # With mounts, only processes in this namespace see the volume by its path; this names the way in.
        way = f"/proc/{os.getpid()}/root" if mounts else ""

        def commands(pod: PlayedPod) -> tuple[str, ...]:
            volume = f"{way}{pod.link}"
            return (
                f"openssl x509 -in {volume}/tls.crt -noout -text",
                # Wrapped by the view instead, it would be two commands for the shell it is pasted into.
                f"SPIFFE_ENDPOINT_SOCKET=unix://{volume}/socket \\\n  {_own_command()} api fetch x509",
            )

        console = Console()
        redrawable = console.is_terminal and not console.is_dumb_terminal
        return LiveView(console, commands) if redrawable else PlainView(console, commands)

    return make


def _own_command() -> str:
    """How to call podsvid from another terminal, whose PATH may not have it."""
    beside = Path(sys.executable).with_name("podsvid")
    return str(beside) if shutil.which("podsvid") is None and beside.exists() else "podsvid"
