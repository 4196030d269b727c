"""What was abandoned, kept outside of the Secret: an older Secret that is put back does not know of it.

It is written before the Secret is: what the Secret says was abandoned is here, or could not be written, which is said.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from runtime.clock import Clock
from signer.authority.revoked import MAX_REVOKED, RevokedRoot, joined, read_revoked, revoked_entry
from signer.authority.slots import KINDS, X509Slot, read, written
from signer.authority.state import (
    SEQUENCE_SLACK,
    Abandoned,
    AuthorityState,
    abandoned_entry,
    read_abandoned,
    sequence_at,
)
from signer.cluster.kube import OWN_LABELS, KubeApi, Object
from signer.errors import Conflict, Forbidden, NotFound, SignerError
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.authority")
FILE = "abandoned.json"
_VERSION = 1
# A hundred thefts. Beyond it the first ones are forgotten by name; a Secret of before the last theft is still told by
# its number.
MAX_ENTRIES = 512
MAX_CHARACTERS = 512 * 1024
_MAX_ID = 128
# What has ended is accepted by nobody, by any clock that is right within this.
KEPT_AFTER_END = timedelta(days=1)
_ATTEMPTS = 5
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """An authority that was abandoned; `ends`: when its certificate does, None where that is not known or has none."""

    abandoned: Abandoned
    ends: datetime | None = None

    @property
    def key(self) -> _Key:
        return (self.abandoned.kind, self.abandoned.authority_id)

    def joined(self, other: "Entry") -> "Entry":
        """Both: what has left has left."""
        first, second = (self, other) if self.abandoned.left_at is not None else (other, self)
        return Entry(first.abandoned, first.ends or second.ends)


@dataclass(frozen=True, slots=True)
class Record:
    """What was abandoned in the life of a trust domain.

    `thefts`: by kind, a number that each state of before the last theft is below; it is never forgotten. `roots`: those
    of the CA above that were declared stolen, or were once.
    """

    entries: tuple[Entry, ...] = ()
    thefts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    roots: tuple[RevokedRoot, ...] = ()

    def ids(self, kind: str) -> frozenset[str]:
        """All of a kind."""
        return frozenset(each.abandoned.authority_id for each in self.entries if each.abandoned.kind == kind)

    def left(self, kind: str) -> frozenset[str]:
        """Those of a kind that nobody trusts any more."""
        return frozenset(
            each.abandoned.authority_id
            for each in self.entries
            if each.abandoned.kind == kind and each.abandoned.left_at is not None
        )

    def named(self, kind: str, authority_id: str) -> Abandoned | None:
        """What is known of one."""
        found = (each.abandoned for each in self.entries if each.key == (kind, authority_id))
        return next(found, None)

    def before_the_theft(self, state: AuthorityState, kind: str) -> bool:
        """Whether all that the state has of a kind was abandoned, or replaced before that."""
        return state.sequence < self.thefts.get(kind, 0)

    def over(self, kind: str) -> bool:
        """Whether nobody trusts anything of before the last theft."""
        return self.ids(kind) == self.left(kind)

    @property
    def floor(self) -> int:
        """What no new state's sequence may be below."""
        return max(self.thefts.values(), default=0)

    def covers(self, other: "Record") -> bool:
        """Whether it says all that the other one does."""
        return set(joined(self.roots, other.roots)) <= set(self.roots) and all(
            other.ids(kind) <= self.ids(kind)
            and other.left(kind) <= self.left(kind)
            and other.thefts.get(kind, 0) <= self.thefts.get(kind, 0)
            for kind in KINDS
        )

    def joined(self, other: "Record") -> "Record":
        """What either says."""
        found: dict[_Key, Entry] = {each.key: each for each in self.entries}
        for each in other.entries:
            found[each.key] = each.joined(found[each.key]) if each.key in found else each
        thefts = {kind: max(self.thefts.get(kind, 0), other.thefts.get(kind, 0)) for kind in KINDS}
        known = {kind: number for kind, number in thefts.items() if number}
        return Record(tuple(found.values()), known, joined(self.roots, other.roots))

    def lasting(self, now: datetime, named: "Record") -> "Record":
        """Without what ended long ago, unless it is `named`; of more than `MAX_ENTRIES` without the first ones."""
        kept = {each.key for each in named.entries}
        entries = [
            each for each in self.entries if each.key in kept or each.ends is None or now < each.ends + KEPT_AFTER_END
        ]
        if len(entries) > MAX_ENTRIES:
            # What is still trusted is forgotten last.
            entries.sort(key=lambda each: (each.abandoned.left_at is None, each.abandoned.asked_at))
            _log.error(
                "more authorities were abandoned than are remembered; the first ones are not named any more",
                extra={"forgotten": len(entries) - MAX_ENTRIES, "kept": MAX_ENTRIES},
            )
            entries = entries[-MAX_ENTRIES:]
        # Those in force last; of the others what was said last.
        roots = sorted(self.roots, key=lambda each: (each.in_force, each.said_at))[-MAX_REVOKED:]
        return Record(tuple(entries), self.thefts, tuple(roots))


