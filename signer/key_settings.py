"""Where the authorities' private keys are, as the settings have it, and what contradicts that."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from runtime.settings import Conflict
from signer.key_uri import KeyPlace
from svid.jws import JwtAlgorithm
from svid.keys import KeyAlgorithm

# What a key store makes and signs with here.
X509_KEYS = (
    KeyAlgorithm.EC_P256,
    KeyAlgorithm.EC_P384,
    KeyAlgorithm.RSA_2048,
    KeyAlgorithm.RSA_3072,
    KeyAlgorithm.RSA_4096,
)
# Which key one for a JWT algorithm is. Others have hashes and paddings that no store here is asked for.
JWT_KEYS = MappingProxyType(
    {
        JwtAlgorithm.RS256: KeyAlgorithm.RSA_2048,
        JwtAlgorithm.ES256: KeyAlgorithm.EC_P256,
        JwtAlgorithm.ES384: KeyAlgorithm.EC_P384,
    }
)


@dataclass(frozen=True, slots=True)
class KeySettings:
    """`place`: where they are; None: in the Secret. `returning`: new ones are made for the Secret again all the same.
    `jwt`: None where there are no JWT-SVIDs."""

    place: KeyPlace | None
    returning: bool
    x509: KeyAlgorithm
    jwt: JwtAlgorithm | None

    def conflicts(self) -> Iterator[Conflict]:
        """What keeps these from being used."""
        if self.place is None:
            if self.returning:
                yield Conflict(
                    ("authority_keys_return", "authority_key_uri"),
                    "there is no key store that keys could come back from; name it in "
                    "authority_key_uri, or leave this out",
                )
            return
        if self.returning:
            return
        if self.x509 not in X509_KEYS:
            yield Conflict(
                ("authority_key_uri", "authority_algorithm"),
                f"in a key store authority_algorithm is one of {', '.join(X509_KEYS)}",
            )
        if self.jwt is not None and self.jwt not in JWT_KEYS:
            yield Conflict(
                ("authority_key_uri", "jwt_algorithm"), f"in a key store jwt_algorithm is one of {', '.join(JWT_KEYS)}"
            )
