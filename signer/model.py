"""The values that carry a call from the agent's request to the signature: made once, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from signer.errors import Reason, Refused
from svid.keys import KeyAlgorithm
from svid.spiffeid import SpiffeId, TrustDomain

# How long what is issued to a pod that ends may outlast its grace period: as Kubernetes counts a token that is bound to
# it.
AFTERWARDS = timedelta(seconds=60)
# When to ask again: during an outage of the API server, and where it is a matter of moments.
OUTAGE_RETRY, SOON = timedelta(seconds=5), timedelta(seconds=2)
# Of one pod: what policy gives it, and what it asks for beside.
MAX_DNS_NAMES = 32
# What is shown in place of a policy's name where none matched. No object can be called that.
NO_POLICY = "(default)"


@dataclass(frozen=True, slots=True)
class BoundToken:
    """What a service account token proves once it was verified. `pod_*` and `node_*` are empty when it is not bound."""

    namespace: str
    service_account: str
    service_account_uid: str
    pod_name: str
    pod_uid: str
    node_name: str
    node_uid: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Agent:
    """An authenticated agent: the node it speaks for, and its own pod."""

    node_name: str
    node_uid: str
    pod_name: str
    pod_uid: str
    token_expires_at: datetime


class Standing(StrEnum):
    """What is proven of who brings a token: an address only, a pod, an agent, or that the cluster signed the token."""

    STRANGER = "stranger"
    PROXY = "proxy"
    AGENT = "agent"
    PROVEN = "proven"


@dataclass(frozen=True, slots=True)
class Sender:
    """Who brings a token. `name`: address, pod's or node's uid, or whom a signed token is of; empty when not known."""

    standing: Standing
    name: str


@dataclass(frozen=True, slots=True)
class PodClaim:
    """The pod that an agent says it asks for."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A pod's graceful end: asked for at `since`, over at `until`, which is its deletionTimestamp."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class VolumeWish:
    """What a pod's author wrote at one of podsvid's volumes, as it stands there; empty: nothing.

    `by_sub_path`: the containers that mount it by subPath.
    """

    volume: str
    key_algorithm: str = ""
    dns_names: str = ""
    by_sub_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceWish:
    """What a pod's author wrote at a podCertificate source of podsvid's, in the projected volume of that name, as it
    stands there: `keyType` and `userAnnotations`."""

    volume: str
    key_type: str = ""
    annotations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LivePod:
    """A pod as the API server has it: all that attestation and policy look at.

    `drivers` are the CSI drivers that its volumes name (inline ones only). `oversized`: it has more labels or drivers
    than are kept, so that nobody may decide by them; it gets nothing. `addresses` are an agent's, its host's among
    them, as `runtime.listening.exact` spells them; they tell who may wait longer for a place, never who somebody is.
    `left_out`: its namespace has more pods than count, and this is an outline that nobody may decide by. `leaving`: it
    is being deleted. `wishes`, of volumes of podsvid's drivers: for what is said, never for what is decided.
    `pod_certificate`: it has a projected podCertificate source of podsvid's Kubernetes signer, where that is on;
    `certificate_mosts`: the least and the greatest lifetime that such sources allow, `source_wishes`: what is asked for
    at them, both for what is said.
    """

    namespace: str
    name: str
    uid: str
    node_name: str
    service_account: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    drivers: frozenset[str] = frozenset()
    finished: bool = False
    mirror: bool = False
    oversized: bool = False
    addresses: frozenset[str] = frozenset()
    created: str = ""
    left_out: bool = False
    leaving: Leaving | None = None
    wishes: tuple[VolumeWish, ...] = ()
    pod_certificate: bool = False
    certificate_mosts: tuple[timedelta, ...] = ()
    source_wishes: tuple[SourceWish, ...] = ()

    @property
    def age(self) -> tuple[str, str, str]:
        """The oldest of a namespace count. Its author chooses the name, which decides among those of one second."""
        return (self.created, self.name, self.uid)

    def outline(self) -> "LivePod":
        """Of one that does not count."""
        nothing = replace(self, labels={}, drivers=frozenset(), wishes=(), source_wishes=())
        return replace(nothing, pod_certificate=False, certificate_mosts=(), left_out=True)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class AttestedPod:
    """A pod that attestation let pass.

    `held`: the identity that it has, when the API server is away and it was let pass by what was known before. `until`:
    what is issued for it must not outlast this; it was let pass by a token that ended while the pod does.
    """

    pod: LivePod
    agent: Agent
    held: SpiffeId | None = None
    until: datetime | None = None

    @property
    def degraded(self) -> bool:
        """Whether it was let pass without the API server."""
        return self.held is not None

    def check(self, spiffe_id: SpiffeId) -> None:
        """Without the API server a pod goes on as what it was, and as nothing else. Raises Refused."""
        if self.held not in (None, spiffe_id):
            raise Refused(
                Reason.API_SERVER_UNAVAILABLE,
                f"the API server is away, and {spiffe_id} is not the identity that the pod had: it waits",
                retry_after=OUTAGE_RETRY,
            )


@dataclass(frozen=True, slots=True)
class TtlLimits:
    """The cluster's say in how long SVIDs live: what is usual, and between what policies and pods may choose.

    `x509_pod_max_ttl` bounds what a pod's author asks for where no policy says how long.
    """

    x509_ttl: timedelta
    x509_min_ttl: timedelta
    x509_pod_max_ttl: timedelta
    x509_max_ttl: timedelta
    jwt_ttl: timedelta
    jwt_max_ttl: timedelta


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What policy gives a pod: the one identity, and the bounds of what may be issued for it.

    `policy` is "<namespace>/<name>", "<name>" of a cluster policy, or None where none matched. What a pod gets without
    a policy hangs on that None, never on a name: names are chosen by whoever may write policies. `dns_names` go into
    every certificate, and `common_name` is its subject, which is empty without one; a None TTL means the signer's own,
    and its text is as the policy's author wrote it; `key_algorithms` empty allows all; `federates_with` None means all
    there are.
    """

    spiffe_id: SpiffeId
    policy: str | None = None
    dns_names: tuple[str, ...] = ()
    common_name: str = ""
    x509_ttl: timedelta | None = None
    x509_ttl_text: str = ""
    jwt_ttl: timedelta | None = None
    key_algorithms: frozenset[KeyAlgorithm] = frozenset()
    hint: str = ""
    federates_with: tuple[TrustDomain, ...] | None = None
    # What of the policies a person should look at: others that also matched, Services whose names were left out.
    surprises: tuple[str, ...] = ()

    @property
    def decided_by(self) -> str:
        """The policy as people and logs are told."""
        return NO_POLICY if self.policy is None else self.policy
