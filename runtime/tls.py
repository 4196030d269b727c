"""TLS of a process: nothing older than 1.3 where grpc speaks it, and what a peer showed."""

import os
import sys
from typing import Any

# As ssl's own get_unverified_chain asks for it, which is there from Python 3.13 on.
_DER = 2


def shown(connection: Any) -> list[bytes]:
    """The certificates that the peer of an `ssl.SSLSocket` or `ssl.SSLObject` showed (DER), leaf first; nobody has
    verified them."""
    return [each.public_bytes(_DER) for each in connection._sslobj.get_unverified_chain() or ()]


def require_tls13() -> None:
    """To be called before grpc is first imported, which is when it reads this. Raises RuntimeError when that is past.

    grpc speaks TLS 1.2 as well and has no setting for it. A list of TLS 1.2 suites of which neither side has the
    pre-shared key leaves TLS 1.3 only, whose suites are not in that list.
    """
    if "grpc" in sys.modules:
        raise RuntimeError("bug: grpc was imported before TLS 1.2 was switched off")
    os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
