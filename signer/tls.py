"""The server's own certificate: an X.509-SVID of the authority it serves, renewed before it ends."""

import logging
from datetime import datetime, timedelta

import grpc

from runtime.clock import Clock
from signer.minting import own_svid_id
from signer.state import AuthorityState
from svid.certificates import to_pem
from svid.dnsnames import SIGNER_NAME
from svid.keys import KeyAlgorithm, key_to_pem

_log = logging.getLogger("podsvid.tls")
LIFETIME = timedelta(hours=6)


class ServerIdentity:
    """Makes the key and certificate for new connections; grpc asks at each handshake.

    Thread-safe as far as grpc needs it: `fetch` only reads what `refresh` replaced as a whole.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._configuration: grpc.ServerCertificateConfiguration | None = None
        self._renew_at: datetime | None = None
        self._issuer = ""

    def refresh(self, state: AuthorityState) -> None:
        """Make a new certificate when there is none, half of it has passed, or another authority is active.

        Raises SvidError when the authority cannot sign.
        """
        now = self._clock.now()
        issuer = state.active_x509_id
        if self._renew_at is not None and now < self._renew_at and issuer == self._issuer:
            return
        key = KeyAlgorithm.EC_P256.generate()
        authority = state.active_x509
        chain = authority.issue(key.public_key(), own_svid_id(state), ttl=LIFETIME, now=now, dns_names=[SIGNER_NAME])
        self._configuration = grpc.ssl_server_certificate_configuration([(key_to_pem(key), to_pem(chain))])
        not_after = chain[0].not_valid_after_utc
        self._renew_at, self._issuer = now + (not_after - now) / 2, issuer
        _log.info("server certificate renewed", extra={"authority": issuer, "not_after": not_after.isoformat()})

    def fetch(self) -> grpc.ServerCertificateConfiguration:
        """The newest certificate."""
        assert self._configuration is not None
        return self._configuration

    def credentials(self) -> grpc.ServerCredentials:
        """For the listening port; after the first `refresh`. Clients prove themselves by token, not by certificate."""
        assert self._configuration is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration, self.fetch, False)
