"""Where agents are served, as the settings say: in this process, or in workers."""

from signer import worker_settings
from signer.config import SignerConfig
from signer.front import budget
from signer.front.agents import SERVICE, SignerService
from signer.front.door import Door
from signer.front.server import Behind, Here
from signer.metrics import Metrics
from signer.workers.crew import Crew

# Bytes of a worker without any connection, twice.
BASE = 128 * budget.MIB


def chosen(config: SignerConfig, service: SignerService, door: Door, metrics: Metrics) -> Behind:
    """For the connections of that door."""
    count = worker_settings.usual(config.workers)
    if count == 1:
        return Here(service.handlers())
    methods = {f"/{SERVICE}/{name}": handler for name, handler in service.methods().items()}
    return Crew(count, methods, door.spread, memory(count), (config.log_format, config.log_level), metrics)


def memory(count: int) -> int:
    """Bytes of data that each of so many may have: its part of what peers can make a replica hold, and of what
    connections that are used as meant take."""
    return BASE + (budget.FOR_PEERS + budget.AGENT_CONNECTIONS * budget.OF_AGENT) // count
