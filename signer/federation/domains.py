"""The other trust domains as every replica knows them: what objects say, and the bundle that is in force of each."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.clock import Clock
from runtime.federation import MAX_TOTAL_BYTES, FederatedBundles
from runtime.feed import Feed
from runtime.stopping import side_by_side
from signer.cluster.kube import MANAGED, KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, FederatedTrustDomainObject
from signer.errors import Conflict
from signer.federation.relation import COLLECTION, KIND, Relation, read_relation
from svid.bundle import TrustBundle
from svid.errors import SvidError
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.federation")
# On the ConfigMaps that hold fetched bundles, whose owner is the object.
LABEL = "podsvid.io/federated-trust-domain"
BUNDLE, ABOUT = "bundle.json", "trust-domain"
# Seconds from the start in which it is waited for the objects, of which agents had heard before.
PATIENCE = 30.0
_STALE = ("TooOld", "it could not be fetched for longer than maxStale; its SVIDs are not trusted")
_LARGE = (
    "TooLarge",
    f"with it all bundles together would exceed {MAX_TOTAL_BYTES >> 20} MiB, which workloads cannot take",
)
# Of a bundle's key ids in a status: characters, and how many.
_SHOWN, _NAMED = 128, 16


@dataclass(frozen=True, slots=True)
class Stored:
    """A fetched bundle: of which object (its uid), and the ConfigMap's version."""

    uid: str
    version: str
    bundle: TrustBundle


@dataclass(frozen=True, slots=True)
class Domain:
    """A relation that is followed. `held`: the latest bundle; `withheld` says why workloads do not get it, as a reason
    in one word and a sentence."""

    relation: Relation
    held: TrustBundle | None
    withheld: tuple[str, str] | None = None

    @property
    def bundle(self) -> TrustBundle | None:
        """In force."""
        return None if self.withheld else self.held


