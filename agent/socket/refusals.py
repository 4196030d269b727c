"""Why a pod's connection is refused: the words by which the metrics count it, as agent/channel/messages.py has them."""

from typing import Final

# More at once than may be: of one socket, of its pod, of all pods.
OF_SOCKET: Final = "connections of a socket"
OF_POD: Final = "connections of a pod"
OF_ALL: Final = "connections of all pods"
# Before it has acknowledged the settings: no HTTP/2, or more than one may say; more than its pod, or all, may have so;
# and nothing of the kind in time.
FIRST: Final = "first bytes"
FIRST_OF_ALL: Final = "first bytes of all connections"
LATE: Final = "first bytes too late"
DESCRIPTORS: Final = "descriptors"
ALL: Final = (OF_SOCKET, OF_POD, OF_ALL, FIRST, FIRST_OF_ALL, LATE, DESCRIPTORS)
