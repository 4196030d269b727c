"""What keeps the quickstart from going on."""


class QuickstartError(Exception):
    """The quickstart cannot go on; the text says why and, where there is one, the way out."""

    reason = "QUICKSTART_FAILED"
    # With the end of the agent's log.
    lines = True


class AgentDied(QuickstartError):
    """The agent ended while it was needed."""

    reason = "AGENT_DIED"


class Stopped(Exception):
    """Ctrl-C or SIGTERM."""
