"""`podsvid api`: a workload's side of the socket, from a pod or anywhere with a socket.

In it: the client, what is written and signalled, what is printed.
Never in it: the daemons' own rooms (of agent/ only stubs, errors and the socket's names) and Kubernetes.
Through it goes: `X509State` from the client, to `rendering.py` and, as files, to `file_set.py`.
"""
