"""Which of cert-manager's issuers certifies the authorities, where it is asked, and what contradicts that."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import Conflict

DEFAULT_KIND, DEFAULT_GROUP = "Issuer", "cert-manager.io"
# A kind as Kubernetes has them, and an API group.
KIND = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}", re.ASCII)
GROUP = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class CertManagerSettings:
    """As the settings `cert_manager_*` have them; `roots` is upstream_bundle_file."""

    issuer_name: str | None
    issuer_kind: str
    issuer_group: str
    namespace: str
    roots: Path | None

    def conflicts(self) -> Iterator[Conflict]:
        """What keeps these from being used."""
        if self.issuer_name is None:
            yield Conflict(
                ("upstream", "cert_manager_issuer_name"), "say which issuer is asked: the name of an Issuer or other"
            )
        if self.issuer_group == DEFAULT_GROUP and self.issuer_kind not in ("Issuer", "ClusterIssuer"):
            yield Conflict(
                ("cert_manager_issuer_kind", "cert_manager_issuer_group"),
                f"{DEFAULT_GROUP} has the kinds Issuer and ClusterIssuer; name the group of that other one",
            )
