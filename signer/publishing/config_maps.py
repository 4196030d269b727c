"""The trust bundle where pods and other programs find it: ConfigMaps in every selected namespace, and, where the API
server has them, ClusterTrustBundles."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runtime.clock import Clock
from runtime.stopping import side_by_side
from signer.cluster.kube import MANAGED, KubeApi, Object
from signer.cluster.mirror import Mirror
from signer.cluster.objects import DataObject, Item, Named, TrustBundleObject
from signer.cluster.paging import Paging
from signer.errors import Conflict, Forbidden, NotFound, SignerError
from svid.bundle import TrustBundle
from svid.errors import InvalidBundle
from svid.spiffeid import TrustDomain

_log = logging.getLogger("podsvid.publish")
PEM, JWKS = "ca.crt", "bundle.json"
TRUST_DOMAIN_LABEL = "podsvid.io/trust-domain"
VERSIONS = ("v1", "v1beta1", "v1alpha1")
_GROUP = "/apis/certificates.k8s.io"
# Seconds: a change that no watch told of (a label, a deletion while away) is repaired after this.
REPAIR_SECONDS = 60.0
# Seconds after a change in which others are awaited: a new namespace brings several events.
SETTLE_SECONDS = 0.2


async def published_sequence(api: KubeApi, namespace: str, config_map: str, trust_domain: TrustDomain) -> int:
    """The sequence of the bundle that is published in `namespace`; 0 when there is none. Raises SignerError."""
    try:
        found = await api.get(f"/api/v1/namespaces/{namespace}/configmaps/{config_map}")
        return TrustBundle.from_jwks(trust_domain, str((found.get("data") or {})[JWKS]).encode()).sequence or 0
    except (NotFound, KeyError, InvalidBundle):
        return 0


@dataclass(frozen=True, slots=True)
class Published:
    """A ConfigMap's name, and what each key of it says of the own trust domain's bundle."""

    name: str
    keys: Mapping[str, Callable[[TrustBundle], bytes]]


def bundle_map(name: str) -> Published:
    """Podsvid's own one, which agents begin with."""
    return Published(name, {PEM: TrustBundle.to_pem, JWKS: TrustBundle.to_jwks})


def root_map(name: str, key: str) -> Published:
    """One with the roots only, as others look for it."""
    return Published(name, {key: TrustBundle.to_pem})


@dataclass(frozen=True, slots=True)
class Copy:
    """What there is under a name of ours: whose it is, and a digest of what it says: anybody may have made it large."""

    namespace: str
    uid: str
    resource_version: str
    ours: bool
    digest: bytes


