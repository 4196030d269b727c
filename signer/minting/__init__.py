"""What is signed, and how: names and lifetimes of one SVID, from what the pod is entitled to.

In it: the only place that issues SVIDs to pods.
Never in it: the Kubernetes API, gRPC: whatever is signed was decided before.
Through it goes: `Entitlement` and `AuthorityState` go in, a signed chain or token and its `RenewalWindow` come out.
"""
