"""The keys that sign a local authority's JWT-SVIDs: given in a file, or made, kept and rotated here."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent.authority.files import read_secret, write_secret
from agent.errors import AuthorityDamaged
from runtime.clock import Clock
from svid.bundle import JwtAuthority, TrustBundle
from svid.errors import InvalidBundle, SvidError
from svid.jws import JwtAlgorithm
from svid.jwtauthority import JwtKeyring, JwtSigningKey, KeyringPolicy
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.authority")
STATE_FILE = "jwt-authority.json"


class JwtKeys(Protocol):
    """Signing keys and what a trust bundle publishes of them."""

    @property
    def authorities(self) -> tuple[JwtAuthority, ...]: ...

    @property
    def sequence(self) -> int | None:
        """Rises with every change of `authorities`; None where no sequence is kept."""
        ...

    def signing_key(self, now: datetime) -> JwtSigningKey: ...

    def advance(self, now: datetime) -> bool:
        """Do what is due in the keys' life; whether `authorities` changed. Blocks. Raises OSError."""
        ...


@dataclass(frozen=True)
class GivenJwtKeys:
    """One signing key from a file, the same on every node; others are published beside it."""

    key: JwtSigningKey
    others: tuple[JwtAuthority, ...] = ()

    @property
    def authorities(self) -> tuple[JwtAuthority, ...]:
        return (self.key.public, *(other for other in self.others if other.key_id != self.key.key_id))


class KeptJwtKeys:
    """A keyring in the state directory: each change is on the disk before anyone sees it."""

    def __init__(self, path: Path, keyring: JwtKeyring, policy: KeyringPolicy) -> None:
        self._path = path
        self._keyring = keyring
        self._policy = policy

    @property
    def authorities(self) -> tuple[JwtAuthority, ...]:
        return self._keyring.authorities

    @property
    def sequence(self) -> int | None:
        return self._keyring.sequence

    def signing_key(self, now: datetime) -> JwtSigningKey:
        return self._keyring.active(now)

    def advance(self, now: datetime) -> bool:
        advanced = self._keyring.advance(self._policy, now)
        if advanced is self._keyring:
            return False
        write_secret(self._path, advanced.to_json())
        self._keyring = advanced
        _log.info(
            "JWT authorities changed",
            extra={"key_ids": [key.key_id for key in advanced.authorities], "sequence": advanced.sequence},
        )
        return True


def open_kept(state_dir: Path, policy: KeyringPolicy, clock: Clock) -> KeptJwtKeys:
    """The keyring kept in `state_dir`, made at the first start. Raises AuthorityDamaged, OSError."""
    path = state_dir / STATE_FILE
    now = clock.now()
    if not path.exists():
        keyring = JwtKeyring.create(policy, now)
        write_secret(path, keyring.to_json())
        return KeptJwtKeys(path, keyring, policy)
    keys = KeptJwtKeys(path, read_kept(path), policy)
    keys.advance(now)
    return keys


def read_kept(path: Path) -> JwtKeyring:
    """What `open_kept` keeps there. Raises AuthorityDamaged, OSError."""
    try:
        return JwtKeyring.from_json(read_secret(path))
    except SvidError as error:
        raise AuthorityDamaged(
            f"{path} is damaged: {error}; put a good copy back, or delete it: JWT-SVIDs issued so far are invalid then"
        ) from None


def open_given(key: Path, bundle: Path | None, algorithm: JwtAlgorithm, trust_domain: TrustDomain) -> GivenJwtKeys:
    """A PEM signing key, and the JWT keys of a SPIFFE JWKS to publish beside it. Raises AuthorityDamaged.

    An entry of it that cannot be used refuses all: verifiers would miss a key that still signs somewhere.
    """
    left_out = list[str]()
    try:
        signing = JwtSigningKey.from_pem(key.read_bytes(), algorithm)
        others = (
            TrustBundle.from_jwks(trust_domain, bundle.read_bytes(), left_out.append).jwt_authorities if bundle else ()
        )
        if left_out:
            raise InvalidBundle(left_out[0])
    except OSError as error:
        raise AuthorityDamaged(f"{error.filename} cannot be read: {error.strerror}") from None
    except SvidError as error:
        raise AuthorityDamaged(f"JWT authority files ({key}, {bundle}) are unusable: {error}") from None
    return GivenJwtKeys(signing, others)
