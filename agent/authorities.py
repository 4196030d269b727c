"""Where SVIDs come from: one protocol, and the two authorities whose key is on this node."""

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509

from agent.clock import Clock
from agent.errors import AuthorityDamaged, AuthorityRefused
from csi.model import PodRef, PodToken
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.certificates import certificates_from_pem, extension, to_pem
from svid.errors import SvidError
from svid.keys import KeyAlgorithm, PublicKey, key_from_pem, key_to_pem
from svid.renewal import RenewalWindow
from svid.spiffeid import SpiffeId, TrustDomain

STATE_FILE = "authority.pem"
EMBEDDED_LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class MintRequest:
    """What an authority is asked to certify: this public key, for the pod that this token proves."""

    pod: PodRef
    token: PodToken | None
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class Minted:
    """An authority's answer: chain leaf first without the root, what verifies it, and when to renew."""

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    bundle: TrustBundle
    federated: tuple[TrustBundle, ...]
    renewal: RenewalWindow


class Authority(Protocol):
    """Mints SVIDs. The agent does not know which kind it has."""

    async def mint_x509(self, request: MintRequest) -> Minted:
        """Raises AuthorityUnavailable (try again) or AuthorityRefused (do not)."""
        ...


class LocalAuthority:
    """An authority whose key is in this process; the SPIFFE ID is `spiffe://<td>/ns/<namespace>/sa/<account>`."""

    def __init__(self, authority: X509Authority, ttl: timedelta, clock: Clock) -> None:
        self._authority = authority
        self._ttl = ttl
        self._clock = clock

    async def mint_x509(self, request: MintRequest) -> Minted:
        now = self._clock.now()
        # Signing takes a fraction of a millisecond with EC keys; giving way here keeps a storm of mints fair.
        await asyncio.sleep(0)
        try:
            spiffe_id = pod_spiffe_id(self._authority.trust_domain, request.pod)
            chain = self._authority.issue(request.public_key, spiffe_id, ttl=self._ttl, now=now)
        except SvidError as error:
            raise AuthorityRefused(f"{error.reason}: {error}") from None
        return Minted(
            spiffe_id=spiffe_id,
            chain=chain,
            bundle=self._authority.bundle,
            federated=(),
            renewal=RenewalWindow.of(now, chain[0].not_valid_after_utc),
        )


def pod_spiffe_id(trust_domain: TrustDomain, pod: PodRef) -> SpiffeId:
    """The default SPIFFE ID of a pod. Raises InvalidSpiffeId."""
    return SpiffeId.from_segments(trust_domain, "ns", pod.namespace, "sa", pod.service_account)


def open_embedded(state_dir: Path, trust_domain: TrustDomain, clock: Clock) -> X509Authority:
    """The authority kept in `state_dir`, made there on first use (0600, fsync, rename).

    Raises AuthorityDamaged when a file is there that cannot be used: replacing it would cut off every workload that
    trusts it, so that is left to a person.
    """
    path = state_dir / STATE_FILE
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    advice = f"restore {path} from a backup, or remove it to start a new authority that no running workload trusts"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        authority = X509Authority.create(
            trust_domain, algorithm=KeyAlgorithm.EC_P256, lifetime=EMBEDDED_LIFETIME, now=clock.now()
        )
        _write_secret(path, key_to_pem(authority.private_key) + to_pem(authority.chain))
        return authority
    except OSError as error:
        raise AuthorityDamaged(f"{path} cannot be read ({error.strerror}); {advice}") from None
    if path.stat().st_mode & 0o077:
        raise AuthorityDamaged(f"{path} can be read by others; if nobody did, run: chmod 600 {path}")
    try:
        chain = certificates_from_pem(data)
        authority = X509Authority(trust_domain, chain, key_from_pem(data), TrustBundle(trust_domain, chain, sequence=1))
        names = extension(chain[0], x509.SubjectAlternativeName)
    except (ValueError, SvidError) as error:
        why = str(error) if isinstance(error, SvidError) else "it is not a key and certificate in PEM"
        raise AuthorityDamaged(f"{path} is damaged: {why}; {advice}") from None
    found = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if found != [str(trust_domain.id)]:
        raise AuthorityDamaged(
            f"{path} is the authority of {', '.join(found) or 'no trust domain'}, not of {trust_domain.id}; "
            "set trust_domain back, or choose another state_dir"
        )
    return authority


def open_files(certificate: Path, key: Path, bundle: Path | None, trust_domain: TrustDomain) -> X509Authority:
    """The authority in given PEM files: the chain (issuing certificate first), its key, the roots.

    Without `bundle` the last certificate of the chain is the root. Raises AuthorityDamaged.
    """
    try:
        chain = certificates_from_pem(certificate.read_bytes())
        roots = TrustBundle.from_pem(trust_domain, bundle.read_bytes()) if bundle else None
        authority_key = key_from_pem(key.read_bytes())
        roots = roots or TrustBundle(trust_domain, chain[-1:])
        return X509Authority(trust_domain, chain, authority_key, roots)
    except OSError as error:
        raise AuthorityDamaged(f"{error.filename} cannot be read: {error.strerror}") from None
    except SvidError as error:
        raise AuthorityDamaged(f"authority files ({certificate}, {key}) are unusable: {error}") from None
    except ValueError:
        raise AuthorityDamaged(f"{certificate} is not a PEM certificate chain") from None


def _write_secret(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.rename(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
