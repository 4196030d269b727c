"""What others would wait for: a pod's RSA keys, keystores and JWT-SVIDs, each in a line where pods take turns."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.errors import AuthorityUnavailable, KeysBusy
from csi.model import PodRef, Volume
from csi.turns import turn_of
from runtime.blocking import Blocking
from runtime.turns import Crowded, Turns
from svid.keys import KeyAlgorithm, PrivateKey

# Seconds that a first SVID waits for its key: kubelet gives a publish 120, the mint takes up to 30 of them.
FIRST_SECONDS = 20.0
# Seconds that a renewal waits; beyond them what else the volume needs goes on, and the key is asked for again.
RENEWAL_SECONDS = 60.0
# Seconds that a JWT-SVID that a pod asks for waits to be minted: its caller waits as well.
JWT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Lane:
    """Turns, and the threads that they are at: as many as there are turns at once."""

    turns: Turns
    threads: Blocking


class SlowWork:
    """Makes keys and runs what encodes keystores. Both release the interpreter's lock, so threads are enough.

    There are two lanes since a keystore takes milliseconds, and nobody's waits for another's RSA-4096 key of seconds.
    `jwt` is for JWT-SVIDs, which the authority makes: so many at once are asked of it. Belongs to one event loop.
    """

    def __init__(
        self,
        keys: Lane,
        keystores: Lane,
        jwt: Turns,
        make: Callable[[KeyAlgorithm], PrivateKey] = KeyAlgorithm.generate,
    ) -> None:
        self._keys = keys
        self._keystores = keystores
        self._jwt = jwt
        self._make = make

    async def key(self, volume: Volume, *, renewal: bool) -> PrivateKey:
        """A new key of the volume's kind: at once, or where that is slow in the pod's turn.

        First keys go before those of renewals, which have half an SVID's life for it; of four turns one is theirs, so
        that none is late for ever. Cancelled while it waits it leaves the line. Raises KeysBusy.
        """
        algorithm = volume.options.key_algorithm
        if not algorithm.slow:
            return self._make(algorithm)
        patience = RENEWAL_SECONDS if renewal else FIRST_SECONDS
        try:
            async with self._keys.turns.turn(turn_of(volume.pod), patience=patience, later=renewal):
                return await self._keys.threads(lambda: self._make(algorithm))
        except Crowded as crowded:
            raise _busy(volume.pod, algorithm, crowded, patience) from None

    async def keystore(self, pod: PodRef, write: Callable[[], None], *, renewal: bool) -> None:
        """Run `write`, which encodes keystores, in the pod's turn."""
        async with self._keystores.turns.turn(turn_of(pod), later=renewal):
            await self._keystores.threads(write)

    @asynccontextmanager
    async def jwt(self, pod: PodRef) -> AsyncIterator[None]:
        """The pod's turn, over the block, for a JWT-SVID that it asked for. Raises AuthorityUnavailable."""
        try:
            async with self._jwt.turn(turn_of(pod), patience=JWT_SECONDS):
                yield
        except Crowded as crowded:
            raise AuthorityUnavailable(
                f"JWT_BUSY: pod {pod} has as many JWT-SVIDs waiting to be minted as one pod may have (jwt_queue); "
                "one that was given for the same audiences is given again until it is due"
                if crowded.why == "full"
                else f"JWT_BUSY: no turn for a JWT-SVID within {JWT_SECONDS:g} s: {crowded.waiting} others wait on "
                "this node; is the authority reachable?"
            ) from None


def _busy(pod: PodRef, algorithm: KeyAlgorithm, crowded: Crowded, patience: float) -> KeysBusy:
    what = (
        f"pod {pod} has as many {algorithm} keys waiting to be made as one pod may have"
        if crowded.why == "full"
        else f"no {algorithm} key within {patience:g} s: {crowded.waiting} others wait on this node"
    )
    return KeysBusy(
        f"KEYS_BUSY: {what}; it is tried again by itself. Keys of kind ec-p256 take no time: see keyAlgorithm in the "
        "volumeAttributes"
    )
