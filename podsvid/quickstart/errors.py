"""What can go wrong between the stand-in kubelet and a driver."""

from typing import Final

import grpc

# After one of these the kubelet cannot know whether the volume was mounted: it calls it uncertain, tries again,
# and unpublishes it when the pod goes. Every other code is final: nothing was mounted, nothing will be undone.
_NON_FINAL: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)


class StandInError(Exception):
    """The root of what the stand-in raises; ``reason`` is stable, the text is for people."""

    reason = "STAND_IN_ERROR"


class DriverNotRegistered(StandInError):
    """The driver is not in the list of registered drivers: nothing was called, try again later."""

    reason = "DRIVER_NOT_REGISTERED"


class DriverRefused(StandInError):
    """What a plugin said about itself was refused at registration."""

    reason = "DRIVER_REFUSED"


class _RpcFailed(StandInError):
    """A call that the driver, or the connection to it, answered with a status other than OK."""

    def __init__(self, what: str, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{what}: rpc error: code = {code.name} desc = {message}")
        self.code = code
        self.message = message

    @property
    def final(self) -> bool:
        """Whether the kubelet takes the code as proof that nothing is mounted."""
        return self.code not in _NON_FINAL


class PublishFailed(_RpcFailed):
    """NodePublishVolume, or the capability call before it, failed."""

    reason = "PUBLISH_FAILED"


class UnpublishFailed(_RpcFailed):
    """NodeUnpublishVolume failed; the kubelet would try again for as long as it lives."""

    reason = "UNPUBLISH_FAILED"


class StatsFailed(_RpcFailed):
    """NodeGetVolumeStats failed."""

    reason = "STATS_FAILED"


class VolumeLeftBehind(StandInError):
    """The driver says that the volume is gone, and it is not: in a cluster the pod's directory is an orphan."""

    reason = "VOLUME_LEFT_BEHIND"