class Domains:
    """Mirrors objects and what was fetched; and `files`, whose trust domains go before objects. Belongs to one event
    loop."""

    def __init__(
        self, api: KubeApi, namespace: str, own: TrustDomain, files: Mapping[TrustDomain, Path], clock: Clock
    ) -> None:
        self._api = api
        self._files = FederatedBundles(files)
        self._began: float | None = None
        self._configs = f"/api/v1/namespaces/{namespace}/configmaps"
        self._namespace = namespace
        self._elsewhere = {own: "it is the own trust domain, whose bundle is here"}
        self._elsewhere |= dict.fromkeys(files, "federated_bundles has a file for it, which goes before")
        self._clock = clock
        self._relations: Mirror[FederatedTrustDomainObject, Relation] = Mirror(
            api, COLLECTION, FederatedTrustDomainObject, read_relation, clock, optional=True
        )
        self._stored: Mirror[DataObject, Stored] = Mirror(
            api, self._configs, DataObject, _read_stored, clock, {"labelSelector": LABEL}
        )
        self.changed: Feed[None] = Feed()

    @property
    def known(self) -> bool:
        """Whether all objects were read once, or could not be for long: before that, that there are none is no news."""
        if self._relations.synced and self._stored.synced:
            return True
        return self._began is not None and self._clock.monotonic() - self._began > PATIENCE

    async def wait_synced(self) -> None:
        """Wait until all objects were read once."""
        await self._relations.wait_synced()
        await self._stored.wait_synced()

    async def look(self) -> None:
        """Read the files that changed."""
        await self._files.look()

    async def run(self) -> None:
        """Follow the objects, for ever."""
        self._began = self._clock.monotonic()
        await side_by_side(
            self._relations.run(), self._stored.run(), self._tell(self._relations), self._tell(self._stored)
        )

    def problems(self) -> Mapping[str, str]:
        """By uid, why a relation is not followed; "" for those that are. The oldest of one trust domain counts."""
        found: dict[str, str] = {}
        taken = dict(self._elsewhere)
        for each in self._oldest_first():
            why = each.problem
            if not why and each.trust_domain is not None:
                why = taken.get(each.trust_domain, "")
            if each.trust_domain is not None:
                taken.setdefault(each.trust_domain, f"{each.name} is for the same trust domain, and older")
            found[each.uid] = why
        return found

    @property
    def relations(self) -> list[Relation]:
        """All of them, the oldest first."""
        return self._oldest_first()

    @property
    def followed(self) -> list[Domain]:
        """Those that can be used, the oldest first; of as many as fit into answers to workloads there is a bundle."""
        problems = self.problems()
        stored = {each.uid: each.bundle for each in self._stored.values.values()}
        found, size = [], sum(len(each.to_jwks()) for each in self._files.bundles)
        for each in self._oldest_first():
            if problems[each.uid]:
                continue
            held = _latest(stored.get(each.uid), each)
            withheld = _STALE if self._outdated(each) else None
            if held is not None and withheld is None:
                length = len(held.to_jwks())
                if size + length > MAX_TOTAL_BYTES:
                    withheld = _LARGE
                else:
                    size += length
            found.append(Domain(each, held, withheld))
        return found

    @property
    def bundles(self) -> tuple[TrustBundle, ...]:
        """In force, of files and of objects, in the order of their names."""
        found = [each.bundle for each in self.followed if each.bundle is not None]
        return tuple(sorted((*self._files.bundles, *found), key=lambda each: each.trust_domain.name))

    def is_current(self, relation: Relation) -> bool:
        """Whether its object is there, and says still what it did."""
        found = self._relations.find(relation.uid)
        return found is not None and found.generation == relation.generation

    def is_stored(self, relation: Relation) -> bool:
        """Whether there is one of its trust domain that was fetched."""
        return any(
            each.uid == relation.uid and each.bundle.trust_domain == relation.trust_domain
            for each in self._stored.values.values()
        )

    def ages(self) -> Mapping[str, float]:
        """Seconds since each bundle was fetched, by the name of its trust domain; of those that ever were."""
        now = self._clock.now()
        return {
            each.relation.trust_domain.name: (now - each.relation.fetched_at).total_seconds()
            for each in self.followed
            if each.relation.trust_domain is not None and each.relation.fetched_at is not None
        }

    async def store(self, relation: Relation, bundle: TrustBundle) -> None:
        """Have every replica use it. Raises SignerError."""
        assert relation.trust_domain is not None
        name = f"podsvid-federated-{relation.uid}"
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {**MANAGED, LABEL: relation.uid},
                # So that it goes with the object.
                "ownerReferences": [
                    {"apiVersion": "podsvid.io/v1alpha1", "kind": KIND, "name": relation.name, "uid": relation.uid}
                ],
            },
            "data": {ABOUT: relation.trust_domain.name, BUNDLE: bundle.to_jwks().decode()},
        }
        held = next((each for each in self._stored.values.values() if each.uid == relation.uid), None)
        if held is None:
            try:
                await self._api.create(self._configs, body)
                return
            except Conflict:
                # One that could not be read.
                await self._api.replace(f"{self._configs}/{name}", body)
                return
        body["metadata"]["resourceVersion"] = held.version
        await self._api.replace(f"{self._configs}/{name}", body)

    def _outdated(self, relation: Relation) -> bool:
        if relation.max_stale is None or relation.since is None:
            return False
        return self._clock.now() - relation.since > relation.max_stale

    def _oldest_first(self) -> list[Relation]:
        return sorted(self._relations.values.values(), key=lambda each: (each.created, each.name))

    async def _tell(self, mirror: "Mirror[FederatedTrustDomainObject, Relation] | Mirror[DataObject, Stored]") -> None:
        version = 0
        while True:
            version = await mirror.changed.wait_beyond(version)
            self.changed.publish(None)


def _latest(stored: TrustBundle | None, relation: Relation) -> TrustBundle | None:
    """The latest: what was fetched (FED-49), or a bootstrap bundle that somebody has replaced by a later one."""
    if stored is None or stored.trust_domain != relation.trust_domain:
        return relation.bootstrap
    given = relation.bootstrap
    if given is None or given.sequence is None or stored.sequence is None:
        return stored
    return given if given.sequence > stored.sequence else stored


def _read_stored(body: DataObject) -> Stored | None:
    uid, data = (body.metadata.labels or {}).get(LABEL), body.data or {}
    if not uid:
        return None
    try:
        domain = TrustDomain.parse(data.get(ABOUT, ""))
        bundle = TrustBundle.from_jwks(domain, data.get(BUNDLE, "").encode())
    except SvidError as error:
        _log.warning(
            "a stored trust bundle of another trust domain cannot be read; it is fetched again",
            extra={"config_map": body.metadata.name, "reason": error.reason, "error": str(error)},
        )
        return None
    return Stored(uid, body.metadata.resource_version or "", bundle)


def about(bundle: TrustBundle) -> Object:
    """What a status says of it."""
    ends = min((each.not_valid_after_utc for each in bundle.x509_authorities), default=None)
    found: Object = {
        "x509Authorities": len(bundle.x509_authorities),
        "jwtKeys": [each.key_id[:_SHOWN] for each in bundle.jwt_authorities[:_NAMED]],
    }
    if bundle.sequence is not None:
        found["sequence"] = bundle.sequence
    if ends is not None:
        # strftime has three digits for a year that has three.
        found["earliestNotAfter"] = f"{ends.year:04}-{ends:%m-%dT%H:%M:%SZ}"
    return found
