"""Each refusal of docs/signer.md on a real cluster: what is told of it in every place, and that no two contradict."""

from __future__ import annotations

import difflib
import os
import re
import time
from collections.abc import Iterable, Iterator

import pytest

from signer.errors import Reason
from tests.go_tools import Progress

from . import product_image
from .chart import CHART, ROOT
from .cluster import Cluster
from .installation import empty, release, settings
from .refusals import IDENTITY, NAMES, SETTINGS, Kind, Refusals, Shown
from .signing import TRUST_DOMAIN
from .told import Told

pytestmark = pytest.mark.timeout(5400)
DOCUMENT = ROOT / "docs" / "refusals.md"
# Two spaces, so that a sentence of a message begins no section.
_WIDTH = 17
_POD = re.compile(r"\bpods? ([a-z0-9-]+/[a-z0-9-]+)")
_ID = re.compile(r"spiffe://[^\s,;:()]+")
_HEARD = ("pod's events", "agent's condition", "agent's log")
# What others ask in a pod's name; these are about another one as well.
_OF_TWO = frozenset({"POD_TOKEN_REPLAYED", "NOT_ENTITLED"})
# For a person who reads them; what was looked for and is not shown.
ABSENT = {
    "SERVICE_ACCOUNT_MISMATCH": "the API server binds no token to a pod of another service account "
    "(`tests/unit/signer/test_attestation.py`)",
    "SERVICE_ACCOUNT_REPLACED": "of a PodCertificateRequest, which waits with it "
    "(`tests/cluster/test_alone_certificates.py`)",
    "POD_IS_MIRROR": "the API server gives a static pod no service account, and so no token; `explain` and the event "
    "say the same (`tests/unit/signer/test_fitness.py`)",
    "POD_WITHOUT_CERTIFICATE_SOURCE": "of a request that no agent makes: a PodCertificateRequest is denied with it "
    "(`tests/cluster/test_alone_certificates.py`)",
    **dict.fromkeys(
        ("IMPERSONATION_DENIED", "CLUSTER_UNKNOWN"),
        "of a call that no agent makes: Istio's proxies are refused with them (`tests/unit/signer/test_istio.py`)",
    ),
    "ISSUANCE_REFUSED": "policies and names are checked before (`tests/unit/signer/test_minting.py`)",
    "JWT_DISABLED": "a setting of the whole signer, `jwt_svids` (`tests/unit/signer/test_agents_answers.py`)",
    "AUTHORITY_UNAVAILABLE": "the Secret is to be away for `outage_limit` (`tests/node/test_signer_settings.py`)",
    "AUTHORITY_KEY_STORE_UNAVAILABLE": "a token that has the authorities' keys is to be away "
    "(`tests/node/test_strict_keys.py`)",
    "RECONNECT": "refuses nothing: a stream of trust bundles ends, and agents open it again",
    "INTERNAL": "a bug of the signer; its log has the traceback",
}
# Which way a pod has its certificate decides what its author is to write.
_OF_SOURCES = """
## What a podCertificate source is told

[PodCertificateRequests](pod-certificates.md#what-is-denied-and-what-waits) are refused for the same reasons. What is
denied is in kubelet's event `Denied`, what waits in the pod's event `PodCertificatePending` once the pod is known to be
the one that is named; both have the text of the signer's audit log (`kind` `pod_certificate`). What is wrong with the
request itself (`INVALID_REQUEST`, `CSR_INVALID`, `PROOF_OF_POSSESSION`) is said by the names of its fields and
annotations. Where it is what the pod's author asks for, the text is as above and ends with other words:

| reason | what to do, such as |
|---|---|
| `KEY_WEAK` | set the podCertificate source's keyType to one of ECDSAP256, ECDSAP384, ED25519, RSA3072, RSA4096 |
| `KEY_ALGORITHM_DENIED` | set the podCertificate source's keyType to ECDSAP384 |
| `DNS_NAME_DENIED` | ask for another in podsvid.io/dns-names of the podCertificate source's userAnnotations, or \
add it to the policy (dnsNameTemplates) |
"""
_HEAD = """\
# What a refusal says, and where

<!-- Written by tests/cluster/test_refusals.py on a real cluster (TESTS_UPDATE_GOLDEN=1); the same test holds it. -->

The reasons of [the signer](signer.md#reasons), brought about on a cluster with a real kubelet and API server, and all
that an operator is told of each. Begin with `podsvid explain NAMESPACE/POD`: it has the pod's policy and events, and
the condition of its volumes at the agent (`podsvid node explain` on the node says the same). A place that is not
listed says nothing of the refusal; where two name the reason, they say why in the same words. The signer's audit log
is in `kubectl -n podsvid logs deploy/podsvid-signer`, the agent's log in that of the `podsvid-agent` on the pod's node.
Left out are times, addresses and names that differ from run to run.

"""
_BEGIN = {
    Kind.POD: """\
`podsvid explain` begins with the refusal. Kubelet says it in the pod's event `FailedMount`, the signer in its event
`IdentityRefused`.
""",
    Kind.NODE: """\
The pod's policy gives it an identity: `podsvid explain` begins with that, and has in brackets the reason why its node
does not get it; the agent's condition says what to do. The signer writes no event. Its audit log has the refusal where
the signer was asked, and names no pod where the agent has not proven itself.
""",
    Kind.UNFIT: """\
An agent asks in the name of a pod that mounts nothing, or is no more. `podsvid explain` begins with that. Kubelet has
nothing to mount for it, so there is nothing of it on a node. Where the pod's author can mend it (`POD_WITHOUT_DRIVER`)
the signer writes its event.
""",
    Kind.CALLER: """\
An agent asks for what it must not have, or too often. `podsvid explain` has nothing against the pod, which is well. The
refusal is in the signer's audit log, with the node that asked; for what a pod's author could mend (`KEY_WEAK`) the
signer writes its event as well.
""",
}


