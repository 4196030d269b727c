"""The server's own certificate: an X.509-SVID of the authority it serves, renewed before it ends."""

import logging
from dataclasses import dataclass, field
from datetime import datetime

import grpc

from runtime.clock import Clock
from signer.authority.state import AuthorityState
from signer.minting.own import OwnSvid
from svid.dnsnames import SIGNER_NAME

_log = logging.getLogger("podsvid.tls")


@dataclass(frozen=True)
class Made:
    """Credentials, of which authority, and when others are due."""

    credentials: grpc.ServerCredentials = field(repr=False)
    issuer: str
    renew_at: datetime
    not_after: datetime


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

    def due(self, state: AuthorityState) -> bool:
        """Whether there are none, half of their life has passed, or another authority is active."""
        renew_at = self._renew_at
        return renew_at is None or self._clock.now() >= renew_at or state.active_x509_id != self._issuer

    def made(self, state: AuthorityState) -> Made:
        """New credentials, which are not the present ones before they are `taken`; for any thread.

        Clients prove themselves by token, not by certificate. Raises SvidError when the authority cannot sign.
        """
        own = OwnSvid.issued(state, self._clock.now(), (SIGNER_NAME,))
        return Made(grpc.ssl_server_credentials([(own.key, own.chain)]), own.issuer, own.renew_at, own.not_after)

    def taken(self, made: Made) -> grpc.ServerCredentials:
        """These are the present ones from now on."""
        self._renew_at, self._issuer = made.renew_at, made.issuer
        _log.info(
            "server certificate renewed", extra={"authority": made.issuer, "not_after": made.not_after.isoformat()}
        )
        return made.credentials
