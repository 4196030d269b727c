"""Who takes turns on this node for what, in which numbers and on which threads: as the settings say."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from agent.config import AgentConfig
from agent.metrics import Metrics
from agent.workload.slow import Lane, SlowWork
from csi.turns import VolumeTurns
from runtime.blocking import Blocking
from runtime.turns import Turns

# For what blocks: mounts, journal, files that others keep.
THREADS = 4
# A keystore takes milliseconds.
KEYSTORE_THREADS = 1
# New volumes that are mounted and written at once; half of them are one namespace's at most.
MAKINGS = 2
# Volumes that are taken away at once; half of them are one namespace's at most. Much of it is waiting: for a renewal
# that is ended, and for the process that serves the socket.
ENDINGS = 16
# JWT-SVIDs that pods ask for, minted at once: of 12 calls at the signer, the others are for X.509-SVIDs. One that signs
# on this node does it between two steps of everything else.
SIGNER_JWTS, LOCAL_JWTS = 8, 1


@dataclass(frozen=True, slots=True)
class Threads:
    """For what blocks, for keys and for keystores: no kind waits for another."""

    blocking: Blocking
    keys: Blocking
    keystores: Blocking


@contextmanager
def threads(config: AgentConfig) -> Iterator[Threads]:
    """Threads, which are begun when they are needed and have ended after the block."""
    with ExitStack() as stack:
        yield Threads(
            Blocking(stack.enter_context(ThreadPoolExecutor(THREADS, "blocking"))),
            Blocking(stack.enter_context(ThreadPoolExecutor(config.key_threads, "key"))),
            Blocking(stack.enter_context(ThreadPoolExecutor(KEYSTORE_THREADS, "keystore"))),
        )


def volume_turns(config: AgentConfig, metrics: Metrics) -> VolumeTurns:
    """The turns of volumes that come and go: no namespace has all of them."""
    whole = Turns(config.publishes, of_group=max(config.publishes // 2, 1), seen=metrics.queue("publish"))
    metrics.watch_queue("publish", lambda: whole.waiting)
    ending = Turns(ENDINGS, of_group=ENDINGS // 2, seen=metrics.queue("unpublish"))
    metrics.watch_queue("unpublish", lambda: ending.waiting)
    return VolumeTurns(whole, Turns(MAKINGS, of_group=MAKINGS // 2), ending)


def slow_work(config: AgentConfig, on: Threads, metrics: Metrics) -> SlowWork:
    """Keys and keystores, each in turn on threads of its own, and the JWT-SVIDs that pods ask for."""
    keys = Turns(config.key_threads, most_waiting=config.key_queue, seen=metrics.queue("key"))
    keystores = Turns(KEYSTORE_THREADS, seen=metrics.queue("keystore"))
    at_once = SIGNER_JWTS if config.authority == "signer" else LOCAL_JWTS
    jwt = Turns(at_once, of_group=max(at_once // 2, 1), most_waiting=config.jwt_queue, seen=metrics.queue("jwt"))
    metrics.watch_queue("key", lambda: keys.waiting)
    metrics.watch_queue("keystore", lambda: keystores.waiting)
    metrics.watch_queue("jwt", lambda: jwt.waiting)
    return SlowWork(Lane(keys, on.keys), Lane(keystores, on.keystores), jwt)
