"""Which CA is above the authorities, as the settings have it, and what contradicts that."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import Conflict
from signer.awspca_settings import AwsPcaSettings
from signer.certmanager_settings import CertManagerSettings
from signer.googlecas_settings import GoogleCasSettings
from signer.key_uri import CaKey
from signer.openbao_settings import OpenBaoSettings
from signer.spire_settings import SpireSettings

# By the setting `upstream`; beside files, how its own settings begin, and what people call it.
KINDS = ("files", "openbao", "cert-manager", "aws-pca", "google-cas", "spire")
_ELSEWHERE = {
    "openbao": ("openbao_", "OpenBao"),
    "cert-manager": ("cert_manager_", "cert-manager"),
    "aws-pca": ("aws_pca_", "AWS Private CA"),
    "google-cas": ("google_cas_", "Google's CAS"),
    "spire": ("spire_", "a SPIRE server"),
}
PREFIXES = tuple(prefix for prefix, _ in _ELSEWHERE.values())


@dataclass(frozen=True, slots=True)
class FileSettings:
    """As the settings `upstream_*` have them."""

    cert_file: Path | None
    key_file: Path | None
    bundle_file: Path | None
    dir: Path | None
    key_uri: CaKey | None = None

    def conflicts(self, upstream: str) -> Iterator[Conflict]:
        """What keeps these from being used beside that kind of CA."""
        key: tuple[str, Path | CaKey | None] = ("upstream_key_file", self.key_file)
        certificate = ("upstream_cert_file", self.cert_file)
        if self.key_uri is not None:
            yield from self._key_conflicts(upstream)
            key = ("upstream_key_uri", None if self.dir is not None else self.key_uri)
        for (name, file), (other, its) in ((certificate, key), (key, certificate)):
            if file is not None and its is None and self.dir is None:
                missing = (other, "upstream_key_uri") if other == "upstream_key_file" else (other,)
                yield Conflict(
                    (name, *missing), "a CA is nothing without its certificate and key; give both, or neither"
                )
            if file is not None and self.dir is not None:
                yield Conflict(("upstream_dir", name), "they name two upstream CAs; give one")
            if file is not None and upstream != "files":
                yield Conflict(("upstream", name), "they name two upstream CAs; leave one out")
        if self.dir is not None and upstream != "files":
            yield Conflict(("upstream", "upstream_dir"), "they name two upstream CAs; leave one out")
        if (
            upstream == "files"
            and self.bundle_file is not None
            and all(each is None for each in (self.cert_file, self.key_file, self.dir, self.key_uri))
        ):
            yield Conflict(
                ("upstream_bundle_file",),
                "these are the roots of an upstream CA, and none is set: give upstream_dir, or upstream_cert_file and "
                "upstream_key_file, or leave it out",
            )

    def _key_conflicts(self, upstream: str) -> Iterator[Conflict]:
        if self.key_file is not None:
            yield Conflict(("upstream_key_uri", "upstream_key_file"), "they name two keys of the upstream CA; give one")
        if self.dir is not None and upstream != "files":
            yield Conflict(("upstream", "upstream_key_uri"), "they name two upstream CAs; leave one out")


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """All kinds of CAs that can be above, and which of them is: one of KINDS."""

    kind: str
    files: FileSettings
    openbao: OpenBaoSettings
    cert_manager: CertManagerSettings
    aws_pca: AwsPcaSettings
    google_cas: GoogleCasSettings
    spire: SpireSettings

    def conflicts(self, given: Collection[str]) -> Iterator[Conflict]:
        """What keeps the one that is wanted from being used; `given` are the settings that somebody said."""
        if self.kind == "openbao":
            yield from self.openbao.conflicts(given)
        elif self.kind == "cert-manager":
            yield from self.cert_manager.conflicts()
        elif self.kind == "aws-pca":
            yield from self.aws_pca.conflicts()
        elif self.kind == "google-cas":
            yield from self.google_cas.conflicts()
        elif self.kind == "spire":
            yield from self.spire.conflicts()
        for kind, (prefix, called) in _ELSEWHERE.items():
            idle = sorted(name for name in given if name.startswith(prefix))
            if idle and kind != self.kind:
                yield Conflict(
                    ("upstream", *idle), f"nothing is asked of {called}: set upstream to {kind}, or leave these out"
                )
        yield from self.files.conflicts(self.kind)
