"""NodePublishVolume's request as the kubelet builds it."""

import json
from pathlib import Path
from typing import Final

from csi.pb import csi_pb2
from podsvid.quickstart.pods import Pod, PodVolume, volume_id_of

TOKENS_KEY: Final = "csi.storage.k8s.io/serviceAccount.tokens"


def publish_request(
    pod: Pod, volume: PodVolume, target: Path, *, tokens_in_secrets: bool, mount_group: bool
) -> csi_pb2.NodePublishVolumeRequest:
    """For the volume of this pod at `target`; `mount_group`: the driver has VOLUME_MOUNT_GROUP."""
    context = dict(volume.attributes)
    # What the kubelet says about the pod wins over what the pod's author wrote.
    context |= {
        "csi.storage.k8s.io/pod.name": pod.name,
        "csi.storage.k8s.io/pod.namespace": pod.namespace,
        "csi.storage.k8s.io/pod.uid": pod.uid,
        "csi.storage.k8s.io/serviceAccount.name": pod.service_account,
        "csi.storage.k8s.io/ephemeral": "true",
    }
    secrets = dict(volume.secrets)
    if volume.tokens is not None:
        tokens = json.dumps({audience: dict(token) for audience, token in volume.tokens.items()})
        (secrets if tokens_in_secrets else context)[TOKENS_KEY] = tokens
    group = str(volume.fs_group) if mount_group and volume.fs_group is not None else ""
    return csi_pb2.NodePublishVolumeRequest(
        volume_id=volume_id_of(pod.uid, volume.name),
        target_path=str(target),
        volume_capability=csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(fs_type=volume.fs_type, volume_mount_group=group),
            access_mode=csi_pb2.VolumeCapability.AccessMode(
                mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
            ),
        ),
        readonly=volume.read_only,
        secrets=secrets,
        volume_context=context,
    )