class Publisher:
    """Level-triggered: whatever is missing or different is written, what has no place any more is removed."""

    def __init__(
        self,
        api: KubeApi,
        namespaces: str,
        config_maps: Sequence[Published],
        signer_name: str,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> None:
        self._api = api
        self._signer_name = signer_name
        self._trust_domain = trust_domain
        self._bundles: tuple[TrustBundle, ...] = ()
        self._changed = asyncio.Event()
        self._reported: set[str] = set()
        query = {"labelSelector": namespaces} if namespaces else {}
        self._namespaces: Mirror[Named, str] = Mirror(api, "/api/v1/namespaces", Named, _live_namespace, clock, query)
        self._copies: tuple[tuple[Published, Mirror[DataObject, Copy]], ...] = tuple(
            (each, Mirror(api, "/api/v1/configmaps", DataObject, _copy, clock, _of_name(each.name)))
            for each in config_maps
        )

    async def publish(self, bundles: Sequence[TrustBundle]) -> None:
        """These from now on; the own trust domain's first."""
        self._bundles = tuple(bundles)
        self._changed.set()

    async def run(self) -> None:
        """Keep what is published right, for ever; only while leading."""
        await side_by_side(
            *(mirror.run() for mirror in self._mirrors),
            *(self._wake(mirror) for mirror in self._mirrors),
            self._reconcile_for_ever(),
        )

    @property
    def _mirrors(self) -> "tuple[Mirror[Any, Any], ...]":
        return self._namespaces, *(mirror for _, mirror in self._copies)

    async def _wake(self, mirror: "Mirror[Any, Any]") -> None:
        version = 0
        while True:
            version = await mirror.changed.wait_beyond(version)
            self._changed.set()

    async def _reconcile_for_ever(self) -> None:
        await self._namespaces.wait_synced()
        for _, mirror in self._copies:
            await mirror.wait_synced()
        while True:
            self._changed.clear()
            if self._bundles:
                await self.reconcile()
            with suppress(TimeoutError):
                async with asyncio.timeout(REPAIR_SECONDS):
                    await self._changed.wait()
                    await asyncio.sleep(SETTLE_SECONDS)

    async def reconcile(self) -> None:
        """Bring ConfigMaps and ClusterTrustBundles to what they should be; failures are logged and tried again."""
        own = self._bundles[0]
        selected = set(self._namespaces.values.values())
        for published, mirror in self._copies:
            name, wanted = published.name, {key: said(own).decode() for key, said in published.keys.items()}
            copies = {each.namespace: each for each in mirror.values.values()}
            for namespace in sorted(selected):
                work = self._write(name, namespace, copies.get(namespace), wanted)
                await self._attempt(f"ConfigMap {name} in {namespace}", work)
            for namespace, copy in copies.items():
                if namespace not in selected and copy.ours:
                    path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
                    await self._attempt(f"ConfigMap {name} in {namespace}", self._remove(path, copy))
        await self._attempt("ClusterTrustBundles", self._trust_bundles())

    async def _attempt(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            self._reported.discard(what)
        except SignerError as error:
            if what not in self._reported:
                self._reported.add(what)
                _log.warning("not published", extra={"what": what, "reason": error.reason, "error": str(error)})

    async def _write(self, name: str, namespace: str, copy: "Copy | None", data: dict[str, str]) -> None:
        collection = f"/api/v1/namespaces/{namespace}/configmaps"
        path = f"{collection}/{name}"
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {**MANAGED, TRUST_DOMAIN_LABEL: _label(self._trust_domain)},
            },
            "data": data,
        }
        if copy is None:
            try:
                await self._api.create(collection, body)
            except Conflict:
                self._changed.set()
            except NotFound:
                return  # the namespace went away
            return
        if not copy.ours:
            raise Forbidden(f"ConfigMap {name} in {namespace} is not podsvid's; rename or remove it")
        if copy.digest == _digest(data):
            return
        body["metadata"]["resourceVersion"] = copy.resource_version
        with suppress(NotFound):
            await self._api.replace(path, body)
            _log.info("trust bundle published", extra={"namespace": namespace, "config_map": name})

    async def _remove(self, path: str, seen: "Copy") -> None:
        # Only what was seen to be podsvid's: somebody may have put another in its place since.
        conditions = {"uid": seen.uid, "resourceVersion": seen.resource_version}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        with suppress(NotFound):
            await self._api.delete(path, options)

    async def _trust_bundles(self) -> None:
        found = await self._served()
        if found is None:
            return
        version, existing = found
        collection = f"{_GROUP}/{version}/clustertrustbundles"
        prefix = self._signer_name.replace("/", ":")
        wanted = {f"{prefix}:{bundle.trust_domain.name}": bundle for bundle in self._bundles if bundle.x509_authorities}
        for name, bundle in wanted.items():
            work = self._write_trust_bundle(version, name, bundle, existing.get(name))
            await self._attempt(f"ClusterTrustBundle {name}", work)
        for name, old in existing.items():
            if name not in wanted and name.startswith(f"{prefix}:") and old.ours:
                await self._attempt(f"ClusterTrustBundle {name}", self._remove(f"{collection}/{name}", old))

    async def _write_trust_bundle(self, version: str, name: str, bundle: TrustBundle, old: "Copy | None") -> None:
        collection = f"{_GROUP}/{version}/clustertrustbundles"
        pem = bundle.to_pem().decode()
        body: Object = {
            "apiVersion": f"certificates.k8s.io/{version}",
            "kind": "ClusterTrustBundle",
            "metadata": {"name": name, "labels": {**MANAGED, TRUST_DOMAIN_LABEL: _label(bundle.trust_domain)}},
            "spec": {"signerName": self._signer_name, "trustBundle": pem},
        }
        if old is None:
            await self._api.create(collection, body)
            return
        if not old.ours:
            raise Forbidden(f"ClusterTrustBundle {name} is not podsvid's; remove it")
        if old.digest != _digest({"trustBundle": pem}):
            body["metadata"]["resourceVersion"] = old.resource_version
            await self._api.replace(f"{collection}/{name}", body)

    async def _served(self) -> "tuple[str, dict[str, Copy]] | None":
        """The newest version of ClusterTrustBundles that is served, and what there is of them."""
        for version in VERSIONS:
            path = f"{_GROUP}/{version}/clustertrustbundles"
            found: dict[str, Copy] = {}
            try:
                async for page in Paging().pages(self._api, path, TrustBundleObject, {}):
                    for each in page.items:
                        bundle = (each.spec.trust_bundle if each.spec else None) or ""
                        found[each.metadata.name or ""] = _seen(each, {"trustBundle": bundle})
            except NotFound:
                continue
            return version, found
        return None


def _label(trust_domain: TrustDomain) -> str:
    # A label takes 63 characters, a trust domain's name 255 and underscores at its ends.
    return trust_domain.name[:63].strip("-._")


def _of_name(name: str) -> dict[str, str]:
    return {"fieldSelector": f"metadata.name={name}"}


def _live_namespace(body: Named) -> str | None:
    return None if body.metadata.deletion_timestamp else body.metadata.name or None


def _copy(body: DataObject) -> Copy | None:
    if not body.metadata.namespace:
        return None
    # Nothing of ours has binary data.
    return _seen(body, None if body.binary_data else body.data or {})


def _seen(body: Item, content: Mapping[str, str] | None) -> Copy:
    metadata = body.metadata
    labels = metadata.labels or {}
    return Copy(
        namespace=metadata.namespace or "",
        uid=metadata.uid or "",
        resource_version=metadata.resource_version or "",
        ours=all(labels.get(key) == value for key, value in MANAGED.items()),
        digest=b"" if content is None else _digest(content),
    )


def _digest(content: Mapping[str, str]) -> bytes:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
