"""Authorities in files that somebody else keeps, as cert-manager does in a mounted Secret: followed, and checked as at
the start. What cannot be used changes nothing but the log."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar

from agent.authority.jwt_keys import GivenJwtKeys, open_given
from agent.errors import AuthorityDamaged
from svid.acceptance import accept, chain_begins
from svid.authority import X509Authority
from svid.bundle import JwtAuthority, TrustBundle
from svid.certificates import certificates_from_pem, serial_of
from svid.errors import SvidError
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtSigningKey
from svid.keys import key_from_pem
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.authority")
Held = TypeVar("Held")
# As long as a trial before an authority's end needs.
_MOMENT = timedelta(minutes=2)
_Seen = tuple[tuple[int, int, int] | None, ...]


class Followed(Generic[Held]):
    """What some files hold, read by `read` (raises AuthorityDamaged) once at the start and again whenever they change.

    `facts` of it are equal where nothing has changed: keys themselves cannot be compared.
    """

    def __init__(self, files: Sequence[Path | None], read: Callable[[], Held], facts: Callable[[Held], object]) -> None:
        self._files = [each for each in files if each is not None]
        self._read = read
        self._facts = facts
        self._seen = _look(self._files)
        self._refused = ""
        self.held = read()

    def changed(self, check: Callable[[Held], None]) -> bool:
        """Whether `held` is another one now, which `check` (raises SvidError) let pass. Blocks on the file system."""
        seen = _look(self._files)
        if seen == self._seen:
            return False
        try:
            found = self._read()
            check(found)
        except (AuthorityDamaged, SvidError, ValueError) as error:
            # Looked at again each time: it may be half of a replacement, or not valid yet. Said once.
            if str(error) != self._refused:
                self._refused = str(error)
                _log.error(
                    "the authority's files were replaced and cannot be used; the last good ones stay in service",
                    extra={"files": [str(each) for each in self._files], "error": str(error)},
                )
            return False
        # As they were before they were read: what changed since is seen the next time.
        self._seen, self._refused = seen, ""
        other = self._facts(found) != self._facts(self.held)
        self.held = found
        return other


class GivenX509:
    """An X.509 authority in files, and the roots that SVIDs of the ones before still need."""

    def __init__(self, certificate: Path, key: Path, bundle: Path | None, trust_domain: TrustDomain) -> None:
        self._files = Followed(
            [certificate, key, bundle],
            lambda: open_files(certificate, key, bundle, trust_domain),
            lambda held: (held.chain, held.bundle),
        )
        held = self._files.held
        try:
            # Whatever the time is: one that has ended, or not begun, is replaced or waited for by whoever keeps it.
            accept(held, max(chain_begins(held), held.not_after - _MOMENT))
        except SvidError as error:
            raise AuthorityDamaged(f"authority files ({certificate}, {key}) are unusable: {error}") from None
        # Who gives the roots says which are trusted, and for how long an old one is.
        self._roots_are_given = bundle is not None
        self._before: tuple[tuple[datetime, TrustBundle], ...] = ()

    @property
    def authority(self) -> X509Authority:
        """The one that signs."""
        return self._files.held

    @property
    def bundle(self) -> TrustBundle:
        """Its roots, and those of the ones before while SVIDs of theirs may be in use."""
        own = self._files.held.bundle
        older = [each for _, bundle in self._before for each in bundle.x509_authorities]
        return TrustBundle(own.trust_domain, (*own.x509_authorities, *older), sequence=own.sequence)

    def advance(self, now: datetime, longest: timedelta) -> bool:
        """Follow the files; whether `authority` or `bundle` changed. No SVID of it outlives `longest`."""
        before = self._files.held
        kept = tuple(each for each in self._before if now < each[0])
        gone, self._before = kept != self._before, kept
        if not self._files.changed(lambda found: accept(found, now)):
            return gone
        if not self._roots_are_given:
            self._before = (*self._before, (min(now + longest, before.not_after), before.bundle))
        _log.info(
            "the authority's files were replaced: the new one signs",
            extra={
                "serial": serial_of(self._files.held.chain[0]),
                "not_after": self._files.held.not_after.isoformat(),
            },
        )
        return True


class FollowedJwtKeys:
    """The JWT key of `open_given`, followed; implements JwtKeys. The one before stays published while tokens live."""

    def __init__(
        self, key: Path, bundle: Path | None, algorithm: JwtAlgorithm, trust_domain: TrustDomain, ttl: timedelta
    ) -> None:
        self._files: Followed[GivenJwtKeys] = Followed(
            [key, bundle],
            lambda: open_given(key, bundle, algorithm, trust_domain),
            lambda held: held.authorities,
        )
        self._ttl = ttl
        self._before: tuple[tuple[datetime, JwtAuthority], ...] = ()
        self.sequence: int | None = None

    @property
    def authorities(self) -> tuple[JwtAuthority, ...]:
        own = self._files.held.authorities
        names = {each.key_id for each in own}
        return (*own, *(each for _, each in self._before if each.key_id not in names))

    def signing_key(self, now: datetime) -> JwtSigningKey:
        return self._files.held.key

    def advance(self, now: datetime) -> bool:
        before, authorities = self._files.held, self.authorities
        self._before = tuple(each for each in self._before if now < each[0])
        if self._files.changed(lambda _: None):
            if before.key.key_id != self._files.held.key.key_id:
                self._before = (*self._before, (now + self._ttl, before.key.public))
            _log.info("the JWT authority's files were replaced", extra={"key_id": self._files.held.key.key_id})
        return self.authorities != authorities


def open_files(certificate: Path, key: Path, bundle: Path | None, trust_domain: TrustDomain) -> X509Authority:
    """The authority in given PEM files: the chain (issuing certificate first), its key, the roots.

    Without `bundle` the last certificate of the chain is the root. Raises AuthorityDamaged.
    """
    try:
        chain = certificates_from_pem(certificate.read_bytes())
        roots = TrustBundle.from_pem(trust_domain, bundle.read_bytes()) if bundle else None
        authority_key = key_from_pem(key.read_bytes())
        roots = roots or TrustBundle(trust_domain, chain[-1:])
        return X509Authority(trust_domain, chain, authority_key, roots)
    except OSError as error:
        raise AuthorityDamaged(f"{error.filename} cannot be read: {error.strerror}") from None
    except SvidError as error:
        raise AuthorityDamaged(f"authority files ({certificate}, {key}) are unusable: {error}") from None
    except ValueError:
        raise AuthorityDamaged(f"{certificate} is not a PEM certificate chain") from None


def _look(files: Sequence[Path]) -> _Seen:
    return tuple(_state(each) for each in files)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
