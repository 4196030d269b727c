"""What every agent is told: the bundles of all trust domains, and which SVIDs to renew early."""

from dataclasses import dataclass
from functools import cached_property

from runtime.feed import Feed
from signer.authority.state import AuthorityState, Directive
from signer.pb import signer_pb2
from svid.bundle import TrustBundle
from svid.spiffeid import TrustDomain


@dataclass(frozen=True)
class Broadcast:
    """One answer of WatchTrust: `bundles` has the own trust domain's first."""

    sequence: int
    bundles: tuple[TrustBundle, ...]
    directives: tuple[Directive, ...]
    issues_jwt: bool
    digest: bytes

    @classmethod
    def of(cls, state: AuthorityState, federated: tuple[TrustBundle, ...]) -> "Broadcast":
        """What `state` and the federated bundles amount to."""
        bundles = (state.bundle, *federated)
        return cls(state.sequence, bundles, state.directives, state.active_jwt is not None, state.digest)

    @cached_property
    def message(self) -> signer_pb2.WatchTrustResponse:
        """For the wire: made once for all agents, and not to be changed."""
        answer = signer_pb2.WatchTrustResponse(sequence=self.sequence, issues_jwt=self.issues_jwt, digest=self.digest)
        for bundle in self.bundles:
            answer.bundles.add(trust_domain=bundle.trust_domain.name, jwks=bundle.to_jwks())
        for directive in self.directives:
            added = answer.renew.add(authority_id=directive.authority_id)
            getattr(added, "from").FromDatetime(directive.start)
            added.until.FromDatetime(directive.end)
        return answer


def trust_domains(told: Feed[Broadcast]) -> frozenset[TrustDomain]:
    """Of which agents have the bundle, or will have it."""
    found = told.current
    return frozenset(each.trust_domain for each in found.bundles) if found is not None else frozenset()
