"""By which rules authorities, and what is published of them, are wrong."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from podsvid.doctor import answers
from podsvid.doctor.finding import Finding, moment, some
from podsvid.doctor.looking import Seen

# Agents acknowledge within seconds; a bundle that has just changed is nobody's fault.
PATIENCE: Final = timedelta(minutes=2)
# Of an authority's or a root's life; its successor is there long before.
LAST_PART: Final = 10
ROOT_ENDS: Final = timedelta(days=30)
# As a signer says that it has yet to hear of agents, for a minute after it starts or begins to lead.
SETTLING: Final = "which has just started or begun to lead"
# As the signer that leads says what it could not do.
ROOTS_KEPT: Final = "x509: roots of the CA above: "
UNREAD: Final = "not read: "
FAILED: Final = "it failed to "
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def authorities(seen: Seen, now: datetime) -> Iterator[Finding]:
    """What signs, and what a signer says of it."""
    status = seen.authority or answers.Status()
    there = status.authorities or ()
    if status.unknown and SETTLING not in status.unknown:
        # Which of the two it is stands in what comes next.
        held = any(each.startswith("held: ") for each in status.next or ())
        yield Finding("CLOCKS_DIFFER" if held else "SIGNER_WARNS", f"the signer holds all steps: {status.unknown}")
    changed = [at for each in there for text in (each.prepared_at, each.activated_at) if (at := moment(text))]
    waiting = status.waiting_nodes or ()
    if waiting and not status.unknown and all(now - at > PATIENCE for at in changed):
        of = f"{status.agents_waiting} of {status.agents} agents at sequence {status.sequence}"
        text = f"{of}: {some(waiting, status.agents_waiting - len(waiting))}"
        yield Finding("AGENTS_SILENT", text, frozenset(waiting))
    for each in there:
        ends, began = moment(each.not_after), moment(each.prepared_at)
        if each.stage != "active" or ends is None:
            continue
        followed = any(other.stage == "prepared" and other.kind == each.kind for other in there)
        if not followed and ends - now < (ends - (began or now)) / LAST_PART:
            yield Finding("AUTHORITY_ENDS", f"{each.kind} {each.id} at {ends:%Y-%m-%dT%H:%M:%SZ}")
        yield from _roots(status, each, began or now, now)
    if (asked := status.requested_x509) and asked.said:
        yield Finding("UPSTREAM_AWAY", f"a request at {asked.at}: {asked.said[-1]}")
    for text in status.next or ():
        failed = text.partition(": ")[2].startswith(FAILED)
        if text.startswith(ROOTS_KEPT) and not text.startswith(ROOTS_KEPT + UNREAD):
            yield Finding("UPSTREAM_ROOTS_REFUSED", text.replace("UPSTREAM_ROOTS_REFUSED: ", "", 1))
        elif text.startswith(ROOTS_KEPT) or (failed and "UPSTREAM_AWAY" in text):
            yield Finding("UPSTREAM_AWAY", text)
        elif failed:
            yield Finding("SIGNER_WARNS", text)
    for text in dict.fromkeys([*(status.to_do or ()), *(status.warnings or ())]):
        yield Finding("SIGNER_WARNS", text)


def _roots(status: answers.Status, active: answers.Authority, began: datetime, now: datetime) -> Iterator[Finding]:
    """The roots above that `active` leads to, where the last of them ends soon: CAs above turn theirs over, too."""
    ends = {each: at for each in status.upstream_roots or () if (at := moment(each.not_after))}
    leads = [each for each in ends if active.id in (each.authorities or ())]
    if not leads:
        return
    root = max(leads, key=lambda each: ends[each])
    life = ends[root] - (moment(root.since) or began)
    soon = ends[root] - now < min(ROOT_ENDS, life / LAST_PART)
    if soon and ends[root] == max(ends.values()):
        text = f"the root above, {root.subject}, at {ends[root]:%Y-%m-%dT%H:%M:%SZ}"
        yield Finding("AUTHORITY_ENDS", text)


def bundles(seen: Seen, _: datetime) -> Iterator[Finding]:
    """What is published, against what a signer would publish now."""
    if seen.published is None or not (own := certificates(seen.published.pem)):
        return
    domain, keys = seen.published.trust_domain, _keys(seen.published.spiffe)
    wrong = []
    if seen.config_maps is not None:
        home = [each for each in seen.config_maps if each.metadata.namespace == seen.namespace]
        # Without it no agent of this cluster starts; signers may serve agents elsewhere alone.
        if not home and seen.agents is not None:
            wrong.append(f"ConfigMap {seen.namespace}/{seen.bundle_name} (it is not there)")
        for each in seen.config_maps:
            labels = each.metadata.labels or {}
            ours = labels.get("app.kubernetes.io/managed-by") == "podsvid"
            # As signers make a label of it.
            of_domain = labels.get("podsvid.io/trust-domain", "") == domain[:63].strip("-._")
            name = f"ConfigMap {each.metadata.namespace}/{each.metadata.name}"
            if each in home and not ours:
                wrong.append(f"{name} (it is not podsvid's)")
            elif each in home or (ours and of_domain):
                data = each.data or {}
                same = certificates(data.get("ca.crt", "")) == own
                same = same and (keys is None or _keys(data.get("bundle.json", "")) == keys)
                wrong += [] if same else [name]
    cluster_wide = f"podsvid.io:spiffe:{domain}"
    if seen.trust_bundles is not None:
        there = [each for each in seen.trust_bundles if each.metadata.name == cluster_wide]
        if not there:
            wrong.append(f"ClusterTrustBundle {cluster_wide} (it is not there)")
        wrong += [f"ClusterTrustBundle {cluster_wide}" for each in there if certificates(each.spec.trust_bundle) != own]
    if wrong:
        yield Finding("BUNDLE_STALE", some(wrong), frozenset(wrong))


def certificates(pem: str) -> frozenset[str]:
    """Each one's base64. In one pass: whoever may write a ConfigMap chooses the text."""
    found, at = set(), 0
    while (begin := pem.find(_BEGIN, at)) >= 0 and (end := pem.find(_END, begin)) >= 0:
        found.add("".join(pem[begin + len(_BEGIN) : end].split()))
        at = end + len(_END)
    return frozenset(found)


def _keys(document: str) -> frozenset[str] | None:
    """What a JWKS trusts, without the numbers beside it, which change where nothing else does; None: it is none."""
    try:
        found = json.loads(document)
        return frozenset(json.dumps(each, sort_keys=True) for each in found["keys"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
