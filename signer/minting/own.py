"""The signer's own X.509-SVID, by which its servers prove to be it: of the authority that it serves, for a day."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from signer.authority.state import AuthorityState
from svid.certificates import to_pem
from svid.dnsnames import signer_id
from svid.keys import KeyAlgorithm, key_to_pem

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
        """Whether another is: half of its life has passed, or another authority is active."""
        return now >= self.renew_at or state.active_x509_id != self.issuer
