"""`python -m signer.clouds.child`: has one cloud's library loaded, and asks by it what comes in.

A process of its own: a library may hang, and an answer come a byte at a time, for longer than any of its timeouts says.
Frames come in over standard input, which is a socket, and answers go back: the first says which service (cloud, name,
region), each other one a method, its parameters and how long there is, bytes as {"bytes": hex}. What comes back is
{"answer": {...}}, or {"failed": kind, "code": the cloud's, "text": for people}.
"""

import json
import os
import socket
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from runtime.child import harden, read_frame, write_frame
from signer.clouds import aws, google
from signer.clouds.process import Failed


class Library(Protocol):
    """One service of a cloud, by the cloud's own library."""

    def ask(self, method: str, parameters: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        """Raises Failed; what else it raises is its own fault. After so many seconds its process is ended."""
        ...


# By cloud, of a service's name and region.
Libraries = Mapping[str, Callable[[str, str], Library]]
LIBRARIES: Libraries = MappingProxyType({"aws": aws.Aws, "google": google.Google})


class Answers:
    """What comes of one frame after the other."""

    def __init__(self, libraries: Libraries = LIBRARIES) -> None:
        self._libraries = libraries
        self._library: Library | None = None

    def of(self, frame: bytes) -> bytes:
        """The answer's frame."""
        try:
            return json.dumps({"answer": self._asked(json.loads(frame, object_hook=_bytes))}, default=_written).encode()
        except Failed as failed:
            return json.dumps({"failed": failed.kind, "code": failed.code, "text": str(failed)}).encode()
        except Exception as error:
            # Not its words: they may have what was sent.
            return json.dumps({"failed": "unreached", "code": "", "text": type(error).__name__}).encode()

    def _asked(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._library is None:
            self._library = self._libraries[asked["cloud"]](asked["name"], asked["region"])
            return {}
        return self._library.ask(asked["method"], asked["parameters"], asked["seconds"])


def _bytes(found: dict[str, Any]) -> Any:
    return bytes.fromhex(found["bytes"]) if found.keys() == {"bytes"} else found


def _written(value: object) -> Any:
    return {"bytes": value.hex()} if isinstance(value, bytes) else str(value)


def main() -> None:
    """Answer until nobody asks any more."""
    harden()
    # What a library reads there is no question.
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    answers = Answers()
    try:
        while (frame := read_frame(connection)) is not None:
            write_frame(connection, answers.of(frame))
    finally:
        # Nor is what a library does at its end waited for.
        os._exit(0)


if __name__ == "__main__":
    main()
