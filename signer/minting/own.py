"""The signer's own X.509-SVID, by which its servers prove to be it: for a day."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from signer.authority.state import AuthorityState
from svid.certificates import certificates_from_pem, to_pem
from svid.dnsnames import signer_id
from svid.errors import InvalidSvid
from svid.keys import KeyAlgorithm, key_to_pem
from svid.x509svid import check_x509_svid

LIFETIME = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class OwnSvid:
    """Key and chain as PEM, of which authority, and when another is due."""

    key: bytes = field(repr=False)
    chain: bytes
    issuer: str
    renew_at: datetime
    not_after: datetime

    @classmethod
    def issued(cls, state: AuthorityState, now: datetime, dns_names: tuple[str, ...] = ()) -> "OwnSvid":
        """A new one, with a new key; for any thread. Raises SvidError when the authority cannot sign.

        Agents take one with the name SIGNER_NAME only: what others are shown is no way to stand in the signer's place.
        """
        key = KeyAlgorithm.EC_P256.generate()
        chain = state.active_x509.issue(
            key.public_key(), signer_id(state.trust_domain), ttl=LIFETIME, now=now, dns_names=dns_names
        )
        not_after = chain[0].not_valid_after_utc
        renew_at = now + (not_after - now) / 2
        return cls(key_to_pem(key), to_pem(chain), state.active_x509_id, renew_at, not_after)

    def due(self, state: AuthorityState, now: datetime) -> bool:
        """Whether another is: half of its life has passed, or who has the newest bundle would refuse it.

        Not as soon as another authority signs: a partner that has not read since that one was published knows only the
        one before, and reads nothing from an endpoint that it does not believe. Who has any bundle since this one's
        issuer was published believes it for as long as the issuer is trusted.
        """
        if now >= self.renew_at:
            return True
        if self.issuer == state.active_x509_id:
            return False
        if all(slot.id != self.issuer for slot in state.x509):
            return True
        try:
            check_x509_svid(certificates_from_pem(self.chain), state.bundle, now)
        except InvalidSvid:
            return True
        return False
