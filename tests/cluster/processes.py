"""The cluster's own processes: started with a log each, watched, killed and stopped for a test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.go_tools import path_of
from tests.processes import STOP_SECONDS, end

from .host import SEARCH_PATH, ClusterError
from .layout import MARK, Layout
from .programs import PROGRAMS


class Processes:
    """The components that run, by name."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self) -> dict[str, str]:
        """The environment for a process that must not outlive the cluster; without this project's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PODSVID_")}
        # containerd looks for its shim, and the shim for runc, by name: the host may have others.
        ours = dict.fromkeys(str(path_of(each).parent) for each in PROGRAMS)
        return {**kept, "PATH": os.pathsep.join([*ours, SEARCH_PATH]), MARK: str(self._layout.directory)}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a component; what it prints is appended to its log."""
        with (self._layout.logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=self.environment(),
                cwd=self._layout.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C must reach this process only: the order of ending matters.
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise ClusterError, with its last words, if one has ended."""
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                log = (self._layout.logs / f"{name}.log").read_text(errors="replace")
                raise ClusterError(f"{name} ended with {code}:\n{log[-3000:]}")

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Stop a component (SIGSTOP) while inside: it neither answers nor refuses."""
        process = self._running[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    @contextmanager
    def killed(self, name: str) -> Iterator[None]:
        """Kill a component (kill -9) and start it again when left, as a node's supervisor does."""
        process = self._running[name]
        process.kill()
        process.wait()
        try:
            yield
        finally:
            self.start(name, [str(argument) for argument in process.args])  # type: ignore[union-attr]

    def end(self, names: Iterable[str]) -> None:
        """End these in order, those that run."""
        for name in names:
            process = self._running.pop(name, None)
            if process is not None:
                end(process)

    def forget(self, *, dead: bool) -> None:
        """Give all of them up: they run on, or are dead and only waited for."""
        for process in self._running.values() if dead else ():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_SECONDS)
        self._running.clear()
