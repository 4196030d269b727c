"""TLS 1.3 and nothing older for every connection of a process."""

import os
import sys


def require_tls13() -> None:
    """To be called before grpc is first imported, which is when it reads this. Raises RuntimeError when that is past.

    grpc speaks TLS 1.2 as well and has no setting for it. A list of TLS 1.2 suites of which neither side has the
    pre-shared key leaves TLS 1.3 only, whose suites are not in that list.
    """
    if "grpc" in sys.modules:
        raise RuntimeError("bug: grpc was imported before TLS 1.2 was switched off")
    os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
