"""What can go wrong between kubelet and a volume. `csi/boundary.py` has the one table of gRPC codes for it.

kubelet treats CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED and ABORTED as "uncertain": it
retries and will call NodeUnpublishVolume. Every other code is final: it forgets the volume, so whoever raises
one of those must leave nothing behind.
"""


class CsiError(Exception):
    """Base of this package's errors. `reason` is stable and safe to alert on; the text is for a person."""

    reason = "INTERNAL"


class InvalidRequest(CsiError):
    """The request itself is wrong; sending it again unchanged cannot help."""

    reason = "INVALID_REQUEST"


class VolumeNotFound(CsiError):
    """No volume of that id is published at that path."""

    reason = "VOLUME_NOT_FOUND"


class VolumeConflict(CsiError):
    """The volume is already published with other arguments."""

    reason = "VOLUME_CONFLICT"


class TargetConflict(CsiError):
    """The volume is already published at another target path."""

    reason = "TARGET_CONFLICT"


class OperationPending(CsiError):
    """Another call for the same volume is still running."""

    reason = "OPERATION_PENDING"


class IdentityDenied(CsiError):
    """The authority refuses an identity to this pod."""

    reason = "IDENTITY_DENIED"


class IdentityUnavailable(CsiError):
    """The authority cannot answer now; trying again may help."""

    reason = "IDENTITY_UNAVAILABLE"


class NodeBusy(CsiError):
    """The node has too much of this under way, for this pod or for all; nothing was begun, and kubelet tries again."""

    reason = "NODE_BUSY"


class VolumeFailed(CsiError):
    """The node could not make the volume; everything done so far was undone."""

    reason = "VOLUME_FAILED"


class MountNotShared(CsiError):
    """What is mounted here would not reach the pod: the agent runs with mounts of its own. Nothing was begun."""

    reason = "MOUNT_NOT_SHARED"


class MountDenied(CsiError):
    """This process may not mount, so it can make no volume. Nothing was begun."""

    reason = "MOUNT_DENIED"


class HostUnanswered(CsiError):
    """What the node's own file systems were asked was not answered in time. Nothing was begun."""

    reason = "HOST_UNANSWERED"


class PodFull(CsiError):
    """The pod has as many volumes as one may have."""

    reason = "POD_FULL"


class NodeFull(CsiError):
    """One more volume does not fit on this node; when others have gone it may."""

    reason = "NODE_FULL"


class UndoFailed(CsiError):
    """Something was left at the target, so kubelet has to come back and unpublish."""

    reason = "UNDO_FAILED"
