"""What strangers get: each bound of a public listener."""

# Connections in all, and of one IPv4 address or IPv6 /64.
CONNECTIONS, BY_ADDRESS = 128, 32
# New ones a second, and at once; one address has a quarter of either.
RATE, BURST = 200.0, 400.0
# Seconds of a connection from its first packet to its answer, and for the peer to take leave.
DEADLINE, LEAVE = 10.0, 1.0
# Bytes of a request's head, and of what comes before TLS is agreed on: a post-quantum ClientHello has 2,000.
HEAD, GREETING = 8 * 1024, 16 * 1024
# Bytes in all: with what TLS adds to a head, also in records of one byte.
MOST = GREETING + 48 * HEAD
# Bytes that the kernel keeps of a connection each way; it doubles them.
KEPT = (16 * 1024, 64 * 1024)
# Connections that the kernel keeps until they are taken.
BACKLOG = 128
