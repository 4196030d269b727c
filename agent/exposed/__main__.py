"""`python -m agent.exposed`: started by the agent only (agent.servers.process), which hands it everything."""

# First of all: it says what the others do not load.
from agent.exposed import unloaded  # noqa: F401 isort: skip
import concurrent.futures.thread
import linecache
import signal
import sys
import traceback

import google.protobuf.descriptor_pb2
from cryptography.hazmat.backends.openssl import backend

# All that it needs is loaded while it may still read files; nothing that a pod sent has been read.
from agent.exposed import confinement, exhaustion, server
from runtime.stopping import SIGNALS

# What others load only when they come to it.
LATE = (
    concurrent.futures.thread,
    linecache,
    traceback,
    google.protobuf.descriptor_pb2,
    backend,
)


def main() -> None:
    """Arguments: descriptor of the channel, the agent's process id, user, bytes of memory, descriptors, `strict` or
    `lenient`."""
    channel, parent, user, memory, descriptors = (int(each) for each in sys.argv[1:6])
    bounds = confinement.Bounds(user, memory, descriptors, parent, sys.argv[6] == "strict")
    # It ends with its channel, after the agent has had its calls ended: not before that with a whole process group.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        lacking, alone = confinement.confine(bounds)
    except confinement.Refused as error:
        sys.exit(f"cannot be confined: {error}")
    exhaustion.end_when_exhausted()
    server.run(channel, lacking, alone=alone)


if __name__ == "__main__":
    main()
