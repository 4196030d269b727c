"""A root of the CA above is stolen: what becomes of trust and of what is below it, until a person takes that back.

It leaves at once, unless something in service leads to no other root. Then it goes as after a theft of an authority:
who signs below it does so until another one can, its SVIDs are re-issued, and with the last of them the root leaves.
Nothing brings it back: neither the CA above that names it still, nor a certificate below it, nor an older Secret.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from signer.authority import succession
from signer.authority.fit_roots import with_roots
from signer.authority.revoked import (
    MAX_REVOKED,
    RevokedRoot,
    is_revoked,
    key_id_of,
    key_of,
    revoked_root,
    roots_left,
)
from signer.authority.slots import Stage, X509Slot
from signer.authority.state import AuthorityState, Directive
from signer.authority.timing import LifecyclePolicy
from signer.errors import TransitionRefused

# Of two words on one root the later one counts, also where a clock was set back in between.
_LATER = timedelta(seconds=1)
_MAX_ID = 128


def revoke(
    state: AuthorityState, named: str, policy: LifecyclePolicy, now: datetime, svids: int, *, forced: bool
) -> tuple[AuthorityState, str]:
    """The root of that fingerprint or key id is stolen. `forced`: trusted no more from now on, whoever is cut off.

    Raises TransitionRefused.
    """
    known = _in_force(state, named)
    named_now = any(_id(named) in _ids(each) for each in state.bundle.x509_authorities)
    if known and not named_now and not any(is_trusted(state, each) for each in known):
        return state, f"root {known[0].id} ({known[0].subject}) is revoked already, and not trusted any more"
    root = _root(state, named)
    entry = revoked_root(root, now)
    before = next((each for each in state.revoked if each.key == entry.key), None)
    after = state
    if before is None or not before.in_force:
        if before is not None:
            entry = replace(entry, asked_at=max(now, before.said_at + _LATER))
        after = replace(state, revoked=_remembered((*_others(state, entry), entry)))
    after = carried_out(after, policy, now, svids)
    if forced:
        after = _cut(after, policy, now, svids)
    told = f"root {entry.id} ({entry.subject})"
    if after == state:
        return state, f"{told} is being revoked already; see authority show"
    after = replace(after, sequence=state.sequence + 1)
    if not is_trusted(after, entry):
        return after, f"{told} is revoked: it has left the trust bundle, and is not taken again"
    if after.condemned:
        return after, (
            f"{told} is revoked, and trusted until another authority signs: the active one leads to no other root. The "
            "CA above has to certify one below another root; then all SVIDs are re-issued, and the root leaves"
        )
    return after, f"{told} is revoked: it leaves the trust bundle when all SVIDs below it are re-issued"


def take_back(state: AuthorityState, named: str, now: datetime) -> tuple[AuthorityState, str]:
    """It may be trusted again, as soon as the CA above names it. Raises TransitionRefused."""
    found = _in_force(state, named)
    if len(found) != 1:
        raise TransitionRefused(
            f"{len(found) or 'no'} revoked roots have the id {named[:80]!r}; see authority show for the fingerprint"
        )
    entry = replace(found[0], taken_back_at=max(now, found[0].said_at + _LATER))
    after = replace(state, sequence=state.sequence + 1, revoked=(*_others(state, entry), entry))
    return after, (
        f"root {entry.id} ({entry.subject}) may be trusted again: it is when the CA above names it, or certifies an "
        "authority below it"
    )


def carried_out(state: AuthorityState, policy: LifecyclePolicy, now: datetime, svids: int) -> AuthorityState:
    """The state in which everything is done that revoked roots need now; the same where it is."""
    keys = state.revoked_keys
    if not keys:
        return state
    trusted, condemned = state.bundle.x509_authorities, state.condemned
    slots: list[X509Slot] = []
    directives = state.directives
    for slot in state.x509:
        if not _touched(slot, keys):
            slots.append(slot)
        elif left := roots_left(slot.authority, trusted, keys):
            # Of what leads to another root as well that one stays.
            slots.append(_with(slot, (*_own(slot, keys), *left)))
        elif slot.stage is Stage.OLD and condemned:
            # Who would re-issue its SVIDs now is below the root, too: they are with those of the active one.
            slots.append(replace(slot, stage=Stage.TAINTED))
        elif slot.stage is Stage.OLD:
            leaving = succession.tainted(slot, policy, now, svids)
            slots.append(leaving)
            directives = succession.directed(directives, succession.re_issue(leaving, now))
        elif slot.stage is not Stage.PREPARED:
            slots.append(slot)
    roots = tuple(each for each in state.roots if not is_revoked(each.certificate, keys))
    after = replace(state, x509=tuple(slots), roots=roots, directives=_of_slots(directives, slots))
    return state if after == state else after


def is_trusted(state: AuthorityState, root: RevokedRoot) -> bool:
    """Whether its key is still in the trust bundle."""
    return any(is_revoked(each, (root.key,)) for each in state.bundle.x509_authorities)


def outlook(state: AuthorityState) -> list[str]:
    """What revoked roots wait for, for people."""
    lines = []
    for each in state.revoked:
        if not each.in_force or not is_trusted(state, each):
            continue
        if not state.condemned:
            when = "when no SVID below it is held any more"
        elif state.find("x509", Stage.PREPARED) is not None:
            when = "when the prepared authority signs and all SVIDs below it are re-issued"
        else:
            when = (
                "when another authority signs: the active one leads to no other root, and the CA above has to certify "
                "one below another"
            )
        lines.append(f"x509: stop trusting the revoked root {each.id} {when}")
    return lines


def _cut(state: AuthorityState, policy: LifecyclePolicy, now: datetime, svids: int) -> AuthorityState:
    """Nothing of them is trusted from now on; SVIDs below them are re-issued all the same."""
    if state.condemned:
        if state.find("x509", Stage.PREPARED) is None:
            raise TransitionRefused(
                "every authority that could sign is below it, and without it nothing would be trusted: leave --forced "
                "out, and it leaves when the CA above has certified another one; or use --forced again when authority "
                "show has one prepared"
            )
        state = succession.activated(state, "x509", policy, now, svids)
    keys = state.revoked_keys
    slots = tuple(_with(slot, _own(slot, keys)) if _touched(slot, keys) else slot for slot in state.x509)
    return replace(state, x509=slots)


def _in_force(state: AuthorityState, named: str) -> list[RevokedRoot]:
    wanted = _id(named)
    return [each for each in state.revoked if each.in_force and wanted in (each.id, each.key_id)]


def _root(state: AuthorityState, named: str) -> x509.Certificate:
    wanted = _id(named)
    found = [each for each in state.bundle.x509_authorities if wanted in _ids(each)]
    if not found:
        if any(wanted in _ids(each) for slot in state.x509 for each in slot.authority.chain):
            raise TransitionRefused(
                "that is an intermediate, which is trusted for the root above it: no trust bundle can leave it out; "
                "have its CA replaced, and revoke the root, or the authority (authority revoke)"
            )
        raise TransitionRefused(f"no root that is trusted has the id {named[:80]!r}; see authority show")
    if len({key_of(each) for each in found}) > 1:
        raise TransitionRefused(
            f"roots with different keys call themselves {wanted}; name one by its SHA-256 fingerprint: "
            f"{', '.join(sorted(each.fingerprint(hashes.SHA256()).hex() for each in found))}"
        )
    own = next((slot for slot in state.x509 if is_revoked(slot.authority.chain[0], (key_of(found[0]),))), None)
    if own is not None:
        raise TransitionRefused(
            f"it is authority {own.id} itself and no CA's above; if its key is stolen, use: authority rotate --forced"
        )
    return found[0]


def _id(named: str) -> str:
    wanted = named.replace(":", "").strip().lower()
    if not 0 < len(wanted) <= _MAX_ID or any(each not in "0123456789abcdef" for each in wanted):
        raise TransitionRefused(
            f"{named[:80]!r} is neither a subject key identifier (40 hex digits) nor a SHA-256 fingerprint (64); "
            "authority show has both"
        )
    return wanted


def _ids(certificate: x509.Certificate) -> tuple[str, str]:
    return certificate.fingerprint(hashes.SHA256()).hex(), key_id_of(certificate)


def _touched(slot: X509Slot, keys: frozenset[str]) -> bool:
    certificates = (*slot.authority.chain, *slot.authority.bundle.x509_authorities)
    return any(is_revoked(each, keys) for each in certificates)


def _own(slot: X509Slot, keys: frozenset[str]) -> tuple[x509.Certificate, ...]:
    return tuple(each for each in slot.authority.bundle.x509_authorities if not is_revoked(each, keys))


def _with(slot: X509Slot, roots: tuple[x509.Certificate, ...]) -> X509Slot:
    roots = tuple(dict.fromkeys(roots))
    return slot if roots == slot.authority.bundle.x509_authorities else with_roots(slot, roots)


def _others(state: AuthorityState, entry: RevokedRoot) -> tuple[RevokedRoot, ...]:
    return tuple(each for each in state.revoked if each.key != entry.key)


def _remembered(entries: tuple[RevokedRoot, ...]) -> tuple[RevokedRoot, ...]:
    over = len(entries) - MAX_REVOKED
    gone = [each for each in entries if not each.in_force][: max(over, 0)]
    if len(gone) < over:
        raise TransitionRefused(
            f"{MAX_REVOKED} roots are revoked, and no more are remembered; take one back that no CA names any more: "
            "authority trust-upstream"
        )
    return tuple(each for each in entries if each not in gone)


def _of_slots(directives: tuple[Directive, ...], slots: list[X509Slot]) -> tuple[Directive, ...]:
    present = {slot.id for slot in slots}
    return tuple(each for each in directives if each.authority_id in present)
