"""What a person asks for by `podsvid authority`, as a step of the authorities' life."""

from dataclasses import dataclass
from datetime import datetime

from signer.authority import revocation
from signer.authority.knowledge import Acks
from signer.authority.lifecycle import Life
from signer.authority.slots import BOTH, KINDS
from signer.authority.state import AuthorityState
from signer.errors import TransitionRefused

REVOKE_UPSTREAM, TRUST_UPSTREAM = "revoke_upstream", "trust_upstream"
# Of a root of the CA above, and not of an authority.
OF_ROOTS = (REVOKE_UPSTREAM, TRUST_UPSTREAM)


@dataclass(frozen=True, slots=True)
class Asked:
    """`action`: as the admin socket's API names it. `id`: of which authority, or root."""

    action: str
    kind: str
    id: str = ""
    forced: bool = False


async def answered(
    asked: Asked, state: AuthorityState, life: Life, acks: Acks, now: datetime
) -> tuple[AuthorityState, str]:
    """The state after it, and what was done, for people. Raises TransitionRefused, SignerError."""
    if acks.untimely and not asked.forced:
        raise TransitionRefused(acks.untimely)
    if asked.action == "rotate" and asked.kind == BOTH:
        return life.compromised(state, KINDS, now)
    if asked.action == "rotate":
        return life.asked(state, asked.kind, forced=asked.forced, now=now)
    if asked.action == "prepare":
        return await life.prepare(state, asked.kind, now)
    if asked.action == "activate":
        return life.activate(state, asked.kind, acks, now, forced=asked.forced)
    if asked.action == REVOKE_UPSTREAM:
        return revocation.revoke(state, asked.id, life.policy, now, life.svids(), forced=asked.forced)
    if asked.action == TRUST_UPSTREAM:
        return revocation.take_back(state, asked.id, now)
    return life.revoke(state, asked.kind, asked.id, now, forced=asked.forced)
