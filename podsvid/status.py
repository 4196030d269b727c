"""What `podsvid authority show` prints for people."""

from typing import TYPE_CHECKING

from podsvid.output import instant, print_table
from signer.admin_api import KINDS
from signer.pb import admin_pb2

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = ("KIND", "STAGE", "ID", "SINCE", "ENDS", "SVIDS HELD")
_WIDE = ("KIND", "STAGE", "ID", "PREPARED", "SIGNS SINCE", "LEAVES BUNDLE", "CERTIFICATE ENDS", "SVIDS HELD")


def print_status(status: admin_pb2.AuthorityStatus, console: "Console", *, wide: bool) -> None:
    """The authorities as a table, and the rest in lines."""
    console.print(f"trust domain {status.trust_domain}, sequence {status.sequence}")
    print_table(console, _WIDE if wide else _COLUMNS, map(_wide if wide else _row, status.authorities))
    _print_rest(status, console)


def warning(line: str) -> str:
    """Of what some verifiers cannot follow."""
    return f"warning: {line}"


def waiting_for(each: admin_pb2.Awaited) -> str:
    """Of those to whom a prepared authority has to be known first."""
    return f"{KINDS[each.kind]} {each.id} waits for {each.audience} until {instant(each.until)}"


def _row(each: admin_pb2.Authority) -> tuple[str, ...]:
    since = each.activated_at if each.HasField("activated_at") else each.prepared_at
    ends = _at(each, "leaves_at") or _at(each, "not_after")
    return KINDS[each.kind], each.stage, each.id, instant(since), ends, _held(each)


def _wide(each: admin_pb2.Authority) -> tuple[str, ...]:
    times = (_at(each, name) for name in ("prepared_at", "activated_at", "leaves_at", "not_after"))
    return KINDS[each.kind], each.stage, each.id, *times, _held(each)


def _at(each: admin_pb2.Authority, name: str) -> str:
    return instant(getattr(each, name)) if each.HasField(name) else ""


def _held(each: admin_pb2.Authority) -> str:
    # Unknown is not none.
    return str(each.svids) if each.svids_known else "" if each.kind == admin_pb2.KIND_JWT else "?"


def _print_rest(status: admin_pb2.AuthorityStatus, console: "Console") -> None:
    have = status.agents - status.agents_waiting
    known = ", as far as is known" if status.unknown else ""
    console.print(f"agents: {have} of {status.agents} have acknowledged sequence {status.sequence}{known}")
    if status.waiting_nodes:
        more = status.agents_waiting - len(status.waiting_nodes)
        console.print(f"missing: {', '.join(status.waiting_nodes)}{f' and {more} more' if more else ''}")
    for awaited in status.awaited:
        console.print(f"verifiers that never acknowledge: {waiting_for(awaited)}")
    console.print(f"leader: {status.leader or 'none'}")
    for root in status.upstream_roots:
        console.print(f"root of the CA above: {_root(root)}")
    for revoked in status.revoked_roots:
        console.print(f"revoked root: {_revoked(revoked)}")
    for each in status.abandoned:
        console.print(f"abandoned: {_abandoned(each)}")
    for line in status.next:
        console.print(f"next: {line}")
    for line in status.to_do:
        console.print(f"to do: {line}")
    for line in status.warnings:
        console.print(warning(line))


def _root(each: admin_pb2.UpstreamRoot) -> str:
    since = f", named since {instant(each.since)}" if each.HasField("since") else ""
    leaves = f"; named no more, leaves not before {instant(each.leaves_at)}" if each.HasField("leaves_at") else ""
    leads = f"; of {', '.join(each.authorities)}" if each.authorities else ""
    return f"{each.id}, key {each.key_id}, {each.subject}, ends {instant(each.not_after)}{since}{leaves}{leads}"


def _revoked(each: admin_pb2.RevokedRoot) -> str:
    state = "trusted until nothing in service leads to it alone" if each.trusted else "not trusted"
    return f"{each.id}, key {each.key_id}, {each.subject}, since {instant(each.asked_at)}; {state}"


def _abandoned(each: admin_pb2.Abandoned) -> str:
    head = f"{KINDS[each.kind]} {each.id}, asked for {instant(each.asked_at)}: "
    ends = f"its last SVID ends at {instant(each.svids_end)} at the latest" if each.HasField("svids_end") else ""
    if not each.HasField("left_at"):
        return head + (f"trusted until its SVIDs are replaced; {ends}" if ends else "signs until its successor does")
    left = f"left the trust bundle at {instant(each.left_at)}"
    if not ends:
        return f"{head}{left}; it never signed"
    return head + left + ("; all its SVIDs were replaced" if each.replaced else f"; {ends}")
