"""What csi/ asks of whoever owns the workloads' identities. agent/ provides it; csi/ never imports agent/."""

from datetime import datetime
from typing import Protocol

from csi.model import Condition, Contents, Issued, PodToken, Volume
from csi.volume import VolumeDirectory
from svid.keys import PrivateKey


class Workloads(Protocol):
    """The identities behind the published volumes."""

    async def key(self, volume: Volume) -> PrivateKey:
        """A new key for the first identity of `volume`'s pod. Some kinds take long, and the pod's turn has to come.

        Raises NodeBusy; changes nothing, and may be cancelled.
        """
        ...

    async def issue(self, volume: Volume, token: PodToken | None, key: PrivateKey) -> Issued:
        """Mint the first identity of `volume`'s pod, for that key.

        Raises IdentityDenied or IdentityUnavailable; changes nothing.
        """
        ...

    async def open(self, volume: Volume, directory: VolumeDirectory, issued: Issued) -> None:
        """Write the files, serve the socket, journal the volume and begin its rotation.

        On any error nothing of it is left running; the directory's content is the caller's to remove.
        """
        ...

    async def adopt(
        self,
        volume: Volume,
        directory: VolumeDirectory,
        contents: Contents | None,
        renew_at: datetime | None,
    ) -> None:
        """Take over a volume that an earlier process published. No contents means: mint now."""
        ...

    def complete(self) -> None:
        """All that an earlier process published was picked up, or cannot be."""
        ...

    async def close(self, volume_id: str) -> None:
        """Stop rotation and socket and forget the journal entry; nothing runs when it returns. Idempotent."""
        ...

    def republished(self, volume_id: str, token: PodToken | None) -> None:
        """Kubelet published it again: its token is for the next renewal, and a socket that is gone is made again."""
        ...

    def condition(self, volume_id: str) -> Condition:
        """Whether the volume's SVID is as fresh as it should be."""
        ...
