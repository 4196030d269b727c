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
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from podsvid.quickstart.kubelet import Pod, PodVolume, StandInKubelet

_DRIVER: Final = "csi.podsvid.io"
_NODE: Final = "quickstart"
_LOCK: Final = "quickstart.lock"
_LOG: Final = "agent.log"
_PREFIX: Final = "pv-"

# A socket address holds 107 bytes. The longest path that a socket is bound to below the directory:
_LONGEST_SOCKET: Final = f"/kubelet/plugins_registry/{_DRIVER}-{'0' * 8}-reg.sock"
_SOCKET_ADDRESS: Final = 107

_START_TIMEOUT: Final = 30.0
_CLEAN_UP_TIMEOUT: Final = 15.0
_AGENT_STOP_TIMEOUT: Final = 10.0
# How long a new run waits for the processes of a killed one to go: they die by signal, but not at once.
_LOCK_TIMEOUT: Final = 3.0

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_PR_SET_PDEATHSIG: Final = 1

_T = TypeVar("_T")


class QuickstartError(Exception):
    """The quickstart cannot go on; the text says why and, where there is one, the way out."""

    reason = "QUICKSTART_FAILED"


class AgentDied(QuickstartError):
    """The agent ended while it was needed."""

    reason = "AGENT_DIED"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``podsvid quickstart``."""
    parser.add_argument("--pods", type=_at_least(1), default=1, metavar="N", help="how many pods to play (default 1)")
    parser.add_argument("--ttl", default="30s", metavar="TIME", help="how long an X.509-SVID lives (default 30s)")
    parser.add_argument("--trust-domain", default="example.org", metavar="NAME", help="default example.org")
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="keep everything here and go on with the same authority next time (default: a temporary directory)",
    )
    parser.add_argument(
        "--exit-after",
        type=_at_least(0),
        metavar="N",
        help="stop when every pod has seen N rotations; 0 right after publishing (default: run until Ctrl-C)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of the live view")
    parser.add_argument("--without-mounts", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run until Ctrl-C, SIGTERM or ``--exit-after``; clean up; return the exit code (1: something broke)."""
    # Until the event loop takes the signals: SIGTERM unwinds, as Ctrl-C does, instead of leaving things behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if sys.platform != "linux":
            raise QuickstartError("mounts, namespaces and the agent itself need Linux")
        ttl = _seconds(args.ttl)
        with _directory(args.dir) as place:
            refusal = "--without-mounts" if args.without_mounts else _enter_private_mount_namespace(place.root)
            if refusal is not None:
                _announce_plain_directories(refusal)
            settings = _Settings(
                place=place,
                pods=args.pods,
                ttl=args.ttl,
                poll_interval=min(0.25, ttl / 16),
                trust_domain=args.trust_domain,
                exit_after=args.exit_after,
                mounts=refusal is None,
            )
            view = _json_view() if args.json else _human_view(settings)
            asyncio.run(_Quickstart(settings, view).run())
    except QuickstartError as error:
        print(f"podsvid quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Outside the event loop, so nothing runs; every context manager has cleaned up on the way here.
        return 0
    return 0


# --- what is shown --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """One X.509-SVID as a reader of the volume's files sees it."""

    spiffe_id: str
    trust_domain: str
    serial: str
    not_after: datetime
    at: datetime
    chain: bytes = field(repr=False)


@dataclass
class _PlayedPod:
    """One pod that the quickstart plays, and what its volume has shown so far."""

    pod: Pod
    volume: PodVolume
    target: Path
    link: Path
    current: _Seen
    rotations: int = 0
    history: deque[_Seen] = field(default_factory=lambda: deque(maxlen=4))


class _View(Protocol):
    """Where news go."""

    def published(self, pod: _PlayedPod) -> None: ...

    def rotated(self, pod: _PlayedPod) -> None: ...

    def tick(self, now: datetime) -> None: ...

    def close(self) -> None: ...


class _JsonView:
    """One JSON object a line."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def published(self, pod: _PlayedPod) -> None:
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

    def rotated(self, pod: _PlayedPod) -> None:
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
        except BrokenPipeError:
            # The reader has seen enough. What is buffered must not be written again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise _Stopped from None


class _PlainView:
    """A line for each piece of news: for output that is not a terminal."""

    def __init__(self, console: Console, commands: Callable[[_PlayedPod], tuple[str, ...]]) -> None:
        self._console = console
        self._commands = commands

    def published(self, pod: _PlayedPod) -> None:
        self._say(f"{pod.pod.namespace}/{pod.pod.name} published: {_one_line(pod.current)}")
        for command in self._commands(pod):
            self._say(f"    {command}")

    def rotated(self, pod: _PlayedPod) -> None:
        self._say(f"{pod.pod.namespace}/{pod.pod.name} rotated: {_one_line(pod.current)}")

    def tick(self, now: datetime) -> None:
        pass

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class _LiveView:
    """The live terminal view: redrawn in place whenever the volumes were looked at."""

    def __init__(self, console: Console, commands: Callable[[_PlayedPod], tuple[str, ...]]) -> None:
        from rich.live import Live

        self._commands = commands
        self._pods: list[_PlayedPod] = []
        # No refresh thread: this process draws when it has looked, and stays single-threaded.
        self._live: Live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def published(self, pod: _PlayedPod) -> None:
        self._pods.append(pod)

    def rotated(self, pod: _PlayedPod) -> None:
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

    def _panel(self, pod: _PlayedPod, now: datetime) -> RenderableType:
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


def _time_left(seen: _Seen, now: datetime, *, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    left = max((seen.not_after - now).total_seconds(), 0.0)
    whole = max((seen.not_after - seen.at).total_seconds(), 0.001)
    life = Table.grid(padding=(0, 1))
    life.add_row(ProgressBar(total=whole, completed=min(left, whole), width=width), f"{left:.0f} s")
    return life


def _json_view() -> Callable[[], _View]:
    return lambda: _JsonView(os.getpid())


def _human_view(settings: _Settings) -> Callable[[], _View]:
    def make() -> _View:
        from rich.console import Console

        # With mounts, only processes in this namespace see the volume by its path; this names the way in.
        way = f"/proc/{os.getpid()}/root" if settings.mounts else ""

        def commands(pod: _PlayedPod) -> tuple[str, ...]:
            volume = f"{way}{pod.link}"
            return (
                f"openssl x509 -in {volume}/tls.crt -noout -text",
                # Wrapped by the view instead, it would be two commands for the shell it is pasted into.
                f"SPIFFE_ENDPOINT_SOCKET=unix://{volume}/socket \\\n  {_own_command()} api fetch x509",
            )

        console = Console()
        redrawable = console.is_terminal and not console.is_dumb_terminal
        return _LiveView(console, commands) if redrawable else _PlainView(console, commands)

    return make


def _own_command() -> str:
    """How to call podsvid from another terminal, whose PATH may not have it."""
    beside = Path(sys.executable).with_name("podsvid")
    return str(beside) if shutil.which("podsvid") is None and beside.exists() else "podsvid"


def _one_line(seen: _Seen) -> str:
    return f"{seen.spiffe_id} serial {seen.serial} until {_rfc3339(seen.not_after)}"


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    place: _Place
    pods: int
    ttl: str
    poll_interval: float
    trust_domain: str
    exit_after: int | None
    mounts: bool


class _Quickstart:
    """Start the agent, publish the pods' volumes, watch them, take everything away."""

    def __init__(self, settings: _Settings, view: Callable[[], _View]) -> None:
        self._settings = settings
        self._make_view = view
        self._pods: list[_PlayedPod] = []
        # What may be mounted, whether or not it was ever seen to be.
        self._asked: list[tuple[Pod, PodVolume]] = []

    async def run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        agent = _Agent(self._settings)
        try:
            await self._live_with(agent, stop)
        finally:
            agent.stop()

    async def _live_with(self, agent: _Agent, stop: asyncio.Event) -> None:
        from podsvid.quickstart.kubelet import StandInKubelet

        async with StandInKubelet(self._settings.place.kubelet, driver=_DRIVER) as kubelet:
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
        from podsvid.quickstart.kubelet import StandInError

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
                raise _Stopped
            return task.result()

        view: _View | None = None
        try:
            await unless_over(kubelet.wait_registered(timeout=_START_TIMEOUT))
            view = self._make_view()
            for number in range(1, self._settings.pods + 1):
                played = await unless_over(self._publish(kubelet, number))
                self._pods.append(played)
                view.published(played)
            while not self._enough():
                view.tick(datetime.now(UTC))
                await unless_over(asyncio.sleep(self._settings.poll_interval))
                for played in self._pods:
                    if self._look(played):
                        view.rotated(played)
        except _Stopped:
            pass
        except StandInError as error:
            raise QuickstartError(f"{error}\n{self._settings.place.log_tail()}") from error
        finally:
            if view is not None:
                view.close()

    def _enough(self) -> bool:
        wanted = self._settings.exit_after
        return wanted is not None and all(played.rotations >= wanted for played in self._pods)

    async def _publish(self, kubelet: StandInKubelet, number: int) -> _PlayedPod:
        from podsvid.quickstart.kubelet import Pod, PodVolume

        pod = Pod("demo", f"pod-{number}", str(uuid.uuid4()), "app" if number == 1 else f"app-{number}")
        volume = PodVolume("spiffe")
        self._asked.append((pod, volume))
        target = await kubelet.publish_until(pod, volume, timeout=_START_TIMEOUT)
        link = self._settings.place.root / f"pod-{number}"
        # Relative: below /proc/<pid>/root an absolute link would lead out into the reader's own root.
        link.symlink_to(os.path.relpath(target, link.parent))
        chain, bundle = _read_volume(target)
        return _PlayedPod(pod, volume, target, link, _checked(chain, bundle, self._settings.trust_domain))

    def _look(self, played: _PlayedPod) -> bool:
        """Read the volume again; whether it holds another SVID than before."""
        chain, bundle = _read_volume(played.target)
        if chain == played.current.chain:
            # Not checked again: on a laptop that slept it may have expired, and the agent is about to act.
            return False
        played.current = _checked(chain, bundle, self._settings.trust_domain)
        played.history.append(played.current)
        played.rotations += 1
        return True

    async def _clean_up(self, kubelet: StandInKubelet, agent_lives: bool) -> None:
        from podsvid.quickstart.kubelet import StandInError

        if agent_lives:
            # A dead or stuck agent is no reason to stay: what it mounted is in this process' namespace, too.
            with contextlib.suppress(StandInError, TimeoutError):
                async with asyncio.timeout(_CLEAN_UP_TIMEOUT):
                    for pod, volume in self._asked:
                        await kubelet.unpublish_until(pod, volume)
        if self._settings.mounts:
            await kubelet.reboot()


class _Stopped(Exception):
    """Ctrl-C or SIGTERM."""


def _read_volume(target: Path) -> tuple[bytes, bytes]:
    """tls.crt and ca.crt of one generation of the volume's files. Raises QuickstartError."""
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            # One look at ..data is one generation, whatever is renamed meanwhile. It may be replaced and removed
            # before it is read; then the next one is there.
            generation = target / os.readlink(target / "..data")
            return (generation / "tls.crt").read_bytes(), (generation / "ca.crt").read_bytes()
    raise QuickstartError(f"there are no files in the volume {target}")


def _checked(certificates: bytes, authorities: bytes, trust_domain: str) -> _Seen:
    """What the files say, checked as a peer would check it. Raises QuickstartError."""
    from cryptography import x509

    from svid.bundle import TrustBundle
    from svid.errors import SvidError
    from svid.spiffeid import TrustDomain
    from svid.x509svid import check_x509_svid

    now = datetime.now(UTC)
    try:
        chain = tuple(x509.load_pem_x509_certificates(certificates))
        bundle = TrustBundle.from_pem(TrustDomain.parse(trust_domain), authorities)
        spiffe_id = check_x509_svid(chain, bundle, now)
    except (SvidError, ValueError) as error:
        raise QuickstartError(f"a volume holds an X.509-SVID that is not valid: {error}") from error
    return _Seen(
        spiffe_id=str(spiffe_id),
        trust_domain=str(spiffe_id.trust_domain),
        serial=f"{chain[0].serial_number:x}",
        not_after=chain[0].not_valid_after_utc,
        at=now,
        chain=certificates,
    )


# --- the agent ------------------------------------------------------------------------------------------------


class _Agent:
    """The agent's process. Construction starts it; ``stop`` may be called at any time, and again."""

    def __init__(self, settings: _Settings) -> None:
        self._place = settings.place
        command = [sys.executable, "-m", "podsvid", "agent"]
        options = {
            "--trust-domain": settings.trust_domain,
            "--node-name": _NODE,
            "--driver-names": _DRIVER,
            "--kubelet-root": str(self._place.kubelet),
            "--state-dir": str(self._place.state),
            "--run-dir": str(self._place.run),
            "--authority": "embedded",
            "--x509-ttl": settings.ttl,
            "--metrics-listen": "off",
            "--log-format": "text",
        }
        for option, value in options.items():
            command += [option, value]
        if not settings.mounts:
            command.append("--volumes-without-mounts")
        with self._place.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A group of its own: Ctrl-C in the terminal is for this process, which then stops the agent.
                process_group=0,
                # The lock is free again when both are gone, not when the first is.
                pass_fds=(self._place.lock,),
                # Safe: this process has one thread.
                preexec_fn=_die_with(os.getpid(), ctypes.CDLL(None, use_errno=True)),
            )

    async def wait_ended(self) -> None:
        """Wait for the process to end; always raises AgentDied, with the last lines of its log."""
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(self._process.pid)
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        code = self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        raise AgentDied(f"the agent ended {how}\n{self._place.log_tail()}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for an agent that does not end within ten seconds."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_AGENT_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    # The agent is to run as the options say, not as a setting in the user's shell has it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PODSVID_")}
    # Found by the child wherever this module was found, installed or not.
    ours = str(Path(__file__).resolve().parent.parent)
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = ours if not inherited else f"{ours}{os.pathsep}{inherited}"
    return environment


def _die_with(parent: int, libc: ctypes.CDLL) -> Callable[[], None]:
    """For the child between fork and exec: be killed when the process that started it ends, however it ends."""

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it ended before the line above

    return prepare


# --- the mount namespace --------------------------------------------------------------------------------------


def _enter_private_mount_namespace(probe: Path) -> str | None:
    """Move this process into a mount namespace of its own, where it may mount.

    Returns why the host does not allow that; then the process is where it was. ``probe`` is a directory to try
    a mount on.
    """
    refusals = []
    # Tried in a child first: what unshare did cannot be taken back when a later step is refused, as on hosts
    # that hand out user namespaces but allow nothing in them.
    for flags in (_CLONE_NEWNS, _CLONE_NEWUSER | _CLONE_NEWNS):
        if flags == _CLONE_NEWNS and os.geteuid() != 0:
            continue
        refusal = _tried_in_a_child(flags, probe)
        if refusal is None:
            _unshare(flags)
            return None
        refusals.append(refusal)
    return f"this host allows no mounts here ({'; '.join(refusals)})"


def _announce_plain_directories(why: str) -> None:
    print(
        f"podsvid quickstart: {why}: going on WITHOUT MOUNTS. The volumes are plain directories on this disk, "
        "private keys included, until the end. A real node never does that.",
        file=sys.stderr,
        flush=True,
    )


def _tried_in_a_child(flags: int, probe: Path) -> str | None:
    """Why entering a namespace, or a tmpfs mount in it, is refused; None if it works."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _unshare(flags)
            _libc_call("mount", b"podsvid", os.fsencode(probe), b"tmpfs", ctypes.c_ulong(0), b"size=64k")
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        refusal = answer.read().decode(errors="replace")
    os.waitpid(child, 0)
    return refusal or None


def _unshare(flags: int) -> None:
    user, group = os.geteuid(), os.getegid()
    _libc_call("unshare", flags)
    if flags & _CLONE_NEWUSER:
        # The kernel takes a group mapping from an ordinary user only when setgroups is given up.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    # Slave, not private: nothing of ours reaches the host, and the host can still unmount what is its own.
    _libc_call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None)


def _libc_call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")


# --- the directory --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """The directory that a run has for itself; ``lock`` is the descriptor that says so."""

    root: Path
    lock: int

    @property
    def kubelet(self) -> Path:
        return self.root / "kubelet"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / _LOG

    def log_tail(self, lines: int = 20) -> str:
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join([f"--- the end of {self.log}", *text.splitlines()[-lines:]])

    def clear(self) -> None:
        """Remove all but the authority, the log and the lock: what one run leaves means nothing to the next."""
        for link in self.root.glob("pod-*"):
            if link.is_symlink():
                link.unlink()
        for directory in (self.kubelet, self.run):
            if directory.exists():
                shutil.rmtree(directory)


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[_Place]:
    """The directory to run in: locked, and clean. A temporary one is removed at the end."""
    if wanted is None:
        _remove_leftovers()
        root = _temporary_directory()
    else:
        root = Path(os.path.realpath(wanted))
        _refuse_long_path(root)
    with _held(root) as place:
        for directory in (place.kubelet, place.state, place.run):
            directory.mkdir(mode=0o700, exist_ok=True)
        try:
            yield place
        finally:
            place.clear()
            if wanted is None:
                shutil.rmtree(root)


@contextlib.contextmanager
def _held(root: Path) -> Iterator[_Place]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _LOCK).exists() and any(root.iterdir()):
            # It will be cleared: better ask than clear somebody's home.
            raise QuickstartError(f"{root} is not empty and was not made by quickstart; choose another --dir")
        lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QuickstartError(f"cannot use {root}: {error.strerror}") from error
    try:
        if not _locked(lock, _LOCK_TIMEOUT):
            raise QuickstartError(f"another quickstart runs in {root}; choose another --dir")
        place = _Place(root, lock)
        place.clear()
        yield place
    finally:
        os.close(lock)


def _locked(descriptor: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _temporary_directory() -> Path:
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        root = Path(os.path.realpath(parent))
        if _fits(root / f"{_PREFIX}00000000"):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    raise QuickstartError(f"{tempfile.gettempdir()} is too long a path for sockets; choose a short --dir")


def _remove_leftovers() -> None:
    """Remove the temporary directories of runs that were killed: they hold an authority's key."""
    for root in Path(os.path.realpath(tempfile.gettempdir())).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(root / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                status = os.fstat(lock)
                # A minute: a run that has just made its directory may not have locked it yet.
                ours = status.st_uid == os.geteuid() and stat.S_ISREG(status.st_mode)
                if ours and time.time() - status.st_mtime > 60 and _locked(lock, 0):
                    shutil.rmtree(root)
            finally:
                os.close(lock)


def _fits(root: Path) -> bool:
    return len(os.fsencode(root)) + len(_LONGEST_SOCKET) <= _SOCKET_ADDRESS


def _refuse_long_path(root: Path) -> None:
    if not _fits(root):
        most = _SOCKET_ADDRESS - len(_LONGEST_SOCKET)
        raise QuickstartError(
            f"{root} is too long: the paths of Unix sockets in it would exceed {_SOCKET_ADDRESS} bytes; "
            f"choose a --dir of at most {most} bytes"
        )


# --- the command line -----------------------------------------------------------------------------------------


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    parse.__name__ = "int"  # argparse names it when int() refuses
    return parse


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if match is None or float(match[1]) == 0:
        raise QuickstartError(f"--ttl {text!r} is not a duration such as 30s, 5m or 1h")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]]).total_seconds()
