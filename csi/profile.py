"""Driver profiles: what the volumes of one CSI driver name are like, so that manifests for other drivers work here."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Profile:
    """`layout` is the default one; `attributes` are accepted beside podsvid's own."""

    name: str
    layout: str
    help: str
    attributes: tuple[str, ...] = ()


FS_GROUP_OF_CERT_MANAGER = "spiffe.csi.cert-manager.io/fs-group"
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Profile("podsvid", "spiffe", "files and socket"),
            Profile("spire", "socket", "for manifests of spiffe-csi (SPIRE): the sockets only"),
            Profile(
                "cert-manager",
                "cert-manager",
                "for manifests of csi-driver-spiffe (cert-manager): its file names and its fs-group attribute",
                (FS_GROUP_OF_CERT_MANAGER,),
            ),
        )
    }
)
_BY_DRIVER_NAME = MappingProxyType({"csi.spiffe.io": "spire", "spiffe.csi.cert-manager.io": "cert-manager"})


def default_profile_for(driver_name: str) -> str:
    """The name of the profile that a driver name brings along."""
    return _BY_DRIVER_NAME.get(driver_name, "podsvid")
