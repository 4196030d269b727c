"""Makes an authority of what a CA elsewhere certified for the requested key, or says why it is not taken."""

from dataclasses import replace
from datetime import datetime

from signer.authority.fit_roots import check_not_revoked, check_number
from signer.authority.revoked import roots_left
from signer.authority.slots import Stage, X509Slot
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.authority.trial import Cause, admit, cause_of
from signer.errors import CertificateRefused, RootsRefused
from signer.upstream.remote import Issued
from svid.authority import X509Authority
from svid.bundle import TrustBundle
from svid.errors import SvidError

# No CA has that many on purpose.
MAX_CHAIN = 10


def granted(
    state: AuthorityState, issued: Issued, policy: LifecyclePolicy, now: datetime
) -> tuple[AuthorityState, X509Slot]:
    """The state in which what was requested is prepared, or serves as the first. Raises CertificateRefused."""
    request = state.request
    assert request is not None
    if len(issued.chain) > MAX_CHAIN:
        raise CertificateRefused(f"{len(issued.chain)} certificates came; more than {MAX_CHAIN} are not taken")
    try:
        check_number(issued.roots)
        roots = TrustBundle(state.trust_domain, tuple(dict.fromkeys(issued.roots)))
        authority = X509Authority(state.trust_domain, issued.chain, request.key, roots)
        own = roots_left(authority, roots.x509_authorities, ())
        authority = replace(authority, bundle=TrustBundle(state.trust_domain, own))
    except (SvidError, ValueError, RootsRefused) as error:
        raise CertificateRefused(f"what the CA above gave is no authority of the requested key: {error}") from None
    if not own:
        raise CertificateRefused(
            "the CA above names no root that its certificate leads to: import the root where the CA has its chain, or "
            "give it in upstream_bundle_file"
        )
    check_not_revoked(authority, state.revoked_keys)
    own = roots_left(authority, own, state.revoked_keys)
    authority = replace(authority, bundle=TrustBundle(state.trust_domain, own))
    cause = _first_cause(state) if state.unborn else cause_of(state, by_time=not request.wished)
    before = None if state.unborn else state
    taken = admit(authority, before, cause, policy, now, named_alike=issued.named_alike)
    slot = X509Slot(Stage.PREPARED, taken, now)
    if state.unborn:
        slot = replace(slot, stage=Stage.ACTIVE, activated_at=now, longest=policy.usual("x509"))
    return replace(state, sequence=state.sequence + 1, x509=(*state.x509, slot), request=None), slot


def _first_cause(state: AuthorityState) -> Cause:
    """After a theft of all there were the first one is the way out, however soon it ends."""
    return Cause.THEFT if any(each.kind == "x509" for each in state.abandoned) else Cause.FIRST
