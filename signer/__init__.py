"""The cluster CA as a service: who asks, for which pod, what it gets, and the signature.

In it: `daemon.py` puts the rooms together; `model.py` has the values that go from room to room.
Never in it: volumes and kubelet (csi/), the agent; the `kubernetes` package anywhere but in `cluster/`.
Through it goes: `PodClaim` goes in, becomes an `AttestedPod`, gets an `Entitlement`, and a chain comes out.
"""
