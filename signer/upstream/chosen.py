"""Which CA the settings put above the authorities."""

from dataclasses import dataclass
from pathlib import Path

from signer.openbao_settings import OpenBaoSettings
from signer.upstream.certify import Upstream, upstream_of
from signer.upstream.openbao import OpenBao
from signer.upstream.remote import Elsewhere, RemoteUpstream


@dataclass(frozen=True, slots=True)
class Files:
    """As the settings `upstream_*` have them."""

    certificate: Path | None
    key: Path | None
    bundle: Path | None
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What makes an authority at once; or, of a CA elsewhere, its name, and whom to ask."""

    above: Upstream | Elsewhere
    remote: RemoteUpstream | None = None


def chosen(upstream: str, files: Files, openbao: OpenBaoSettings) -> Chosen:
    """By the setting `upstream`: files, or openbao."""
    if upstream == "openbao":
        remote = OpenBao(openbao)
        return Chosen(Elsewhere(remote.name), remote)
    return Chosen(upstream_of(files.certificate, files.key, files.bundle, files.folder))
