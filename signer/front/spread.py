"""Which of gRPC's sockets a connection goes on to: there is one, or one of each worker."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path


class Spread:
    """Who has fewest gets the next one. `paths`: the sockets that there are now for what is `target` of the door;
    `gone`: told of each connection that is closed."""

    def __init__(self) -> None:
        self.paths: Callable[[Path], Sequence[Path]] = lambda target: (target,)
        self.gone: Callable[[str], object] = lambda peer: None
        self._of: dict[str, Path] = {}
        self._held: Counter[Path] = Counter()

    def choose(self, target: Path | None) -> Path:
        """For one more. Raises OSError where there is none."""
        if target is None:
            raise OSError("there is no certificate yet")
        found = self.paths(target)
        if not found:
            raise OSError("no worker serves at present")
        return min(found, key=self._held.__getitem__)

    def entered(self, peer: str, path: Path) -> None:
        """The connection that gRPC calls `peer` has gone there."""
        self._of[peer] = path
        self._held[path] += 1

    def left(self, peer: str) -> None:
        """It is closed; may be told twice."""
        path = self._of.pop(peer, None)
        if path is not None:
            self._held[path] -= 1
            if not self._held[path]:
                del self._held[path]
            self.gone(peer)

    def of(self, peer: str) -> Path | None:
        """Where it went; None where it is not there."""
        return self._of.get(peer)
