"""Who certifies the signer's X.509 authorities: nobody (each is its own root), or a CA above."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from runtime.bounded import Bounded, Unanswered
from signer.errors import SignerError
from signer.upstream.roots import RootSet
from svid.acceptance import accept
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem
from svid.errors import SvidError
from svid.keys import PrivateKey, PublicKey, key_from_pem, public_key_of
from svid.spiffeid import TrustDomain

_T = TypeVar("_T")
# Of a file with certificates: a hundred times what any CA has.
MAX_BYTES = 1024 * 1024


class UpstreamUnusable(SignerError):
    """The CA above cannot certify a new authority."""

    reason = "UPSTREAM_UNUSABLE"


class Upstream(Protocol):
    """Certifies a new authority's key at once; a CA that is asked for it, and answers later, is a `RemoteUpstream`."""

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
        return self.signed(trust_domain, key, lifetime, now)

    def signed(self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime) -> X509Authority:
        """The same, for whom a signature takes time. Raises UpstreamUnusable."""
        try:
            return X509Authority.self_signed(trust_domain, key, lifetime=lifetime, now=now)
        except SvidError as error:
            raise UpstreamUnusable(f"{error.reason}: {error}") from None

    async def roots(self) -> RootSet:
        """There is no CA above."""
        return RootSet(complete=True)


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
        return await self._read(lambda: self._certify(trust_domain, key, lifetime, now))

    async def roots(self) -> RootSet:
        """Those of the bundle; without one the last certificate, which is what is trusted then."""
        return await self._read(self._roots)

    async def _read(self, work: Callable[[], _T]) -> _T:
        """What `work` makes of the files, which may hang. Raises UpstreamUnusable."""
        try:
            with_names = partial(self._told, work)
            return await self.reader.do(with_names)
        except Unanswered:
            raise UpstreamUnusable(
                f"{self.certificate}, {self.key} or the bundle could not be read within {self.reader.seconds:g} s; is "
                "it on a file system that hangs, or no regular file?"
            ) from None

    def _given_roots(self) -> bytes | None:
        if self.bundle is None:
            return None
        try:
            found = read_bounded(self.bundle)
        except FileNotFoundError:
            if self.may_lack:
                return None
            raise
        return found if found.strip() or not self.may_lack else None

    def _key(self, certificate: x509.Certificate) -> PrivateKey:
        if isinstance(self.key, Path):
            return key_from_pem(read_bounded(self.key))
        return self.key.of(public_key_of(certificate))

    def _certify(self, trust_domain: TrustDomain, key: PrivateKey, lifetime: timedelta, now: datetime) -> X509Authority:
        chain = self._chain()
        given = self._given_roots()
        roots = TrustBundle(trust_domain, chain[-1:] if given is None else certificates_from_pem(given))
        above = X509Authority(trust_domain, chain, self._key(chain[0]), roots)
        authority = above.issue_intermediate(key, lifetime=lifetime, now=now)
        # Here as well as where it is admitted: the text names the files.
        accept(authority, now)
        return authority

    def _roots(self) -> RootSet:
        given = self._given_roots()
        if given is not None:
            return RootSet(certificates_from_pem(given), complete=True)
        return RootSet(self._chain()[-1:])

    def _chain(self) -> tuple[x509.Certificate, ...]:
        return certificates_from_pem(read_bounded(self.certificate))

    def _told(self, work: Callable[[], _T]) -> _T:
        """What is wrong with the files, with their names."""
        try:
            return work()
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


def read_bounded(path: Path) -> bytes:
    """What a file holds. Raises OSError, and UpstreamUnusable for one that is larger than any of them."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UpstreamUnusable(f"{path} is larger than {MAX_BYTES >> 20} MiB: it is no file of certificates")
    return data


def upstream_of(
    certificate: Path | None, key: Path | HeldKey | None, bundle: Path | None, folder: Path | None
) -> SelfSigned | FileUpstream:
    """The CA of those files, or of a Secret's `folder`, where `bundle` wins over its roots; without any, none above.

    A key that is given wins over the folder's.
    """
    if folder is not None:
        roots = bundle or folder / "ca.crt"
        return FileUpstream(folder / "tls.crt", key or folder / "tls.key", roots, may_lack=bundle is None)
    if certificate is None or key is None:
        return SelfSigned()
    return FileUpstream(certificate, key, bundle)
