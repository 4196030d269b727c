"""An agent that moves pods early: on a machine that is busy a flood gets less than half a core, and next to nothing
where it gives way to all others; what is moved goes back while a test can wait for it."""

from pathlib import Path

_PROGRAM = """
import sys
if "podsvid" in sys.orig_argv:
    from agent.servers import load, served, warden
    load.Watch.__init__.__defaults__ = (0.05, 0.05)
    warden.SHARE_IN_QUARANTINE = 0.02
    (times,) = (each for each in served.Settings.__init__.__defaults__ if hasattr(each, "quiet"))
    for name, seconds in TIMES:
        object.__setattr__(times, name, seconds)
"""


def plant(folder: Path, **times: float) -> None:
    """Make `folder`, for agents that find modules there first. `times`: of agent.servers.quarantine.Times, others than
    usual."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_PROGRAM.replace("TIMES", repr([*times.items()])), encoding="utf-8")
