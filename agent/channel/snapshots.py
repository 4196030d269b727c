"""Snapshots of identities: made in one process, read in the other. Bundles are the same for most, and are kept."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, TypeVar

from agent.channel import messages
from agent.channel.messages import Bundle, Snapshot, Svid
from runtime.newest import keep
from svid.bundle import TrustBundle
from svid.handed import UnreadIdentity, UnreadSvid
from svid.identity import Withheld, WorkloadIdentity
from svid.spiffeid import SpiffeId, TrustDomain
from svid.x509svid import X509Svid

# Of each trust domain the bundle of a moment, and that of the moment before: one that changes often takes no more
# memory than one that does not. What may be federated has room for fewer trust domains than these.
VERSIONS, DOMAINS = 2, 4096
_From = TypeVar("_From")
_To = TypeVar("_To")


class Writer:
    """Makes snapshots; a bundle that it wrote already is not written again."""

    def __init__(self) -> None:
        self._written: _Known[TrustBundle, Bundle] = _Known()

    def snapshot(self, identity: WorkloadIdentity) -> Snapshot:
        """All of it, keys included."""
        held = identity.withheld
        return Snapshot(
            tuple(_svid(each) for each in identity.svids),
            self._bundle(identity.bundle),
            tuple(self._bundle(each) for each in identity.federated),
            messages.Withheld(held.why, held.refused, held.at_once) if held else None,
        )

    def _bundle(self, bundle: TrustBundle) -> Bundle:
        name = bundle.trust_domain.name
        # By identity: to compare them costs more than to write one again.
        found = self._written.find(name, lambda each: each is bundle)
        return found or self._written.add(name, bundle, Bundle(name, bundle.to_jwks()))


class Reader:
    """Reads snapshots; workloads with the same bundle have one object."""

    def __init__(self) -> None:
        self._read: _Known[Bundle, TrustBundle] = _Known()

    def identity(self, snapshot: Snapshot) -> UnreadIdentity:
        """What was written; SVIDs as they came: the agent has checked them. Raises SvidError."""
        held = snapshot.withheld
        return UnreadIdentity(
            tuple(map(_unread, snapshot.svids)),
            self._bundle(snapshot.bundle),
            tuple(self._bundle(each) for each in snapshot.federated),
            Withheld(held.why, held.refused, held.at_once) if held else None,
        )

    def _bundle(self, bundle: Bundle) -> TrustBundle:
        name = bundle.trust_domain
        found = self._read.find(name, lambda each: each == bundle)
        return found or self._read.add(name, bundle, TrustBundle.from_jwks(TrustDomain(name), bundle.jwks))


def _svid(svid: X509Svid) -> Svid:
    return Svid(svid.chain_der(), svid.key_der(), svid.hint, str(svid.spiffe_id), svid.not_after.timestamp())


def _unread(svid: Svid) -> UnreadSvid:
    ends_at = datetime.fromtimestamp(svid.until, UTC)
    return UnreadSvid(SpiffeId.parse(svid.spiffe_id), ends_at, svid.chain, svid.key, svid.hint)


class _Known(Generic[_From, _To]):
    """What was made of the newest bundles of each trust domain."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, tuple[tuple[_From, _To], ...]] = OrderedDict()

    def find(self, domain: str, is_it: Callable[[_From], bool]) -> _To | None:
        return next((made for given, made in self._of.get(domain, ()) if is_it(given)), None)

    def add(self, domain: str, given: _From, made: _To) -> _To:
        keep(self._of, domain, ((given, made), *self._of.get(domain, ()))[:VERSIONS], DOMAINS)
        return made
