"""`podsvid oidc probe`: which keys verifiers outside can read now, beside those that the signer publishes."""

import argparse
import asyncio
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from podsvid.asked import check_discoverable, signer_of
from podsvid.authority import CommandFailed, here
from podsvid.interrupts import unwinding
from podsvid.options import add_cluster, add_output, add_timeout, as_yaml
from podsvid.output import console, instant, print_table, rfc3339
from podsvid.waiting import Waiting
from runtime import settings
from runtime.terminal import printable, shown
from signer.audience_settings import KEYS_MAX_AGE
from signer.pb import admin_pb2
from svid.oidc import Issuer
from svid.readers import (
    Comparison,
    Discovery,
    Standing,
    UnreadableDocument,
    compared,
    discovery_of,
    keys_of,
)

_EXAMPLE = "oidc probe"
# Seconds for the signer and for both documents.
_SECONDS = 30.0
_ALL_WELL = "verifiers outside can read what the signer publishes, and nothing else"
_HOW = "where the signer serves them, a cache between answers; where a web server does, run `podsvid oidc export` again"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is not as it should be outside; `reason` is stable."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Read:
    """One document, as it was read. `why`: it was not, and why."""

    url: str
    kept: int | None = None
    age: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Outside:
    """What was read. The documents are None where they could not be."""

    at: datetime
    configuration: Read
    keys: Read
    discovery: Discovery | None = None
    found: Comparison | None = None

    @property
    def kept_until(self) -> datetime | None:
        """Until when whoever reads the keys now may keep them; None where it is not said."""
        return None if self.keys.kept is None or self.keys.why else self.at + timedelta(seconds=self.keys.kept)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        type=Path,
        help="PEM of the CAs by which the certificate outside is verified (default: the system's)",
    )
    parser.add_argument(
        "--connect-to",
        metavar="HOST:PORT",
        type=_address,
        help="ask one server, and not where the URLs lead; the certificate has to name their host all the same",
    )
    add_cluster(parser, here())
    add_output(parser)
    add_timeout(parser, _SECONDS)