@pytest.fixture(scope="module")
def shown(cluster: Cluster, images: dict[str, str], progress: Progress) -> Iterator[list[Shown]]:
    """All of them, on a chart of its own."""
    empty(cluster)
    product_image.load(cluster, [images["now"]])
    more = [flag for name, value in SETTINGS.items() for flag in ("--set", f"{name}={value}")]
    site = Refusals(cluster, progress)
    try:
        release(cluster, "install", "podsvid", str(CHART), "--create-namespace", "--wait", "--timeout", "5m",
                *settings(cluster, images["now"], TRUST_DOMAIN), *more)  # fmt: skip
        began = time.monotonic()
        found = list(site.all_of())
        progress(f"{len(found)} refusals in {time.monotonic() - began:.0f} s")
        yield found
    finally:
        site.end()
        empty(cluster)


def test_no_two_places_contradict_each_other(shown: list[Shown]) -> None:
    found = {f"{each.reason}, {each.how}": _contradictions(each) for each in shown}
    assert {what: said for what, said in found.items() if said} == {}


def test_every_reason_is_shown_or_it_is_said_why_not(shown: list[Shown]) -> None:
    assert {each.reason for each in shown} | set(ABSENT) == {*Reason}
    assert {each.reason for each in shown} & set(ABSENT) == set()


def test_the_document_says_what_is_said(shown: list[Shown]) -> None:
    made = _document(shown)
    if os.environ.get("TESTS_UPDATE_GOLDEN"):
        DOCUMENT.write_text(made)
    said = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    difference = "\n".join(difflib.unified_diff(said.splitlines(), made.splitlines(), "docs", "now", lineterm="", n=1))
    assert said == made, f"look at the difference; TESTS_UPDATE_GOLDEN=1 records it\n{difference}"


