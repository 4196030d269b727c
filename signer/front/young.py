"""What young connections of agents bring in: grpc does not hold their clients to its limits yet."""

from signer.front.budget import YOUNG_BYTES


class Young:
    """Bytes that are lent to connections until their client must have acknowledged grpc's limits."""

    def __init__(self) -> None:
        self._left = YOUNG_BYTES
        self._of: dict[str, int] = {}

    def borrow(self, node: str, wanted: int) -> int:
        """Some of them. Never more for one node than is left for the others after it: who takes all gets half."""
        held = self._of.get(node, 0)
        given = min(wanted, max(self._left - held, 0) // 2)
        if given:
            self._of[node] = held + given
            self._left -= given
        return given

    def give_back(self, node: str, borrowed: int) -> None:
        """What was borrowed."""
        self._left += borrowed
        held = self._of.pop(node, 0) - borrowed
        if held > 0:
            self._of[node] = held
