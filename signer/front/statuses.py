"""The one table that turns the signer's reasons into gRPC status codes, for agents and for Istio's proxies."""

from collections.abc import Mapping
from types import MappingProxyType

import grpc

from signer.errors import Reason

_UNAUTHENTICATED = (
    Reason.AGENT_TOKEN_MISSING,
    Reason.AGENT_TOKEN_INVALID,
    Reason.AGENT_TOKEN_EXPIRED,
    Reason.AGENT_TOKEN_AUDIENCE,
    Reason.AGENT_TOKEN_UNBOUND,
    # No agent is told these; a proxy is told this code of them.
    Reason.IMPERSONATION_DENIED,
    Reason.CLUSTER_UNKNOWN,
)
_INVALID_ARGUMENT = (Reason.INVALID_REQUEST, Reason.CSR_INVALID, Reason.PROOF_OF_POSSESSION, Reason.KEY_WEAK)
# A pod's token that is refused is fetched anew by kubelet, so waiting helps; the agent keeps what it has meanwhile.
_UNAVAILABLE = (
    Reason.POD_TOKEN_EXPIRED,
    Reason.API_SERVER_UNAVAILABLE,
    Reason.AUTHORITY_UNAVAILABLE,
    Reason.AUTHORITY_KEY_STORE_UNAVAILABLE,
    Reason.RECONNECT,
)
_RESOURCE_EXHAUSTED = (Reason.RATE_LIMITED, Reason.BUSY, Reason.NAMESPACE_FULL)
STATUS_CODES: Mapping[Reason, grpc.StatusCode] = MappingProxyType(
    {
        **dict.fromkeys(Reason, grpc.StatusCode.PERMISSION_DENIED),
        **dict.fromkeys(_UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED),
        **dict.fromkeys(_INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT),
        **dict.fromkeys(_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
        **dict.fromkeys(_RESOURCE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED),
        Reason.JWT_DISABLED: grpc.StatusCode.UNIMPLEMENTED,
        Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)
# Istio's clients try again after the first and not after the second. No other code tells them more.
_MENDED_BY_TIME = frozenset({*_UNAVAILABLE, *_RESOURCE_EXHAUSTED, Reason.INTERNAL} - {Reason.POD_TOKEN_EXPIRED})
ISTIO_CODES: Mapping[Reason, grpc.StatusCode] = MappingProxyType(
    {
        each: grpc.StatusCode.UNAVAILABLE if each in _MENDED_BY_TIME else grpc.StatusCode.UNAUTHENTICATED
        for each in Reason
    }
)
