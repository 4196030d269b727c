"""What the signer refuses and what can go wrong in it. `reason` is stable; the text tells a person what to do.

No text holds a token or a key.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType

ERROR_DOMAIN = "signer.podsvid.io"
# What to look at where the API server of a kubeconfig does not answer.
LOOK_AT_KUBECONFIG = "look at the kubeconfig's context and at your connection"


class Reason(StrEnum):
    """Why a call was refused: the `reason` of its google.rpc.ErrorInfo."""

    INVALID_REQUEST = "INVALID_REQUEST"
    AGENT_TOKEN_MISSING = "AGENT_TOKEN_MISSING"
    AGENT_TOKEN_INVALID = "AGENT_TOKEN_INVALID"
    AGENT_TOKEN_EXPIRED = "AGENT_TOKEN_EXPIRED"
    AGENT_TOKEN_AUDIENCE = "AGENT_TOKEN_AUDIENCE"
    AGENT_TOKEN_UNBOUND = "AGENT_TOKEN_UNBOUND"
    AGENT_DENIED = "AGENT_DENIED"
    POD_TOKEN_MISSING = "POD_TOKEN_MISSING"
    POD_TOKEN_INVALID = "POD_TOKEN_INVALID"
    POD_TOKEN_EXPIRED = "POD_TOKEN_EXPIRED"
    POD_TOKEN_AUDIENCE = "POD_TOKEN_AUDIENCE"
    POD_TOKEN_UNBOUND = "POD_TOKEN_UNBOUND"
    POD_TOKEN_REPLAYED = "POD_TOKEN_REPLAYED"
    POD_ON_OTHER_NODE = "POD_ON_OTHER_NODE"
    POD_NOT_FOUND = "POD_NOT_FOUND"
    POD_UID_MISMATCH = "POD_UID_MISMATCH"
    POD_FINISHED = "POD_FINISHED"
    POD_IS_MIRROR = "POD_IS_MIRROR"
    POD_OVERSIZED = "POD_OVERSIZED"
    NAMESPACE_FULL = "NAMESPACE_FULL"
    POD_WITHOUT_DRIVER = "POD_WITHOUT_DRIVER"
    POD_WITHOUT_CERTIFICATE_SOURCE = "POD_WITHOUT_CERTIFICATE_SOURCE"
    SERVICE_ACCOUNT_MISMATCH = "SERVICE_ACCOUNT_MISMATCH"
    SERVICE_ACCOUNT_REPLACED = "SERVICE_ACCOUNT_REPLACED"
    CSR_INVALID = "CSR_INVALID"
    PROOF_OF_POSSESSION = "PROOF_OF_POSSESSION"
    KEY_WEAK = "KEY_WEAK"
    KEY_ALGORITHM_DENIED = "KEY_ALGORITHM_DENIED"
    POLICY_DENIED = "POLICY_DENIED"
    POLICY_UNUSABLE = "POLICY_UNUSABLE"
    DNS_NAME_DENIED = "DNS_NAME_DENIED"
    NOT_ENTITLED = "NOT_ENTITLED"
    IMPERSONATION_DENIED = "IMPERSONATION_DENIED"
    CLUSTER_UNKNOWN = "CLUSTER_UNKNOWN"
    JWT_DISABLED = "JWT_DISABLED"
    ISSUANCE_REFUSED = "ISSUANCE_REFUSED"
    RATE_LIMITED = "RATE_LIMITED"
    BUSY = "BUSY"
    API_SERVER_UNAVAILABLE = "API_SERVER_UNAVAILABLE"
    AUTHORITY_UNAVAILABLE = "AUTHORITY_UNAVAILABLE"
    AUTHORITY_KEY_STORE_UNAVAILABLE = "AUTHORITY_KEY_STORE_UNAVAILABLE"
    RECONNECT = "RECONNECT"
    INTERNAL = "INTERNAL"


class SignerError(Exception):
    """Base of this package's errors."""

    reason: str = "SIGNER_ERROR"


