"""TLS for strangers: 1.2 and 1.3 with Mozilla's intermediate suites (Federation.md 5), no client certificates."""

import ssl

from runtime.tls import load
from signer.public.shown import Pair

# Of that list those that agree on a key by elliptic curves: one that does so by a finite field costs the server so much
# more than its client that it is left out. For TLS 1.3, whose suites say nothing of it, GROUP does the same.
SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
# Its key takes a fraction of a millisecond; OpenSSL's own list has ffdhe8192, which takes hundreds. Whoever guesses
# another group first is told so, and comes again with this one, which TLS 1.3 has everybody know.
GROUP = "prime256v1"


def context(pair: Pair) -> ssl.SSLContext:
    """A server's with that certificate. Raises OSError (ssl.SSLError) where chain and key are none, or do not fit."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    found.set_ciphers(":".join(SUITES))
    found.set_ecdh_curve(GROUP)
    # One request a connection: nothing is resumed, nothing agreed anew.
    found.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    found.num_tickets = 0
    found.set_alpn_protocols(["http/1.1"])
    load(found, pair.chain, pair.key)
    return found
