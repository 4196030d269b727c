"""The node daemon: identities of this node's pods, from the mint to file and socket.

In it: `daemon.py` puts the rooms together; `admin.py` answers root on this node.
Never in it: mounts and kubelet's calls (csi/), the CA of a cluster (signer/), Kubernetes' API.
Through it goes: `Volume` and `PodToken` go in; a `WorkloadIdentity` in a workload's feed comes out, to its files and
    its socket.
"""
