"""Who certifies the signer's X.509 authorities: nobody (each is its own root), or a CA above."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from runtime.bounded import Bounded, Unanswered
from signer.errors import SignerError
from svid.acceptance import accept
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem
from svid.errors import SvidError
from svid.keys import PrivateKey, PublicKey, key_from_pem, public_key_of
from svid.spiffeid import TrustDomain


class UpstreamUnusable(SignerError):
    """The CA above cannot certify a new authority."""

    reason = "UPSTREAM_UNUSABLE"


class Upstream(Protocol):
    """Certifies a new authority's key. Implementations for cert-manager, Vault or a cloud's CA send a request there."""

    async def certify(
        self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
    ) -> X509Authority:
        """An authority of that key: its chain upwards, its bundle the roots to be trusted.

        The certificate may end before `lifetime` is over. Raises SignerError; asking again later may help.
        """
        ...


class SelfSigned:
    """Each authority is a root of its own."""

    async def certify(
        self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
    ) -> X509Authority:
        try:
            return X509Authority.self_signed(trust_domain, key, lifetime=lifetime, now=now)
        except SvidError as error:
            raise UpstreamUnusable(f"{error.reason}: {error}") from None


class HeldKey(Protocol):
    """A CA's private key that is in no file."""

    def of(self, public: PublicKey) -> PrivateKey:
        """The key to that public half. Blocks, as signing with it does; both raise UpstreamUnusable."""
        ...


@dataclass(frozen=True, slots=True)
class FileUpstream:
    """A CA whose certificate is in a PEM file, as its key may be, read again at each use: root or intermediate.

    `certificate` is the issuing one and what is above it; without `bundle` its last certificate is the root. A bundle
    that `may_lack` is left out while there is no such file, or nothing in it: cert-manager's Secrets have such ones.
    """

    certificate: Path
    key: Path | HeldKey
    bundle: Path | None = None
    may_lack: bool = False
    reader: Bounded = field(default_factory=Bounded, repr=False, compare=False)

    async def certify(
        self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime
    ) -> X509Authority:
        try:
            return await self.reader.do(lambda: self._certify(trust_domain, key, lifetime, now))
        except Unanswered:
            raise UpstreamUnusable(
                f"{self.certificate}, {self.key} or the bundle could not be read within {self.reader.seconds:g} s; is "
                "it on a file system that hangs, or no regular file?"
            ) from None

    def _given_roots(self) -> bytes | None:
        if self.bundle is None:
            return None
        try:
            found = self.bundle.read_bytes()
        except FileNotFoundError:
            if self.may_lack:
                return None
            raise
        return found if found.strip() or not self.may_lack else None

    def _key(self, certificate: x509.Certificate) -> PrivateKey:
        if isinstance(self.key, Path):
            return key_from_pem(self.key.read_bytes())
        return self.key.of(public_key_of(certificate))

    def _certify(self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime) -> X509Authority:
        try:
            chain = certificates_from_pem(self.certificate.read_bytes())
            given = self._given_roots()
            roots = TrustBundle(trust_domain, chain[-1:] if given is None else certificates_from_pem(given))
            above = X509Authority(trust_domain, chain, self._key(chain[0]), roots)
            authority = above.issue_intermediate(key, lifetime=lifetime, now=now)
            # Here as well as where it is admitted: the text names the files.
            accept(authority, now)
            return authority
        except OSError as error:
            raise UpstreamUnusable(f"{error.filename} cannot be read: {error.strerror}") from None
        except SvidError as error:
            raise UpstreamUnusable(
                f"upstream CA ({self.certificate}, {self.key}) is unusable: {error.reason}: {error}"
            ) from None
        except InvalidSignature:
            raise UpstreamUnusable(f"what {self.key} names is not the key of {self.certificate}") from None
        except ValueError:
            raise UpstreamUnusable(f"{self.certificate} or the bundle is not a PEM certificate chain") from None


def upstream_of(
    certificate: Path | None, key: Path | HeldKey | None, bundle: Path | None, folder: Path | None
) -> Upstream:
    """The CA of those files, or of a Secret's `folder`, where `bundle` wins over its roots; without any, none above.

    A key that is given wins over the folder's.
    """
    if folder is not None:
        roots = bundle or folder / "ca.crt"
        return FileUpstream(folder / "tls.crt", key or folder / "tls.key", roots, may_lack=bundle is None)
    if certificate is None or key is None:
        return SelfSigned()
    return FileUpstream(certificate, key, bundle)
