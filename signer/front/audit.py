"""One line per decision: who got which identity, or why not. Never a token, never a key."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from runtime.clock import Clock
from signer.authority.followers import warnings
from signer.authority.revoked import is_revoked
from signer.authority.state import AuthorityState
from signer.errors import Reason
from signer.minting.minting import IssuedX509
from signer.model import Agent, AttestedPod, BoundToken, Entitlement, LivePod, PodClaim
from svid.certificates import serial_of

_log = logging.getLogger("podsvid.audit")
# What an agent sends is quoted only this far.
_MAX_TEXT = 253


# So many refusals for one reason, of one node or of all callers that are no agent, are written within so many seconds.
MAX_REFUSALS, REFUSAL_WINDOW = 120, 60.0
_MAX_WINDOWS = 20_000


@dataclass(slots=True)
class _Window:
    ends_at: float
    written: int = 0
    counted: int = 0


class Audit:
    """Writes the audit log, on the logger `podsvid.audit`: level INFO, event `mint allowed` or `mint refused`.

    Every SVID that is issued has its line. Whoever is refused again and again fills no disk: after `MAX_REFUSALS` lines
    for one reason within `REFUSAL_WINDOW` a line says that the others are only counted, and the first refusal after it
    brings their number. Refusals for another reason are not hidden by that.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, Reason], _Window] = {}
        self._warned: frozenset[str] = frozenset()

    def allowed(
        self,
        kind: str,
        attested: AttestedPod,
        entitlement: Entitlement,
        facts: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """`facts` say what was issued: serial or audiences, key algorithm, window."""
        more = {"degraded": attested.degraded, "ended_token": attested.until is not None, **facts}
        agent = attested.agent
        self._allowed(kind, agent.node_name, agent.pod_uid, attested.pod, entitlement, more, seconds)

    def certified(
        self, request: str, pod: LivePod, entitlement: Entitlement, facts: Mapping[str, Any], seconds: float
    ) -> None:
        """For a PodCertificateRequest of that name, which no agent brings."""
        more = {"request": request, **facts}
        self._allowed("pod_certificate", pod.node_name, "", pod, entitlement, more, seconds)

    def proxied(self, caller: LivePod, entitlement: Entitlement, facts: Mapping[str, Any], seconds: float) -> None:
        """For an Istio proxy in the pod `caller`, which no agent brings. `facts` say for whom, if not for itself."""
        self._allowed("istio", caller.node_name, "", caller, entitlement, facts, seconds)

    def _allowed(
        self,
        kind: str,
        node: str,
        agent_pod_uid: str,
        pod: LivePod,
        entitlement: Entitlement,
        facts: Mapping[str, Any],
        seconds: float,
    ) -> None:
        _log.info(
            "mint allowed",
            extra={
                "kind": kind,
                "node": node,
                "agent_pod_uid": agent_pod_uid,
                "pod": str(pod),
                "pod_uid": pod.uid,
                "service_account": pod.service_account,
                "policy": entitlement.decided_by,
                "spiffe_id": str(entitlement.spiffe_id),
                **facts,
                "seconds": round(seconds, 6),
            },
        )

    def refused(
        self, kind: str, agent: Agent | None, claim: PodClaim | None, reason: Reason, message: str, seconds: float
    ) -> None:
        """`claim` is what the agent said, not what was proven."""
        name, uid = (agent.node_name, agent.pod_uid) if agent else ("", "")
        self._refused(kind, name, uid, claim, reason, message, seconds)

    def uncertified(
        self, request: str, node: str, claim: PodClaim, reason: Reason, message: str, seconds: float
    ) -> None:
        """A PodCertificateRequest is denied or waits; `node` and `claim` are what it says."""
        self._refused("pod_certificate", node, "", claim, reason, message, seconds, {"request": request})

    def unproxied(self, proven: BoundToken | None, asked: str, reason: Reason, message: str, seconds: float) -> None:
        """An Istio proxy is refused; `proven` is what its token says, once it was believed, `asked` whose identity it
        wants if not its own."""
        node = proven.node_name if proven is not None else ""
        claim = PodClaim(proven.namespace, proven.pod_name, proven.pod_uid) if proven is not None else None
        more = {"impersonated": asked[:_MAX_TEXT]}
        # Of their own: any pod may call as a proxy, and hides no refusal of its node's agent.
        self._refused("istio", node, "", claim, reason, message, seconds, more, of="istio ")

    def _refused(
        self,
        kind: str,
        node: str,
        agent_pod_uid: str,
        claim: PodClaim | None,
        reason: Reason,
        message: str,
        seconds: float,
        more: Mapping[str, str] = MappingProxyType({}),
        of: str = "",
    ) -> None:
        window = self._window(node, reason, of)
        if window.written >= MAX_REFUSALS:
            window.counted += 1
            if window.counted == 1:
                _log.warning(
                    "mint refusals are only counted",
                    extra={"node": node, "reason": reason.value, "until": self._shown(window.ends_at)},
                )
            return
        window.written += 1
        _log.info(
            "mint refused",
            extra={
                "kind": kind,
                "node": node,
                "agent_pod_uid": agent_pod_uid,
                "claimed_pod": str(claim)[: 2 * _MAX_TEXT] if claim else "",
                "claimed_pod_uid": claim.uid[:_MAX_TEXT] if claim else "",
                **more,
                "reason": reason.value,
                "why": message[:1024],
                "seconds": round(seconds, 6),
            },
        )

    def changed(self, before: AuthorityState, after: AuthorityState) -> None:
        """All that a change of the authorities is to be known for later."""
        self.authorities(before, after)
        self.trusted(before, after)

    def authorities(self, before: AuthorityState, after: AuthorityState) -> None:
        """What a change of the authorities abandoned, and what of it left the trust bundle; and who cannot follow."""
        known = {(each.kind, each.authority_id): each for each in before.abandoned}
        for each in after.abandoned:
            was = known.get((each.kind, each.authority_id))
            asked = each.asked_at.isoformat()
            if was is None:
                _log.warning(
                    "authority abandoned", extra={"kind": each.kind, "authority": each.authority_id, "asked_at": asked}
                )
            if each.left_at is not None and (was is None or was.left_at is None):
                _log.warning(
                    "abandoned authority left the trust bundle",
                    extra={
                        "kind": each.kind,
                        "authority": each.authority_id,
                        "asked_at": asked,
                        "replaced": each.replaced,
                        "svids_end": each.svids_end.isoformat() if each.svids_end else None,
                        "certified_until": each.certified_until.isoformat() if each.certified_until else None,
                    },
                )

        self.followed(after)

    def followed(self, state: AuthorityState) -> None:
        """What of the authorities some verifiers cannot follow: a line for each, once."""
        now = warnings(state)
        for line in now:
            if line not in self._warned:
                _log.warning("some verifiers cannot follow", extra={"why": line})
        self._warned = frozenset(now)

    def trusted(self, before: AuthorityState, after: AuthorityState) -> None:
        """Which roots a change made enter or leave the trust bundle, whence, and which were declared stolen."""
        had, has = _roots(before), _roots(after)
        for root, whence in has.items():
            if root not in had:
                _log.info("root entered the trust bundle", extra={**_named(root), "of": whence})
        for root, whence in had.items():
            if root not in has:
                revoked = is_revoked(root, after.revoked_keys)
                _log.info("root left the trust bundle", extra={**_named(root), "of": whence, "revoked": revoked})
        for each in after.revoked:
            if each not in before.revoked:
                _log.warning(
                    "root of the CA above revoked" if each.in_force else "revocation of a root taken back",
                    extra={
                        "root": each.id,
                        "key_id": each.key_id,
                        "subject": each.subject,
                        "said_at": each.said_at.isoformat(),
                    },
                )

    def _shown(self, at: float) -> str:
        return (self._clock.now() + timedelta(seconds=at - self._clock.monotonic())).isoformat()

    def _window(self, node: str, reason: Reason, of: str = "") -> _Window:
        now = self._clock.monotonic()
        window = self._windows.get((of + node, reason))
        if window is not None and now < window.ends_at:
            return window
        if window is not None and window.counted:
            _log.warning(
                "mint refusals were only counted",
                extra={"node": node, "reason": reason.value, "count": window.counted},
            )
        if window is None and len(self._windows) >= _MAX_WINDOWS:
            self._windows.clear()
        window = self._windows[of + node, reason] = _Window(now + REFUSAL_WINDOW)
        return window


def _roots(state: AuthorityState) -> dict[x509.Certificate, str]:
    """Each that is trusted, and by what: the CA above that names it, or the authorities that lead to it."""
    found: dict[x509.Certificate, list[str]] = {each: [] for each in state.bundle.x509_authorities}
    for slot in state.x509:
        for root in slot.authority.bundle.x509_authorities:
            found[root].append(f"authority {slot.id}")
    for each in state.roots:
        found[each.certificate].append("the CA above names it")
    return {root: ", ".join(whence) for root, whence in found.items()}


def _named(root: x509.Certificate) -> dict[str, str]:
    return {
        "root": root.fingerprint(hashes.SHA256()).hex(),
        "subject": root.subject.rfc4514_string()[:_MAX_TEXT],
        "not_after": root.not_valid_after_utc.isoformat(),
    }


def facts_of(issued: IssuedX509) -> dict[str, str]:
    """What the audit log says of a certificate, by whichever way it was asked for; its subject where it has one."""
    leaf = issued.chain[0]
    facts = {
        "serial": serial_of(leaf),
        "key_algorithm": issued.key_algorithm.value,
        "not_before": leaf.not_valid_before_utc.isoformat(),
        "not_after": leaf.not_valid_after_utc.isoformat(),
    }
    subject = leaf.subject.rfc4514_string()
    return {**facts, "subject": subject} if subject else facts