def record_of(state: AuthorityState, now: datetime) -> Record:
    """What a state says was abandoned."""
    ends = {("x509", slot.id): slot.authority.not_after for slot in state.x509 if isinstance(slot, X509Slot)}
    entries = tuple(Entry(each, ends.get((each.kind, each.authority_id))) for each in state.abandoned)
    thefts: dict[str, int] = {}
    for each in state.abandoned:
        number = sequence_at(each.asked_at)
        if _can_be(number, now):
            thefts[each.kind] = max(thefts.get(each.kind, 0), number)
    return Record(entries, thefts, state.revoked)


class Abandonments:
    """A ConfigMap beside the Secret, and what this replica knows of it: it forgets nothing when others change it."""

    def __init__(self, api: KubeApi, namespace: str, secret: str, trust_domain: TrustDomain, clock: Clock) -> None:
        self._api = api
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._name = f"{secret}-abandoned"
        self._trust_domain = trust_domain
        self._clock = clock
        # What the cluster has, as far as was seen.
        self._stored = Record()
        self._version: str | None = None
        self._damaged = ""
        self._unwritten = ""
        self.record = Record()

    @property
    def notes(self) -> list[str]:
        """For people: what is wrong with it."""
        found = []
        if self._damaged:
            found.append(f"ConfigMap {self._name} was damaged: {self._damaged}; who can write it?")
        if self._unwritten:
            found.append(
                f"what was abandoned is not recorded in ConfigMap {self._name} ({self._unwritten}): an older Secret "
                "that is restored while no signer runs would bring it back"
            )
        return found

    async def read(self) -> None:
        """Know what the cluster has. What is not understood is passed over, loudly. Raises SignerError."""
        try:
            found = await self._api.get(f"{self._collection}/{self._name}")
        except NotFound:
            self._stored, self._version = Record(), None
            return
        except Forbidden as error:
            raise Forbidden(
                f"{error}; the signer must be able to get ConfigMap {self._name} in its namespace"
            ) from None
        self._version = str((found.get("metadata") or {}).get("resourceVersion", ""))
        self._stored, wrong = _read(found, self._trust_domain, self._clock.now())
        if wrong and wrong != self._damaged:
            _log.error(
                "the record of abandoned authorities is damaged; what is not understood is passed over",
                extra={"config_map": self._name, "error": wrong},
            )
        self._damaged = wrong or self._damaged
        self.record = self.record.joined(self._stored)

    async def keep(self, state: AuthorityState) -> None:
        """See to it that the cluster has what the state says was abandoned, and all else that is known here.

        Where that is impossible, it is said, and tried again at the next time: nobody waits for it who wants to get rid
        of what was stolen.
        """
        now = self._clock.now()
        named = record_of(state, now)
        self.record = self.record.joined(named).lasting(now, named)
        try:
            await self._write()
            self._unwritten = ""
        except SignerError as error:
            if not self._unwritten:
                _log.error(
                    "abandoned authorities could not be recorded outside of the Secret; trying again",
                    extra={"config_map": self._name, "reason": error.reason, "error": str(error)},
                )
            self._unwritten = error.reason

    async def _write(self) -> None:
        for _ in range(_ATTEMPTS):
            if self._stored.covers(self.record):
                return
            wanted = self.record
            body = self._body(wanted)
            try:
                if self._version is None:
                    made = await self._api.create(self._collection, body)
                else:
                    made = await self._api.replace(f"{self._collection}/{self._name}", body)
                self._version = str((made.get("metadata") or {}).get("resourceVersion", ""))
                self._stored = wanted
            except (Conflict, NotFound):
                # Another replica wrote it, or somebody removed it.
                await self.read()
        if not self._stored.covers(self.record):
            raise Conflict("it is changed all the time by somebody else")

    def _body(self, record: Record) -> Object:
        metadata: Object = {
            "name": self._name,
            "labels": dict(OWN_LABELS),
        }
        if self._version is not None:
            metadata["resourceVersion"] = self._version
        document = {
            "version": _VERSION,
            "trust_domain": self._trust_domain.name,
            "thefts": dict(record.thefts),
            "entries": [{**abandoned_entry(each.abandoned), "ends": written(each.ends)} for each in record.entries],
            "roots": [revoked_entry(each) for each in record.roots],
        }
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {FILE: json.dumps(document, separators=(",", ":"))},
        }


