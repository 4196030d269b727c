"""One line per decision: who got which identity, or why not. Never a token, never a key."""

import logging
from collections.abc import Mapping
from typing import Any

from signer.errors import Reason
from signer.model import Agent, AttestedPod, Entitlement, PodClaim

_log = logging.getLogger("podsvid.audit")
# What an agent sends is quoted only this far.
_MAX_TEXT = 253


class Audit:
    """Writes the audit log, on the logger `podsvid.audit`: level INFO, event `mint allowed` or `mint refused`."""

    def allowed(
        self,
        kind: str,
        attested: AttestedPod,
        entitlement: Entitlement,
        facts: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """`facts` say what was issued: serial or audiences, key algorithm, window."""
        pod = attested.pod
        _log.info(
            "mint allowed",
            extra={
                "kind": kind,
                "node": attested.agent.node_name,
                "agent_pod_uid": attested.agent.pod_uid,
                "pod": str(pod),
                "pod_uid": pod.uid,
                "service_account": pod.service_account,
                "policy": entitlement.policy,
                "spiffe_id": str(entitlement.spiffe_id),
                "degraded": attested.degraded,
                **facts,
                "seconds": round(seconds, 6),
            },
        )

    def refused(
        self, kind: str, agent: Agent | None, claim: PodClaim | None, reason: Reason, message: str, seconds: float
    ) -> None:
        """`claim` is what the agent said, not what was proven."""
        _log.info(
            "mint refused",
            extra={
                "kind": kind,
                "node": agent.node_name if agent else "",
                "agent_pod_uid": agent.pod_uid if agent else "",
                "claimed_pod": str(claim)[: 2 * _MAX_TEXT] if claim else "",
                "claimed_pod_uid": claim.uid[:_MAX_TEXT] if claim else "",
                "reason": reason.value,
                "why": message[:1024],
                "seconds": round(seconds, 6),
            },
        )
