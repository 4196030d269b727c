"""Debian's headless Chromium, told what to do by its own protocol (CDP): no driver and no package besides."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

from tests.processes import end

PROGRAMS = ("chromium-headless-shell", "chromium")
PATIENCE = 60.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--no-proxy-server"),
    *("--remote-debugging-port=0", "--disable-background-networking", "--disable-component-update"),
)


def program() -> str | None:
    """Its path; None where this host has none."""
    return next((found for each in PROGRAMS if (found := shutil.which(each))), None)


class Page:
    """One tab. What its console complains of is in `said`, what it asked for in `requests`."""

    def __init__(self, url: str) -> None:
        self._socket = websocket.create_connection(url, timeout=PATIENCE, suppress_origin=True)
        self._number = 0
        self.said: list[str] = []
        self.requests: list[str] = []
        for each in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{each}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": given}))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self._heard(told)

    def _heard(self, told: dict[str, Any]) -> None:
        given = told.get("params", {})
        if told["method"] == "Log.entryAdded":
            self.said.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        elif told["method"] == "Runtime.exceptionThrown":
            self.said.append(json.dumps(given["exceptionDetails"]))
        elif told["method"] == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])

    def open(self, url: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What it is in the page."""
        # By itself the protocol lets eval by where the page's policy does not.
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", **given, allowUnsafeEvalBlockedByCSP=False)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for it to be true; what is not there yet to be asked is not."""
        deadline = time.monotonic() + PATIENCE
        there = f"document.readyState === 'complete' && ({expression})"
        while not self.value(f"(() => {{ try {{ return Boolean({there}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < deadline, f"{expression}: {self.said} {self.value('document.body.innerText')}"
            # One look a frame, which it asks for in the page: here nothing is left for the browser to do.
            self.value("new Promise(requestAnimationFrame)")

    def press(self, key: str) -> None:
        """One key, with what it writes."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Of the window; and what the system prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> str:
        """A PNG, in base64."""
        return str(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with one tab, and nothing left of it."""
    found = program()
    assert found is not None
    with tempfile.TemporaryDirectory(prefix="pvb", ignore_cleanup_errors=True) as home:
        command = [found, *FLAGS, f"--user-data-dir={home}/profile", "about:blank"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
            start_new_session=True,
        )
        try:
            yield Page(_tab(Path(home) / "profile" / "DevToolsActivePort", process))
        finally:
            end(process)
            # Debian's program is a script, which leaves the browser when it is ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _tab(file: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and (lines := file.read_text().splitlines())):
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < deadline, "the browser does not start"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://127.0.0.1:{lines[0]}/json/list", timeout=PATIENCE
    ) as answer:
        return str(next(each for each in json.load(answer) if each["type"] == "page")["webSocketDebuggerUrl"])
