"""What is left for people to do after a theft, as no signer reaches it: verifiers outside, and a CA above."""

from datetime import datetime, timedelta

from signer.authority.slots import Stage
from signer.authority.state import Abandoned, AuthorityState

# Verifiers outside are told of for so long after a key has left.
TOLD_FOR = timedelta(days=7)
_OUTSIDE = (
    "jwt: `podsvid oidc probe` shows which keys verifiers can read now, and for how long they keep them: the abandoned "
    "ones must not be among them"
)


def to_do(state: AuthorityState, now: datetime) -> list[str]:
    """For people, a line each."""
    # Caches have one that never signed as well: it was published.
    keys = [each for each in state.abandoned if each.kind == "jwt" and each.left_at and now < each.left_at + TOLD_FOR]
    lines = _of_jwt(state, keys) if keys else []
    for each in state.abandoned:
        if each.certified_until and now < each.certified_until:
            lines.append(
                f"x509: a CA above certified {each.authority_id}; as long as its root is trusted, what a thief signs "
                f"is accepted until {each.certified_until:%Y-%m-%dT%H:%M:%SZ}: replace that root"
            )
    return lines


def _of_jwt(state: AuthorityState, keys: list[Abandoned]) -> list[str]:
    named = ", ".join(each.authority_id for each in keys)
    since = max(each.left_at for each in keys if each.left_at)
    active = state.find("jwt", Stage.ACTIVE)
    new = f" (key id {active.id})" if active is not None else ""
    remembered = (
        f"jwt: verifiers outside that cache keys (API servers, OpenBao, Vault, Keycloak) accept tokens of {named} "
        "until they read the keys anew, which an unknown key id makes them do: present to each of them, and to each "
        f"replica of it, one token that was issued after {since:%Y-%m-%dT%H:%M:%SZ}{new}"
    )
    probe = (
        "jwt: then probe each with a token of before, which it must refuse; for workloads: "
        "`podsvid api validate jwt --audience A --svid-file OLD` in a pod must end with status 5"
    )
    return [remembered, probe, _OUTSIDE]
