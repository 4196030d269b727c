"""By which URI a private key that no file holds is named, or the store that keys are made in: a token's, or a KMS's."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from signer import kms_uri, pkcs11_uri
from signer.kms_uri import AwsKey, AwsPlace, GoogleKey, GoogleRing
from signer.pkcs11_uri import KeyUri, TokenUri

KmsKey: TypeAlias = AwsKey | GoogleKey
KmsPlace: TypeAlias = AwsPlace | GoogleRing
CaKey: TypeAlias = KeyUri | KmsKey
KeyPlace: TypeAlias = TokenUri | KmsPlace
_T = TypeVar("_T")
_KEYS: Mapping[str, Callable[[str], CaKey]] = MappingProxyType(
    {"pkcs11": pkcs11_uri.parse, "awskms": kms_uri.parse_aws_key, "gcpkms": kms_uri.parse_google_key}
)
_PLACES: Mapping[str, Callable[[str], KeyPlace]] = MappingProxyType(
    {"pkcs11": pkcs11_uri.parse_token, "awskms": kms_uri.parse_aws_place, "gcpkms": kms_uri.parse_google_ring}
)


def parse(text: str) -> CaKey:
    """A private key. Raises ValueError, in whose text nothing of it is repeated: it may hold a PIN."""
    return _parsed(text, _KEYS)


def parse_place(text: str) -> KeyPlace:
    """Where keys are made. Raises ValueError, as `parse` does."""
    return _parsed(text, _PLACES)


def _parsed(text: str, by: Mapping[str, Callable[[str], _T]]) -> _T:
    # Whatever has no scheme that is known is told the form that names a token.
    return by.get(text.partition(":")[0], by["pkcs11"])(text)
