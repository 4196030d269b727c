"""What can go wrong between `podsvid api` and a Workload API."""

from agent.errors import WorkloadApiError

_SHOWN = 200


class InvalidAddress(WorkloadApiError):
    """Not the address of a Workload API."""

    reason = "INVALID_WORKLOAD_API_ADDRESS"


class Unreachable(WorkloadApiError):
    """Nobody answers, or the answer is to come back later."""

    reason = "WORKLOAD_API_UNREACHABLE"


class NoIdentity(WorkloadApiError):
    """The caller has no identity, or not the one that it asked for."""

    reason = "NO_IDENTITY"


class RequestRefused(WorkloadApiError):
    """INVALID_ARGUMENT: asking the same again does not help."""

    reason = "WORKLOAD_API_REFUSED"


class NotServed(WorkloadApiError):
    """UNIMPLEMENTED: this server has no such method."""

    reason = "WORKLOAD_API_NOT_SERVED"


class UnusableAnswer(WorkloadApiError):
    """The answer breaks the specification, or what it holds is not valid now."""

    reason = "WORKLOAD_API_ANSWER_UNUSABLE"


def shown(text: str) -> str:
    """`text` for a message or a terminal: quoted, escaped and cut, since a server may have sent it."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