class Refused(SignerError):
    """A call is refused. `retry_after`: when trying again may help."""

    def __init__(self, reason: Reason, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.retry_after = retry_after


class ApiUnavailable(SignerError):
    """The Kubernetes API server cannot be reached, or answers with an error of its own."""

    reason = "API_SERVER_UNAVAILABLE"


class AnswerTooLarge(ApiUnavailable):
    """The API server's answer is larger than what is read at once; fewer objects may fit."""


class NotFound(SignerError):
    """The API server knows no such object."""

    reason = "NOT_FOUND"


class Conflict(SignerError):
    """The object was changed by another, or exists already."""

    reason = "CONFLICT"


class Forbidden(SignerError):
    """RBAC or an admission rule denies the call; the text is the API server's."""

    reason = "FORBIDDEN"


class Gone(SignerError):
    """A watch's resource version is too old; list again."""

    reason = "GONE"


class StateDamaged(SignerError):
    """The authorities' stored state cannot be used; it is never replaced silently."""

    reason = "AUTHORITY_DAMAGED"


class InvalidPolicy(SignerError):
    """A policy object is unusable."""

    reason = "INVALID_POLICY"


class TransitionRefused(SignerError):
    """The authorities are not in a state from which that step is possible."""

    reason = "TRANSITION_REFUSED"


class CertificateRefused(SignerError):
    """What a CA above certified cannot be used as an authority; the one that signs stays."""

    reason = "UPSTREAM_CERTIFICATE_REFUSED"


class RootsRefused(SignerError):
    """The roots that a CA above names are not trusted; those of before stay."""

    reason = "UPSTREAM_ROOTS_REFUSED"


# For docs/signer.md, and complete: a test compares.
HELP: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.INVALID_REQUEST: "a field is too long or unusable; the text says which",
        Reason.AGENT_TOKEN_MISSING: "the agent sent no token: set its `agent_token_file`",
        Reason.AGENT_TOKEN_INVALID: "the API server does not accept the agent's token: is it of this cluster?",
        Reason.AGENT_TOKEN_EXPIRED: "the agent's token is old: is the projected volume still mounted?",
        Reason.AGENT_TOKEN_AUDIENCE: "the agent's token is for another audience than the signer's `audience`",
        Reason.AGENT_TOKEN_UNBOUND: "the agent's token names no pod and node: project it; Kubernetes 1.30 or newer",
        Reason.AGENT_DENIED: "the caller is not the agents' account: `agent_namespace`, `agent_service_account`",
        Reason.POD_TOKEN_MISSING: "no token of the pod: the CSIDriver object needs `tokenRequests` with the audience",
        Reason.POD_TOKEN_INVALID: "the API server does not accept the pod's token",
        Reason.POD_TOKEN_EXPIRED: "the pod's token is old: the CSIDriver object needs `requiresRepublish: true`; "
        "or the pod is being deleted, and its grace period is over, or nearly (a signer whose clock is ahead)",
        Reason.POD_TOKEN_AUDIENCE: "the pod's token is for another audience",
        Reason.POD_TOKEN_UNBOUND: "the pod's token names no pod or node: Kubernetes 1.30 or newer is needed",
        Reason.POD_TOKEN_REPLAYED: "the token is of another pod than the one asked for: look at that node",
        Reason.POD_ON_OTHER_NODE: "the pod is on another node than the agent that asks: look at that node",
        Reason.POD_NOT_FOUND: "the pod is gone",
        Reason.POD_UID_MISMATCH: "the pod is gone, and another one has its name",
        Reason.POD_FINISHED: "the pod has succeeded or failed",
        Reason.POD_IS_MIRROR: "static pods get no identity: nothing but the node speaks for them",
        Reason.POD_OVERSIZED: "the pod has more labels or drivers than anybody needs, and none of them is looked at",
        Reason.NAMESPACE_FULL: "the pod's namespace has more than `pods_per_namespace` pods, and older ones go first",
        Reason.POD_WITHOUT_DRIVER: "the pod has no inline csi volume of `driver_names`",
        Reason.POD_WITHOUT_CERTIFICATE_SOURCE: "the pod has no projected podCertificate source of the signer "
        "podsvid.io/spiffe, so that no kubelet asked for it",
        Reason.SERVICE_ACCOUNT_MISMATCH: "token and pod name different service accounts: look at that node; "
        "a PodCertificateRequest names another than its pod has, by name or uid: look at who made it",
        Reason.SERVICE_ACCOUNT_REPLACED: "the service account that a PodCertificateRequest names is gone, or "
        "another has its name: the request waits, and kubelet's next one names that of then",
        Reason.CSR_INVALID: "the certificate request cannot be read",
        Reason.PROOF_OF_POSSESSION: "the certificate request is not signed with its own key",
        Reason.KEY_WEAK: "the key's algorithm or size is not one that is accepted",
        Reason.KEY_ALGORITHM_DENIED: "the policy wants another algorithm: volumeAttributes `keyAlgorithm`, or a "
        "podCertificate source's `keyType`",
        Reason.POLICY_DENIED: "a policy denies the pod, or none matches and `require_policy` is set",
        Reason.POLICY_UNUSABLE: "the policy that wins cannot be carried out for the pod; its status says why",
        Reason.DNS_NAME_DENIED: "the pod asks for a DNS name that its policy does not give: volumeAttributes "
        "`dnsNames`, or `podsvid.io/dns-names` of a podCertificate source's `userAnnotations`",
        Reason.NOT_ENTITLED: "a JWT-SVID, or a proxy's certificate, was asked for another identity than the pod's",
        Reason.IMPERSONATION_DENIED: "a proxy asks for another pod's identity, and is no ztunnel: `istio_ztunnels`",
        Reason.CLUSTER_UNKNOWN: "a proxy says that it is of another cluster than `istio_clusters` names",
        Reason.JWT_DISABLED: "the signer issues no JWT-SVIDs",
        Reason.ISSUANCE_REFUSED: "the authority must not sign that; the text says why",
        Reason.RATE_LIMITED: "the node asks too often: `node_rate`, `node_burst`; agents wait and ask again",
        Reason.BUSY: "too many mints (`node_concurrency`) or trust streams of the node or the replica are open, or too "
        "many callers come with bad tokens; agents wait and ask again",
        Reason.API_SERVER_UNAVAILABLE: "the API server does not answer, or the signer may not review tokens; new "
        "pods wait, others are renewed up to `outage_limit`",
        Reason.AUTHORITY_UNAVAILABLE: "this replica has not read the authorities, or the active one has ended",
        Reason.AUTHORITY_KEY_STORE_UNAVAILABLE: "the token or KMS that has the authorities' keys does not sign, or not "
        "in time; the text says why: docs/pkcs11.md, docs/kms.md; agents wait and ask again",
        Reason.RECONNECT: "the trust stream's time is over; agents open it again",
    }
)