def _address(text: str) -> tuple[str, int]:
    try:
        found = settings.listen(text)
    except ValueError:
        found = None
    if found is None or not found[1] or text.startswith(":"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no HOST:PORT such as 192.0.2.1:443 or [2001:db8::1]:443")
    return found


def run(parsed: argparse.Namespace) -> int:
    """Print it; the exit code: 3 where verifiers can read anything else. Raises SignerError, OSError, GaveUp."""
    context = _trusting(parsed.ca_file)
    waiting = Waiting(parsed.timeout)
    with unwinding():
        signer = signer_of(parsed, waiting, _EXAMPLE)
        published = signer.published()
        check_discoverable(published)
        status = signer.status()
        # On a thread of its own: whoever is asked may never answer.
        outside = waiting.ask(
            published.issuer,
            lambda: asyncio.run(read(published, status, context, parsed.connect_to)),
        )
    found = list(findings(outside, published, status))
    if parsed.output == "text":
        _show(outside, found, published, status)
    else:
        document = json.dumps(_document(outside, found, published, status), indent=2)
        print(document if parsed.output == "json" else as_yaml(document).rstrip())
    return 3 if found else 0


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise CommandFailed(f"{ca_file}: it has no certificate in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def read(
    published: admin_pb2.PublishResponse,
    status: admin_pb2.AuthorityStatus,
    context: ssl.SSLContext,
    at: tuple[str, int] | None,
) -> Outside:
    """What a stranger gets, and what of it is the signer's. Raises UnreadableDocument where the signer has none."""
    # aiohttp takes as long to load as everything else.
    from podsvid.outside import Document, Stranger, Unread

    stranger = Stranger(context, at)

    async def asked(url: str) -> tuple[Document | None, Read]:
        try:
            document = await stranger.read(url)
        except Unread as error:
            return None, Read(url, why=str(error))
        return document, Read(url, document.kept, document.age)

    issuer, own = Issuer(published.issuer, published.jwks_uri), keys_of(published.jwks.encode())
    document, configuration = await asked(issuer.configuration_url)
    discovery = None
    if document is not None:
        try:
            discovery = discovery_of(document.body)
        except UnreadableDocument as error:
            configuration = Read(configuration.url, why=str(error))
    # Where the signer says that they are: an address that a stranger has written is not asked.
    document, keys = await asked(issuer.jwks_uri)
    comparison = None
    if document is not None:
        try:
            comparison = compared(keys_of(document.body), own, _abandoned(status).keys())
        except UnreadableDocument as error:
            keys = Read(keys.url, why=str(error))
    return Outside(datetime.now(UTC), configuration, keys, discovery, comparison)


def findings(
    outside: Outside, published: admin_pb2.PublishResponse, status: admin_pb2.AuthorityStatus
) -> Iterator[Finding]:
    """What is not as it should be, the worst first."""
    if outside.found is not None:
        for key_id, standing in outside.found.keys:
            yield from _of_key(key_id, standing, outside, status)
        yield from _of_missing(outside.found.missing, status)
    for read in (outside.configuration, outside.keys):
        if read.why:
            yield Finding(
                "DOCUMENT_UNREADABLE",
                f"{read.url}: {read.why}; a verifier that has no keys yet refuses all tokens",
            )
    if outside.discovery is not None:
        for reason, name, theirs, ours in (
            ("ISSUER_DIFFERS", "issuer", outside.discovery.issuer, published.issuer),
            ("JWKS_URI_DIFFERS", "jwks_uri", outside.discovery.jwks_uri, published.jwks_uri),
        ):
            if theirs != ours:
                more = "verifiers refuse the document" if name == "issuer" else "keys were not looked for there"
                yield Finding(
                    reason, f"{name} of the discovery document is {shown(theirs)}, not {ours}: {more}; {_HOW}"
                )
    kept = max(outside.keys.kept or 0, outside.keys.age)
    if kept > KEYS_MAX_AGE.total_seconds():
        how = "are in a cache for" if outside.keys.age == kept else "may be kept for"
        yield Finding(
            "KEPT_TOO_LONG",
            f"the keys {how} {kept} s: so much later verifiers notice that one was withdrawn, "
            f"or is new after a theft; serve them with Cache-Control: max-age={int(KEYS_MAX_AGE.total_seconds())}",
        )


def _of_key(key_id: str, standing: Standing, outside: Outside, status: admin_pb2.AuthorityStatus) -> Iterator[Finding]:
    named = printable(key_id[:80]) or "a key without an id"
    age = f" (the answer was in a cache for {outside.keys.age} s)" if outside.keys.age else ""
    if standing is Standing.ABANDONED:
        abandoned = _abandoned(status)[key_id]
        since = f"key {named} was declared stolen at {instant(abandoned.asked_at)} and is there still{age}"
        if abandoned.HasField("left_at"):
            yield Finding(
                "KEY_ABANDONED",
                f"{since}, though the signer publishes it no more since {instant(abandoned.left_at)}: whoever reads it "
                f"accepts what a thief signs; {_HOW}",
            )
        else:
            yield Finding(
                "KEY_ABANDONED",
                f"{since}: it leaves once its tokens are re-issued, which `podsvid authority show` follows",
            )
    elif standing is Standing.NOT_PUBLISHED:
        yield Finding(
            "KEY_NOT_PUBLISHED",
            f"key {named} is there{age}, and the signer does not publish it (any more): its tokens are accepted; "
            f"{_HOW}",
        )
    elif standing is Standing.ANOTHER:
        yield Finding(
            "KEY_IS_ANOTHER",
            f"what is there as key {named} is not the signer's key of that id: somebody else answers at that URL, and "
            "verifiers believe him; find out who",
        )


def _of_missing(missing: tuple[str, ...], status: admin_pb2.AuthorityStatus) -> Iterator[Finding]:
    stages = _stages(status)
    for each in missing:
        stage = stages.get(each, "")
        what = {
            "active": "verifiers refuse the tokens that it signs",
            "prepared": "verifiers would refuse what it is about to sign",
        }.get(stage, "verifiers refuse those of its tokens that have not ended")
        yield Finding(
            "KEY_MISSING", f"key {each}{f' ({stage})' if stage else ''} of the signer is not there: {what}; {_HOW}"
        )


def _stages(status: admin_pb2.AuthorityStatus) -> Mapping[str, str]:
    return {each.id: each.stage for each in status.authorities if each.kind == admin_pb2.KIND_JWT}


def _abandoned(status: admin_pb2.AuthorityStatus) -> Mapping[str, admin_pb2.Abandoned]:
    return {each.id: each for each in status.abandoned if each.kind == admin_pb2.KIND_JWT}


def _to_do(status: admin_pb2.AuthorityStatus) -> list[str]:
    return [each for each in status.to_do if each.startswith("jwt: ")]


def _show(
    outside: Outside,
    found: list[Finding],
    published: admin_pb2.PublishResponse,
    status: admin_pb2.AuthorityStatus,
) -> None:
    print(printable(f"issuer {published.issuer}, trust domain {published.trust_domain}, sequence {published.sequence}"))
    for name, read in (("discovery document", outside.configuration), ("keys", outside.keys)):
        said = "not read" if read.why else _kept(read)
        print(printable(f"{name} at {read.url}: {said}"))
    if outside.found is not None:
        stages = _stages(status)
        rows = [(key_id, standing.value, stages.get(key_id, "")) for key_id, standing in outside.found.keys]
        rows += [(key_id, "missing", stages.get(key_id, "")) for key_id in outside.found.missing]
        print_table(console(), ("KEY", "OUTSIDE", "STAGE"), rows)
    if outside.kept_until is not None:
        print(f"whoever reads the keys now may keep them until {rfc3339(outside.kept_until)}")
    for each in found:
        print(printable(f"{each.reason}: {each.text}"))
    if not found:
        print(_ALL_WELL)
    for line in _to_do(status):
        print(printable(f"to do: {line}"))


def _kept(read: Read) -> str:
    kept = "readers decide how long to keep it" if read.kept is None else f"kept for {read.kept} s"
    return f"{kept}, {read.age} s old"


def _document(
    outside: Outside,
    found: list[Finding],
    published: admin_pb2.PublishResponse,
    status: admin_pb2.AuthorityStatus,
) -> dict[str, object]:
    stages = _stages(status)
    comparison = outside.found or Comparison((), ())
    return {
        "trust_domain": published.trust_domain,
        "sequence": str(published.sequence),
        "issuer": published.issuer,
        "at": rfc3339(outside.at),
        "documents": [
            {"name": name, "url": read.url, "kept": read.kept, "age": read.age, "error": read.why}
            for name, read in (("discovery", outside.configuration), ("keys", outside.keys))
        ],
        "keys": [
            *(
                {"id": key_id, "outside": standing.value, "stage": stages.get(key_id, "")}
                for key_id, standing in comparison.keys
            ),
            *({"id": key_id, "outside": "missing", "stage": stages.get(key_id, "")} for key_id in comparison.missing),
        ],
        "kept_until": rfc3339(outside.kept_until) if outside.kept_until is not None else None,
        "findings": [{"reason": each.reason, "text": each.text} for each in found],
        "to_do": _to_do(status),
    }
