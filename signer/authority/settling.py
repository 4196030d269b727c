"""How long an authority is published before it signs, and who may be behind: verifiers that never acknowledge.

Agents say what they have; partners that poll the trust bundle and readers of a JWKS do not. Each audience that is on
has a time in which all of it has read what is published. It counts from the publication, which is in the state: another
leader goes on with it. After a theft only those are waited for who read as often as they are told, and no longer than
silent agents are: the others may lose until they read; until when is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from runtime import durations
from signer.audience_settings import FEDERATION, ISTIO, KEYS_KEPT, OIDC, POD_CERTIFICATES
from signer.authority.knowledge import Acks
from signer.authority.slots import KINDS, Slot, Stage, X509Slot
from signer.authority.state import AuthorityState
from signer.authority.timing import Audience, LifecyclePolicy
from signer.errors import TransitionRefused

# So long before a prepared authority may sign, what agents acknowledge is passed on at once.
ROUSED = timedelta(minutes=2)
# Who does not read keys by time has no bound.
_BY_NEED = (
    "; who reads keys only for a key id that it does not know (API servers, OpenBao, Keycloak) accepts it until then"
)


@dataclass(frozen=True, slots=True)
class Wait:
    """Of that audience nobody may lack the prepared authority when it signs: not before `until`."""

    kind: str
    authority_id: str
    audience: str
    until: datetime


def published_at(state: AuthorityState, slot: Slot) -> datetime:
    """Since when verifiers can have what they verify its SVIDs by: its root may have been there long before."""
    if not isinstance(slot, X509Slot):
        return slot.prepared_at
    named = {each.certificate: each.since for each in state.roots}
    since = slot.prepared_at
    roots = slot.authority.bundle.x509_authorities
    if roots:
        since = max(
            named.get(root)
            or min(each.prepared_at for each in state.x509 if root in each.authority.bundle.x509_authorities)
            for root in roots
        )
    return min(since, slot.prepared_at)


def needed(state: AuthorityState, kind: str, audience: Audience, policy: LifecyclePolicy) -> timedelta:
    """How long an authority of a kind is published before all of that audience have it.

    Who hears of roots as he renews does so when what he has is due: it lives as long as it was issued for, and no
    shorter because settings are lower by now.
    """
    usually = audience.settle(kind)
    if kind != "x509" or not audience.renewed:
        return usually
    lives = [slot.longest or policy.most(kind) for slot in state.x509 if slot.stage is not Stage.PREPARED]
    return max([usually, *(each * audience.renewed for each in lives)])


def settle(state: AuthorityState, kind: str, policy: LifecyclePolicy) -> timedelta:
    """The same for all audiences."""
    return max((needed(state, kind, each, policy) for each in policy.audiences), default=timedelta(0))


def life(state: AuthorityState | None, policy: LifecyclePolicy) -> timedelta:
    """How long a new X.509 authority is to live.

    By the settings; longer where, by settings of before, it is published for longer: it would end as it waits.
    """
    least = settle(state, "x509", policy) if state is not None else timedelta(0)
    return policy.authority_ttl if least <= policy.settle("x509") else policy.living(least)


def waits(state: AuthorityState, policy: LifecyclePolicy) -> Iterator[Wait]:
    """What prepared authorities wait for, over or not.

    Not beyond what the active one has left: from then on every pod of the cluster would have shorter and shorter
    SVIDs, and then none. Nor beyond what they have left themselves: nothing that has ended may sign. Who hears of roots
    as he renews has done so by then all the same: nobody's SVID outlives its authority, whatever may be usual by now.
    """
    for kind in KINDS:
        prepared = state.find(kind, Stage.PREPARED)
        active = state.find(kind, Stage.ACTIVE)
        for each in policy.audiences if prepared is not None else ():
            time = needed(state, kind, each, policy)
            if state.forced(kind):
                # Those who do as they are told read anew in that time; for no others is a stolen key kept signing.
                time = min(time, each.told, policy.ack_bound, policy.forced_window)
            if prepared is not None and time:
                since = published_at(state, prepared)
                until = since + time
                for slot in (active, prepared):
                    if isinstance(slot, X509Slot):
                        ends = slot.authority.not_after
                        until = min(until, max(policy.spent_at(ends), since + (ends - since) * each.renewed))
                yield Wait(kind, prepared.id, each.name, until)


def ready_at(state: AuthorityState, prepared: Slot, policy: LifecyclePolicy) -> datetime:
    """Before then a prepared authority signs only where a person wants it at any price, or nothing else can sign."""
    kind = _kind(prepared)
    lead = policy.jwt_lead if kind == "jwt" and not state.wanted(kind) else timedelta(0)
    return max([prepared.prepared_at + lead, *(each.until for each in waits(state, policy) if each.kind == kind)])


def bound(state: AuthorityState, prepared: Slot, policy: LifecyclePolicy) -> datetime:
    """From when on agents that do not acknowledge are not waited for."""
    most = policy.ack_bound
    if state.forced(_kind(prepared)):
        most = min(most, policy.forced_window)
    return max(prepared.prepared_at + most, ready_at(state, prepared, policy))


def lead(kind: str, policy: LifecyclePolicy) -> timedelta:
    """How long before its turn an authority of a kind has to be published."""
    own = policy.jwt_lead if kind == "jwt" else timedelta(0)
    return max(own, policy.ack_bound, policy.settle(kind))


def check(state: AuthorityState, kind: str, policy: LifecyclePolicy, now: datetime) -> None:
    """Raise TransitionRefused where the prepared authority of a kind is not published for long enough."""
    left = [each for each in waits(state, policy) if each.kind == kind and now < each.until]
    if left:
        named = " and ".join(each.audience for each in left)
        raise TransitionRefused(
            f"verifiers that never acknowledge ({named}) may not have it before "
            f"{_at(max(each.until for each in left))}, and would refuse its SVIDs; wait, or use --forced"
        )


def still_accepted(policy: LifecyclePolicy) -> str:
    """What to say beside a forced rotation of JWT keys, which readers of keys outside hear of by reading only."""
    told = [each.told for each in policy.audiences if each.name == OIDC]
    if not told:
        return ""
    return (
        f"; {_called(OIDC)} accept their tokens until they read the keys anew, which those who do as they are told do "
        f"in {durations.text(told[0])} and others for an unknown key only: `podsvid oidc probe` shows what they can "
        "read, `podsvid authority show` what is left to do"
    )


def agents_matter(state: AuthorityState, policy: LifecyclePolicy, now: datetime) -> bool:
    """Whether a next step may soon hang on what agents have or hold: not while others are waited for, for a day."""
    for kind in KINDS:
        prepared = state.find(kind, Stage.PREPARED)
        if prepared is None and state.wanted(kind):
            return True
        if prepared is not None and now >= ready_at(state, prepared, policy) - ROUSED:
            return True
    return any(slot.stage is Stage.TAINTED for kind in KINDS for slot in state.slots(kind))


def awaited(state: AuthorityState, prepared: Slot, acks: Acks, policy: LifecyclePolicy, now: datetime) -> str:
    """When it will sign: who is waited for and until when, for people."""
    kind, ready = _kind(prepared), ready_at(state, prepared, policy)
    conditions = [f"{acks.lacking} acknowledged it"] if acks.waiting else []
    if acks.unknown:
        # What is not known bounds nothing.
        conditions = ["it is known who has it"]
    waited = [each for each in waits(state, policy) if each.kind == kind and now < each.until]
    if waited:
        conditions.append(f"{_called(', '.join(each.audience for each in waited))} had time to read it")
    if not conditions or (now < ready and all(each.until < ready for each in waited)):
        conditions.append("its lead time is over")
    found = f"when {' and '.join(conditions)}"
    if acks.unknown:
        return f"{found}, not before {_at(ready)}" if now < ready else found
    return (
        f"{found}, at {_at(bound(state, prepared, policy))} at the latest"
        if acks.waiting
        else f"{found}, at {_at(ready)}"
    )


def outlook(state: AuthorityState, policy: LifecyclePolicy, now: datetime) -> list[str]:
    """Who may be behind, for people."""
    lines: list[str] = []
    for kind in KINDS:
        active = state.find(kind, Stage.ACTIVE)
        for audience in policy.audiences if active is not None else ():
            assert active is not None
            time = needed(state, kind, audience, policy)
            lines += _hurried(kind, active, audience, time, policy)
            lines += _cut(state, kind, audience, time, policy)
            lines += _behind(state, kind, active, audience, time, now)
    return lines


def _hurried(kind: str, active: Slot, audience: Audience, needed: timedelta, policy: LifecyclePolicy) -> Iterator[str]:
    """Where the next one cannot be published for long enough: a CA above gave less than was asked for, or settings."""
    if kind == "jwt" and audience.name == OIDC and needed < KEYS_KEPT:
        yield (
            f"jwt: a new key is published for {durations.text(needed)} before it signs, and {_called(audience.name)} "
            f"keep keys for up to {durations.text(KEYS_KEPT)}: set jwt_key_period to {durations.text(2 * KEYS_KEPT)} "
            "or more"
        )
    if not needed or not isinstance(active, X509Slot):
        return
    since, ends = active.activated_at or active.prepared_at, active.authority.not_after
    if since + needed > policy.spent_at(ends):
        lower = "lower bundle_hint, or let" if audience.name == FEDERATION else "let"
        yield (
            f"{kind}: {active.id} ends at {_at(ends)}, too soon to publish the next one for {durations.text(needed)} "
            f"before it signs: {_called(audience.name)} may refuse that one; {lower} the CA above certify "
            "for longer"
        )


def _cut(
    state: AuthorityState, kind: str, audience: Audience, needed: timedelta, policy: LifecyclePolicy
) -> Iterator[str]:
    """Where the prepared one itself ends too soon to wait for so long."""
    prepared = state.find(kind, Stage.PREPARED)
    if needed and isinstance(prepared, X509Slot):
        ends = prepared.authority.not_after
        if published_at(state, prepared) + needed > policy.spent_at(ends):
            yield (
                f"{kind}: {prepared.id} ends at {_at(ends)}, too soon to be published for {durations.text(needed)} "
                f"before it signs: {_called(audience.name)} may refuse what it signs; let the CA above certify for "
                "longer, revoke it and prepare another"
            )


def _behind(
    state: AuthorityState, kind: str, active: Slot, audience: Audience, needed: timedelta, now: datetime
) -> Iterator[str]:
    """Where it was not waited for: after a theft, or as a person wanted."""
    read = "the trust bundle" if kind == "x509" else "the keys"
    since, signs = published_at(state, active), active.activated_at or active.prepared_at
    stolen = [each for each in state.abandoned if each.kind == kind]
    # What signed from its first moment on, and nothing before it, nobody can have missed.
    replaced = any(each.svids_end is not None and each.authority_id != active.id for each in stolen)
    if (signs > active.prepared_at or replaced) and signs < since + needed and now < since + needed:
        yield (
            f"{kind}: {_called(audience.name)} who last read {read} before {_at(since)} refuse what {active.id} signs "
            f"until they read again, by {_at(since + needed)} at the latest; others know it, and nothing is to be done"
        )
    for each in stolen:
        if audience.name == POD_CERTIFICATES and needed and each.left_at and each.svids_end and now < each.svids_end:
            yield (
                f"{kind}: pods with podCertificate volumes may have SVIDs of {each.authority_id}, which was abandoned, "
                f"until {_at(each.svids_end)}, and are refused with them: kubelet renews none earlier than it was told "
                "to; delete those pods, and what comes in their place has others"
            )
        if audience.name == ISTIO and needed and each.left_at and each.svids_end and now < each.svids_end:
            yield (
                f"{kind}: Istio's proxies may have certificates of {each.authority_id}, which was abandoned, until "
                f"{_at(each.svids_end)}, and are refused with them: they renew at half of their lives; restart those "
                "proxies, and they have others"
            )
        if each.certified_until is not None and now < each.certified_until:
            if needed and each.left_at is not None:
                yield (
                    f"{kind}: {_called(audience.name)} may accept what {each.authority_id}, which was abandoned, signs "
                    f"until {_at(each.certified_until)}: a CA above certified it, and they trust its root"
                )
        # One that never signed was published all the same.
        elif each.left_at is not None and now < each.left_at + needed:
            by_need = _BY_NEED if audience.name == OIDC else ""
            yield (
                f"{kind}: {_called(audience.name)} may accept what {each.authority_id}, which was abandoned, signs "
                f"until {_at(each.left_at + needed)}: who has not read {read} since {_at(each.left_at)} trusts it still"
                f"{by_need}"
            )


def _kind(slot: Slot) -> str:
    return "x509" if isinstance(slot, X509Slot) else "jwt"


def _called(audience: str) -> str:
    return f"verifiers that never acknowledge ({audience})"


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"
