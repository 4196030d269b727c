"""A workload's secrets by Envoy's names for them, as they go on the wire.

Each name is one secret: a SPIFFE ID or the default name an SVID, a trust domain's ID or one of the bundle names a
validation context.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf import any_pb2

from agent.pb import sds_pb2
from runtime.clock import Clock
from runtime.feed import Followed
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.handed import Identity, Svid

_log = logging.getLogger("podsvid.sds")
TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
_VALIDATOR = "envoy.tls.cert_validator.spiffe"
_VALIDATOR_TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
# How many names one stream may ask for, and how long each may be.
MAX_NAMES, MAX_NAME = 256, 2048


@dataclass(frozen=True, slots=True)
class SdsNames:
    """The names of secrets that are no SPIFFE IDs; an empty one is switched off. `spiffe_validator` false: bundles
    are plain `trusted_ca`, for clients that do not know Envoy's SPIFFE validator."""

    svid: str = "default"
    bundle: str = "ROOTCA"
    all_bundles: str = "ALL"
    spiffe_validator: bool = True


@dataclass(frozen=True, slots=True)
class Rendered:
    """A secret as it goes on the wire, and a version that changes with it and says nothing about a key."""

    data: bytes = field(repr=False)
    version: str


class Secrets:
    """What one workload's feed holds, rendered once for each version of it; `who` names the workload in logs."""

    def __init__(self, feed: Followed[Identity], names: SdsNames, clock: Clock, who: str) -> None:
        self._feed = feed
        self._names = names
        self._clock = clock
        self._who = who
        self._rendered: tuple[int, dict[tuple[str, bool], Rendered | None]] = (0, {})

    def names(self) -> list[str]:
        """The names of all that there are, each once."""
        identity = self._feed.current
        if identity is None:
            return []
        bundles = (identity.bundle, *identity.federated)
        return [str(svid.spiffe_id) for svid in identity.svids] + [str(each.trust_domain.id) for each in bundles]

    def get(self, name: str, plain: bool) -> Rendered | None:
        """The secret of that name; None while there is none that is valid. `plain`: for who has no SPIFFE validator."""
        if self._rendered[0] != self._feed.version:
            self._rendered = (self._feed.version, {})
        kept = self._rendered[1]
        identity = self._feed.current
        if identity is None:
            return None
        svid = self._svid(name, identity)
        if svid is not None and not self._is_granted(svid, identity):
            return None
        if (name, plain) not in kept:
            rendered = self._render(name, plain, identity, svid)
            if rendered is None and svid is None:
                # Of what there is not there are as many names as somebody can think of.
                return None
            kept[name, plain] = rendered
        return kept[name, plain]

    def refusal(self, name: str) -> str:
        """Why there is no such SVID where the authority does not grant it any more; else empty."""
        identity = self._feed.current
        svid = self._svid(name, identity) if identity else None
        if identity is None or svid is None or self._is_granted(svid, identity):
            return ""
        return identity.withheld.why if identity.withheld and identity.withheld.refused else ""

    def _is_granted(self, svid: Svid, identity: Identity) -> bool:
        return svid.not_after > self._clock.now() and not identity.is_kept_back

    def _svid(self, name: str, identity: Identity) -> Svid | None:
        if name and name == self._names.svid:
            return identity.default
        return next((svid for svid in identity.svids if str(svid.spiffe_id) == name), None)

    def _render(self, name: str, plain: bool, identity: Identity, svid: Svid | None) -> Rendered | None:
        if svid is not None:
            try:
                # Envoy acknowledges a certificate that does not chain to its roots, and then fails every handshake.
                # A copy is looked at: what the library keeps of that would stay as long as the identity does.
                read = svid.lean()
                read.check(identity.bundle, self._clock.now())
            except SvidError as error:
                _log.error("SVID is not valid and was not sent", extra={"pod": self._who, "error": str(error)})
                return None
            chain = read.chain_pem()
            certificate = sds_pb2.TlsCertificate(certificate_chain=_inline(chain), private_key=_inline(read.key_pem()))
            return _rendered(sds_pb2.Secret(name=name, tls_certificate=certificate), chain)
        bundles = self._bundles(name, identity)
        # To one trusted_ca for several domains any of them could speak for any ID.
        if not bundles or (plain and len(bundles) > 1):
            return None
        validation = _trusted_ca(bundles[0]) if plain else _spiffe_validator(bundles)
        return _rendered(
            sds_pb2.Secret(name=name, validation_context=validation), validation.SerializeToString(deterministic=True)
        )

    def _bundles(self, name: str, identity: Identity) -> list[TrustBundle]:
        every = [identity.bundle, *identity.federated]
        if name and name == self._names.all_bundles:
            wanted = every
        elif name and name == self._names.bundle:
            wanted = every[:1]
        else:
            wanted = [bundle for bundle in every if str(bundle.trust_domain.id) == name]
        # Envoy rejects the whole secret for one domain without a certificate.
        return [bundle for bundle in wanted if bundle.x509_authorities]


def any_of(type_url: str, data: bytes) -> any_pb2.Any:
    """A serialized message as an Any."""
    return any_pb2.Any(type_url=type_url, value=data)


def _trusted_ca(bundle: TrustBundle) -> sds_pb2.CertificateValidationContext:
    return sds_pb2.CertificateValidationContext(trusted_ca=_inline(bundle.to_pem()))


def _spiffe_validator(bundles: Iterable[TrustBundle]) -> sds_pb2.CertificateValidationContext:
    config = sds_pb2.SPIFFECertValidatorConfig(
        trust_domains=[
            sds_pb2.SPIFFECertValidatorConfig.TrustDomain(
                name=bundle.trust_domain.name, trust_bundle=_inline(bundle.to_pem())
            )
            for bundle in bundles
        ]
    )
    return sds_pb2.CertificateValidationContext(
        custom_validator_config=sds_pb2.TypedExtensionConfig(
            name=_VALIDATOR, typed_config=any_of(_VALIDATOR_TYPE_URL, config.SerializeToString())
        )
    )


def _rendered(secret: sds_pb2.Secret, public: bytes) -> Rendered:
    # Of the public part only: what a version shows must say nothing about a key.
    return Rendered(secret.SerializeToString(), hashlib.sha256(public).hexdigest()[:16])


def _inline(data: bytes) -> sds_pb2.DataSource:
    return sds_pb2.DataSource(inline_bytes=data)
