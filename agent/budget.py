"""What a node's agent can come to need, from its settings. The chart's memory limit follows; a test adds it up."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from csi.room import KIB, MIB, OWN, Bounds

# The agent at rest, with all that it loads, and what it takes to mint and write for a while. bench/results/volumes.md.
PROCESS: Final = 48 * MIB
# What the process that answers on pods' sockets may have (the default of `socket_memory`), whatever they send.
SOCKETS: Final = 224 * MIB
# What pods do not read of what that process sends them: of the kernel, and counted as its own. On its way to a pod,
# from gRPC, and to gRPC where it stops reading one who does not read.
LEFT_UNREAD: Final = 90 * MIB
# What the process for pods that cost too much may have, which is there while there are such pods; and all that is left
# unread of what it sends them.
QUARANTINE: Final = 96 * MIB
QUARANTINE_CONNECTIONS: Final = 1024
QUARANTINE_UNREAD: Final = 30 * MIB
# One more such process, which is loaded and waits until that one ends: 25 MiB are its own.
WAITING: Final = 32 * MIB
# Connections of all pods together (agent/socket/connections.py has them), and descriptors of each: the pod's, and both
# ends of the one to gRPC. Of a volume: its socket, and the one of gRPC. gRPC has its own of those that were closed a
# moment longer; the rest is the process's own.
CONNECTIONS: Final = 3072
EACH, OF_A_VOLUME, REFUSED, REST = 3, 2, 1024, 200
# Probes and scrapers, docs/metrics.md; and the chart's /tmp, which is memory.
PAGES: Final = 9 * MIB
TMP: Final = 8 * MIB
# `podsvid node ls` or `explain` in the agent's pod, as the console has it run: one at a time (podsvid/readings.py). A
# memory cgroup counts 18 MiB of one, over what the agent has loaded already; and so much of each volume that it lists.
READING, READ = 20 * MIB, 12 * KIB
# resources.limits.memory of the chart's agent.
LIMIT: Final = 824 * MIB


def descriptors(volumes: int) -> int:
    """Open files at most of the process that answers on pods' sockets."""
    return CONNECTIONS * EACH + volumes * OF_A_VOLUME + REFUSED + REST


def needed(bounds: Bounds) -> Mapping[str, int]:
    """Bytes at most, by what they are for."""
    return MappingProxyType(
        {
            "the agent itself": PROCESS,
            "its own part of volumes: `volumes` x 64 KiB": bounds.volumes * OWN,
            "the volumes: `volumes_memory`": bounds.memory,
            "the pods' sockets: `socket_memory`": SOCKETS,
            "what pods leave unread: 3072 connections x 30 KiB": LEFT_UNREAD,
            "another process for them, which waits": WAITING,
            "the one for pods that cost too much": QUARANTINE,
            "what those leave unread: 1024 connections x 30 KiB": QUARANTINE_UNREAD,
            "probes and scrapers": PAGES,
            "`/tmp` of the container": TMP,
            "one `podsvid node ls` at a time: 20 MiB and `volumes` x 12 KiB": READING + bounds.volumes * READ,
            "kept free: `memory_headroom`": bounds.headroom,
        }
    )
