"""The server's own certificate: an X.509-SVID of the authority it serves, renewed before it ends."""

import logging
from dataclasses import dataclass, field, replace

import grpc

from runtime.clock import Clock
from signer.authority.state import AuthorityState
from signer.minting.own import OwnSvid
from svid.dnsnames import SIGNER_NAME

_log = logging.getLogger("podsvid.tls")


@dataclass(frozen=True)
class Made:
    """Credentials, and what they prove the signer by, whose key is apart: where others serve they are told it."""

    credentials: grpc.ServerCredentials = field(repr=False)
    own: OwnSvid
    key: bytes = field(repr=False)


class ServerIdentity:
    """The key and certificate that new servers prove the signer with, under those DNS `names`.

    `lasting`: for clients that may lack the authority which signs now, see `OwnSvid.due`.

    Not grpc's dynamic credentials: their callback needs the interpreter's lock below a lock of grpc's; a server that
    starts while clients connect holds the one and waits for the other, for ever.
    """

    def __init__(self, clock: Clock, names: tuple[str, ...] = (SIGNER_NAME,), *, lasting: bool = False) -> None:
        self._clock = clock
        self._names = names
        self._lasting = lasting
        self._own: OwnSvid | None = None

    def unused(self) -> None:
        """The last ones could not be put in use: others are due now."""
        self._own = None

    def due(self, state: AuthorityState) -> bool:
        """Whether there are none, half of their life has passed, or another authority is active."""
        own, now = self._own, self._clock.now()
        if own is None:
            return True
        if self._lasting:
            return own.due(state, now)
        return now >= own.renew_at or state.active_x509_id != own.issuer

    def made(self, state: AuthorityState) -> Made:
        """New credentials, which are not the present ones before they are `taken`; for any thread.

        Clients prove themselves by token, not by certificate. Raises SvidError when the authority cannot sign.
        """
        own = OwnSvid.issued(state, self._clock.now(), self._names)
        return Made(grpc.ssl_server_credentials([(own.key, own.chain)]), replace(own, key=b""), own.key)

    def taken(self, made: Made) -> grpc.ServerCredentials:
        """These are the present ones from now on."""
        own = self._own = made.own
        _log.info(
            "server certificate renewed",
            extra={
                "names": list(self._names),
                "authority": own.issuer,
                "not_after": own.not_after.isoformat(),
            },
        )
        return made.credentials
