"""What a reader of a played pod's volume sees, checked as a peer would check it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from podsvid.quickstart.failure import QuickstartError

if TYPE_CHECKING:
    from podsvid.quickstart.pods import Pod


@dataclass(frozen=True)
class Seen:
    """One X.509-SVID as a reader of the volume's files sees it."""

    spiffe_id: str
    trust_domain: str
    serial: str
    not_after: datetime
    at: datetime
    chain: bytes = field(repr=False)


@dataclass
class PlayedPod:
    """One pod that the quickstart plays, and what its volume has shown so far."""

    pod: Pod
    target: Path
    link: Path
    current: Seen
    rotations: int = 0
    history: deque[Seen] = field(default_factory=lambda: deque(maxlen=4))

    def look_again(self, trust_domain: str) -> bool:
        """Read the volume again; whether it holds another SVID than before. Raises QuickstartError."""
        certificates, authorities = _read(self.target)
        if certificates == self.current.chain:
            # Not checked again: on a laptop that slept it may have expired, and the agent is about to act.
            return False
        self.current = _checked(certificates, authorities, trust_domain)
        self.history.append(self.current)
        self.rotations += 1
        return True


def first_look(pod: Pod, target: Path, link: Path, trust_domain: str) -> PlayedPod:
    """The pod whose volume was just published at ``target``. Raises QuickstartError."""
    return PlayedPod(pod, target, link, _checked(*_read(target), trust_domain))


def _read(target: Path) -> tuple[bytes, bytes]:
    """tls.crt and ca.crt of one generation of the volume's files. Raises QuickstartError."""
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            # One look at ..data is one generation, whatever is renamed meanwhile. It may be replaced and removed
            # before it is read; then the next one is there.
            generation = target / os.readlink(target / "..data")
            return (generation / "tls.crt").read_bytes(), (generation / "ca.crt").read_bytes()
    raise QuickstartError(f"there are no files in the volume {target}")


def _checked(certificates: bytes, authorities: bytes, trust_domain: str) -> Seen:
    """What the files say, checked as a peer would check it. Raises QuickstartError."""
    from svid.bundle import TrustBundle
    from svid.certificates import certificates_from_pem, serial_of
    from svid.errors import SvidError
    from svid.spiffeid import TrustDomain
    from svid.x509svid import check_x509_svid

    now = datetime.now(UTC)
    try:
        chain = certificates_from_pem(certificates)
        bundle = TrustBundle.from_pem(TrustDomain.parse(trust_domain), authorities)
        spiffe_id = check_x509_svid(chain, bundle, now)
    except (SvidError, ValueError) as error:
        raise QuickstartError(f"a volume holds an X.509-SVID that is not valid: {error}") from error
    return Seen(
        spiffe_id=str(spiffe_id),
        trust_domain=str(spiffe_id.trust_domain),
        serial=serial_of(chain[0]),
        not_after=chain[0].not_valid_after_utc,
        at=now,
        chain=certificates,
    )
