"""What can go wrong in the agent. `reason` is stable; the text tells a person what to do and holds no secret."""


class AgentError(Exception):
    """Base of this package's errors."""

    reason = "AGENT_ERROR"


class AuthorityDamaged(AgentError):
    """The authority's stored state cannot be used; it is never replaced silently."""

    reason = "AUTHORITY_DAMAGED"


class AuthorityUnavailable(AgentError):
    """The authority cannot answer now."""

    reason = "AUTHORITY_UNAVAILABLE"


class AuthorityRefused(AgentError):
    """The authority refuses this identity; asking again unchanged does not help."""

    reason = "AUTHORITY_REFUSED"


class AuthorityDenied(AuthorityRefused):
    """The authority does not grant this identity: the workload is not to have it any more."""


class KeysBusy(AgentError):
    """No key was made for a pod: others wait for theirs on this node, or too many of its own do."""

    reason = "KEYS_BUSY"


class AlreadyRunning(AgentError):
    """Another agent holds the run directory."""

    reason = "ALREADY_RUNNING"


class WorkloadApiError(AgentError):
    """A Workload API call of the command line failed."""

    reason = "WORKLOAD_API_ERROR"


class SocketUnavailable(AgentError):
    """A pod's socket cannot be served now."""

    reason = "SOCKET_UNAVAILABLE"
