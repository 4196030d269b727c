"""The Go programs of this bench: SPIRE's as tests/interop pins them, and the client that both sides are asked with."""

from collections.abc import Mapping
from pathlib import Path

from tests.go_tools import Program, build, say
from tests.interop.suites import load

CLIENT = Program("client", Path(__file__).parent / "client", ".", ldflags="-s -w")
SPIRE = load("spire")
OF_SPIRE = ("spire-server", "spire-agent")


def built() -> Mapping[str, Path]:
    """Where each is, by its name; minutes where SPIRE is not in the cache. Raises BuildError."""
    return build([*(each for each in SPIRE.programs if each.name in OF_SPIRE), CLIENT], say)
