"""A CA's key in a cloud's KMS: each signature is asked for by a process of its own."""

import time
from collections.abc import Callable
from contextlib import closing

from signer.clouds import process
from signer.held_key import Scheme, Unsupported, held
from signer.key_uri import KmsKey
from signer.kms.awskms import SIGN_SECONDS
from signer.kms.chosen import kms_of_key
from signer.kms.interface import Kms, KmsFailed
from signer.upstream.certify import UpstreamUnusable
from svid.keys import PrivateKey, PublicKey

# Seconds of one signature, with the start of the process that asks for it.
SECONDS = process.OPEN_SECONDS + SIGN_SECONDS


def _opened(uri: KmsKey) -> tuple[Kms, str]:
    return kms_of_key(uri, time.monotonic)


class KmsCaKey:
    """Implements HeldKey: the private key that `uri` names. Once in weeks it signs, and nothing of it runs between.

    The CA's certificate says which key it is: what another one signed is never used.
    """

    def __init__(self, uri: KmsKey, opened: Callable[[KmsKey], tuple[Kms, str]] = _opened) -> None:
        self._uri = uri
        self._opened = opened

    def __str__(self) -> str:
        return str(self._uri)

    def of(self, public: PublicKey) -> PrivateKey:
        try:
            return held(public, lambda scheme, data: self._signed(public, scheme, data))
        except Unsupported as error:
            raise UpstreamUnusable(f"the key in the KMS cannot be used: {error}") from None

    def _signed(self, public: PublicKey, scheme: Scheme, data: bytes) -> bytes:
        kms, name = self._opened(self._uri)
        with closing(kms):
            try:
                return kms.sign(name, public, scheme, data)
            except (KmsFailed, Unsupported) as error:
                raise UpstreamUnusable(f"{self._uri}: {error}") from None