def _read(body: Object, trust_domain: TrustDomain, now: datetime) -> tuple[Record, str]:
    """What a ConfigMap says, and what is wrong with it."""
    try:
        text = body["data"][FILE]
        if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
            return Record(), f"it has no {FILE} of at most {MAX_CHARACTERS} characters"
        document = json.loads(text)
        version, domain = document["version"], document["trust_domain"]
        if isinstance(version, bool) or version != _VERSION:
            return Record(), f"it is not of version {_VERSION}"
        if domain != trust_domain.name:
            return Record(), "it is of another trust domain"
        entries, thefts = list(document["entries"]), dict(document["thefts"])
        # A signer of before names none.
        told = list(document.get("roots", []))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        return Record(), f"it is not what a signer wrote ({type(error).__name__})"
    read_entries = [_entry(each, now) for each in entries[-MAX_ENTRIES:]]
    understood = [each for each in read_entries if each is not None]
    numbers = {kind: number for kind, number in thefts.items() if kind in KINDS and _can_be(number, now)}
    roots = [each for each in map(_revoked, told[-MAX_REVOKED:]) if each is not None]
    strange = len(entries) - len(understood) + len(thefts) - len(numbers) + len(told) - len(roots)
    record = Record().joined(Record(tuple(understood), numbers, tuple(roots)))
    return record, f"{strange} of its entries are not what a signer wrote" if strange else ""


def _entry(each: Any, now: datetime) -> Entry | None:
    try:
        found = Entry(read_abandoned(each), read(each["ends"]))
        if not 0 < len(found.abandoned.authority_id) <= _MAX_ID:
            return None
        # A person may have asked for it where the clock was wrong: it is abandoned all the same.
        believed = _can_be(sequence_at(found.abandoned.asked_at), now)
        return found if believed else replace(found, abandoned=replace(found.abandoned, asked_at=now))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _revoked(each: Any) -> RevokedRoot | None:
    try:
        return read_revoked(each)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _can_be(number: Any, now: datetime) -> bool:
    if isinstance(number, bool) or not isinstance(number, int):
        return False
    return 0 < number <= sequence_at(now) + SEQUENCE_SLACK
