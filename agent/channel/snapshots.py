"""Snapshots of identities: made in one process, read in the other. Bundles are the same for most, and are kept."""

from collections import OrderedDict

from agent.channel import messages
from agent.channel.messages import Bundle, Snapshot, Svid
from runtime.newest import keep
from svid.bundle import TrustBundle
from svid.identity import Withheld, WorkloadIdentity
from svid.spiffeid import TrustDomain
from svid.x509svid import X509Svid

# Own and federated bundles of a moment, and those of the moment before.
KEPT = 256


class Writer:
    """Makes snapshots; a bundle that it wrote already is not written again."""

    def __init__(self) -> None:
        # By the object's identity, which the bundle kept beside it holds.
        self._written: OrderedDict[int, tuple[TrustBundle, Bundle]] = OrderedDict()

    def snapshot(self, identity: WorkloadIdentity) -> Snapshot:
        """All of it, keys included."""
        held = identity.withheld
        return Snapshot(
            tuple(Svid(svid.chain_der(), svid.key_der(), svid.hint) for svid in identity.svids),
            self._bundle(identity.bundle),
            tuple(self._bundle(each) for each in identity.federated),
            messages.Withheld(held.why, held.refused, held.at_once) if held else None,
        )

    def _bundle(self, bundle: TrustBundle) -> Bundle:
        kept = self._written.get(id(bundle))
        if kept is None:
            kept = (bundle, Bundle(bundle.trust_domain.name, bundle.to_jwks()))
            keep(self._written, id(bundle), kept, KEPT)
        return kept[1]


class Reader:
    """Reads snapshots; workloads with the same bundle have one object."""

    def __init__(self) -> None:
        self._read: OrderedDict[Bundle, TrustBundle] = OrderedDict()

    def identity(self, snapshot: Snapshot) -> WorkloadIdentity:
        """What was written. Raises SvidError."""
        held = snapshot.withheld
        return WorkloadIdentity(
            tuple(X509Svid.from_der(each.chain, each.key, each.hint, own=True) for each in snapshot.svids),
            self._bundle(snapshot.bundle),
            tuple(self._bundle(each) for each in snapshot.federated),
            withheld=Withheld(held.why, held.refused, held.at_once) if held else None,
        )

    def _bundle(self, bundle: Bundle) -> TrustBundle:
        found = self._read.get(bundle)
        if found is None:
            found = TrustBundle.from_jwks(TrustDomain(bundle.trust_domain), bundle.jwks)
            keep(self._read, bundle, found, KEPT)
        return found
