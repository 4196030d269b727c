"""Whether what a CA certified may become an authority here: it can sign, and is worth the change."""

from datetime import datetime, timedelta
from enum import Enum

from signer.authority.fit_roots import check_number
from signer.authority.slots import Stage, authority_id
from signer.authority.state import AuthorityState
from signer.authority.timing import LifecyclePolicy
from signer.errors import CertificateRefused, RootsRefused
from svid.acceptance import accept, check_root
from svid.authority import X509Authority
from svid.errors import SvidError


class Cause(Enum):
    """Why there is to be a new authority: it is the first, its time has come, a person wants it, or after a theft."""

    FIRST = 1
    TIME = 2
    WISH = 3
    THEFT = 4


def cause_of(state: AuthorityState, *, by_time: bool) -> Cause:
    """Why the state is to have a new authority; `by_time`: no person asked for it just now."""
    if state.forced("x509"):
        return Cause.THEFT
    return Cause.TIME if by_time and not state.wanted("x509") else Cause.WISH


def admit(
    authority: X509Authority,
    state: AuthorityState | None,
    cause: Cause,
    policy: LifecyclePolicy,
    now: datetime,
    *,
    named_alike: bool = False,
) -> X509Authority:
    """The same. Raises CertificateRefused with why it is not taken; then nothing of it was published.

    After a theft, and where the active one has ended, any authority that can sign is the way out: how soon it ends does
    not matter then. `named_alike`: another may have its name, as its CA has none to choose.
    """
    others = state.x509 if state is not None else ()
    urgent = cause is Cause.THEFT or (state is not None and state.active_x509.not_after <= now)
    least = timedelta(0) if urgent else policy.shortest_authority
    try:
        check_number(authority.bundle.x509_authorities)
        alike = [] if named_alike else [slot.authority for slot in others]
        accept(authority, now, least=least, others=alike)
        for root in state.roots if state is not None else ():
            check_root(root.certificate, [authority])
    except (SvidError, RootsRefused) as error:
        raise CertificateRefused(f"the new authority cannot be used: {error.reason}: {error}") from None
    if authority_id(authority) in {slot.id for slot in others}:
        raise CertificateRefused("the new authority is there already: its CA certified a key of before")
    # One that was cut short and ends no later would be replaced at half of the rest that it has, and so the next,
    # without an end. One that lives as long as was asked for is what a shortened authority_ttl wants.
    cut = authority.not_after < now + policy.authority_ttl - policy.gain
    end = _to_be_replaced_by(state, policy) if state is not None else now
    late = authority.not_after < end + policy.gain
    if state is not None and cause is Cause.TIME and not urgent and cut and late:
        raise CertificateRefused(
            f"the new authority would end at {authority.not_after:%Y-%m-%dT%H:%M:%SZ}, which is not long enough after "
            f"the active one ({end:%Y-%m-%dT%H:%M:%SZ}) to be worth a rotation; the active one "
            "signs on: renew the CA above, or its root"
        )
    return authority


def _to_be_replaced_by(state: AuthorityState, policy: LifecyclePolicy) -> datetime:
    active = state.find("x509", Stage.ACTIVE)
    assert active is not None
    return policy.serves_until(active.activated_at or active.prepared_at, state.active_x509.not_after)
