"""The server's own certificate: an X.509-SVID of the authority it serves, renewed before it ends."""

import logging
from datetime import datetime, timedelta

import grpc

from runtime.clock import Clock
from signer.authority.state import AuthorityState
from svid.certificates import to_pem
from svid.dnsnames import SIGNER_NAME, signer_id
from svid.keys import KeyAlgorithm, key_to_pem

_log = logging.getLogger("podsvid.tls")
LIFETIME = timedelta(hours=24)


class ServerIdentity:
    """The key and certificate that new servers prove the signer with.

    Not grpc's dynamic credentials: their callback needs the interpreter's lock below a lock of grpc's; a server that
    starts while clients connect holds the one and waits for the other, for ever.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._renew_at: datetime | None = None
        self._issuer = ""

    def unused(self) -> None:
        """The last ones could not be put in use: others are due now."""
        self._renew_at = None

    def renewed(self, state: AuthorityState) -> grpc.ServerCredentials | None:
        """New credentials when there are none, half of their life has passed, or another authority is active.

        None while the present ones are good. Clients prove themselves by token, not by certificate. Raises SvidError
        when the authority cannot sign.
        """
        now = self._clock.now()
        issuer = state.active_x509_id
        if self._renew_at is not None and now < self._renew_at and issuer == self._issuer:
            return None
        key = KeyAlgorithm.EC_P256.generate()
        chain = state.active_x509.issue(
            key.public_key(), signer_id(state.trust_domain), ttl=LIFETIME, now=now, dns_names=[SIGNER_NAME]
        )
        not_after = chain[0].not_valid_after_utc
        self._renew_at, self._issuer = now + (not_after - now) / 2, issuer
        _log.info("server certificate renewed", extra={"authority": issuer, "not_after": not_after.isoformat()})
        return grpc.ssl_server_credentials([(key_to_pem(key), to_pem(chain))])
