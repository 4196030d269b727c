"""Turns of volumes that come and go: namespaces take them one after the other, and in a namespace its pods."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from csi.errors import NodeBusy
from csi.model import PodRef, Volume
from runtime.turns import Crowded, Turns, Who


class VolumeTurns:
    """`whole` is for all of a publish: most of that is waiting for whoever signs. `making` is for what the node itself
    does then: few at once, since a call that comes meanwhile is taken only between two steps of them. `ending` is for
    unpublishes: none waits for a volume that comes.

    Seconds: `patience` is how long a new volume waits; kubelet waits for 120, and the mint may take 85 of them.
    """

    def __init__(self, whole: Turns, making: Turns, ending: Turns, patience: float = 30.0) -> None:
        self._whole = whole
        self._making = making
        self._ending = ending
        self._patience = patience

    @asynccontextmanager
    async def whole(self, volume: Volume) -> AsyncIterator[None]:
        """The volume's turn, over the block. Raises NodeBusy when it does not come."""
        try:
            async with self._whole.turn(turn_of(volume.pod), patience=self._patience):
                yield
        except Crowded as crowded:
            raise NodeBusy(
                f"no turn for this volume within {self._patience:g} s: {crowded.waiting} others wait on this node; "
                "kubelet tries again"
            ) from None

    def making(self, volume: Volume) -> AbstractAsyncContextManager[None]:
        """Within its turn, the block that is the node's own part."""
        return self._making.turn(turn_of(volume.pod))

    def ending(self, volume_id: str, pod: PodRef | None) -> AbstractAsyncContextManager[None]:
        """The block that takes away what is left of a volume, however long its turn takes to come.

        What nobody knows a pod of takes turns among its like.
        """
        return self._ending.turn(turn_of(pod) if pod else Who("", volume_id))


def turn_of(pod: PodRef) -> Who:
    """Whose turn it is when it is the pod's."""
    return Who(pod.namespace, pod.uid)
