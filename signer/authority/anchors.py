"""A root of the CA above, as the state keeps it apart from the authorities: trusted whether or not one leads to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from signer.authority.slots import instant, read, written
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem, to_pem
from svid.spiffeid import TrustDomain


@dataclass(frozen=True)
class UpstreamRoot:
    """`since`: when the CA was first seen to name it. `ends_at`: when it leaves, as the CA names it no more."""

    certificate: x509.Certificate
    since: datetime
    ends_at: datetime | None = None

    @cached_property
    def id(self) -> str:
        """The certificate's SHA-256, in lower-case hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def root_entry(root: UpstreamRoot) -> dict[str, Any]:
    """Its entry in the stored state."""
    return {
        "certificate": to_pem([root.certificate]).decode(),
        "since": root.since.isoformat(),
        "ends_at": written(root.ends_at),
    }


def read_root(each: Mapping[str, Any], trust_domain: TrustDomain) -> UpstreamRoot:
    """What `root_entry` wrote. Raises SvidError, and what comes of an entry that is none."""
    (certificate,) = certificates_from_pem(each["certificate"].encode())
    # Here, and not when somebody asks for the trust bundle: one that has no place there is damage.
    TrustBundle(trust_domain, (certificate,))
    return UpstreamRoot(certificate, instant(each["since"]), read(each["ends_at"]))
