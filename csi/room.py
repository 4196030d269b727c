"""How many volumes a pod and the node may have, and whether one more fits: asked before anything is mounted.

A volume's tmpfs counts in the memory limit of the agent that writes it, and outlives it: what does not fit any more
would not only end that agent but each one that follows.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from csi.errors import NodeFull, PodFull
from csi.model import Volume, VolumeOptions, Weight
from csi.volume import GENERATIONS_KEPT
from runtime.memory import MemoryUse
from svid.keys import KeyAlgorithm

KIB, MIB = 1024, 1024 * 1024
# The agent's own part of a volume: keys, certificates, its streams. Measured, bench/results/volumes.md.
OWN = 64 * KIB
# Bytes of the kernel for a mount, and for each file, directory and link in it, beside the pages of what is written.
MOUNT, INODE = 4 * KIB, KIB
# Seconds for which a look at the memory, a dozen files of the kernel, answers further publishes: while it leaves so
# much more than they need, what was taken since included. That is for what else grows meanwhile.
LOOK_SECONDS, MARGIN = 0.25, 32 * MIB
# Seconds for which it answers how many generations are kept: that is asked for with each renewal.
NOTED_SECONDS = 2.0
# Of count and memory this share is for pods that have no volume yet, so that no others' keep them from starting.
FOR_FIRST = 4
_AGAIN = "nothing was mounted, and it is tried again by itself"


@dataclass(frozen=True, slots=True)
class Bounds:
    """`volumes` of the node, `pod_volumes` of one pod; bytes that all volumes take, and that stay free (`headroom`)."""

    volumes: int = 1000
    pod_volumes: int = 16
    memory: int = 160 * MIB
    headroom: int = 32 * MIB


def expected(options: VolumeOptions) -> Weight:
    """What a volume will weigh, before it is written: at most, but for federated bundles, which come on top."""
    heavy = options.key_algorithm not in (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519)
    tokens, audiences = len(options.jwt_files), sum(len(file.audiences) for file in options.jwt_files)
    pages = 24 + 12 * heavy + 12 * options.has_keystores + 6 * tokens + 4 * (audiences - tokens)
    inodes = 31 + 12 * options.has_keystores + 4 * tokens
    return Weight(0, MOUNT + GENERATIONS_KEPT * pages * KIB + inodes * INODE)


@dataclass(frozen=True, slots=True)
class _Held:
    pod: str
    weight: Weight


@dataclass(slots=True)
class _Look:
    """At that time so much was `left` of the limit, None without any; what volumes took since, at most."""

    at: float
    left: int | None
    taken: int = 0

    def leaves(self, size: int) -> bool:
        return self.left is None or self.left - self.taken >= size


class Room:
    """The books of the volumes that take room on this node, published or left by an earlier process."""

    def __init__(
        self,
        bounds: Bounds,
        memory: Callable[[], MemoryUse | None],
        relieve: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds = bounds
        self._memory = memory
        self._clock = clock
        self._look: _Look | None = None
        # Gives back what can be given back, before a refusal; it says itself how often.
        self._relieve = relieve
        self._held: dict[str, _Held] = {}
        self._pods: Counter[str] = Counter()
        self._now = self._grown = 0
        self._lean = False
        self._noted = float("-inf")

    @property
    def weight(self) -> Weight:
        """Of all volumes together."""
        return Weight(self._now, self._grown)

    def figures(self) -> dict[str, float]:
        """Bytes by what they are, for whoever watches."""
        use = self._memory()
        self._note(use)
        limit, used = (use.limit, self._committed(use)) if use else (0, 0)
        return {"limit": limit, "used": used, "volumes": self._now, "volumes_grown": self._grown}

    def admit(self, volume: Volume) -> bool:
        """Take room for a new volume; answers whether it had none yet. Raises PodFull, NodeFull and takes none then.

        A volume that has room keeps it: it is on the node whatever is answered.
        """
        if volume.id in self._held:
            return False
        bounds, pod, weight = self._bounds, volume.pod, expected(volume.options)
        own = self._pods[pod.uid]
        if own >= bounds.pod_volumes:
            raise PodFull(
                f"pod {pod} has {own} volumes of podsvid, the most that one may have (pod_volumes); let its containers "
                "mount the same volume"
            )
        parts = FOR_FIRST - 1 if own else FOR_FIRST
        kept = "; the rest is kept for pods without a volume" if own else ""
        if len(self._held) >= bounds.volumes * parts // FOR_FIRST:
            raise NodeFull(f"this node has {len(self._held)} of {bounds.volumes} volumes (volumes){kept}; {_AGAIN}")
        if self._grown + weight.grown > bounds.memory * parts // FOR_FIRST:
            raise NodeFull(
                f"this node's volumes need {_mib(self._grown)} of {_mib(bounds.memory)} MiB (volumes_memory){kept}; "
                f"{_AGAIN}"
            )
        if self._short(weight.grown + OWN, bool(own)):
            self._relieve()
            if self._short(weight.grown + OWN, bool(own)):
                raise NodeFull(
                    "the agent on this node has too little memory left for one more volume (memory_headroom)"
                    f"{kept}; {_AGAIN}"
                )
        self.hold(volume, weight)
        self._take(weight.grown + OWN)
        return True

    def can_adopt(self) -> bool:
        """Whether there is memory to serve one more volume that is there already; half of the headroom is for that."""
        if not self.is_tight(1, self._bounds.headroom // 2):
            return True
        self._relieve()
        return not self.is_tight(1, self._bounds.headroom // 2)

    def is_tight(self, volumes: int = 0, headroom: int | None = None) -> bool:
        """Whether so many volumes that are there cannot be served beside what is used, with the headroom left free."""
        use = self._memory()
        self._note(use)
        if use is None:
            return False
        committed, limit = self._committed(use), use.limit
        left = self._bounds.headroom if headroom is None else headroom
        return committed + volumes * OWN > limit - left

    def generations(self) -> int:
        """How many generations of a volume's files are kept: no older ones while memory is short. From any thread."""
        if self._clock() - self._noted >= NOTED_SECONDS:
            self._note(self._memory())
        return 1 if self._lean else GENERATIONS_KEPT

    def hold(self, volume: Volume, weight: Weight) -> None:
        """Count a volume that is there, with what it weighs now."""
        self.release(volume.id)
        self._held[volume.id] = _Held(volume.pod.uid, weight)
        self._take(weight.now)
        self._pods[volume.pod.uid] += 1
        self._now += weight.now
        self._grown += weight.grown

    def release(self, volume_id: str) -> None:
        """Count it no longer; one that is not counted is fine."""
        held = self._held.pop(volume_id, None)
        if held is not None:
            self._pods[held.pod] -= 1
            if not self._pods[held.pod]:
                del self._pods[held.pod]
            self._now -= held.weight.now
            self._grown -= held.weight.grown

    def _short(self, more: int, twice: bool) -> bool:
        # What is written already will grow with its generations.
        more += self._grown - self._now
        headroom = self._bounds.headroom * (2 if twice else 1)
        look, now = self._look, self._clock()
        recent = look is not None and now - look.at < LOOK_SECONDS
        if look is not None and recent and look.leaves(more + headroom + MARGIN):
            return False
        use = self._memory()
        left = None if use is None else use.limit - self._committed(use)
        self._look = _Look(now, left)
        return left is not None and left - more < headroom

    def _take(self, size: int) -> None:
        if self._look is not None:
            self._look.taken += size

    def _note(self, use: MemoryUse | None) -> None:
        self._noted = self._clock()
        if use is not None:
            self._lean = self._committed(use) > use.limit - self._bounds.headroom

    def _committed(self, use: MemoryUse) -> int:
        # What an earlier container wrote may count in a group that cannot be seen from here.
        return max(use.used, use.anonymous + self._now)


def _mib(count: int) -> str:
    return f"{count / MIB:.0f}"
