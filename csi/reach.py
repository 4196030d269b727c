"""Whether what is mounted here reaches kubelet: by a mount that both share, or because kubelet sees the same mounts."""

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event
from typing import Protocol, TypeVar

from csi.errors import HostUnanswered, MountNotShared
from csi.files import mount_id
from runtime.bounded import Bounded, Unanswered
from runtime.peers import credentials_of

_NAMESPACE = "/proc/{}/ns/mnt"
# What `peers` says of a process that is outside of this PID namespace.
_OUTSIDE = 0
# Seconds that a look at the node's mounts may take: it takes milliseconds, or for ever where a file system hangs.
LOOK_SECONDS = 10.0
_Found = TypeVar("_Found")


class Reach(Protocol):
    """Says it of the directory below which kubelet's targets are."""

    def check(self) -> None:
        """Raise MountNotShared where a volume that is made here would be an empty directory in its pod. Blocks."""
        ...


async def looked(looks: Bounded, look: Callable[[], _Found]) -> _Found:
    """What `look` returns or raises, off the event loop. Raises HostUnanswered where it does not end in time."""
    try:
        return await looks.do(look)
    except Unanswered:
        raise HostUnanswered(
            f"the node's file systems do not answer: a look at kubelet's directories did not end within "
            f"{looks.seconds:g} s; look for mounts that hang (NFS) and for a disk that fails. It is tried again"
        ) from None


class SharedLooks:
    """Looks at one thing, of which each answers all who asked before it began: hundreds at once cost one or two.

    Who comes while one goes on waits for the next: what that one saw may have changed. Belongs to one event loop.
    """

    def __init__(self, check: Callable[[], None], seconds: float) -> None:
        self._check = check
        self._bounded = Bounded(seconds)
        # The newest, and whether it has begun.
        self._newest: tuple[asyncio.Task[None], Event] | None = None

    async def look(self) -> None:
        """What the check raises. Raises HostUnanswered."""
        if self._newest is None or self._newest[0].done() or self._newest[1].is_set():
            self._newest = self._asked()
        await asyncio.shield(self._newest[0])

    def _asked(self) -> tuple[asyncio.Task[None], Event]:
        begun = Event()

        def check() -> None:
            begun.set()
            self._check()

        asked = asyncio.create_task(looked(self._bounded, check), name="look at the node")
        # Also where all who wait for it have gone.
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return asked, begun


def connected(address: str) -> list[int]:
    """The processes at the other end of a socket of this one's; 0 for each outside of this PID namespace."""
    return [process for _, _, process in credentials_of(address)]


class KubeletReach:
    """Looks at the mount that kubelet's pods directory lies in and, where that is not shared, at who is connected.

    Whether a mount has to be shared cannot be told from here alone: a private one is right wherever kubelet is in the
    same mount namespace. kubelet is who calls, on the sockets of `addresses`; `peers` has who is connected.
    """

    def __init__(
        self,
        pods: str,
        addresses: Callable[[], Iterable[str]],
        peers: Callable[[str], Iterable[int]] = connected,
    ) -> None:
        self._pods = pods
        self._addresses = addresses
        self._peers = peers
        # The mount that was found good.
        self._good: int | None = None

    def check(self) -> None:
        try:
            directory = os.open(self._pods, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # kubelet makes it with its first pod, and a publish into it says what is wrong
        try:
            mounted = mount_id(directory)
        finally:
            os.close(directory)
        if mounted == self._good:
            return
        if not _is_shared(mounted) and any(
            _is_elsewhere(process) for address in filter(None, self._addresses()) for process in self._peers(address)
        ):
            raise MountNotShared(
                f"{self._pods} is no shared mount here, and kubelet has other mounts: pods would find their volumes "
                "empty. In a pod mount that directory with `mountPropagation: Bidirectional`, as the chart does "
                "(privileged); a unit of systemd goes without PrivateMounts=, MountFlags= and Protect...=; and "
                "where / of the node is not shared, `mount --make-rshared /` there"
            )
        self._good = mounted


def is_shared_at(path: str) -> bool:
    """Whether the mount that the directory lies in is shared with other namespaces. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _is_shared(mount_id(directory))
    finally:
        os.close(directory)


def _is_shared(mount: int) -> bool:
    """Whether what is mounted in it appears in other namespaces, too."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            if int(line.partition(b" ")[0]) == mount:
                fields = line.split(b" ")
                return any(each.startswith(b"shared:") for each in fields[6 : fields.index(b"-", 6)])
    return True  # it went away meanwhile; nothing is known against it


def _is_elsewhere(process: int) -> bool:
    if process == _OUTSIDE:
        return True
    with suppress(OSError):  # it ended, or is not ours to look at
        return not os.path.samestat(os.stat(_NAMESPACE.format(process)), os.stat(_NAMESPACE.format("self")))
    return False
