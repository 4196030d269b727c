"""Reading kubelet's requests: every field checked, in the order the CSI suite expects, before anything is done.

Everything in volumeAttributes is written by the pod's author and is hostile; the `csi.storage.k8s.io/` keys are
kubelet's own (podInfoOnMount), yet checked as Kubernetes names before anything is built from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from csi.attributes import MAX_ID, parse_attributes
from csi.errors import InvalidRequest
from csi.model import PodRef, PodToken, Volume
from csi.pb import csi_pb2
from csi.profile import PROFILES, Profile
from runtime.terminal import shown

KUBELET_PREFIX = "csi.storage.k8s.io/"
EPHEMERAL = KUBELET_PREFIX + "ephemeral"
POD_NAME = KUBELET_PREFIX + "pod.name"
POD_NAMESPACE = KUBELET_PREFIX + "pod.namespace"
POD_UID = KUBELET_PREFIX + "pod.uid"
SERVICE_ACCOUNT = KUBELET_PREFIX + "serviceAccount.name"
TOKENS = KUBELET_PREFIX + "serviceAccount.tokens"

_VOLUME_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", re.ASCII)
_MAX_PATH = 4096
_MAX_TOKENS = 24 * 1024


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """A checked NodePublishVolume request."""

    volume: Volume
    token: PodToken | None


def parse_publish(
    request: csi_pb2.NodePublishVolumeRequest,
    kubelet_root: str,
    driver: str = "",
    profile: Profile = PROFILES["podsvid"],
) -> PublishRequest:
    """Check `request` to the driver of that name and profile whole.

    Raises InvalidRequest with what is wrong and what is accepted.
    """
    if not request.volume_id:
        raise InvalidRequest("volume_id is missing")
    if not request.target_path:
        raise InvalidRequest("target_path is missing")
    if not request.HasField("volume_capability"):
        raise InvalidRequest("volume_capability is missing")
    capability = request.volume_capability
    if capability.WhichOneof("access_type") == "block":
        raise InvalidRequest("block access is not supported: podsvid volumes are directories; remove csi.fsType")
    if capability.WhichOneof("access_type") != "mount":
        raise InvalidRequest("volume_capability has no access type; podsvid takes mount")
    if capability.mount.fs_type:
        raise InvalidRequest("csi.fsType is not supported: podsvid mounts a tmpfs; remove it from the pod")
    if capability.mount.mount_flags:
        raise InvalidRequest("mount_flags are not supported; podsvid chooses the mount options itself")
    check_volume_id(request.volume_id)
    context = dict(request.volume_context)
    if context.get(EPHEMERAL) != "true":
        raise InvalidRequest(
            "only inline ephemeral volumes are supported: the CSIDriver object must have "
            "volumeLifecycleModes [Ephemeral] and podInfoOnMount true"
        )
    if not request.readonly:
        raise InvalidRequest("readOnly must be true in the pod's csi volume: a pod must not replace its own identity")
    if context.get(SERVICE_ACCOUNT) == "":
        # kubelet says it of every pod, so this one has none: the API server gives one to all that it admits.
        raise InvalidRequest(
            "the pod has no service account, as pods from a node's own manifests (static pods) have none: "
            "static pods get no identity, since nothing but the node speaks for them; run it as a DaemonSet"
        )
    pod = PodRef(
        namespace=_field(context, POD_NAMESPACE, _LABEL, 63, "a namespace name"),
        name=_field(context, POD_NAME, _SUBDOMAIN, 253, "a pod name"),
        uid=_field(context, POD_UID, _UID, 64, "a pod uid"),
        service_account=_field(context, SERVICE_ACCOUNT, _SUBDOMAIN, 253, "a service account name"),
    )
    below = check_target(request.target_path, kubelet_root)
    if below[0] != pod.uid:
        raise InvalidRequest(
            f"target_path belongs to pod uid {shown(below[0])} but the request is for pod uid {shown(pod.uid)}"
        )
    options = parse_attributes({k: v for k, v in context.items() if not k.startswith(KUBELET_PREFIX)}, profile)
    group = _group(capability.mount.volume_mount_group)
    volume = Volume(
        id=request.volume_id,
        target=request.target_path,
        below_pods=below,
        pod=pod,
        group=options.group if options.group is not None else group,
        options=options,
        driver=driver,
    )
    return PublishRequest(volume=volume, token=_token(request))


def check_volume_id(volume_id: str) -> None:
    """Refuse what could not be one plain file name. Raises InvalidRequest."""
    if not _VOLUME_ID.fullmatch(volume_id):
        raise InvalidRequest(
            f"volume_id {shown(volume_id)} is not usable: 1 to 128 of A-Z a-z 0-9 . _ - after a letter or digit"
        )


def check_target(target: str, kubelet_root: str) -> tuple[str, ...]:
    """The components of `target` below `<kubelet-root>/pods`, shaped as kubelet makes them.

    Only the text is judged here; symlinks are refused when the path is walked. Raises InvalidRequest.
    """
    wanted = f"{kubelet_root}/pods/<pod uid>/volumes/kubernetes.io~csi/<volume>/mount"
    refused = InvalidRequest(f"target_path {shown(target)} is not of the form {wanted}; check --kubelet-root")
    prefix = f"{kubelet_root}/pods/"
    if len(target.encode()) > _MAX_PATH or not target.startswith(prefix) or "\0" in target:
        raise refused
    parts = tuple(target.removeprefix(prefix).split("/"))
    if len(parts) != 5 or parts[1:3] != ("volumes", "kubernetes.io~csi") or parts[4] != "mount":
        raise refused
    if not _UID.fullmatch(parts[0]) or not _LABEL.fullmatch(parts[3]):
        raise refused
    if PurePosixPath(target).as_posix() != target:
        raise refused
    return parts


def _field(context: Mapping[str, str], key: str, form: re.Pattern[str], limit: int, what: str) -> str:
    value = context.get(key, "")
    if not value:
        raise InvalidRequest(f"volume_context has no {key}: the CSIDriver object must have podInfoOnMount true")
    if len(value) > limit or not form.fullmatch(value):
        raise InvalidRequest(f"{key} {shown(value)} is not {what}")
    return value


def _group(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > MAX_ID:
        raise InvalidRequest(f"volume_mount_group {shown(text)} is not a group id from 0 to {MAX_ID}")
    return int(text)


def _token(request: csi_pb2.NodePublishVolumeRequest) -> PodToken | None:
    # secrets first: with serviceAccountTokenInSecrets a pod's author may have put a forged one in volumeAttributes.
    text = request.secrets.get(TOKENS) or request.volume_context.get(TOKENS) or ""
    if len(text) > _MAX_TOKENS:
        raise InvalidRequest(f"{TOKENS} is longer than {_MAX_TOKENS} characters")
    return PodToken(text) if text else None
