"""The agent as a child process, which ends when this one does."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from podsvid.quickstart.failure import AgentDied
from podsvid.quickstart.place import DRIVER
from podsvid.quickstart.settings import Settings

_NODE: Final = "quickstart"
_AGENT_STOP_TIMEOUT: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1


class Agent:
    """The agent's process. Construction starts it; ``stop`` may be called at any time, and again."""

    def __init__(self, settings: Settings) -> None:
        self._place = settings.place
        command = [sys.executable, "-m", "podsvid", "agent"]
        options = {
            "--trust-domain": settings.trust_domain,
            "--node-name": _NODE,
            "--driver-names": DRIVER,
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
            self._process = subprocess.Popen(  # noqa: S603 - a list made above, never shell text
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
    ours = str(Path(__file__).resolve().parents[2])
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
