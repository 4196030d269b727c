"""What keeps the quickstart from going on."""


class QuickstartError(Exception):
    """The quickstart cannot go on; the text says why and, where there is one, the way out."""

    reason = "QUICKSTART_FAILED"


class AgentDied(QuickstartError):
    """The agent ended while it was needed."""

    reason = "AGENT_DIED"


class Stopped(Exception):
    """Ctrl-C or SIGTERM."""
