"""What a pod's author wrote at podsvid's volumes and podCertificate sources, and which containers mount volumes so that
nothing new gets there."""

from collections.abc import Iterator

from signer.cluster.objects import Container, PodSpec
from signer.model import SourceWish, VolumeWish

# Volumes of one pod whose wishes are kept, and characters of all of them; as many of its sources. What is longer is
# refused, by the node or when it is asked for, and not before.
MAX_WISHES, MAX_CHARACTERS = 8, 1024
# Paths below a volume that are the volume.
_WHOLE = (None, "", ".", "./")
# Containers that are named for one volume.
_NAMED = 4


def read_wishes(spec: PodSpec, drivers: frozenset[str]) -> tuple[VolumeWish, ...]:
    """Those of the volumes of `drivers`; of a pod that has too many or too long ones only what fits."""
    mounted: dict[str, list[str]] | None = None
    left = MAX_CHARACTERS
    found: list[VolumeWish] = []
    for volume in spec.volumes or ():
        if volume.csi is None or volume.csi.driver not in drivers or not volume.name:
            continue
        if mounted is None:
            mounted = _by_sub_path(spec)
        asked = volume.csi.volume_attributes
        algorithm, names = (asked.key_algorithm or "", asked.dns_names or "") if asked else ("", "")
        containers = tuple(mounted.get(volume.name, ())[:_NAMED])
        left -= len(volume.name) + len(algorithm) + len(names) + sum(map(len, containers))
        if left < 0 or len(found) == MAX_WISHES:
            break
        found.append(VolumeWish(volume.name, algorithm, names, containers))
    return tuple(found)


def read_source_wishes(spec: PodSpec, signer_name: str) -> tuple[SourceWish, ...]:
    """Those of podCertificate sources of that signer, by the same bounds."""
    left = MAX_CHARACTERS
    found: list[SourceWish] = []
    for volume in spec.volumes or ():
        for source in (volume.projected.sources if volume.projected else None) or ():
            asked = source.pod_certificate
            if asked is None or asked.signer_name != signer_name or not volume.name:
                continue
            key_type, annotations = asked.key_type or "", asked.user_annotations or {}
            left -= len(volume.name) + len(key_type) + sum(len(name) + len(text) for name, text in annotations.items())
            if left < 0 or len(found) == MAX_WISHES:
                return tuple(found)
            found.append(SourceWish(volume.name, key_type, tuple(sorted(annotations.items()))))
    return tuple(found)


def _by_sub_path(spec: PodSpec) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for container in _lasting(spec):
        for mount in container.volume_mounts or ():
            if mount.name and (mount.sub_path not in _WHOLE or mount.sub_path_expr):
                named = found.setdefault(mount.name, [])
                if container.name and container.name not in named[-1:]:
                    named.append(container.name)
    return found


def _lasting(spec: PodSpec) -> Iterator[Container]:
    """Those that go on when the pod runs."""
    yield from (each for each in spec.init_containers or () if each.restart_policy == "Always")
    yield from spec.containers or ()
