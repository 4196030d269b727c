"""Whether two places contradict each other about one refusal, and the document that has them side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .refusals import IDENTITY, NAMES, Kind, Shown
from .told import Told

# Two spaces, so that a sentence of a message begins no section.
_WIDTH = 17
_POD = re.compile(r"\bpods? ([a-z0-9-]+/[a-z0-9-]+)")
_ID = re.compile(r"spiffe://[^\s,;:()]+")
# Refusals of what others ask in a pod's name: the pod itself is well, and they are about another one as well.
_OF_TWO = frozenset({"POD_TOKEN_REPLAYED", "NOT_ENTITLED"})
# For a person who reads them; what was looked for and is not shown.
ABSENT = {
    "SERVICE_ACCOUNT_MISMATCH": "the API server binds no token to a pod of another service account "
    "(`tests/unit/signer/test_attestation.py`)",
    "POD_IS_MIRROR": "the API server gives a static pod no service account, and so no token; `explain` and the event "
    "say the same (`tests/unit/signer/test_fitness.py`)",
    "ISSUANCE_REFUSED": "policies and names are checked before (`tests/unit/signer/test_minting.py`)",
    "JWT_DISABLED": "a setting of the whole signer, `jwt_svids` (`tests/unit/signer/test_agents_answers.py`)",
    "AUTHORITY_UNAVAILABLE": "the Secret is to be away for `outage_limit` (`tests/node/test_signer_settings.py`)",
    "RECONNECT": "refuses nothing: a stream of trust bundles ends, and agents open it again",
    "INTERNAL": "a bug of the signer; its log has the traceback",
}
_HEAD = """\
# What a refusal says, and where

<!-- Written by tests/cluster/test_refusals.py on a real cluster (PODSVID_UPDATE_GOLDEN=1); the same test holds it. -->

Each reason of [the signer](signer.md#reasons), brought about on a cluster with a real kubelet and API server, and all
that an operator is told of it. Begin with `podsvid explain NAMESPACE/POD`: its first line has the reason, and the same
reason is in the pod's events, on the pod's node, in the signer's audit log (`kubectl -n podsvid logs
deploy/podsvid-signer`) and in the agent's log. Times and names that differ from run to run are left out.

"""


def contradictions(shown: Shown) -> list[str]:
    """Each as a sentence."""
    told, of_pod = shown.told, shown.kind is not Kind.CALLER
    found: list[str] = []
    first = told.explain[0] if told.explain else ""
    if of_pod:
        on_node = f"{IDENTITY} (a volume is refused on its node: {shown.reason})"
        verdict = f"refused: {shown.reason}: " if shown.kind is Kind.POD else on_node
        if not first.startswith(f"pod {told.pod}: {verdict}"):
            found.append(f"explain begins with {first!r}")
        if told.code != 3:
            found.append(f"explain's exit code is {told.code}")
        for place in ("pod's events", "node explain", "agent's log"):
            if not any(shown.reason in line for line in told.everywhere().get(place, ())):
                found.append(f"{place}: nothing of {shown.reason}")
    elif "refused: " in first and shown.reason not in first:
        found.append(f"explain begins with {first!r}")
    if not of_pod and not any(shown.reason in line for line in told.audit):
        found.append(f"the audit log has nothing of {shown.reason}")
    found += _other_words(shown)
    found += _other_policies(told)
    lines = [line for lines in told.everywhere().values() for line in lines] + [shown.answer]
    if shown.reason not in _OF_TWO:
        for what, pattern, right in (
            ("pod", _POD, {told.pod}),
            ("SPIFFE ID", _ID, {IDENTITY}),
        ):
            named = {name for line in lines for name in pattern.findall(line)} - right
            found += [f"another {what} is named: {name}" for name in sorted(named)]
    return found


def _other_policies(told: Told) -> list[str]:
    """That decide for other pods, and are named here."""
    own = {line.partition(": ")[0] for line in told.policy}
    text = "\n".join(line for lines in told.everywhere().values() for line in lines)
    return [f"policy {each} is named" for each in NAMES if each not in own and re.search(rf"\b{each}\b", text)]


def _other_words(shown: Shown) -> list[str]:
    """What the signer wrote down, word for word, is what the others say."""
    why = {line.partition(f"{shown.reason}: ")[2].rpartition(" (node=")[0] for line in shown.told.audit}
    if not why:
        return []
    found = []
    for place in ("pod's events", "node explain", "agent's log"):
        for line in shown.told.everywhere().get(place, ()):
            if f"{shown.reason}: " in line and not any(each in line for each in why):
                found.append(f"{place} has other words than the audit log: {line!r}")
    if shown.answer and not any(each in shown.answer for each in why):
        found.append(f"the caller is told other words than the audit log: {shown.answer!r}")
    return found


def document(all_shown: Iterable[Shown]) -> str:
    """Markdown, a part for each kind."""
    lines, found = [_HEAD], list(all_shown)
    for kind in Kind:
        lines.append(f"## {kind.value}\n\n")
        for each in (one for one in found if one.kind is kind):
            lines.append(f"### `{each.reason}`\n\n{each.how[0].upper()}{each.how[1:]}.\n\n```text\n")
            places = {**each.told.everywhere(), **({"the caller is told": (each.answer,)} if each.answer else {})}
            for place, said in places.items():
                for number, line in enumerate(said):
                    lines.append(f"{'' if number else place:<{_WIDTH + 2}}{line}\n")
            lines.append("```\n\n")
    lines.append("## Not shown here\n\n| reason | why |\n|---|---|\n")
    lines += [f"| `{reason}` | {why} |\n" for reason, why in ABSENT.items()]
    return "".join(lines)