def _contradictions(shown: Shown) -> list[str]:
    """Between two places, or between one and what its chapter says. Each as a sentence."""
    told, reason = shown.told, shown.reason
    places = told.everywhere()
    has = {place for place, lines in places.items() if any(reason in line for line in lines)}
    found: list[str] = []
    first = told.explain[0] if told.explain else ""
    verdicts = {
        Kind.POD: f"pod {told.pod}: refused: {reason}: ",
        Kind.NODE: f"pod {told.pod}: {IDENTITY} (a volume is refused on its node: {reason})",
        Kind.UNFIT: f"pod {told.pod}: refused: {reason}: ",
        Kind.CALLER: f"pod {told.pod}: {IDENTITY}",
    }
    verdict = verdicts[shown.kind]
    gone = reason == "POD_NOT_FOUND" and first.startswith(f"podsvid: {reason}: pod {told.pod} does not exist")
    if not gone and not (first == verdict if shown.kind is Kind.CALLER else first.startswith(verdict)):
        found.append(f"explain begins with {first!r}")
    if shown.kind in (Kind.POD, Kind.NODE) and told.code != 3:
        found.append(f"explain's exit code is {told.code}")
    asked = {"signer's audit"} if shown.by_signer else set()
    expected = {
        Kind.POD: {"podsvid explain", *_HEARD, *asked},
        Kind.NODE: {"podsvid explain", *_HEARD, *asked},
        Kind.UNFIT: {"podsvid explain", *asked},
        Kind.CALLER: asked,
    }[shown.kind]
    found += [f"{place}: nothing of {reason}" for place in sorted(expected - has)]
    # Only the signer's event may be beside what the chapter says, for reasons that a pod's author can mend.
    found += [f"{place} has {reason}, too" for place in sorted(has - expected - {"pod's events", "policy's status"})]
    events = {line.partition(":")[0] for line in told.events}
    if (shown.kind is Kind.POD) != (events >= {"FailedMount", "IdentityRefused"}):
        found.append(f"events are {sorted(events)}")
    return found + _other_words(shown) + _other_policies(told) + _other_names(shown)


def _other_names(shown: Shown) -> list[str]:
    """Of pods and identities that are not this one's."""
    if shown.reason in _OF_TWO:
        return []
    lines = [line for lines in shown.told.everywhere().values() for line in lines] + [shown.answer]
    found = []
    for what, pattern, right in (("pod", _POD, shown.told.pod), ("SPIFFE ID", _ID, IDENTITY)):
        named = {name for line in lines for name in pattern.findall(line)} - {right}
        found += [f"another {what} is named: {name}" for name in sorted(named)]
    return found


def _other_policies(told: Told) -> list[str]:
    """That decide for other pods, and are named here."""
    own = {line.partition(": ")[0] for line in told.policy}
    text = "\n".join(line for lines in told.everywhere().values() for line in lines)
    return [f"policy {each} is named" for each in NAMES if each not in own and re.search(rf"\b{each}\b", text)]


def _other_words(shown: Shown) -> list[str]:
    """What the signer wrote down, or the agent where it refused by itself, word for word, is what the others say."""
    told, reason = shown.told, f"{shown.reason}: "
    why = {line.partition(reason)[2].rpartition(" (")[0] for line in (told.audit if shown.by_signer else told.log)}
    said = [(place, line) for place, lines in told.everywhere().items() for line in lines if reason in line]
    said += [("the caller's answer", shown.answer)] if shown.answer else []
    return [f"{place} has other words: {line!r}" for place, line in said if not any(each in line for each in why)]


def _document(all_shown: Iterable[Shown]) -> str:
    """Markdown, a chapter for each kind."""
    lines, found = [_HEAD], list(all_shown)
    for kind in Kind:
        lines.append(f"## {kind.value}\n\n{_BEGIN[kind]}\n")
        for each in (one for one in found if one.kind is kind):
            lines.append(f"### `{each.reason}`: {each.how}\n\n```text\n")
            places = {**each.told.everywhere(), **({"caller is told": (each.answer,)} if each.answer else {})}
            for place, said in places.items():
                for number, line in enumerate(said):
                    lines.append(f"{'' if number else place:<{_WIDTH + 2}}{line}\n")
            lines.append("```\n\n")
    lines.append("## Not shown here\n\n| reason | why |\n|---|---|\n")
    lines += [f"| `{reason}` | {why} |\n" for reason, why in ABSENT.items()]
    lines.append(_OF_SOURCES)
    return "".join(lines)
