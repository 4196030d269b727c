"""Which CA the settings put above the authorities."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.clock import Clock, SystemClock
from runtime.settings import InvalidSetting
from signer.cluster.kube import KubeApi
from signer.key_uri import CaKey
from signer.pkcs11_uri import KeyUri
from signer.upstream import awspca, certmanager, googlecas, kms, pkcs11
from signer.upstream.awspca import AwsPca
from signer.upstream.certify import FileUpstream, HeldKey, SelfSigned, Upstream, upstream_of
from signer.upstream.certmanager import CertManager
from signer.upstream.googlecas import GoogleCas
from signer.upstream.kms import KmsCaKey
from signer.upstream.openbao import OpenBao
from signer.upstream.pkcs11 import TokenKey
from signer.upstream.remote import Elsewhere, RemoteUpstream
from signer.upstream.roots import RootSource
from signer.upstream.sdk import NotInstalled
from signer.upstream.spire import Spire
from signer.upstream_settings import FileSettings, UpstreamSettings


@dataclass(frozen=True, slots=True)
class Chosen:
    """What makes an authority at once; or, of a CA elsewhere, its name, and whom to ask. `roots`: who names them."""

    above: Upstream | Elsewhere
    roots: RootSource
    remote: RemoteUpstream | None = None


def chosen(settings: UpstreamSettings, api: KubeApi, clock: Clock) -> Chosen:
    """By its kind. `api` is for a CA that is asked through the API server.

    Raises InvalidSetting where what that kind takes is not installed.
    """
    _check_installed(settings)
    remote: RemoteUpstream
    if settings.kind == "openbao":
        remote = OpenBao(settings.openbao)
    elif settings.kind == "cert-manager":
        remote = CertManager(settings.cert_manager, api)
    elif settings.kind == "aws-pca":
        remote = AwsPca(settings.aws_pca, clock)
    elif settings.kind == "google-cas":
        remote = GoogleCas(settings.google_cas)
    elif settings.kind == "spire":
        remote = Spire(settings.spire, clock)
    else:
        above = at_hand(settings.files)
        return Chosen(above, above.roots)
    return Chosen(Elsewhere(remote.name), remote.roots, remote)


def at_hand(by: FileSettings) -> SelfSigned | FileUpstream:
    """What makes an authority at once."""
    return upstream_of(by.cert_file, by.key_file if by.key_uri is None else _held(by.key_uri), by.bundle_file, by.dir)


def _held(uri: CaKey) -> HeldKey:
    return TokenKey(uri) if isinstance(uri, KeyUri) else KmsCaKey(uri)


def key_seconds(uri: CaKey | None) -> float:
    """How long a signature of a CA's key may take; of one in a file nothing that is worth to be said."""
    if uri is None:
        return 0.0
    return pkcs11.SECONDS if isinstance(uri, KeyUri) else kms.SECONDS


def needed(settings: UpstreamSettings) -> Mapping[str, Callable[[], object]]:
    """By setting, what reads a file that a CA elsewhere is not asked without; by `upstream`, what looks for the library
    that asks. Each raises SignerError. Blocks."""
    if settings.kind == "openbao":
        return OpenBao(settings.openbao).files()
    if settings.kind == "aws-pca":
        return awspca.needed(settings.aws_pca)
    if settings.kind == "google-cas":
        return googlecas.needed(settings.google_cas)
    if settings.kind == "spire":
        return Spire(settings.spire, SystemClock()).files()
    return certmanager.needed_files(settings.cert_manager) if settings.kind == "cert-manager" else {}


def _check_installed(settings: UpstreamSettings) -> None:
    look = needed(settings).get("upstream")
    try:
        if look is not None:
            look()
    except NotInstalled as error:
        raise InvalidSetting(f"upstream is {settings.kind}, and {error}") from None
