"""TLS of a process: nothing older than 1.3 where grpc speaks it, what it shows of memory, and what a peer showed."""

import os
import ssl
import sys
from typing import Any

# What grpc reads when it is imported, from its process's environment: see require_tls13.
ONLY_TLS13 = ("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")
# As ssl's own get_unverified_chain asks for it, which is there from Python 3.13 on.
_DER = 2


def shown(connection: Any) -> list[bytes]:
    """The certificates that the peer of an `ssl.SSLSocket` or `ssl.SSLObject` showed (DER), leaf first; nobody has
    verified them."""
    return [each.public_bytes(_DER) for each in connection._sslobj.get_unverified_chain() or ()]


def load(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """Have `context` show that certificate (PEM, leaf first) and prove that key (PEM, not encrypted). Raises OSError
    (ssl.SSLError) where they are none, or do not fit.

    Python loads them from files only: this one has no name and is no disk's.
    """
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(chain + b"\n" + key)
        # Nobody is there to be asked for a password.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
    finally:
        os.close(descriptor)


def require_tls13() -> None:
    """To be called before grpc is first imported, which is when it reads this. Raises RuntimeError when that is past.

    grpc speaks TLS 1.2 as well and has no setting for it. A list of TLS 1.2 suites of which neither side has the
    pre-shared key leaves TLS 1.3 only, whose suites are not in that list.
    """
    if "grpc" in sys.modules:
        raise RuntimeError("bug: grpc was imported before TLS 1.2 was switched off")
    name, value = ONLY_TLS13
    os.environ[name] = value
