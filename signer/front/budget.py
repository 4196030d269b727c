"""What everybody together can make one replica hold: the constants of the front, and their sum.

The chart gives a replica 1 GiB. Half of it is for what it knows (pods, policies, connections that are used as meant);
what others can make it hold beside that stays below the other half. A test adds it up.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
# The chart's limit of a replica, and the share of it that peers may take.
REPLICA_MEMORY: Final = 1024 * MIB
FOR_PEERS: Final = REPLICA_MEMORY // 2
# What grpc and Python make of one byte: a call's header can have one byte on the wire, and is a pair of objects in each
# of three lists. Measured, bench/results/strangers.md.
SWOLLEN: Final = 160

# Connections on which nobody has proven to be an agent yet, in all; what one of them may send until somebody has; and
# seconds until it is closed. An agent's first call has about 5 KiB with TLS and comes within milliseconds.
STRANGERS: Final = 96
GREETING: Final = 8 * KIB
GREETING_SECONDS: Final = 10.0
# How often a connection is read: each time takes a turn of the loop, were it for one byte. A stranger's at once, and a
# second beyond that; an agent's once for so many of the bytes that it may bring in.
GREETING_READS, GREETING_READS_A_SECOND = 64, 20
AGENT_READ: Final = KIB
# Those that wait for such a place, or say nothing: a socket each, of which nothing is read.
WAITING: Final = 512
# Connections of proven agents, in all and of one node. At a new root each agent has two for a while; there need not be
# room for all of them: where there is none, a node's older one goes for another node's newer one.
AGENT_CONNECTIONS: Final = 6_144
NODE_CONNECTIONS: Final = 8
# What a replica takes for an agent that is connected and watches it; measured, bench/results/scale.md.
OF_AGENT: Final = 70 * KIB
# Bytes that both sockets of a connection keep in the kernel, each way.
SOCKET_BUFFER: Final = 32 * KIB

# Calls of one connection at once, and bytes of a message that grpc takes from one before somebody reads it. (A message
# that is larger is asked for once its call is attested.) Agents keep below that number by themselves.
STREAMS: Final = 16
WINDOW: Final = 2 * KIB
# Seconds that a client has to acknowledge these two; until then grpc holds it to the protocol's own limits, so what
# proven ones may have sent until then beyond their greeting, and beyond what mints have used up, is limited for all
# together. They get it in portions, a node never more than is left for the others.
SETTINGS_SECONDS: Final = 3.0
YOUNG_BYTES: Final = 128 * KIB
YOUNG_PORTION: Final = 4 * KIB

# A token is some 1.3 KiB. Bytes of a call's headers: refused above the first by chance, above the second always; each
# of them counts 32 more there. And how many there may be.
MAX_TOKEN: Final = 4 * KIB
MAX_HEADERS, MOST_HEADERS = 6 * KIB, 8 * KIB
HEADERS: Final = 32
# 16 KiB each of a token and a CSR, and 8 of DNS names, or a token and 16 of audiences; what an agent says of its SVIDs.
MAX_MINT: Final = 48 * KIB
MAX_REPORT: Final = 16 * KIB
# Batches of all nodes at once, which are mints as well: a replica's processor is busy with two, and who gets no place
# asks by single calls. Items of one, of which some 28 fit into a mint's message; so many of these are under way, or
# wait for their agent to take them. An answer has 1 to 2 KiB; below an intermediate of ML-DSA it has 16.
BATCHES: Final = 24
BATCH: Final = 32
BATCH_AT_ONCE: Final = 8
ANSWER: Final = 16 * KIB
# Mints of all nodes at once, trust streams, and calls that wait in one of grpc's servers for this process to take them
# up: there are two for a while once the certificate is renewed, as the old one's connections go on.
MINTS: Final = 512
TRUST_STREAMS: Final = AGENT_CONNECTIONS
PENDING: Final = 384
SERVERS: Final = 2

# The same of the port for Istio's proxies, where it is on: by pods, of which each has connections of its own, and calls
# now and then. A ztunnel begins with as many calls as it has accounts, which its TLS may put into one record of 16 KiB:
# less of it nobody can read, and there would be no first call.
PROXY_STRANGERS: Final = 12
PROXY_GREETING: Final = 24 * KIB
PROXY_WAITING: Final = 256
PROXY_CONNECTIONS: Final = 1_024
CONNECTIONS_OF_PROXY: Final = 4
PROXY_STREAMS: Final = 16
PROXY_MINTS: Final = 128
PROXY_MINTS_OF_NODE: Final = 64
PROXY_PENDING: Final = 64
# A certificate request of the largest key has 3 KiB. What a message's `metadata` is when it is parsed, of one byte of
# empty values: measured, 26. Only the texts that count are kept, so it is there once, for a moment.
PROXY_MESSAGE: Final = 24 * KIB
PARSED: Final = 32
# What that adds to what a replica holds: beyond its limit.
FOR_PROXIES: Final = 192 * MIB


def held_at_most() -> Mapping[str, int]:
    """Bytes that peers can make a replica hold, by what they are."""
    # Headers are there as bytes and as objects.
    attested = 2 * MOST_HEADERS
    return MappingProxyType(
        {
            "unread messages: connections x streams x window": (STRANGERS + AGENT_CONNECTIONS) * STREAMS * WINDOW,
            "what strangers send before they are known": STRANGERS * GREETING * SWOLLEN,
            "what nobody has read yet: waiting connections x buffer": WAITING * SOCKET_BUFFER,
            "what agents send before they acknowledge limits": YOUNG_BYTES * SWOLLEN,
            "headers of calls that wait": SERVERS * PENDING * MOST_HEADERS // 33 * SWOLLEN,
            "mints under way": MINTS * (MAX_MINT + attested),
            "answers of batches that are not read": BATCHES * BATCH_AT_ONCE * ANSWER,
            "trust streams": TRUST_STREAMS * attested,
        }
    )


def held_for_proxies() -> Mapping[str, int]:
    """The same of the port for Istio's proxies, with what its connections take by themselves: the chart's limit counts
    with agents' only."""
    return MappingProxyType(
        {
            "unread messages": (PROXY_STRANGERS + PROXY_CONNECTIONS) * PROXY_STREAMS * WINDOW,
            "what strangers send": PROXY_STRANGERS * PROXY_GREETING * SWOLLEN,
            "what nobody has read yet": PROXY_WAITING * SOCKET_BUFFER,
            "what proxies send before they acknowledge limits": YOUNG_BYTES * SWOLLEN,
            "headers of calls that wait": SERVERS * PROXY_PENDING * MOST_HEADERS // 33 * SWOLLEN,
            # A message, and its certificate request in DER.
            "mints under way": PROXY_MINTS * 2 * (PROXY_MESSAGE + MOST_HEADERS) + PROXY_MESSAGE * PARSED,
            "connections that are used as meant": PROXY_CONNECTIONS * OF_AGENT,
        }
    )


def bytes_of_node(mints: int, burst: int) -> tuple[int, int]:
    """What one agent's connection may bring in, a second and at once, where a node may ask for so many mints."""
    return mints * 8 * KIB, min(max(burst * 4 * KIB, 64 * KIB), MIB)
